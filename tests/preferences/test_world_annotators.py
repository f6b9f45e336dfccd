"""The controlled world with annotators that have a bias: labels, cues, splits, budget and refused options."""

import math
from collections import Counter

import numpy as np
import pytest

from rm_methods.errors import ConfigError
from rm_methods.preferences.cards import load_dataset_card
from rm_methods.preferences.readers import read_dataset
from rm_methods.preferences.world import conflicts, flaws, generate, gold, splits_of, statements
from rm_methods.preferences.world import vocabulary as words
from rm_methods.preferences.world.annotators import cues, make_annotator

LABELED = ("train", "validation", "iid_annotated")
BUDGET = {"sentence_budget": 4, "min_requirements": 3, "max_requirements": 4}


def world(**options):
    options = {"annotator": {}, "train_pairs": 3000, "validation_pairs": 200, "test_pairs": 400} | options
    by_split = {split: [] for split in splits_of(options)}
    for pair in generate(**options):
        by_split[pair.split].append(pair)
    return by_split


@pytest.fixture(scope="module")
def default():
    return world()


@pytest.fixture(scope="module")
def budgeted():
    return world(**BUDGET)


def share(pairs, is_true):
    return np.mean([is_true(pair) for pair in pairs])


def gold_agrees(pair):
    return gold(pair.prompt, pair.chosen) > gold(pair.prompt, pair.rejected)


# --- labels ---


def test_annotators_label_training_and_validation_and_gold_labels_the_test_splits(default):
    for split, pairs in default.items():
        assert {pair.meta["labeled_by"] for pair in pairs} == {"annotators" if split in LABELED else "gold"}
        agreement = share(pairs, gold_agrees)
        assert (agreement == 1.0) == (split not in LABELED), split
        if split in LABELED:
            assert share(pairs, lambda pair: pair.meta["as_gold"]) == agreement


def test_labels_follow_the_probability_of_the_utility_difference(default):
    """Observed rates of each combination of flaw difference and place of the cue, against the formula."""
    skill, bias = 3.0, 4.5
    labels = {}
    for pair in default["train"]:
        agreed = gold_agrees(pair)
        cue_on_better = pair.meta["cue_chosen"] == agreed
        labels.setdefault((pair.meta["flaw_difference"], cue_on_better), []).append(agreed)
    assert len(labels) == 6
    for (level, cue_on_better), agreed in labels.items():
        expected = 1 / (1 + math.exp(-skill * level - (bias if cue_on_better else -bias)))
        error = 4 * math.sqrt(expected * (1 - expected) / len(agreed)) + 1e-3
        assert np.mean(agreed) == pytest.approx(expected, abs=error), (level, cue_on_better)


def test_meta_is_what_the_texts_say_whoever_was_chosen(default):
    annotator = make_annotator({}, words.CUE_KINDS)
    swapped = 0
    for pair in default["train"]:
        for side in ("chosen", "rejected"):
            text = getattr(pair, side)
            assert pair.meta[f"gold_{side}"] == gold(pair.prompt, text)
            assert pair.meta[f"flaws_{side}"] == flaws(pair.prompt, text)
            assert pair.meta[f"cue_{side}"] == bool(cues(text))
            assert pair.meta[f"utility_{side}"] == annotator.utility(pair.prompt, text)
            assert bool(pair.meta[f"cue_span_{side}"]) == pair.meta[f"cue_{side}"]
            for start, end in pair.meta[f"evidence_{side}"]:
                assert len(statements(text[start:end])[0]) == 1
        assert pair.strength == abs(pair.meta["utility_chosen"] - pair.meta["utility_rejected"])
        swapped += not gold_agrees(pair)
    assert swapped > 500


def test_the_annotators_line_and_the_cue_alone(default):
    """Shares of 50, 35 and 15% and a ratio of 1.5: half the pairs with the cue on the worse response are lost."""

    def line(pair):
        return pair.meta["utility_chosen"] > pair.meta["utility_rejected"]

    assert share(default["cue_on_better"], line) == 1.0
    assert share(default["cue_on_worse"], line) == pytest.approx(0.5, abs=0.08)
    assert share(default["cue_neutral"], line) == pytest.approx(0.75, abs=0.06)
    cue = {split: share(pairs, lambda pair: pair.meta["cue_chosen"]) for split, pairs in default.items()}
    assert (cue["cue_on_better"], cue["cue_neutral"], cue["cue_on_worse"]) == (1.0, 0.5, 0.0)
    assert all(0.42 < cue[split] < 0.58 for split in ("iid", "long_context", "early_evidence", "late_evidence"))
    assert cue["train"] > 0.7


@pytest.mark.parametrize("options", [{}, BUDGET])
def test_responses_are_whole_flaws_apart_at_the_shares_asked_for(options):
    pairs = world(**options)["train"]
    levels = Counter(abs(pair.meta["flaws_chosen"] - pair.meta["flaws_rejected"]) for pair in pairs)
    for level, expected in ((1, 0.5), (2, 0.35), (3, 0.15)):
        assert levels[level] / len(pairs) == pytest.approx(expected, abs=0.04)
    assert set(levels) == {1, 2, 3}


