"""Legato's runtime: packets in, predictions out.

Here lives everything that knows of packets, clocks, streams and bundles. Importing this package
imports neither torch nor PyAV; both come in when a bundle or a media source is opened.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.bundle import Bundle
    from runtime.errors import LegatoError
    from runtime.pipeline import Pipeline
    from runtime.prediction import Prediction
    from runtime.serve.client import Client
    from runtime.sources import open_source

__version__ = "0.1.0"
__all__ = ["Bundle", "Client", "LegatoError", "Pipeline", "Prediction", "__version__", "open_source"]

_HOMES = {
    "Bundle": "runtime.bundle",
    "Client": "runtime.serve.client",
    "LegatoError": "runtime.errors",
    "Pipeline": "runtime.pipeline",
    "Prediction": "runtime.prediction",
    "open_source": "runtime.sources",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
