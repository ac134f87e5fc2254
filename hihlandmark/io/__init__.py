"""Many images: where they come from, what is written of them, a folder of results that resumes."""

from hihlandmark.io.formats import FORMATS, Result, to_record
from hihlandmark.io.job import ResultFolder, Shard, Totals
from hihlandmark.io.prediction import predict_sources
from hihlandmark.io.sources import IMAGE_SUFFIXES, Source, find_images

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "Result",
    "ResultFolder",
    "Shard",
    "Source",
    "Totals",
    "find_images",
    "predict_sources",
    "to_record",
]
