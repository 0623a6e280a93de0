"""The errors that every package may raise; ``runtime.errors`` draws the whole tree."""


class LegatoError(Exception):
    """Anything Legato reports to its user in one sentence."""

    exit_code = 1


class UsageError(LegatoError, ValueError):
    """A wrong option, profile, label or preset name."""

    exit_code = 2


class ConfigError(LegatoError, ValueError):
    """Settings contradict each other."""

    exit_code = 2


class DataError(LegatoError, ValueError):
    """Features, labels or checkpoints do not fit."""


class SourceError(LegatoError):
    """A file, folder or device cannot be read."""


class MissingExtraError(LegatoError, ImportError):
    """An optional package is not installed."""


class OutputError(LegatoError, OSError):
    """A result could not be written."""
