"""Shared by the benchmarks of pairs: items of two responses whose label is the index of the better one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.benchmarks.cards import BenchmarkCard
from rm_methods.benchmarks.grading import best_is_strictly_above
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.sources import ItemReport, unique_id
from rm_methods.errors import DataError, UserError, nearest
from rm_methods.files import content_hash
from rm_methods.preferences.file_rows import ROLES, Unusable, check_prompt
from rm_methods.preferences.pair import Message, prompt_group

STRICT = "equal scores are wrong (strict)"


class PairItems:
    """Makes the items of a benchmark. Counts repeated ids, equal responses and empty responses in the report."""

    def __init__(self, report: ItemReport):
        self.report = report
        self._seen: Counter[str] = Counter()

    def item(
        self,
        prompt: Sequence[Message],
        responses: Sequence[str],
        label: int,
        *,
        subset: str,
        where: str,
        source_id: str | None = None,
        meta: dict[str, Any] | None = None,
    ) -> BenchmarkItem:
        """The item of a row.

        Args:
            responses: two, in the order of the source.
            label: index of the better response, or another label of the benchmark.
            where: file and row, for the report.
            source_id: id of the row; without one, the id is a hash of the content.
        """
        content = source_id or content_hash([list(prompt), list(responses), label])
        if responses[0] == responses[1]:
            self.report.count("both responses are the same text: always a tie, kept", where)
        if not all(response.strip() for response in responses):
            self.report.count("empty response, kept", where)
        return BenchmarkItem(
            item_id=unique_id(f"{subset}/{content}", where, self._seen, self.report),
            subset=subset,
            prompt=prompt,
            responses=responses,
            label=label,
            group=prompt_group(prompt),
            meta=meta or {},
        )

    def can_use(self, prompt: Sequence[Message], where: str) -> bool:
        """Whether strict chat templates take the prompt; if not, the row is counted as excluded."""
        try:
            check_prompt(prompt)
        except Unusable as problem:
            self.report.exclude(problem.reason, where)
            return False
        return True


def whole_number(row: Mapping[str, Any], key: str, allowed: Sequence[int], where: str) -> int:
    """A whole number of a row.

    Raises:
        DataError: it is missing, not a whole number, or not allowed.
    """
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value not in allowed:
        raise DataError(f"{where}: `{key}` is {value!r:.60}; expected one of {', '.join(map(str, allowed))}.")
    return value


def messages_of(row: Mapping[str, Any], key: str, where: str) -> list[Message]:
    """A conversation of a row: a list of messages with the keys `role` and `content`.

    Raises:
        DataError: it is anything else, or has an unknown role.
    """
    turns = row.get(key)
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: `{key}` must be a list of messages, found {str(turns)[:80]!r}.")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise DataError(f"{where}: `{key}`, message {number} has no text `content`: {str(turn)[:80]!r}.")
        if turn.get("role") not in ROLES:
            role = turn.get("role")
            raise DataError(f"{where}: `{key}`, message {number} has the role {role!r}. {nearest(str(role), ROLES)}")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def required_root(card: BenchmarkCard, root: Path | None, why: str) -> Path:
    """The local folder of a benchmark that cannot be read from the hub.

    Args:
        why: the reason, for the user.

    Raises:
        UserError: the configuration names no folder.
    """
    if root is None:
        raise UserError(
            f"benchmarks.{card.name}.root is not set: {why}. Clone {card.url} and name the folder of the clone."
        )
    return root


def grade_pair(label: Any, scores: np.ndarray) -> dict[str, float]:
    """Credit of one item: accuracy, 1 if the better response scores strictly higher. A tie or NaN is wrong."""
    return {"accuracy": best_is_strictly_above(label, scores)}
