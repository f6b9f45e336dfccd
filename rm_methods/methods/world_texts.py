"""Checks of the methods that know the controlled world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rm_methods.errors import DataError
from rm_methods.preferences.pair import PreferencePair


def check_world(method: str, pairs: Sequence[PreferencePair]) -> None:
    """Refuse training pairs of other data; raises DataError."""
    from rm_methods.preferences.world.vocabulary import SOURCE

    others = sorted({pair.source for pair in pairs if pair.source != SOURCE})
    if others or not pairs:
        raise DataError(
            f"The method '{method}' needs pairs of the controlled world (data.dataset: world), but the "
            f"training pairs are of {', '.join(others) or 'no source'}. Leave the method out."
        )


def annotators_of(method: str, pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """Skill and bias of the annotators who labeled pairs of the controlled world; raises DataError without them."""
    check_world(method, pairs)
    for pair in pairs:
        if "annotator" not in pair.meta:
            raise DataError(
                f"The method '{method}' needs pairs that annotators with a bias labeled, but pair {pair.pair_id} has "
                "no annotator. Set data.options.annotator and run prepare again, or leave the method out."
            )
    return pairs[0].meta["annotator"]
