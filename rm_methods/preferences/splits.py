"""Duplicates, splits and samples of pairs.

Every random choice orders pairs by a hash of the seed and the pair. It does not depend on the order of the files, and
added rows do not change what happens to others. A split never cuts a group (the pairs with one prompt). Otherwise the
validation set would be a slice of the training set.
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
    """The split with the highest claim keeps a group that is in several: a test split, then validation, then train."""
    return {"train": 0, "validation": 1}.get(split, 2)


def drop_duplicates(pairs: Sequence[PreferencePair]) -> tuple[list[PreferencePair], dict[str, int]]:
    """Keep one copy of each pair, and no copy of pairs whose opposite is in the data too.

    Of equal pairs in several splits, the copy in an evaluation split is kept.

    Returns:
        the remaining pairs in their order; counts of dropped "exact" and "contradictory" pairs. The exact ones whose
        copy stays in another split are also counted apart: "train_pairs_in_test".
    """
    labels: dict[tuple, set[tuple[str, str]]] = defaultdict(set)
    for pair in pairs:
        labels[_compared(pair)].add((pair.chosen, pair.rejected))
    agreed = [pair for pair in pairs if len(labels[_compared(pair)]) == 1]
    kept: dict[str, int] = {}  # position of the copy that stays
    for position, pair in enumerate(agreed):
        if pair.pair_id not in kept or _claim(pair.split) > _claim(agreed[kept[pair.pair_id]].split):
            kept[pair.pair_id] = position
    counts = Counter({"exact": len(agreed) - len(kept), "contradictory": len(pairs) - len(agreed)})
    for pair in agreed:
        kept_split = agreed[kept[pair.pair_id]].split
        if pair.split != kept_split:
            counts[f"{pair.split}_pairs_in_{kept_split}"] += 1
    return [agreed[position] for position in sorted(kept.values())], dict(counts)


def _compared(pair: PreferencePair) -> tuple:
    """What a pair compares: the same for a pair and its opposite."""
    prompt = tuple((message["role"], message["content"]) for message in pair.prompt)
    return prompt, *sorted((pair.chosen, pair.rejected))


def split_train(
    pairs: Sequence[PreferencePair], validation_fraction: float, test_fraction: float, seed: int
) -> list[PreferencePair]:
    """Move groups from "train" to "validation" and "test", unless the source has such a split.

    hash(seed, group) gives every group a uniform number u in [0, 1). The group goes to validation if u <
    validation_fraction, to test if u is in the next `test_fraction`, and otherwise stays in train. Fractions are of
    groups, and in expectation.
    """
    present = {pair.split for pair in pairs}
    validation = 0.0 if "validation" in present else validation_fraction
    test = 0.0 if "test" in present else test_fraction
    result = []
    for pair in pairs:
        if pair.split == "train":
            u = _hash(seed, "split", pair.group) / 2**64
            if u < validation:
                pair = replace(pair, split="validation")
            elif u < validation + test:
                pair = replace(pair, split="test")
        result.append(pair)
    return result


def drop_leaks(pairs: Sequence[PreferencePair]) -> tuple[list[PreferencePair], dict[str, int]]:
    """Keep a group that is in several splits in the evaluation split, and drop it from train.

    A group in validation and a test split stays in the test split. Test splits may share groups: they are made from the
    same prompts on purpose (one world, several shifts), and nothing trains on them.

    Returns:
        the remaining pairs; how many "groups" leaked, and how many pairs of each split were dropped.
    """
    claim: dict[str, int] = {}
    for pair in pairs:
        claim[pair.group] = max(claim.get(pair.group, 0), _claim(pair.split))
    leaked = [pair for pair in pairs if _claim(pair.split) < claim[pair.group]]
    dropped = Counter(pair.split for pair in leaked)
    kept = [pair for pair in pairs if _claim(pair.split) == claim[pair.group]]
    counts = {"groups": len({pair.group for pair in leaked})}
    for split, count in sorted(dropped.items()):
        counts[f"{split}_pairs"] = count
    return kept, counts


def check_groups(pairs: Iterable[PreferencePair]) -> None:
    """Raise AssertionError if a group of train or validation is in another split: that is a fault of the program."""
    splits: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        splits[pair.group].add(pair.split)
    for group, names in splits.items():
        if len(names) > 1 and names & {"train", "validation"}:
            raise AssertionError(f"group {group} is in the splits {sorted(names)}")


def cap_pairs(pairs: Sequence[PreferencePair], limit: int | None, keep_balance: bool = False) -> list[PreferencePair]:
    """The first `limit` pairs; all for None.

    With `keep_balance`, half of them have the longer answer chosen (one pair fewer than an odd limit).
    """
    if limit is None or len(pairs) <= limit:
        return list(pairs)
    if not keep_balance:
        return list(pairs[:limit])
    remaining = {True: limit // 2, False: limit // 2}
    kept = []
    for pair in pairs:
        chosen_is_longer = len(pair.chosen) > len(pair.rejected)
        if remaining[chosen_is_longer]:
            remaining[chosen_is_longer] -= 1
            kept.append(pair)
    return kept


def longest_text(pair: PreferencePair) -> int:
    """Characters of the prompt with the longer of the two responses."""
    return sum(len(message["content"]) for message in pair.prompt) + max(len(pair.chosen), len(pair.rejected))


def summarize_splits(pairs: Iterable[PreferencePair]) -> dict[str, dict[str, Any]]:
    """By split: pairs, groups, pairs by source, share with the longer answer chosen, mean characters, flips."""
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
    longer = sum(len(pair.chosen) > len(pair.rejected) for pair in pairs)
    equal = sum(len(pair.chosen) == len(pair.rejected) for pair in pairs)
    return (longer + 0.5 * equal) / len(pairs)
