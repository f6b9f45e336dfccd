"""Duplicates, splits and samples of pairs.

Every random choice orders pairs by a hash of the seed and the pair: it does not depend on the order of the files, and adding rows
changes the fate of no other row.  A split never cuts a group (pairs with one prompt): the fault this prevents is a validation set
that is a slice of the training set.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from rm_methods.preferences.pair import PreferencePair


def seeded_order(pairs: Iterable[PreferencePair], seed: int, purpose: str) -> list[PreferencePair]:
    """The pairs in random order: sorted by hash(seed, purpose, pair_id)."""
    return sorted(pairs, key=lambda pair: _hash(seed, purpose, pair.pair_id))


def _hash(seed: int, purpose: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()[:8], "big")


def _claim(split: str) -> int:
    """Which split keeps a group that stands in several: any test split before validation before train."""
    return {"train": 0, "validation": 1}.get(split, 2)


def drop_duplicates(pairs: Sequence[PreferencePair]) -> tuple[list[PreferencePair], dict[str, int]]:
    """Keep one copy of each pair, and no copy of pairs that are also there the other way round.

    Of equal pairs in several splits the copy in an evaluation split is kept.

    Returns:
        the pairs left in their order; counts of "exact" and "contradictory" pairs dropped.
    """
    labels: dict[tuple, set[tuple[str, str]]] = defaultdict(set)
    for pair in pairs:
        labels[_compared(pair)].add((pair.chosen, pair.rejected))
    agreed = [pair for pair in pairs if len(labels[_compared(pair)]) == 1]
    kept: dict[str, int] = {}  # position of the copy that stays
    for position, pair in enumerate(agreed):
        if pair.pair_id not in kept or _claim(pair.split) > _claim(agreed[kept[pair.pair_id]].split):
            kept[pair.pair_id] = position
    counts = {"exact": len(agreed) - len(kept), "contradictory": len(pairs) - len(agreed)}
    return [agreed[position] for position in sorted(kept.values())], counts


def _compared(pair: PreferencePair) -> tuple:
    """What a pair compares, whichever way round."""
    prompt = tuple((message["role"], message["content"]) for message in pair.prompt)
    return prompt, *sorted((pair.chosen, pair.rejected))


def split_train(
    pairs: Sequence[PreferencePair], validation_fraction: float, test_fraction: float, seed: int
) -> list[PreferencePair]:
    """Move groups out of "train" into "validation" and "test", each only if the source itself has no such split.

    A group's place is hash(seed, group), a uniform number u in [0, 1): validation if u < validation_fraction, test if it is in the
    next `test_fraction`, else train.  Fractions are of groups, and in expectation.
    """
    present = {pair.split for pair in pairs}
    validation = 0.0 if "validation" in present else validation_fraction
    test = 0.0 if "test" in present else test_fraction
    result = []
    for pair in pairs:
        if pair.split == "train":
            place = _hash(seed, "split", pair.group) / 2**64
            split = "validation" if place < validation else "test" if place < validation + test else "train"
            pair = replace(pair, split=split)
        result.append(pair)
    return result


def drop_leaks(pairs: Sequence[PreferencePair]) -> tuple[list[PreferencePair], dict[str, int]]:
    """Where a group stands in several splits, keep it in the evaluation split and drop it from train.

    Between validation and a test split it stays in the test split.

    Test splits may share groups: they are made from the same prompts on purpose (one world, several shifts), and none is trained on.

    Returns:
        the pairs left; how many "groups" leaked and, by split, how many pairs were dropped.
    """
    claim: dict[str, int] = {}
    for pair in pairs:
        claim[pair.group] = max(claim.get(pair.group, 0), _claim(pair.split))
    leaked = [pair for pair in pairs if _claim(pair.split) < claim[pair.group]]
    dropped = Counter(pair.split for pair in leaked)
    kept = [pair for pair in pairs if _claim(pair.split) == claim[pair.group]]
    return kept, {
        "groups": len({pair.group for pair in leaked}),
        **{f"{split}_pairs": count for split, count in sorted(dropped.items())},
    }


def check_groups(pairs: Iterable[PreferencePair]) -> None:
    """Raise AssertionError if a group of train or validation stands in another split: a fault of this program, not of the data."""
    splits: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        splits[pair.group].add(pair.split)
    for group, names in splits.items():
        if len(names) > 1 and names & {"train", "validation"}:
            raise AssertionError(f"group {group} is in the splits {sorted(names)}")


def cap_pairs(pairs: Sequence[PreferencePair], limit: int | None, keep_balance: bool = False) -> list[PreferencePair]:
    """The first `limit` pairs; all for None.

    With `keep_balance`, half of them with the longer answer chosen, in the order given (one pair fewer than an odd limit).
    """
    if limit is None or len(pairs) <= limit:
        return list(pairs)
    if not keep_balance:
        return list(pairs[:limit])
    room = {True: limit // 2, False: limit // 2}
    kept = []
    for pair in pairs:
        longer = len(pair.chosen) > len(pair.rejected)
        if room[longer]:
            room[longer] -= 1
            kept.append(pair)
    return kept


def longest_text(pair: PreferencePair) -> int:
    """Characters of the prompt with the longer of the two responses."""
    return sum(len(message["content"]) for message in pair.prompt) + max(len(pair.chosen), len(pair.rejected))


def summarize_splits(pairs: Iterable[PreferencePair]) -> dict[str, dict[str, Any]]:
    """By split: pairs, groups, pairs by source, share with the longer answer chosen, mean characters, flipped labels."""
    by_split: dict[str, list[PreferencePair]] = defaultdict(list)
    for pair in pairs:
        by_split[pair.split].append(pair)
    return {split: _summary(members) for split, members in by_split.items()}


def _summary(pairs: list[PreferencePair]) -> dict[str, Any]:
    count = len(pairs)
    return {
        "pairs": count,
        "groups": len({pair.group for pair in pairs}),
        "sources": dict(sorted(Counter(pair.source for pair in pairs).items())),
        "share_chosen_longer": share_chosen_longer(pairs),
        "mean_characters": {
            "prompt": sum(len(message["content"]) for pair in pairs for message in pair.prompt) / count,
            "chosen": sum(len(pair.chosen) for pair in pairs) / count,
            "rejected": sum(len(pair.rejected) for pair in pairs) / count,
        },
        "flipped": sum(bool(pair.meta.get("flipped")) for pair in pairs),
    }


def share_chosen_longer(pairs: Sequence[PreferencePair]) -> float | None:
    """Share of pairs whose chosen answer has more characters, equal lengths counted half; None without pairs."""
    if not pairs:
        return None
    return sum(0.5 * ((len(p.chosen) > len(p.rejected)) + (len(p.chosen) >= len(p.rejected))) for p in pairs) / len(
        pairs
    )
