"""The error classes of this package.

A message says what is wrong, with which input, and what to do.
"""


class HihlandmarkError(Exception):
    """Base class of all errors that hihlandmark raises on purpose."""


class ImageError(HihlandmarkError):
    """An image or video cannot be read, has an unsupported type, or is too large."""


class WeightsError(HihlandmarkError):
    """Weights are missing, corrupt, unsafe to load, or of another architecture."""


class ConfigurationError(HihlandmarkError):
    """An argument or a combination of arguments is invalid, or an extra is not installed."""


class DataError(HihlandmarkError):
    """A data set is incomplete, or one of its files does not follow its format."""


class TrainingError(HihlandmarkError):
    """Training cannot continue: a checkpoint is corrupt or not writable, or the loss is NaN."""


class ExportError(HihlandmarkError):
    """An exported network does not reproduce the points of the original."""
