"""The hash of a file of benchmark items, which its masked copy keeps (`rm_methods.benchmarks.item.mask_items`)."""

from __future__ import annotations

import os

from rm_methods.errors import DataError
from rm_methods.files import file_hash
from rm_methods.parquet import read_metadata

ORIGINAL = "original_hash"  # key in the metadata of a masked file


def items_hash(source: str | os.PathLike) -> str:
    """The hash of a file of items; of a masked file, that of the original; of a damaged file, that of its bytes."""
    try:
        original = read_metadata(source, ORIGINAL, "prepare-benchmark")
    except DataError:
        original = None
    return str(original) if original else file_hash(source)
