"""What is in a dataset of training shards: sizes, missing cells, lengths, repetitions, samples."""

from hbt_ray.description.describe import Description, LanguageDescription, Lengths, Sample, describe
from hbt_ray.description.page import table_rows, write_page

__all__ = ["Description", "LanguageDescription", "Lengths", "Sample", "describe", "table_rows", "write_page"]
