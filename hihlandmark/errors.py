"""The errors that this package raises. Each says what is wrong, with what, and what to do."""


class HihlandmarkError(Exception):
    """Base of all errors raised by hihlandmark on purpose."""


class ImageError(HihlandmarkError):
    """An image cannot be read, is of an unsupported kind, or is too large."""


class WeightsError(HihlandmarkError):
    """Weights are missing, corrupt, of another architecture, or not to be trusted."""


class ConfigurationError(HihlandmarkError):
    """An argument or a combination of arguments makes no sense, or an extra is not installed."""


class DataError(HihlandmarkError):
    """A data set is incomplete, or a file of it is not what its format says."""


class TrainingError(HihlandmarkError):
    """A training run cannot go on: its checkpoint is corrupt or unwritable, or its loss is NaN."""


class ExportError(HihlandmarkError):
    """An exported network does not give the points of the original."""
