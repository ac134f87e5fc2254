"""Many images: their sources, the formats of results, and a folder of results that resumes."""

from hihlandmark.io.formats import FORMATS, Result, to_record
from hihlandmark.io.job import ResultFolder, Shard, predict_sources, settings_of
from hihlandmark.io.sources import IMAGE_SUFFIXES, Source, find_images

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "Result",
    "ResultFolder",
    "Shard",
    "Source",
    "find_images",
    "predict_sources",
    "settings_of",
    "to_record",
]
