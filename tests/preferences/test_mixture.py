"""Mixtures of several sources: proportions by hand, copies and prompts across sources, and what is refused."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from rm_methods.config.resolve import resolve
from rm_methods.errors import DataError
from rm_methods.preferences.data_sources import source_name
from rm_methods.preferences.mixture import quotas
from rm_methods.preferences.pair import read_pairs
from rm_methods.preferences.prepare import describe, prepare


def row(number, chosen="a good long answer", rejected="bad", **other):
    return {"prompt": f"Question {number}?", "chosen": chosen, "rejected": rejected, **other}


@pytest.fixture
def mix(tmp_path):
    """Prepare sources (paths, or entries of `data.sources`): the pairs as stored, and the report."""

    def run(*sources, name="out", **data):
        entries = [source if isinstance(source, dict) else {"dataset": str(source)} for source in sources]
        section = {"sources": entries, "validation_fraction": 0.0, **data}
        config = resolve({"experiment": "x", "data": section, "methods": {"longest": {}}})
        assert resolve(config) == config
        target = tmp_path / name / "pairs.parquet"
        report = prepare(config["data"], target, tmp_path / name / "report.json")
        assert json.loads((tmp_path / name / "report.json").read_text()) == report
        return read_pairs(target), report

    return run


def sizes(pairs, split="train"):
    return dict(Counter(source_name(pair.source) for pair in pairs if pair.split == split))


def prompts(pairs, split="train"):
    return {pair.prompt[0]["content"] for pair in pairs if pair.split == split}


@pytest.mark.parametrize(
    ("available", "weights", "limit", "expected"),
    [
        ([100, 30], [2, 1], None, [60, 30]),  # the second runs out at 30 per weight
        ([40, 30], [2, 1], None, [40, 20]),  # the first, at 20
        ([100, 30], [2, 1], 45, [30, 15]),
        ([100, 30], [2, 1], 50, [33, 16]),  # 50 / 3 a weight, rounded down
        ([100, 30], [2, 1], 1000, [60, 30]),
        ([1000, 9], [0.7, 0.1], None, [63, 9]),  # in floats, 0.7 * (9 / 0.1) is less than 63
        ([7, 7, 7], [1, 1, 1], None, [7, 7, 7]),
        ([5, 0], [1, 1], None, [0, 0]),
        ([5], [0.5], None, [5]),
    ],
)
def test_quotas_are_in_proportion_until_one_source_runs_out(available, weights, limit, expected):
    assert quotas(available, weights, limit) == expected


def test_weights_decide_the_training_pairs_and_leave_evaluation_splits_alone(mix, write_lines):
    first = write_lines("first.jsonl", [row(n) for n in range(100)] + [row(n, split="test") for n in range(100, 105)])
    second = write_lines("second.jsonl", [row(n) for n in range(200, 230)] + [row(900, "", "x"), row(901, "a", "a")])
    weighted = [{"dataset": str(first), "weight": 2}, {"dataset": str(second)}]  # a missing weight is 1
    pairs, report = mix(*weighted)
    assert sizes(pairs) == {"first": 60, "second": 30}
    assert sizes(pairs, "test") == {"first": 5}
    assert len({pair.pair_id for pair in pairs}) == 95
    one, two = report["sources"]
    assert (one["rows"], one["refused"], one["pairs"]) == (105, 0, 105)
    assert (two["rows"], two["refused"], two["pairs"]) == (32, 2, 30)
    assert (one["available"], one["used"], one["splits"]) == (100, 60, {"train": 60, "test": 5})
    assert (one["share_wanted"], one["share_reached"]) == (2 / 3, 2 / 3)
    assert (two["weight"], two["share_wanted"], two["share_reached"]) == (1, 1 / 3, 1 / 3)
    assert {"step": "mixture of train", "before": 130, "after": 90, "counts": {}} in report["steps"]
    assert report["dataset"]["name"] == "2 first + 1 second"
    text = describe(report)
    assert "105          0        105        100         60      66.7%      66.7%" in text
    unweighted, report = mix(first, second, name="unweighted")
    assert sizes(unweighted) == {"first": 100, "second": 30}
    assert [account["share_wanted"] for account in report["sources"]] == [None, None]
    assert [account["share_reached"] for account in report["sources"]] == [100 / 130, 30 / 130]


def test_a_limit_keeps_the_proportions_and_is_part_of_the_larger_draw(mix, write_lines):
    weighted = [
        {"dataset": str(write_lines(f"{name}.jsonl", [row(f"{name} {n}") for n in range(count)])), "weight": weight}
        for name, count, weight in (("first", 60, 3), ("second", 60, 1), ("third", 60, 0.5))
    ]
    large, _ = mix(*weighted, name="large")
    assert sizes(large) == {"first": 60, "second": 20, "third": 10}
    small, report = mix(*weighted, name="small", max_pairs={"train": 45})
    assert sizes(small) == {"first": 30, "second": 10, "third": 5}
    assert {pair.pair_id for pair in small} < {pair.pair_id for pair in large}
    assert [step["step"] for step in report["steps"]] == ["duplicates", "leaks", "mixture of train"]
    # Pairs of all sources are shuffled together.
    assert set(sizes(large[:30])) == {"first", "second", "third"}


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_rows(mix, write_lines):
    rows = [row(n) for n in range(40)]
    others = [row(f"b{n}") for n in range(10)]
    second = {"dataset": str(write_lines("second.jsonl", others)), "weight": 1}
    given, _ = mix({"dataset": str(write_lines("first.jsonl", rows)), "weight": 2}, second)
    turned, _ = mix({"dataset": str(write_lines("first.jsonl", rows[::-1])), "weight": 2}, second, name="turned")
    reseeded, _ = mix({"dataset": str(write_lines("first.jsonl", rows)), "weight": 2}, second, name="seed", seed=1)
    assert given == turned
    assert sizes(given) == sizes(reseeded) == {"first": 20, "second": 10}
    assert prompts(given) != prompts(reseeded)
    # More rows in the source that does not run out replace some pairs, and change no number.
    more, _ = mix(
        {"dataset": str(write_lines("first.jsonl", [*rows, *(row(n) for n in range(40, 80))])), "weight": 2},
        second,
        name="more",
    )
    assert sizes(more) == {"first": 20, "second": 10}


def test_length_balance_holds_in_each_source_of_a_weighted_mixture(mix, write_lines):
    def rows(name, longer, shorter):
        return [row(f"{name} {n}") for n in range(longer)] + [
            row(f"{name} s{n}", "short", "a longer answer") for n in range(shorter)
        ]

    # Balanced, they have 40 and 12 pairs; 12 per weight leave 12 and 24; 24 of the first are half of each kind.
    first = {"dataset": str(write_lines("first.jsonl", rows("a", 70, 20))), "weight": 2}
    second = {"dataset": str(write_lines("second.jsonl", rows("b", 6, 50)))}
    pairs, report = mix(first, second, length_balance=True)
    assert sizes(pairs) == {"first": 24, "second": 12}
    for name, count in (("first", 24), ("second", 12)):
        members = [pair for pair in pairs if source_name(pair.source) == name]
        assert sum(len(pair.chosen) > len(pair.rejected) for pair in members) == count / 2
    assert report["steps"][-1]["counts"]["share_chosen_longer_after"] == 0.5


def test_one_source_gives_the_bytes_of_the_single_data_set(mix, write_lines, tmp_path):
    path = write_lines("pairs.jsonl", [row(n) for n in range(50)] + [row(3, "other", "text", split="test")])
    settings = {"validation_fraction": 0.2, "label_noise": {"rate": 0.2}, "max_pairs": {"train": 30}}
    config = resolve({"experiment": "x", "data": {"dataset": str(path), **settings}, "methods": {"longest": {}}})
    report = prepare(config["data"], tmp_path / "single.parquet", tmp_path / "single.json")
    single = (tmp_path / "single.parquet").read_bytes()
    _, mixed = mix(path, name="one", **settings)
    mix({"dataset": str(path), "weight": 3}, name="weighted", **settings)
    for name in ("one", "weighted"):
        assert (tmp_path / name / "pairs.parquet").read_bytes() == single
    assert "sources" not in report
    for key in ("read", "steps", "splits", "notes"):
        assert mixed[key] == report[key]


def test_a_pair_of_two_sources_counts_once_in_the_first(mix, write_lines):
    first = write_lines("first.jsonl", [row(1), row(2), row(2), row(3)])
    second = write_lines("second.jsonl", [row(2), row(3, "bad", "a good long answer"), row(4), row(5)])
    pairs, report = mix(first, second)
    assert sizes(pairs) == {"first": 2, "second": 2}
    assert [pair.source for pair in pairs if pair.prompt[0]["content"] == "Question 2?"] == ["first/first.jsonl"]
    counted = [
        {key: account[key] for key in ("copies", "copies_of_other_sources", "contradictory", "left")}
        for account in report["sources"]
    ]
    assert counted == [
        {"copies": 1, "copies_of_other_sources": 0, "contradictory": 1, "left": 2},
        {"copies": 0, "copies_of_other_sources": 1, "contradictory": 1, "left": 2},
    ]
    assert "second: 1 pairs are also in another source (or the test file), and count there." in describe(report)


def test_no_prompt_is_in_two_splits_whatever_its_sources(mix, write_lines):
    """Both sources have all prompts; one has named 20 of them its test split."""
    first = write_lines("first.jsonl", [row(n, split="test" if n < 20 else "train") for n in range(100)])
    second = write_lines("second.jsonl", [row(n, "fine", "worse") for n in range(100)])
    pairs, report = mix(first, second, validation_fraction=0.2, test_fraction=0.2)
    groups = {split: {pair.group for pair in pairs if pair.split == split} for split in ("train", "validation", "test")}
    assert all(groups.values())
    assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 100
    assert {f"Question {n}?" for n in range(20)} < prompts(pairs, "test")
    assert set(sizes(pairs, "test")) == {"first", "second"}
    assert "data.test_fraction is used for second only: first has a test split." in report["notes"]
    leaks = {step["step"]: step["counts"] for step in report["steps"]}["leaks"]
    dropped = sum(account["leaks"] for account in report["sources"])
    assert dropped == sum(count for name, count in leaks.items() if name.endswith("_pairs")) > 0


def test_sources_that_all_have_the_split_leave_the_fraction_unused(mix, write_lines):
    files = [write_lines(f"{name}.jsonl", [row(f"{name}1"), row(f"{name}2", split="test")]) for name in "ab"]
    pairs, report = mix(*files, test_fraction=0.3)
    assert sizes(pairs, "test") == {"a": 1, "b": 1}
    assert "data.test_fraction is not used: all sources have a test split." in report["notes"]


def test_a_file_of_test_pairs_is_the_test_split_of_the_whole_mixture(mix, write_lines):
    first = write_lines("first.jsonl", [row(n) for n in range(10)])
    second = write_lines("second.jsonl", [row(n) for n in range(10, 20)])
    test = write_lines("held.jsonl", [row(1), row(11), row(30)])
    pairs, report = mix(first, second, test=str(test))
    assert sizes(pairs) == {"first": 9, "second": 9}
    assert sizes(pairs, "test") == {"held": 3}
    assert [account["copies_of_other_sources"] for account in report["sources"]] == [1, 1]
    holder = write_lines("third.jsonl", [row(40), row(41, split="test")])
    with pytest.raises(DataError, match=r"data\.test: names .*third\.jsonl' has a split test of 1 pairs"):
        mix(first, holder, test=str(test))


def test_texts_and_conversations_are_mixed(mix, write_lines):
    def said(text):
        return [{"role": "assistant", "content": text}]

    texts = write_lines("texts.jsonl", [row(1)])
    answers = {"chosen": said("yes"), "rejected": said("no")}
    turns = [{"prompt": [{"role": "user", "content": f"Question {n}?"}], **answers} for n in (1, 2)]
    pairs, _ = mix(texts, write_lines("turns.jsonl", turns))
    assert {type(pair.prompt) for pair in pairs} == {list}
    assert sizes(pairs) == {"texts": 1, "turns": 2}
    assert len({pair.group for pair in pairs}) == 2  # the same question is the same prompt in both forms


def test_pairs_and_ranked_responses_are_mixed(mix, write_lines):
    ranked = [{"prompt": f"Ranked {n}?", "responses": ["good", "fair", "bad"], "ranks": [1, 2, 3]} for n in range(4)]
    pairs, report = mix(write_lines("pairs.jsonl", [row(1)]), write_lines("ranked.jsonl", ranked))
    assert sizes(pairs) == {"pairs": 1, "ranked": 12}
    assert [(account["rows"], account["pairs"]) for account in report["sources"]] == [(1, 1), (4, 12)]


def test_each_source_has_its_options_and_its_name(mix, write_lines):
    first = write_lines("pairs.jsonl", [row(1)])
    second = write_lines("other/pairs.jsonl", [{"q": "Question 2?", "better": "fine", "worse": "bad"}])
    options = {"prompt_field": "q", "chosen_field": "better", "rejected_field": "worse"}
    pairs, report = mix(first, {"dataset": str(second), "options": options, "name": "votes"})
    assert sorted(pair.source for pair in pairs) == ["pairs/pairs.jsonl", "votes/pairs.jsonl"]
    assert report["sources"][1]["options"]["chosen_field"] == "better"
    with pytest.raises(DataError, match=r"field 'chosen' is missing.*data\.sources\.1\.options\.chosen_field"):
        mix(first, {"dataset": str(second), "name": "votes"})


def test_the_controlled_world_can_be_a_source(mix, write_lines):
    world = {
        "dataset": "world",
        "name": "made",
        "options": {"train_pairs": 40, "validation_pairs": 10, "test_pairs": 8},
    }
    pairs, _ = mix({**world, "weight": 1}, {"dataset": str(write_lines("x.jsonl", [row(n) for n in range(30)]))})
    assert sizes(pairs) == {"made": 30, "x": 30}
    assert sizes(pairs, "iid") == {"made": 8}


@pytest.mark.parametrize(
    ("second", "weights", "message"),
    [
        ([row(1, "same", "same")], (None, None), r"data\.sources\.1: .*second\.jsonl' has no usable pair \(1 rows ref"),
        ([row(n) for n in range(3)], (None, None), r"data\.sources\.1: .* of its 3, 3 are copies of pairs of other"),
        ([row(9, split="test")], (1, 1), r"data\.sources\.1: .* has a weight and no training pair is left"),
        ([row(9)], (1, 1000), r"data\.sources\.0\.weight: 1 of a sum of 1001 leaves no training pair"),
    ],
)
def test_a_source_that_gives_nothing_is_refused(mix, write_lines, tmp_path, second, weights, message):
    first = write_lines("first.jsonl", [row(n) for n in range(5)])
    files = (first, write_lines("second.jsonl", second))
    with pytest.raises(DataError, match=message) as error:
        mix(*({"dataset": str(file), "weight": weight} for file, weight in zip(files, weights, strict=True)))
    assert "Sources (available and used" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_source_without_training_pairs_may_be_for_evaluation_only(mix, write_lines):
    first = write_lines("first.jsonl", [row(n) for n in range(5)])
    pairs, report = mix(first, write_lines("second.jsonl", [row(9, split="test")]))
    assert sizes(pairs) == {"first": 5}
    assert sizes(pairs, "test") == {"second": 1}
    assert report["sources"][1]["used"] == 0


def test_files_of_a_pattern_are_read_like_one(mix, write_lines, tmp_path):
    for number in range(3):
        write_lines(f"shards/part-{number}.jsonl", [row(10 * number + n, id=f"{number}{n}") for n in range(10)])
    (tmp_path / "shards/part-of-another").mkdir()
    other = write_lines("other.jsonl", [row(n) for n in range(100, 110)])
    pairs, report = mix(tmp_path / "shards/part-*", other)
    assert sizes(pairs) == {"part": 30, "other": 10}
    assert report["sources"][0]["rows"] == 30
    assert {pair.source for pair in pairs} == {*(f"part/part-{k}.jsonl" for k in range(3)), "other/other.jsonl"}
    write_lines("shards/part-3.jsonl", [row(50, id="00")])
    with pytest.raises(DataError, match=r"part-3\.jsonl, row 1: id '00' occurs twice"):
        mix(tmp_path / "shards/part-*", other)
