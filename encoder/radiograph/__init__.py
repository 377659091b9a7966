"""A file, or an image in memory, becomes grey levels. `from encoder.radiograph import read`; see reader.py."""

from encoder.radiograph.grey import DICOM_RULE, GREY_RULE
from encoder.radiograph.reader import codecs, quiet, read
from encoder.radiograph.types import CODES, Header, InputError, Limits, Radiograph, Source, Warn
from encoder.radiograph.words import AGE_UNITS, VIEWS, parse_age, parse_view

__all__ = [
    "AGE_UNITS",
    "CODES",
    "DICOM_RULE",
    "GREY_RULE",
    "VIEWS",
    "Header",
    "InputError",
    "Limits",
    "Radiograph",
    "Source",
    "Warn",
    "codecs",
    "parse_age",
    "parse_view",
    "quiet",
    "read",
]
