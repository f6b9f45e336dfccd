"""Label noise for training pairs: flips that are marked, so that a method's detection of them can be scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rm_methods.errors import ConfigError, nearest
from rm_methods.preferences.pair import PreferencePair
from rm_methods.preferences.splits import seeded_order

KINDS = ("symmetric", "length")


def flip_labels(
    pairs: Sequence[PreferencePair], rate: float, kind: str, seed: int
) -> tuple[list[PreferencePair], dict[str, int]]:
    """Swap chosen and rejected in exactly ``round(rate * len(pairs))`` pairs (halves round to even); the order is kept.

    A flipped pair keeps its `pair_id` and gets ``meta["flipped"] = True``. A pair that the reader had flipped already
    is flipped back and gets False. With one seed, the pairs flipped at a lower rate are among those flipped at a higher
    one.

    Args:
        rate: share of wrong labels, in [0, 0.5).
        kind: "symmetric" takes any pairs. "length" takes pairs whose rejected answer is longer, so that the noise
            prefers length. If they are fewer than the flips, the rest comes from pairs of equal length, then from the
            others.

    Returns:
        the pairs; counts: "flipped", and by the answer that the flips prefer "to_longer", "to_shorter", "same_length".

    Raises:
        ConfigError: the rate or the kind is not allowed.
    """
    problems = []
    if not 0 <= rate < 0.5:
        problems.append(
            f"data.label_noise.rate: is {rate}; must be at least 0 and less than 0.5 (from 0.5 on, the labels say the "
            "opposite)."
        )
    if kind not in KINDS:
        problems.append(f"data.label_noise.kind: is {kind!r}. {nearest(kind, KINDS)}")
    if problems:
        raise ConfigError(problems)
    order = seeded_order(pairs, seed, "noise")
    if kind == "length":
        order.sort(key=_gain_in_length)  # stable: random within each class
    flipped = order[: round(rate * len(pairs))]
    flipped_ids = {pair.pair_id for pair in flipped}
    result = [flip(pair) if pair.pair_id in flipped_ids else pair for pair in pairs]
    directions = [_gain_in_length(pair) for pair in flipped]
    counts = {
        "flipped": len(flipped),
        "to_longer": directions.count(-1),
        "to_shorter": directions.count(1),
        "same_length": directions.count(0),
    }
    return result, counts


def flip(pair: PreferencePair) -> PreferencePair:
    """The pair with the other label; the keys of `meta` that end in _chosen and _rejected stay with the old label."""
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        meta=pair.meta | {"flipped": not pair.meta.get("flipped", False)},
    )


def _gain_in_length(pair: PreferencePair) -> int:
    """-1 if a flip prefers the longer answer, 1 if it prefers the shorter, 0 for equal lengths."""
    return (len(pair.chosen) > len(pair.rejected)) - (len(pair.chosen) < len(pair.rejected))
