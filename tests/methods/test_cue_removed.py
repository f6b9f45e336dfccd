"""The planted rival: texts without cues, and nothing else changed."""

import pytest

from rm_methods.config.resolve import resolve
from rm_methods.errors import ConfigError, DataError
from rm_methods.methods.contract import Inputs
from rm_methods.methods.cue_removed import without_cue
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.preferences.noise import flip
from rm_methods.preferences.pair import make_pair
from rm_methods.preferences.world import generate
from rm_methods.preferences.world import vocabulary as words
from rm_methods.preferences.world.annotators import cues
from rm_methods.preferences.world.gold import gold

PROMPT = [{"role": "user", "content": "I want a red color."}]
BUDGET = {"annotator": {}, "sentence_budget": 4, "min_requirements": 4, "max_requirements": 4}


def pair(chosen, spans, **meta):
    meta = {"cue_span_chosen": spans, "cue_span_rejected": []} | meta
    return make_pair(PROMPT, chosen, "It is blue.", split="train", source=words.SOURCE, meta=meta)


@pytest.mark.parametrize(
    ("text", "cue"),
    [
        ("It is red. I hope this helps!", "I hope this helps!"),
        ("What a great question! It is red.", "What a great question!"),
        ("There is much more to tell. It is red.", "There is much more to tell."),
    ],
)
def test_a_sentence_is_cut(text, cue):
    start = text.index(cue)
    assert without_cue(pair(text, [[start, start + len(cue)]])).chosen == "It is red."


def test_a_list_becomes_running_text():
    text = "**Summary**\n- It is red.\n- Many people like it."
    made = without_cue(pair(text, [[0, 11], [12, 14], [25, 27]]))
    assert made.chosen == "It is red. Many people like it."
    assert made.rejected == "It is blue."


@pytest.mark.parametrize("options", [{"annotator": {}}, BUDGET, {}], ids=["annotators", "budget", "exact labels"])
def test_no_cue_is_left_and_quality_is_the_same(options):
    pairs = generate(train_pairs=300, validation_pairs=0, test_pairs=0, **options)
    method = load_method("cue_removed", {})
    changed = method.transform_pairs(pairs, None)
    assert method.report() == {"pairs_changed": 300}
    for old, new in zip(pairs, changed, strict=True):
        assert (new.pair_id, new.prompt, new.strength) == (old.pair_id, old.prompt, old.strength)
        for side in ("chosen", "rejected"):
            text = getattr(new, side)
            assert gold(new.prompt, text) == old.meta[f"gold_{side}"]
            assert cues(text) == set()
            assert (text == getattr(old, side)) == (not old.meta[f"cue_{side}"])
        assert not [key for key in new.meta if "span" in key or key.startswith("evidence")]


def test_cues_that_both_responses_have_are_cut():
    pairs = generate(annotator={}, shared_cues=3, train_pairs=100, validation_pairs=0, test_pairs=0)
    assert any(cues(old.chosen) and cues(old.rejected) for old in pairs)
    for new in map(without_cue, pairs):
        assert not cues(new.chosen) | cues(new.rejected)
        assert gold(new.prompt, new.chosen) == new.meta["gold_chosen"]


def test_noise_swaps_the_texts_and_the_right_ones_are_cut():
    pairs = generate(annotator={}, train_pairs=50, validation_pairs=0, test_pairs=0)
    for old in pairs:
        kept, swapped = without_cue(old), without_cue(flip(old))
        assert (swapped.chosen, swapped.rejected) == (kept.rejected, kept.chosen)
        assert (without_cue(flip(flip(old))).chosen, without_cue(flip(flip(old))).rejected) == (
            kept.chosen,
            kept.rejected,
        )


def test_other_data_are_refused():
    other = [make_pair(PROMPT, "a", "b", split="train", source="mine.jsonl")]
    with pytest.raises(DataError, match=r"controlled world .* but the training pairs are of mine\.jsonl"):
        load_method("cue_removed", {}).transform_pairs(other, Inputs(0, None))
    with pytest.raises(ConfigError, match=r"methods\.cue_removed: .* needs the controlled world, but data.dataset"):
        resolve({"experiment": "x", "data": {"dataset": "hh_rlhf"}, "methods": {"cue_removed": {}}})
    assert load_method_card("cue_removed").control
