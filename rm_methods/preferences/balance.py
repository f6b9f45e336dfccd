"""Length balance: a subsample in which the longer answer is chosen in exactly half of the pairs."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

from rm_methods.preferences.pair import PreferencePair
from rm_methods.preferences.splits import seeded_order


def balance_length(pairs: Sequence[PreferencePair], seed: int) -> list[PreferencePair]:
    """Drop pairs until chosen is longer (in characters) in exactly half of those left; the order is kept.

    Pairs of equal length are dropped. All pairs of the rarer kind are kept. Of the other kind, each source first keeps
    as many pairs as it has of the rarer kind, so that it is balanced by itself if possible. The rest is drawn at random
    from all sources.
    """
    longer = [pair for pair in pairs if len(pair.chosen) > len(pair.rejected)]
    shorter = [pair for pair in pairs if len(pair.chosen) < len(pair.rejected)]
    rare, common = sorted([shorter, longer], key=len)
    quota: dict[str, int] = defaultdict(int)
    for pair in rare:
        quota[pair.source] += 1
    matched = []
    surplus = []
    for pair in seeded_order(common, seed, "balance"):
        if quota[pair.source]:
            quota[pair.source] -= 1
            matched.append(pair)
        else:
            surplus.append(pair)
    kept = {pair.pair_id for pair in itertools.chain(rare, matched, surplus[: len(rare) - len(matched)])}
    return [pair for pair in pairs if pair.pair_id in kept]
