from __future__ import annotations

import pytest

from rm_methods.benchmarks.cards import load_benchmark_card, resolve_benchmark_options
from rm_methods.benchmarks.evaluation import credit_table, metric_values, prepare_items
from rm_methods.benchmarks.item import read_items
from rm_methods.errors import ConfigError, DataError, UserError
from rm_methods.preferences.pair import make_pair, write_pairs

from .made_up import example_pairs, scores_by

WORLD = load_benchmark_card("world")


def prepare(name, pairs, tmp_path, **config):
    report = prepare_items(name, config, pairs, tmp_path / "i.parquet", tmp_path / "r.json")
    return report, read_items(tmp_path / "i.parquet")


def test_each_split_of_the_world_is_a_metric_and_mean_weighs_them_equally(tmp_path):
    prompt = [{"role": "user", "content": "?"}]
    pairs = [make_pair(prompt, f"long answer {i}", f"no {i}", split="iid", source="made up") for i in range(3)]
    first, *others = resolve_benchmark_options(WORLD)["splits"]
    assert (first, len(others)) == ("iid", 5)
    pairs += [make_pair(prompt, f"no {split}", "long answer", split=split, source="made up") for split in others]
    write_pairs(pairs, tmp_path / "pairs.parquet")
    _, items = prepare("world", tmp_path / "pairs.parquet", tmp_path)
    values = metric_values(credit_table(WORLD, items, scores_by(lambda text: float(text.startswith("long")), items)))
    assert values == {"iid": 1.0, **dict.fromkeys(others, 0.0), "mean": pytest.approx(1 / 6)}


def test_heldout_reads_the_test_split_and_validation_on_request(tmp_path):
    pairs = example_pairs(("test", "validation"), tmp_path / "pairs.parquet")
    report, items = prepare("heldout", pairs, tmp_path)
    assert {item.subset for item in items} == {"test"}
    assert report["n_rows"] == 2
    _, both = prepare("heldout", pairs, tmp_path, options={"splits": ["test", "validation"]})
    assert {item.subset for item in both} == {"test", "validation"}
    assert len({item.item_id for item in both}) == 4  # the same pairs in two splits stay apart


def heldout_values(tmp_path, pairs, score):
    made = [
        make_pair([{"role": "user", "content": f"{k}?"}], *pair, split="test", source="made up")
        for k, pair in enumerate(pairs)
    ]
    write_pairs(made, tmp_path / "pairs.parquet")
    _, items = prepare("heldout", tmp_path / "pairs.parquet", tmp_path)
    return metric_values(credit_table(load_benchmark_card("heldout"), items, scores_by(score, items)))


def test_with_length_controlled_longer_and_shorter_chosen_responses_weigh_the_same(tmp_path):
    """Three pairs whose longer response is chosen, one whose shorter one is, one of equal length."""
    pairs = [
        ("a good one", "bad"),
        ("good again", "bad"),
        ("good and long", "bad"),
        ("good", "bad but long"),
        ("good!", "worse"),
    ]
    by_length = heldout_values(tmp_path, pairs, lambda text: float(len(text)))
    assert by_length["test"] == pytest.approx(3 / 5)
    assert by_length["test_length_controlled"] == pytest.approx(1 / 2)
    by_word = heldout_values(tmp_path, pairs, lambda text: float("good" in text and "again" not in text))
    assert by_word["test"] == pytest.approx(4 / 5)
    assert by_word["test_length_controlled"] == pytest.approx((2 / 3 + 1) / 2)


def test_without_a_pair_of_each_kind_length_cannot_be_controlled(tmp_path):
    values = heldout_values(tmp_path, [("a good one", "bad"), ("good!", "worse")], lambda text: float(len(text)))
    assert set(values) == {"test", "mean"}


def test_the_chosen_response_is_the_first_and_keeps_the_group_of_its_pair(tmp_path):
    pair = make_pair(
        [{"role": "user", "content": "?"}],
        "good",
        "bad",
        split="test",
        source="s",
        strength=2.0,
        meta={"flipped": True},
    )
    write_pairs([pair], tmp_path / "pairs.parquet")
    report, (item,) = prepare("heldout", tmp_path / "pairs.parquet", tmp_path)
    assert (item.responses, item.label, item.group) == (["good", "bad"], 0, pair.group)
    assert item.meta == {"source": "s", "strength": 2.0, "flipped": True}
    assert report["counted"]["label flipped by injected noise, kept"]["count"] == 1


def test_a_split_without_pairs_is_an_error_that_lists_what_there_is(tmp_path):
    pairs = example_pairs(("test",), tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match=r"'iid' has no pairs.*The splits of .* are: test \(2\), train \(2\)"):
        prepare("world", pairs, tmp_path)


def test_the_training_split_is_no_benchmark(tmp_path):
    pairs = example_pairs(("test",), tmp_path / "pairs.parquet")
    with pytest.raises(
        ConfigError, match=r"options.splits: 'train' is not a split of heldout. Allowed: test, validation"
    ):
        prepare("heldout", pairs, tmp_path, options={"splits": ["train"]})


def test_a_pair_that_is_twice_in_the_file_is_named_with_its_rows(tmp_path):
    prompt = [{"role": "user", "content": "?"}]
    pairs = [make_pair(prompt, f"answer {k}", "no", split="test", source="made up") for k in range(3)]
    write_pairs([*pairs, pairs[1]], tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match=r"pairs\.parquet, row 4: the pair .* is also in row 2"):
        prepare("heldout", tmp_path / "pairs.parquet", tmp_path)


def test_pairs_are_needed_and_a_root_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"made of the experiment.s prepared pairs.*prepare-benchmark --pairs"):
        prepare("heldout", None, tmp_path)
    with pytest.raises(UserError, match=r"benchmarks.heldout.root: .* is not used"):
        prepare("heldout", example_pairs(("test",), tmp_path / "pairs.parquet"), tmp_path, root=str(tmp_path))


def test_a_split_of_a_mixture_has_an_accuracy_for_each_source(tmp_path):
    """Two of three pairs of the first source are right, and none of the second."""
    sources = {"first/a.jsonl": ["good", "good", "worse"], "second": ["worse", "worse"]}
    pairs = [
        make_pair([{"role": "user", "content": f"{source} {k}?"}], chosen, "bad", split="test", source=source)
        for source, answers in sources.items()
        for k, chosen in enumerate(answers)
    ]
    pairs.append(make_pair([{"role": "user", "content": "?"}], "good", "bad", split="validation", source="first"))
    write_pairs(pairs, tmp_path / "pairs.parquet")
    _, items = prepare("heldout", tmp_path / "pairs.parquet", tmp_path, options={"splits": ["test", "validation"]})
    card = load_benchmark_card("heldout")
    values = metric_values(credit_table(card, items, scores_by(lambda text: float(text == "good"), items)))
    assert values["test"] == pytest.approx(2 / 5)
    assert values["test_from_first"] == pytest.approx(2 / 3)
    assert values["test_from_second"] == 0.0
    assert not [name for name in values if name.startswith("validation_from")]  # its pairs have one source
