"""A mixture of several sources: how many training pairs each gives, and an account of every source.

The rule: training pairs are drawn without repetition, in proportion to the weights, as many as the source that runs
out first allows. docs/architecture.md has the reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rm_methods.preferences.balance import balance_length
from rm_methods.preferences.data_sources import DataSource, source_name
from rm_methods.preferences.pair import PreferencePair
from rm_methods.preferences.splits import cap_pairs, split_train


def quotas(sizes: Sequence[int], weights: Sequence[float], limit: int | None = None) -> list[int]:
    """Pairs to draw from each source: in proportion to the weights, rounded down.

    Args:
        sizes: pairs that each source has.
        weights: above 0, one for each source.
        limit: largest sum; None: as many as the source that runs out first allows.

    >>> quotas([100, 30], [2, 1]), quotas([100, 30], [2, 1], limit=50)
    ([60, 30], [33, 16])
    """
    # Fractions of the written decimals: 0.3 / 0.1 is 3, and not a little less.
    parts = [Fraction(str(weight)) for weight in weights]
    pairs_per_weight = min(Fraction(size) / part for size, part in zip(sizes, parts, strict=True))
    if limit is not None:
        pairs_per_weight = min(pairs_per_weight, Fraction(limit) / sum(parts))
    return [int(part * pairs_per_weight) for part in parts]


def by_source(pairs: Iterable[PreferencePair]) -> dict[str, list[PreferencePair]]:
    """Pairs by the name of their source, in the order in which the sources occur."""
    members: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        members.setdefault(source_name(pair.source), []).append(pair)
    return members


def draw(
    train: list[PreferencePair],
    sources: Sequence[DataSource],
    seed: int,
    *,
    limit: int | None = None,
    length_balance: bool = False,
) -> list[PreferencePair]:
    """Training pairs in proportion to the weights of their sources; the order is kept.

    Args:
        train: in seeded order, whose first pairs are drawn. So a smaller sample is part of a larger one.
        sources: all with a weight.
        seed: of the length balance.
        limit: largest number of pairs.
        length_balance: balance each source first, and draw pairs of both kinds alike (one fewer of an odd number).
    """
    members = by_source(train)
    if length_balance:
        members = {name: balance_length(pairs, seed) for name, pairs in members.items()}
    available = [members.get(source.name, []) for source in sources]
    weights = [source.weight or 0 for source in sources]
    numbers = quotas([len(pairs) for pairs in available], weights, limit)
    drawn = {
        pair.pair_id
        for pairs, number in zip(available, numbers, strict=True)
        for pair in cap_pairs(pairs, number, keep_balance=length_balance)
    }
    return [pair for pair in train if pair.pair_id in drawn]


def split_sources(
    pairs: list[PreferencePair], validation_fraction: float, test_fraction: float, seed: int
) -> list[PreferencePair]:
    """`split_train` for each source by itself: one that has a split keeps it, another gives a share of its prompts.

    A prompt of two sources has one hash, so it goes to the same split in both.
    """
    return [
        pair
        for members in by_source(pairs).values()
        for pair in split_train(members, validation_fraction, test_fraction, seed)
    ]


def fraction_notes(pairs: list[PreferencePair], sources: Sequence[DataSource], data: Mapping[str, Any]) -> list[str]:
    """Which sources `validation_fraction` and `test_fraction` are not used for, because they have such a split.

    Args:
        pairs: before splits are taken from train.
    """
    notes = []
    for split in ("validation", "test"):
        holders = {source_name(pair.source) for pair in pairs if pair.split == split}
        if not holders or data[f"{split}_fraction"] <= 0:
            continue
        lacking = [source.name for source in sources if source.name not in holders]
        if len(sources) == 1 or not lacking:
            owner = "the source has" if len(sources) == 1 else "all sources have"
            notes.append(f"data.{split}_fraction is not used: {owner} a {split} split.")
        else:
            keepers = [source.name for source in sources if source.name in holders]
            notes.append(
                f"data.{split}_fraction is used for {', '.join(lacking)} only: {', '.join(keepers)} "
                f"{'has' if len(keepers) == 1 else 'have'} a {split} split."
            )
    return notes


@dataclass(frozen=True)
class Snapshots:
    """The pairs of a mixture between the steps of the prepare stage.

    Attributes:
        read: as read, those of a test file included.
        unique: without copies and contradictory pairs.
        left: without prompts of an evaluation split in another split.
        available: the training pairs before any are drawn.
    """

    read: list[PreferencePair]
    unique: list[PreferencePair]
    left: list[PreferencePair]
    available: list[PreferencePair]


def accounts_of(
    sources: Sequence[DataSource], snapshots: Snapshots, prepared: Sequence[PreferencePair]
) -> list[dict[str, Any]]:
    """What became of the pairs of each source.

    Args:
        sources: of the mixture.
        prepared: the pairs in the end.

    Returns:
        of each source "name", "dataset", "weight"; pairs dropped: "contradictory", "copies" (of the same source),
        "copies_of_other_sources" (or of the test file), "leaks"; "left" after these; "available" (training pairs before
        any are drawn), "used" (training pairs), "share_wanted" (None without weights), "share_reached"; "splits" (pairs
        by split).
    """
    unique, left, available = (_sizes(pairs) for pairs in (snapshots.unique, snapshots.left, snapshots.available))
    train = _sizes([pair for pair in prepared if pair.split == "train"])
    source_of_id = {pair.pair_id: source_name(pair.source) for pair in snapshots.unique}
    read = by_source(snapshots.read)
    total = sum(source.weight or 0 for source in sources)
    accounts = []
    for source in sources:
        name = source.name
        kept_in = [source_of_id.get(pair.pair_id) for pair in read.get(name, [])]
        accounts.append(
            {
                "name": name,
                "dataset": source.dataset,
                "weight": source.weight,
                "contradictory": kept_in.count(None),
                "copies": kept_in.count(name) - unique[name],
                "copies_of_other_sources": len(kept_in) - kept_in.count(None) - kept_in.count(name),
                "leaks": unique[name] - left[name],
                "left": left[name],
                "available": available[name],
                "used": train[name],
                "share_wanted": None if source.weight is None else source.weight / total,
                "share_reached": train[name] / train.total() if train else 0.0,
                "splits": dict(Counter(pair.split for pair in prepared if source_name(pair.source) == name)),
            }
        )
    return accounts


def _sizes(pairs: Sequence[PreferencePair]) -> Counter[str]:
    """Number of pairs by the name of their source."""
    return Counter(source_name(pair.source) for pair in pairs)


def problems_of(accounts: Sequence[Mapping[str, Any]], sources: Sequence[DataSource]) -> list[str]:
    """Sources that give nothing to a mixture, one sentence each, with the reason and what to change.

    Args:
        accounts: from `accounts_of`, with "pairs" and "refused" of the reading.
    """
    problems = []
    for account, source in zip(accounts, sources, strict=True):
        where = f"{source.where}: '{source.dataset}'"
        if not account["pairs"]:
            problems.append(f"{where} has no usable pair ({account['refused']:,} rows refused). Remove it, or mend it.")
        elif not account["left"]:
            problems.append(
                f"{where} gives no pair to the mixture: of its {account['pairs']:,}, "
                f"{account['copies_of_other_sources']:,} are copies of pairs of other sources, "
                f"{account['contradictory']:,} contradict others, and {account['leaks']:,} have a prompt of an "
                "evaluation split. Remove it."
            )
        elif source.weight is not None and not account["available"]:
            problems.append(f"{where} has a weight and no training pair is left. Remove it, or all weights.")
    if problems or all(account["weight"] is None or account["used"] for account in accounts):
        return problems
    for account, source in zip(accounts, sources, strict=True):
        if not account["used"]:
            problems.append(
                f"{source.where}.weight: {source.weight:g} of a sum of {sum(other.weight or 0 for other in sources):g} "
                f"leaves no training pair of '{source.dataset}', because another source (or data.max_pairs) has too "
                "few. Raise it, or remove the source."
            )
    return problems


def describe_sources(accounts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The accounts as lines for a terminal."""
    width = max(20, *(len(account["name"]) for account in accounts))
    headings = ("rows", "refused", "pairs", "available", "used", "wanted", "reached")
    lines = ["", "Sources (available and used: training pairs)"]
    lines.append(f"  {'':{width}}" + "".join(f"{heading:>11}" for heading in headings))
    for account in accounts:
        counts = "".join(f"{account[name]:>11,}" for name in headings[:5])
        wanted = "-" if account["share_wanted"] is None else f"{account['share_wanted']:.1%}"
        lines.append(f"  {account['name']:{width}}{counts}{wanted:>11}{account['share_reached']:>11.1%}")
    for account in accounts:
        if account["copies_of_other_sources"]:
            lines.append(
                f"  {account['name']}: {account['copies_of_other_sources']:,} pairs are also in another source (or "
                "the test file), and count there."
            )
    return lines
