"""The errors Legato raises, as a tree; catch at the level you care about.

    LegatoError
    ├── UsageError          a wrong option, profile, label or preset name   (exit code 2)
    ├── ConfigError         settings that contradict each other             (exit code 2)
    ├── SourceError         a file, folder or device that cannot be read
    │   └── RecordingError  a packet recording that is not one
    ├── BundleError         a bundle that is incomplete, altered or too new
    ├── DataError           features, labels or checkpoints that do not fit
    ├── MissingExtraError   an optional package is not installed
    ├── ServiceError        a server that cannot be reached, refuses, or breaks its word
    └── OutputError         a result that could not be written

Every message is one sentence that names the field, the value and the way out.
"""

__all__ = [
    "BundleError",
    "ConfigError",
    "DataError",
    "LegatoError",
    "MissingExtraError",
    "OutputError",
    "RecordingError",
    "ServiceError",
    "SourceError",
    "UsageError",
]

from encoders.errors import (
    ConfigError,
    DataError,
    LegatoError,
    MissingExtraError,
    OutputError,
    SourceError,
    UsageError,
)


class RecordingError(SourceError):
    """A packet recording is not one, or its header is damaged."""


class BundleError(LegatoError):
    """A bundle is incomplete, altered or of an unknown version."""


class ServiceError(LegatoError):
    """A server cannot be reached, refuses what is asked, or does not do what it said."""