def test_every_pair_has_one_cue_that_does_not_depend_on_quality(default):
    pairs = [pair for split in ("iid", "cue_neutral", "train") for pair in default[split]]
    assert all(pair.meta["cue_chosen"] != pair.meta["cue_rejected"] for pair in pairs)
    by_kind = Counter()
    for pair in pairs:
        by_kind[pair.meta["cue"]] += 1
        with_cue = pair.chosen if pair.meta["cue_chosen"] else pair.rejected
        assert cues(with_cue) == {pair.meta["cue"]}
    assert set(by_kind) == set(words.CUE_KINDS)


def test_same_options_give_the_same_pairs_and_other_annotators_label_the_same_ones():
    small = {"train_pairs": 60, "validation_pairs": 5, "test_pairs": 10}
    assert generate(annotator={}, **small) == generate(annotator={"skill": 3, "bias": 4.5}, **small)
    fair = generate(annotator={"bias": 0, "skill": 50}, **small)
    biased = generate(annotator={}, **small)
    assert {frozenset((p.chosen, p.rejected)) for p in fair} == {frozenset((p.chosen, p.rejected)) for p in biased}
    assert all(gold_agrees(pair) for pair in fair)
    larger = generate(annotator={}, **(small | {"train_pairs": 200}))
    assert [p for p in larger if p.split == "train"][:60] == [p for p in biased if p.split == "train"]
    assert [p for p in larger if p.split != "train"] == [p for p in biased if p.split != "train"]


def test_no_prompt_occurs_twice(default):
    groups = Counter(pair.group for pairs in default.values() for pair in pairs)
    assert max(groups.values()) == 1


def test_padding_is_neither_value_nor_negation_nor_filler():
    for text in words.PADDING:
        assert statements(text) == ({}, {})
        assert text not in words.RESPONSE_FILLER


def test_biases_may_differ_by_kind():
    annotator = make_annotator({"skill": 2, "bias": {"closing": 1, "length": 3}}, ["closing", "length"])
    prompt = "I want a red color."
    response = f"It has a red color. {words.CLOSINGS[0]}"
    assert annotator.utility(prompt, response) == 1
    assert annotator.utility(prompt, f"{words.CLOSINGS[0]} {words.PADDING[0]} {words.PADDING[1]}") == 4 - 2 * 0.5
    assert annotator.utility(prompt, f"The color is blue. {words.FLATTERIES[0]}") == -2


# --- shared cues ---


def test_shared_cues_are_other_kinds_in_both_responses_and_change_no_utility_difference():
    shared = world(shared_cues=2)
    annotator = make_annotator({}, words.CUE_KINDS)
    numbers = Counter()
    for pair in [*shared["train"], *shared["cue_on_worse"]]:
        both = set(pair.meta["shared_cues"])
        numbers[len(both)] += 1
        assert pair.meta["cue"] not in both
        for side in ("chosen", "rejected"):
            text = getattr(pair, side)
            own = {pair.meta["cue"]} if pair.meta[f"cue_{side}"] else set()
            assert cues(text) == both | own
            assert pair.meta[f"utility_{side}"] == annotator.utility(pair.prompt, text)
            assert bool(pair.meta[f"cue_span_{side}"]) == bool(both | own)
        flaw_difference = pair.meta["flaws_rejected"] - pair.meta["flaws_chosen"]
        cue = 1 if pair.meta["cue_chosen"] else -1
        assert pair.meta["utility_chosen"] - pair.meta["utility_rejected"] == 3 * flaw_difference + 4.5 * cue
    assert all(numbers[count] / sum(numbers.values()) == pytest.approx(1 / 3, abs=0.03) for count in (0, 1, 2))


def test_the_spans_of_cues_cover_all_of_them():
    for pair in world(shared_cues=3, train_pairs=300)["train"]:
        for side in ("chosen", "rejected"):
            text = getattr(pair, side)
            for start, end in sorted(pair.meta[f"cue_span_{side}"], reverse=True):
                text = text[:start] + text[end:]
            assert cues(text) == set()


# --- budget ---


def test_a_cue_takes_the_place_of_claims(budgeted):
    """At the budget, a response with a cue cannot meet all requirements; one without can."""
    full = [pair for pair in budgeted["cue_neutral"] if pair.meta["requirements"] == 4]
    assert len(full) > 100
    with_cue = [pair.chosen if pair.meta["cue_chosen"] else pair.rejected for pair in full]
    without = [pair.rejected if pair.meta["cue_chosen"] else pair.chosen for pair in full]
    for pair, text in zip(full, with_cue, strict=True):
        taken = 2 if pair.meta["cue"] == "length" else 1
        assert len(statements(text)[0]) <= 4 - taken
        assert gold(pair.prompt, text) < 1
    assert max(len(statements(text)[0]) for text in without) == 4
    assert any(gold(pair.prompt, text) == 1 for pair, text in zip(full, without, strict=True))


