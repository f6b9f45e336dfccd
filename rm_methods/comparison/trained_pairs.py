"""The footnote on training pairs that were left out or cut."""

from __future__ import annotations

from collections.abc import Sequence

from rm_methods.comparison.result import VariantRow
from rm_methods.comparison.runs import Run
from rm_methods.run_card import MANY_LEFT_OUT, TrainedPairs


def trained_pairs_note(runs: Sequence[Run], rows: Sequence[VariantRow]) -> tuple[list[str], bool]:
    """Trainings that left out pairs or cut responses, and whether one left out many."""
    counts = {
        row.label: [run.trained_pairs for run in runs if run.variant == row.variant and run.trained_pairs]
        for row in rows
    }
    lossy = {label: seeds for label, seeds in counts.items() if any(p.used < p.offered or p.cut for p in seeds)}
    if not lossy:
        return [], False
    texts = {label: _trained_pairs_text(seeds) for label, seeds in lossy.items()}
    if len(set(texts.values())) == 1 and len(texts) == sum(map(bool, counts.values())) > 1:
        listed = f"each variant {next(iter(texts.values()))}"
    else:
        listed = "; ".join(f"{label} {text}" for label, text in texts.items())
    worst = max(pairs.share_left_out for seeds in lossy.values() for pairs in seeds)
    left_out = "Pairs are left out because a response does not fit into max_length, or because of the chat template."
    if worst > MANY_LEFT_OUT:
        note = (
            f"WARNING: up to {worst:.0%} of the training pairs were left out. The table is about what the methods "
            f"learn from the others. Trained on: {listed}. {left_out} Raise backbone.max_length, or set "
            "training.overlong_pairs: truncate."
        )
    elif worst > 0:
        note = f"Not trained on all pairs: {listed}. {left_out}"
    else:
        note = f"Trained on pairs with a response cut at its end: {listed}."
    return [note], worst > MANY_LEFT_OUT


def _trained_pairs_text(seeds: Sequence[TrainedPairs]) -> str:
    """Of one variant: pairs used, of those offered; over the seeds."""
    used = count_range({pairs.used for pairs in seeds})
    cut = {pairs.cut for pairs in seeds}
    remark = f" ({count_range(cut)} with a cut response)" if max(cut) else ""
    return f"{used} of {count_range({pairs.offered for pairs in seeds})} pairs{remark}"


def count_range(counts: set[int]) -> str:
    """The range of counts over seeds: ``5``, or ``5 to 8``."""
    return str(max(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
