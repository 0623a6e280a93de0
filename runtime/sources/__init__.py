"""Where packets come from: files, recordings, devices, addresses. Libraries are imported when something is opened."""

from runtime.sources.base import LiveSource, Source
from runtime.sources.joined import open_devices
from runtime.sources.replay import open_source, open_sources

__all__ = ["LiveSource", "Source", "open_devices", "open_source", "open_sources"]
