"""Where packets come from: files, folders, packet recordings. PyAV is imported when a media file is opened."""

from runtime.sources.base import Source
from runtime.sources.replay import open_source, open_sources

__all__ = ["Source", "open_source", "open_sources"]
