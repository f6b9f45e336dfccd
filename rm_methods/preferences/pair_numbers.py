"""Numbers that methods read from the training pairs: strengths of labels, and values that a data set keeps in `meta`.

All or nothing: a method that needs a number for each pair refuses data in which some pair has none, before it trains.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from rm_methods.errors import UserError, nearest
from rm_methods.preferences.pair import PreferencePair


def label_strengths(pairs: Sequence[PreferencePair], method: str, instead: str) -> list[float]:
    """The strength of each pair's label, in the units of the source.

    Args:
        method: for the message.
        instead: for the message: a sentence that says what to do without strengths.

    Raises:
        UserError: pairs without a finite strength; says how many and names the first.
    """
    strengths = [pair.strength for pair in pairs if pair.strength is not None and math.isfinite(pair.strength)]
    if len(strengths) < len(pairs):
        first = next(pair for pair in pairs if pair.strength is None or not math.isfinite(pair.strength))
        raise UserError(
            f"{method}: needs a strength (a finite number) for every pair, but {len(pairs) - len(strengths)} of "
            f"{len(pairs)} training pairs have none; the first is {first.pair_id} ({first.source}), with "
            f"{first.strength}. Use data whose reader gives strengths. {instead}"
        )
    return strengths


def meta_numbers(
    pairs: Sequence[PreferencePair], key: str, setting: str, lowest: float = -math.inf, highest: float = math.inf
) -> list[float]:
    """The number that each pair keeps in `meta` under `key`.

    Args:
        setting: `method.setting` that names the key, for the message.
        lowest, highest: the smallest and the largest number allowed.

    Raises:
        UserError: pairs without a finite number within the bounds; says how many, names the first and its value.
    """
    unusable = [pair for pair in pairs if not _is_number(pair.meta.get(key), lowest, highest)]
    if unusable:
        first = unusable[0]
        seen = f"has {first.meta[key]!r:.60}." if key in first.meta else f"has no such key. {nearest(key, first.meta)}"
        bounds = "" if math.isinf(lowest) and math.isinf(highest) else f" from {lowest:g} to {highest:g}"
        raise UserError(
            f"{setting}: every pair must have a finite number{bounds} in its meta under '{key}', but {len(unusable)} "
            f"of {len(pairs)} training pairs do not; the first is {first.pair_id} ({first.source}): it {seen} Name "
            "another key, or null to use the strengths of the labels."
        )
    return [float(pair.meta[key]) for pair in pairs]


def _is_number(value: Any, lowest: float, highest: float) -> bool:
    # True and False are numbers in Python, but not in a data set.
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    largest = sys.float_info.max
    # False for NaN, infinities, and integers beyond all floats.
    return max(lowest, -largest) <= value <= min(highest, largest)
