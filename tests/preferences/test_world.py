"""The controlled world: exact labels, separate splits, and the cue phenomenon, all checked without training a model."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from rm_methods.errors import ConfigError
from rm_methods.files import content_hash
from rm_methods.preferences.cards import load_dataset_card
from rm_methods.preferences.readers import read_dataset
from rm_methods.preferences.world import OPTIONS, TEST_SPLITS, generate, gold, splits_of, statements
from rm_methods.preferences.world import vocabulary as words

WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


@pytest.fixture(scope="module")
def world():
    pairs = generate()
    return {split: [pair for pair in pairs if pair.split == split] for split in splits_of({})}


def accuracy(pairs, score):
    """Share of pairs in which chosen scores higher; a tie counts one half."""
    margins = np.array([score(pair, "chosen") - score(pair, "rejected") for pair in pairs])
    return np.mean((margins > 0) + 0.5 * (margins == 0))


def cue_score(pair, side):
    return pair.meta[f"cue_{side}"]


def prompt_text(pair):
    return " ".join(message["content"] for message in pair.prompt)


# --- the pairs ---


def test_default_world_has_the_sizes_of_its_options(world):
    sizes = {split: len(pairs) for split, pairs in world.items()}
    assert sizes == {"train": 4000, "validation": 300} | dict.fromkeys(TEST_SPLITS, 600)


def test_gold_prefers_chosen_in_every_pair_and_is_what_meta_says(world):
    for pair in (pair for pairs in world.values() for pair in pairs):
        chosen, rejected = gold(pair.prompt, pair.chosen), gold(pair.prompt, pair.rejected)
        assert chosen > rejected
        assert (pair.meta["gold_chosen"], pair.meta["gold_rejected"], pair.strength) == (
            chosen,
            rejected,
            chosen - rejected,
        )


def test_no_prompt_stands_twice(world):
    groups = Counter(pair.group for pairs in world.values() for pair in pairs)
    assert max(groups.values()) == 1


def test_conversations_begin_and_end_with_the_user(world):
    roles = Counter(tuple(message["role"] for message in pair.prompt) for pair in world["train"])
    assert set(roles) == {("user",), ("user", "assistant", "user")}
    assert 0.03 < roles[("user", "assistant", "user")] / 4000 < 0.07


def test_texts_are_short_and_the_vocabulary_is_small(world):
    pairs = [pair for pairs in world.values() for pair in pairs]
    kinds = {
        word.lower()
        for pair in pairs
        for text in (prompt_text(pair), pair.chosen, pair.rejected)
        for word in WORD.findall(text)
    }
    assert len(kinds) < 300
    lengths = [len(f"{prompt_text(pair)} {pair.chosen}".split()) for pair in world["train"]]
    assert 35 < np.mean(lengths) < 60
    long_lengths = [len(f"{prompt_text(pair)} {pair.chosen}".split()) for pair in world["long_context"]]
    assert min(long_lengths) > 1.5 * np.mean(lengths)


def test_same_options_give_identical_bytes_in_another_process():
    options = {"train_pairs": 50, "validation_pairs": 5, "test_pairs": 20, "seed": 3}
    code = (
        "import json, sys; from dataclasses import asdict; from rm_methods.files import content_hash;"
        "from rm_methods.preferences.world import generate;"
        "print(content_hash([asdict(pair) for pair in generate(**json.loads(sys.argv[1]))]))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, json.dumps(options)],
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == content_hash([asdict(pair) for pair in generate(**options)])


def test_pairs_of_the_default_world_never_change():
    """Results of older experiments stay comparable: the same options give the same bytes in every release."""
    assert content_hash([asdict(pair) for pair in generate()]) == "889c0e8a38a7077b"


def test_seeds_differ_and_train_size_does_not_change_the_rest():
    small = {"train_pairs": 20, "validation_pairs": 10, "test_pairs": 10}
    by_seed = [{pair.pair_id for pair in generate(**small, seed=seed)} for seed in (0, 1)]
    assert len(by_seed[0] & by_seed[1]) < 3
    larger = generate(**(small | {"train_pairs": 200}))
    assert [p for p in larger if p.split != "train"] == [p for p in generate(**small) if p.split != "train"]
    assert [p for p in larger if p.split == "train"][:20] == [p for p in generate(**small) if p.split == "train"]


# --- spans ---


def test_evidence_spans_hold_exactly_the_statements_that_decide(world):
    for pair in world["iid"]:
        decided = set()
        for side in ("chosen", "rejected"):
            text = getattr(pair, side)
            for start, end in pair.meta[f"evidence_{side}"]:
                claimed, _ = statements(text[start:end])
                assert len(claimed) == 1, text[start:end]
                decided |= set(claimed)
        chosen, rejected = statements(pair.chosen)[0], statements(pair.rejected)[0]
        assert decided == {
            slot for slot in chosen | rejected if _credit(pair, chosen, slot) != _credit(pair, rejected, slot)
        }
        for index, start, end in pair.meta["evidence_prompt"]:
            assert set(statements(pair.prompt[index]["content"][start:end])[0]) <= decided


def _credit(pair, claimed, slot):
    """Gold of the statements about one slot alone."""
    return gold(pair.prompt, " ".join(claimed.get(slot, ())))


def test_without_the_evidence_gold_sees_no_difference(world):
    for pair in world["iid"]:
        left = []
        for side in ("chosen", "rejected"):
            text = getattr(pair, side)
            for start, end in sorted(pair.meta[f"evidence_{side}"], reverse=True):
                text = text[:start] + text[end:]
            left.append(gold(pair.prompt, text))
        assert left[0] == left[1]


def test_cue_spans_hold_exactly_the_cue(world):
    openings = {
        "closing": words.CLOSINGS,
        "flattery": words.FLATTERIES,
        "formatting": (words.LIST_HEADER, words.LIST_BULLET),
    }
    openings["length"] = [text.format(person=person) for text in words.RESPONSE_FILLER for person in words.PERSONS]
    for pair in world["iid"]:
        for side in ("chosen", "rejected"):
            text, spans = getattr(pair, side), pair.meta[f"cue_span_{side}"]
            assert bool(spans) == pair.meta[f"cue_{side}"]
            assert all(text[start:end] in openings[pair.meta["cue"]] for start, end in spans)
            left = text
            for start, end in sorted(spans, reverse=True):
                left = left[:start] + left[end:]
            if pair.meta["cue"] != "length":
                assert not any(mark in left for mark in openings[pair.meta["cue"]])
        assert pair.meta["cue_chosen"] != pair.meta["cue_rejected"]


def test_evidence_stands_where_the_split_says(world):
    def place(pair, side):
        """Middle of the deciding evidence as a share of the text."""
        return np.mean(pair.meta[f"evidence_{side}"]) / len(getattr(pair, side))

    mean = {
        split: np.mean([place(pair, "rejected") for pair in world[split] if pair.meta["evidence_rejected"]])
        for split in ("early_evidence", "iid", "late_evidence")
    }
    assert mean["early_evidence"] + 0.05 < mean["iid"] < mean["late_evidence"] - 0.05
    for pair in world["early_evidence"]:
        for side in ("chosen", "rejected"):
            before = getattr(pair, side)[: min((start for start, _ in pair.meta[f"evidence_{side}"]), default=0)]
            assert not statements(before)[0]
        index, start, _ = min(pair.meta["evidence_prompt"], default=(0, 0, 0))
        assert not statements(pair.prompt[index]["content"][:start])[0]
    for pair in world["late_evidence"]:
        for side in ("chosen", "rejected"):
            after = getattr(pair, side)[max((end for _, end in pair.meta[f"evidence_{side}"]), default=10**6) :]
            assert not statements(after)[0]


# --- the phenomenon, in the data ---


def test_gold_scorer_is_right_everywhere_and_cue_scorer_as_often_as_the_cue_agrees(world):
    for split, pairs in world.items():
        assert accuracy(pairs, lambda pair, side: pair.meta[f"gold_{side}"]) == 1.0
        expected = {"train": 0.85, "validation": 0.85, "iid": 0.85, "cue_reversed": 0.15}.get(split, 0.5)
        error = 4 * np.sqrt(0.25 / len(pairs))
        assert accuracy(pairs, cue_score) == pytest.approx(expected, abs=error), split


def test_length_follows_the_length_cue_only(world):
    longest = {split: accuracy(pairs, lambda pair, side: len(getattr(pair, side))) for split, pairs in world.items()}
    assert 0.55 < longest["iid"] < 0.70
    assert 0.30 < longest["cue_reversed"] < 0.45
    assert all(
        0.44 < longest[split] < 0.60 for split in ("cue_neutral", "long_context", "early_evidence", "late_evidence")
    )
    without = [pair for pair in world["train"] if pair.meta["cue"] != "length"]
    assert 0.45 < accuracy(without, lambda pair, side: len(getattr(pair, side))) < 0.58


def test_every_cue_kind_occurs_as_often(world):
    kinds = Counter(pair.meta["cue"] for pair in world["train"])
    assert set(kinds) == set(words.CUE_KINDS)
    assert all(abs(count / 4000 - 0.25) < 0.03 for count in kinds.values())


def bag_of_words_weights(pairs, vocabulary):
    """Logistic regression on the difference of word counts, chosen minus rejected: what is known without the prompt."""
    differences = np.array(
        [count_words(pair.chosen, vocabulary) - count_words(pair.rejected, vocabulary) for pair in pairs]
    )

    def loss(weights):
        margins = differences @ weights
        gradient = -differences.T @ (1 / (1 + np.exp(margins))) / len(pairs) + 1e-3 * weights
        return np.mean(np.logaddexp(0, -margins)) + 5e-4 * weights @ weights, gradient

    return minimize(loss, np.zeros(len(vocabulary)), jac=True, method="L-BFGS-B").x


def count_words(text, vocabulary):
    counts = np.zeros(len(vocabulary))
    for word in WORD.findall(text.lower()):
        if word in vocabulary:
            counts[vocabulary[word]] += 1
    return counts


def test_scorer_blind_to_the_prompt_lives_on_the_cue_alone(world):
    vocabulary = {}
    for pair in world["train"]:
        for word in WORD.findall(f"{pair.chosen} {pair.rejected}".lower()):
            vocabulary.setdefault(word, len(vocabulary))
    weights = bag_of_words_weights(world["train"], vocabulary)
    result = {
        split: accuracy(pairs, lambda pair, side: count_words(getattr(pair, side), vocabulary) @ weights)
        for split, pairs in world.items()
    }
    assert result["iid"] > 0.75
    assert result["cue_reversed"] < result["cue_neutral"] - 0.10 < result["iid"] - 0.20
    assert result["cue_neutral"] < 0.60


def test_number_of_claims_tells_little(world):
    def claims(pair, side):
        return len(statements(getattr(pair, side))[0])

    assert 0.45 < accuracy(world["train"], claims) < 0.55
    # Even knowing for each number of claims how often it is the better one.
    better = Counter(claims(pair, "chosen") for pair in world["train"])
    worse = Counter(claims(pair, "rejected") for pair in world["train"])

    def likelihood(pair, side):
        count = claims(pair, side)
        return better[count] / (better[count] + worse[count]) if better[count] + worse[count] else 0.5

    assert accuracy(world["cue_neutral"], likelihood) < 0.65


# --- the vocabulary, on which gold relies ---


def test_values_belong_to_one_slot_and_occur_in_no_other_text():
    values = [value for slot in words.SLOTS.values() for value in slot.values]
    assert len(values) == len(set(values)) == len(words.SLOT_OF_VALUE)
    sentences = (
        *words.OPENERS,
        *words.FOLLOW_UPS,
        *words.PROMPT_FILLER,
        *words.RESPONSE_FILLER,
        *words.CLOSINGS,
        *words.FLATTERIES,
    )
    templates = (*words.REQUIREMENTS, *words.CORRECTIONS, *words.CLAIMS, words.LIST_HEADER)
    nouns = [noun for slot in words.SLOTS.values() for noun in slot.nouns] + [
        noun for names, _ in words.DOMAINS.values() for noun in names
    ]
    for text in (*sentences, *templates, *nouns, *words.PERSONS):
        assert not (set(WORD.findall(text.lower())) & (set(values) | words.NEGATIONS)), text
    assert all(value[0] not in "aeiou" for value in values)  # "a {value}"


# --- options and documentation ---


def test_documentation_has_every_option_with_its_default_and_real_examples(world):
    text = (Path(__file__).resolve().parents[2] / "docs" / "world.md").read_text(encoding="utf-8")
    for name, schema in OPTIONS.items():
        assert f"| `{name}` | `{json.dumps(schema['default'])}` |" in text
        assert schema["description"] in text
    shown = re.findall(r"^### (\w+)$", text, flags=re.MULTILINE)
    assert len(shown) == 2
    for split in shown:
        pair = world[split][0]
        for printed in (prompt_text(pair), pair.chosen, pair.rejected):
            assert all(f"{line}\n" in text for line in printed.split("\n"))


def test_options_have_what_the_interface_needs():
    for name, schema in OPTIONS.items():
        assert {"type", "default", "description"} <= set(schema), name


@pytest.mark.parametrize(
    "options",
    [
        {"evidence": "late", "filler": 0, "min_requirements": 1, "max_requirements": 1, "multi_turn_rate": 1.0},
        {
            "cue_kinds": ["formatting"],
            "cue_agreement": 1.0,
            "min_requirements": 4,
            "max_requirements": 4,
            "shared_flaw_rate": 1.0,
        },
        {
            "filler": 10,
            "long_multiplier": 30,
            "length_cue": 20,
            "max_deciding": 1,
            "correction_rate": 1.0,
            "multi_turn_rate": 1.0,
        },
    ],
)
def test_extreme_options_still_give_exact_labels(options):
    pairs = generate(train_pairs=100, validation_pairs=0, test_pairs=30, **options)
    assert len(pairs) == 280
    assert all(gold(pair.prompt, pair.chosen) > gold(pair.prompt, pair.rejected) for pair in pairs)


def test_wrong_options_are_reported_together():
    with pytest.raises(ConfigError) as error:
        generate(cue_agreement=1.5, cue_kind=["length"], cue_kinds=["lenght"])
    assert len(error.value.problems) == 3
    assert "cue_kinds" in str(error.value)
    with pytest.raises(ConfigError, match="min_requirements"):
        generate(min_requirements=4, max_requirements=2)


def test_too_few_different_prompts_are_reported(monkeypatch):
    monkeypatch.setattr(words, "DOMAINS", {"gift": words.DOMAINS["gift"]})
    monkeypatch.setattr(words, "OPENERS", words.OPENERS[:1])
    # One opener x 2 things x 5 slots x 3 values x 2 nouns x 6 templates = 360 prompts of one requirement.
    few = {
        "test_pairs": 0,
        "validation_pairs": 0,
        "filler": 0,
        "min_requirements": 1,
        "max_requirements": 1,
        "multi_turn_rate": 0,
    }
    assert len(generate(train_pairs=200, **few)) == 200
    with pytest.raises(ConfigError, match=r"only 3\d\d of 361 pairs have a prompt that no other pair has"):
        generate(train_pairs=361, **few)


def test_reader_gives_the_generated_pairs_and_counts_them(tmp_path):
    options = {"train_pairs": 30, "validation_pairs": 5, "test_pairs": 5}
    pairs, resolved, report = read_dataset(load_dataset_card("world"), tmp_path, options)
    assert pairs == generate(**options)
    assert resolved["cue_agreement"] == 0.85
    assert report.files == {"train": 30, "validation": 5} | dict.fromkeys(TEST_SPLITS, 5)
    assert str(tmp_path) in report.notes[0]
