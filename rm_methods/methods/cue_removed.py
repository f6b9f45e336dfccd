"""A control: Bradley-Terry on the texts of the controlled world without their surface cues.

    loss = -log sigmoid(r(x, chosen without cue) - r(x, rejected without cue))

The labels do not change.  The benchmarks keep their cues.  The method uses what only the maker of the data knows, so
it is not a method for real data: it is a known improvement over Bradley-Terry, which a comparison has to find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.methods.world_texts import check_world
from rm_methods.preferences.pair import PreferencePair


def without_cue(pair: PreferencePair) -> PreferencePair:
    """The pair without the cue; the sentences of a list become running text.

    Spans of evidence do not fit the new texts, so its `meta` has none.
    """
    spans = [pair.meta["cue_span_chosen"], pair.meta["cue_span_rejected"]]
    if pair.meta.get("flipped"):
        # Label noise swaps the texts but not the keys of `meta`.
        spans.reverse()
    meta = {key: value for key, value in pair.meta.items() if "span" not in key and not key.startswith("evidence_")}
    return replace(pair, chosen=_cut(pair.chosen, spans[0]), rejected=_cut(pair.rejected, spans[1]), meta=meta)


def _cut(text: str, spans: Sequence[Sequence[int]]) -> str:
    """The text without the characters of these [start, end] spans, and with single blanks."""
    is_cue = [False] * len(text)
    for start, end in spans:
        is_cue[start:end] = [True] * (end - start)
    rest = "".join(letter for letter, cut in zip(text, is_cue, strict=True) if not cut)
    return " ".join(rest.split())


class Method(TrainedMethod):
    def transform_pairs(self, pairs, inputs):
        check_world("cue_removed", pairs)
        changed = [without_cue(pair) for pair in pairs]
        self.changed_pairs = sum(
            (new.chosen, new.rejected) != (old.chosen, old.rejected) for new, old in zip(changed, pairs, strict=True)
        )
        return changed

    def loss(self, model, batch):
        return Loss(bradley_terry_loss(model(batch).rewards, batch.margin))

    def report(self):
        """Number of pairs that had a cue."""
        return {"pairs_changed": self.changed_pairs}