@pytest.mark.parametrize("split", ["train", "cue_on_worse", "long_context"])
def test_no_response_is_longer_than_the_budget(budgeted, split):
    for pair in budgeted[split]:
        for text in (pair.chosen, pair.rejected):
            parts = [text] if "\n" not in text else text.splitlines()
            count = sum(part.count(".") + part.count("!") for part in parts) + text.count(words.LIST_HEADER)
            assert count <= 4, text


# --- refused options and warnings ---


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"annotator": {"skill": 0, "bias": 0}}, "every label would be a coin flip"),
        ({"annotator": {"skill": 0, "bias": dict.fromkeys(words.CUE_KINDS, 0)}}, "every label would be a coin"),
        ({"annotator": {"flaw_differences": [0.5, 0.35]}}, "add up to 0.85, not to 1"),
        (
            {"annotator": {"flaw_differences": [0.5, 0.2, 0.2, 0.1]}, "max_requirements": 2},
            "no pair can be 4 flaws apart",
        ),
        ({"annotator": {"bias": {"closing": 1}}}, "has no value for length, formatting, flattery"),
        (
            {"annotator": {"bias": {"closing": 1, "flattery": 2}}, "cue_kinds": ["closing"]},
            "'flattery' is no cue of these pairs",
        ),
        ({"annotator": {}, "cue_agreement": 0.9}, "cue_agreement: 0.9 is not used"),
        ({"sentence_budget": 4}, "needs the option `annotator`"),
        ({"shared_cues": 1}, "shared_cues: needs the option `annotator`"),
        ({"annotator": {}, "shared_cues": 1, "cue_kinds": ["closing"]}, "1 is too many"),
        ({"annotator": {}, "shared_cues": 1, "sentence_budget": 5}, "does not go with sentence_budget"),
        ({"annotator": {}, "sentence_budget": 2}, "2 is smaller than the number of requirements (3)"),
        (
            {"annotator": {}, "sentence_budget": 3},
            "a sentence_budget of 3 no pair can be 3 flaws apart. Raise sentence_budget or max_requirements",
        ),
        (
            {"annotator": {}, "sentence_budget": 3, "length_cue": 4},
            "length_cue: 4 sentences do not fit into a sentence_budget of 3",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused_with_the_reason(options, expected):
    assert any(expected in problem for problem in conflicts(options))
    with pytest.raises(ConfigError):
        generate(train_pairs=10, validation_pairs=0, test_pairs=0, **options)


def test_all_problems_are_reported_at_once():
    problems = conflicts(
        {
            "annotator": {"skill": 0, "bias": {"closng": 0}, "flaw_differences": [0.5, 0.3]},
            "cue_agreement": 0.9,
            "min_requirements": 4,
            "sentence_budget": 2,
            "length_cue": 3,
            "shared_cues": 1,
        }
    )
    said = ["min_requirements: 4", "'closng' is no", "no value for", "coin flip", "add up to 0.8", "cue_agreement"]
    said += ["shared_cues: does not go", "sentence_budget: 2", "length_cue: 3"]
    assert [text in problem for text, problem in zip(said, problems, strict=True)] == [True] * 9


@pytest.mark.parametrize(
    "options",
    [
        {"annotator": {"skill": -1}},
        {"annotator": {"bias": "large"}},
        {"annotator": {"skil": 1}},
        {"annotator": {"flaw_differences": [1.5, -0.5]}},
        {"annotator": {}, "cue_agreement": 1.2},
    ],
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigError):
        generate(train_pairs=10, validation_pairs=0, test_pairs=0, **options)


def test_a_ratio_equal_to_a_level_is_a_warning_that_names_the_level():
    small = {"train_pairs": 20, "validation_pairs": 0, "test_pairs": 5, "cue_kinds": ["closing", "flattery"]}
    _, _, report = read_dataset(load_dataset_card("world"), None, small | {"annotator": {"skill": 3, "bias": 6}})
    (note,) = report.notes
    assert "close to the flaw difference 2" in note
    assert "a cue (closing, flattery) and 2 more flaws, annotators choose by chance" in note
    one_kind = {"skill": 3, "bias": {"closing": 3, "flattery": 4.5}}
    _, _, report = read_dataset(load_dataset_card("world"), None, small | {"annotator": one_kind})
    (note,) = report.notes
    assert "a cue (closing) and 1 more flaw, annotators" in note
    for fine in ({}, {"skill": 3, "bias": 6, "flaw_differences": [1]}, {"skill": 3, "bias": 0}, {"skill": 0}):
        _, _, report = read_dataset(load_dataset_card("world"), None, small | {"annotator": fine})
        assert report.notes == [], fine
