"""The content of a dataset card. `preferences/cards.py` reads it from the file; readers get it as an argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rm_methods.preferences.file_formats import FORMATS


@dataclass(frozen=True)
class SplitSource:
    """The source of one split.

    Attributes:
        hub: the hub's name of the split; None: not on the hub.
        files: glob patterns below the local root; none: files with the names that they have on the hub (train.jsonl,
            data/train-00000-of-00001.parquet).
        optional: the report does not mention it if a local root has no file for this split.
    """

    hub: str | None = None
    files: tuple[str, ...] = ()
    optional: bool = False

    def describe(self) -> str:
        """The files that are expected, for messages."""
        return ", ".join(self.files) or f"{self.hub}.* or {self.hub}-*.* in one of the formats {', '.join(FORMATS)}"


@dataclass(frozen=True)
class DatasetCard:
    """The description and origin of a data set.

    Attributes:
        name: name in the configuration and of the YAML file.
        hub_id, hub_config, revision: Hugging Face data set, its configuration and pinned commit. Without hub_id the
            data set has local files only. Without revision it is not pinned, which the report says.
        reader: a name in `readers.READERS`; `options` are its defaults for this data set.
        splits: our split -> its source. Empty if the reader makes the splits itself.
        local_files: one sentence on how to get the files, for error messages.
    """

    name: str
    title: str
    hub_id: str | None
    revision: str | None
    license: str
    citation: str
    url: str
    reader: str
    options: dict[str, Any] = field(default_factory=dict)
    splits: Mapping[str, SplitSource] = field(default_factory=dict)
    hub_config: str | None = None
    local_files: str = ""
