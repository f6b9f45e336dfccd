"""The sources of the section `data`: one data set, or a mixture of several.  Imports nothing heavy, and no reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DataSource:
    """One source of pairs.

    Attributes:
        where: key path of its settings: "data", or "data.sources.1" in a mixture.
        dataset, root, options: the settings of that name.
        name: of a source in a mixture, "" for a single data set. The `source` of its pairs begins with it.
        weight: its part of the training pairs; None: the sources have no weights, and all pairs are used.
    """

    where: str
    dataset: str
    root: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    weight: float | None = None


def data_sources(data: Mapping[str, Any]) -> list[DataSource]:
    """The sources of a resolved section `data`, in its order."""
    if "sources" not in data:
        return [DataSource("data", data["dataset"], data["root"], data["options"])]
    return [DataSource(where=f"data.sources.{k}", **entry) for k, entry in enumerate(data["sources"])]


def dataset_name(data: Mapping[str, Any]) -> str:
    """What a resolved section `data` reads, on one line: `data.dataset`, or the names of a mixture with their weights.

    >>> source = {"dataset": "a.jsonl", "root": None, "options": {}, "name": "a", "weight": 2.0}
    >>> dataset_name({"sources": [source, source | {"name": "b", "weight": 1}]})
    '2 a + 1 b'
    """
    if "sources" not in data:
        return data["dataset"]
    parts = [(source.name, source.weight) for source in data_sources(data)]
    return " + ".join(name if weight is None else f"{weight:g} {name}" for name, weight in parts)


def source_name(pair_source: str) -> str:
    """The name of the source that `PreferencePair.source` begins with.

    >>> source_name("hh_rlhf/harmless-base")
    'hh_rlhf'
    """
    return pair_source.partition("/")[0]


def source_metric(split: str, source: str) -> str:
    """Name of the metric over the pairs of a split that come from one source of a mixture."""
    return f"{split}_from_{source}"
