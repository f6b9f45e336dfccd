import json
import subprocess
import sys

import pytest

from rm_methods.config.resolve import resolve
from rm_methods.errors import DataError
from rm_methods.preferences.pair import read_pairs
from rm_methods.preferences.prepare import describe, prepare
from rm_methods.preferences.removals import removal_sentences


def row(number, chosen="a good long answer", rejected="bad", **other):
    return {"prompt": f"Question {number}?", "chosen": chosen, "rejected": rejected, **other}


@pytest.fixture
def run(tmp_path):
    """Prepare into a folder: the pairs as stored and the report as stored."""

    def run_prepare(dataset, name="out", **data):
        pairs, report = tmp_path / name / "pairs.parquet", tmp_path / name / "report.json"
        section = {"dataset": str(dataset), "validation_fraction": 0.0, **data}
        config = resolve({"experiment": "x", "data": section, "methods": {"longest": {}}})
        returned = prepare(config["data"], pairs, report)
        assert json.loads(report.read_text()) == returned
        return read_pairs(pairs), returned

    return run_prepare


def by_split(pairs):
    return {split: [p for p in pairs if p.split == split] for split in dict.fromkeys(p.split for p in pairs)}


def test_every_step_is_done_and_counted(run, write_lines):
    rows = [row(n) for n in range(60)] + [row(n, "short", "a longer answer") for n in range(60, 100)]
    rows += [rows[0], row(1, "bad", "a good long answer"), row(200, "", "x")]
    rows += [row(n, split="test") for n in range(300, 310)] + [row(2, "other", "text!", split="test")]
    pairs, report = run(
        write_lines("x.jsonl", rows),
        seed=3,
        validation_fraction=0.2,
        test_fraction=0.5,
        max_pairs={"train": 40, "validation": 5, "test": None},
        length_balance=True,
        label_noise={"rate": 0.1, "kind": "symmetric"},
    )
    splits = by_split(pairs)
    assert list(splits) == ["train", "validation", "test"]
    assert {split: len(members) for split, members in splits.items()} == {"train": 40, "validation": 5, "test": 11}
    assert report["read"]["rows"] == 114
    assert report["read"]["dropped"]["empty response"]["count"] == 1
    steps = {step["step"]: step for step in report["steps"]}
    assert steps["duplicates"]["counts"] == {"exact": 1, "contradictory": 2}
    assert steps["leaks"]["counts"]["groups"] == 1
    assert steps["length balance of train"]["counts"]["share_chosen_longer_after"] == 0.5
    assert steps["label noise in train (symmetric, rate 0.1)"]["counts"]["flipped"] == 4
    assert {split: summary["flipped"] for split, summary in report["splits"].items()} == {
        "train": 4,
        "validation": 0,
        "test": 0,
    }
    assert "data.test_fraction is not used: the source has a test split." in report["notes"]
    clean = [p if not p.meta.get("flipped") else None for p in splits["train"]]
    unflipped = sum(len(p.chosen) > len(p.rejected) for p in clean if p) + sum(
        len(p.rejected) > len(p.chosen) for p in splits["train"] if p.meta.get("flipped")
    )
    assert unflipped == 20  # the cap has kept the balance


def test_evaluation_splits_are_balanced_on_request(run, write_lines):
    rows = [row(n) for n in range(30)] + [row(n, split="test") for n in range(100, 130)]
    rows += [row(n, "short", "a longer answer", split="test") for n in range(130, 140)]
    path = write_lines("x.jsonl", rows)
    pairs, report = run(path, length_balanced_splits=["test", "tset"], max_pairs={"test": 8})
    test = by_split(pairs)["test"]
    assert len(test) == 8
    assert sum(len(pair.chosen) > len(pair.rejected) for pair in test) == 4  # the cap has kept the balance
    assert len(by_split(pairs)["train"]) == 30
    steps = {step["step"]: step for step in report["steps"]}
    assert (steps["length balance of test"]["before"], steps["length balance of test"]["after"]) == (40, 20)
    assert "data.length_balanced_splits: 'tset' is not used: no split has that name." in report["notes"]


def test_the_same_settings_give_the_same_bytes_and_another_seed_does_not(run, write_lines, tmp_path):
    path = write_lines("x.jsonl", [row(n) for n in range(50)])
    settings = {"validation_fraction": 0.3, "label_noise": {"rate": 0.2, "kind": "symmetric"}}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(path, name=name, seed=seed, **settings)
    files = [(tmp_path / name / "pairs.parquet").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]


def test_evaluation_splits_are_the_same_with_and_without_noise_balance_and_cap_of_train(run, write_lines):
    rows = [row(n) for n in range(60)] + [row(n, "short", "a longer answer") for n in range(60, 100)]
    path = write_lines("x.jsonl", rows)
    plain, _ = run(path, validation_fraction=0.3)
    changed, _ = run(
        path, validation_fraction=0.3, length_balance=True, label_noise={"rate": 0.4}, max_pairs={"train": 10}
    )
    assert by_split(plain)["validation"] == by_split(changed)["validation"]


def test_other_splits_of_the_reader_pass_through(run, write_lines):
    rows = [row(1), row(2, split="validation"), row(3, split="iid"), row(3, "x", "y", split="cue_reversed")]
    pairs, report = run(write_lines("x.jsonl", rows), max_pairs={"iid": 1, "nowhere": 3})
    assert list(by_split(pairs)) == ["train", "validation", "cue_reversed", "iid"]
    assert "data.max_pairs.nowhere is not used: no split has that name." in report["notes"]


def test_nothing_left_to_train_on_shows_what_became_of_the_rows(run, write_lines, tmp_path):
    with pytest.raises(DataError, match=r"nothing is left to train on(.|\n)*1 dropped: chosen equals rejected"):
        run(write_lines("x.jsonl", [row(1, "same", "same"), row(2, split="test")]))
    with pytest.raises(DataError, match="nothing is left to train on"):
        run(write_lines("y.jsonl", [row(n) for n in range(5)]), length_balance=True)
    with pytest.raises(DataError, match="nothing is left to train on"):
        run(write_lines("empty.jsonl", []))
    assert not (tmp_path / "out").exists()


def test_an_empty_split_that_was_asked_for_is_refused(run, write_lines):
    with pytest.raises(DataError, match=r"the split validation is empty\. Raise data\.<split>_fraction"):
        run(write_lines("x.jsonl", [row(1)]), validation_fraction=0.01)


def test_the_description_shows_counts_shares_and_notes(run, write_lines):
    rows = [row(n) for n in range(1200)] + [row(1, "", "x")]
    _, report = run(write_lines("x.jsonl", rows), max_pairs={"train": 1000, "other": 1}, label_noise={"rate": 0.1})
    text = describe(report)
    for expected in (
        "license: unknown",
        "1,201 rows",
        "1 dropped: empty response",
        "1,200 -> 1,000   max_pairs of train",
        "90.0%",
        "data.max_pairs.other",
    ):
        assert expected in text


def test_a_real_test_file_alone_is_nothing_to_train_on(run, real_data):
    with pytest.raises(
        DataError, match=r"nothing is left to train on(.|\n)*2,303 pairs made(.|\n)*No local file for split 'train'"
    ):
        run("hh_rlhf", root=str(real_data("hh_rlhf")))


def test_real_harmless_transcripts_through_the_whole_stage(run, real_data, tmp_path):
    """The test file stands in for the train file: 2,303 pairs of 2,301 prompts."""
    (tmp_path / "hh/harmless-base").mkdir(parents=True)
    (tmp_path / "hh/harmless-base/train.jsonl.gz").symlink_to(real_data("hh_rlhf") / "harmless-base" / "test.jsonl.gz")
    pairs, report = run(
        "hh_rlhf", root=str(tmp_path / "hh"), validation_fraction=0.1, label_noise={"rate": 0.2, "kind": "length"}
    )
    splits = report["splits"]
    assert splits["train"]["pairs"] + splits["validation"]["pairs"] == 2303
    assert splits["train"]["groups"] + splits["validation"]["groups"] == 2301
    assert splits["train"]["flipped"] == round(0.2 * splits["train"]["pairs"])
    assert all(pair.prompt[0]["role"] == pair.prompt[-1]["role"] == "user" for pair in pairs)


def test_real_alpaca_eval_pairs_balanced_by_length(run, real_data):
    options = {"annotators": ["weighted_alpaca_eval_gpt4_turbo"]}
    pairs, report = run(
        "alpaca_eval",
        root=str(real_data("alpaca_eval")),
        options=options,
        length_balance=True,
        max_pairs={"train": 1500, "validation": 200, "test": 200},
    )
    assert {split: summary["pairs"] for split, summary in report["splits"].items()} == {
        "train": 1500,
        "validation": 200,
        "test": 200,
    }
    assert report["splits"]["train"]["share_chosen_longer"] == 0.5
    assert report["splits"]["test"]["share_chosen_longer"] > 0.8
    groups = {split: {p.group for p in members} for split, members in by_split(pairs).items()}
    assert not groups["train"] & (groups["validation"] | groups["test"])


def test_importing_the_stage_loads_no_heavy_package():
    heavy = ("torch", "transformers", "datasets", "pandas", "pyarrow", "jsonschema")
    code = f"import sys, rm_methods.preferences.prepare; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_long_training_pairs_are_left_out_before_the_balance_and_counted(tmp_path):
    from rm_methods.preferences.pair import read_pairs

    rows = [
        {
            "prompt": f"question {k}",
            "chosen": "x" * (500 if k < 10 else 30 + k % 2),
            "rejected": "y" * (30 + (k + 1) % 2),
        }
        for k in range(40)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {
        "dataset": str(tmp_path / "p.jsonl"),
        "max_characters": {"train": 100},
        "length_balance": True,
        "validation_fraction": 0.0,
    }
    data = resolve({"experiment": "x", "data": section, "methods": {"bradley_terry": {}}})["data"]
    report = prepare(data, tmp_path / "o.parquet", tmp_path / "r.json")
    step = next(s for s in report["steps"] if s["step"].startswith("max_characters"))
    assert (step["before"], step["after"]) == (40, 30)
    pairs = read_pairs(tmp_path / "o.parquet")
    assert all(len(p.chosen) < 100 for p in pairs)
    assert 2 * sum(len(p.chosen) > len(p.rejected) for p in pairs) == len(pairs) > 0


def test_long_pairs_of_other_splits_are_left_out_only_where_asked(write_lines, run):
    rows = [row(n, "short", "tiny") for n in range(100)]
    for first, split in ((100, "test"), (300, "other")):
        rows += [row(first + n, "short" if n < 100 else "x" * 200, "tiny", split=split) for n in range(110)]
    path = write_lines("x.jsonl", rows)
    _, report = run(path, max_characters={"test": 100, "gone": 5})
    assert [(s["step"], s["before"], s["after"]) for s in report["steps"] if "characters" in s["step"]] == [
        ("max_characters of test (100)", 110, 100)
    ]
    assert report["splits"]["other"]["pairs"] == 110
    assert "data.max_characters.gone is not used: no split has that name." in report["notes"]


def test_near_identical_prompts_are_never_in_two_splits(write_lines, run):
    forms = ("Où est {}?", "Ou\u0300 est {}?", "OÙ est\u00a0{}?")
    rows = [
        {"prompt": f.format(n), "chosen": f"good {k}", "rejected": "bad"}
        for n in range(40)
        for k, f in enumerate(forms)
    ]
    pairs, report = run(write_lines("x.jsonl", rows), validation_fraction=0.3, test_fraction=0.2)
    assert len(pairs) == 120
    assert sum(summary["groups"] for summary in report["splits"].values()) == 40
    groups = [{p.group for p in members} for members in by_split(pairs).values()]
    assert len(groups) == 3
    assert len(set.union(*groups)) == 40


def test_columns_that_were_not_read_are_in_the_report_and_its_description(write_lines, run):
    path = write_lines("x.jsonl", [row(1, shade=["f"]), row(2, shade=["f"], level="hard"), row(3, shade=None)])
    _, report = run(path)
    assert report["read"]["unread"] == {str(path): {"shade": 2, "level": 1}}
    assert f"Not read from {path}: shade (2 rows), level (1 rows)." in describe(report)


def test_a_file_of_test_pairs_becomes_the_split_test(run, write_lines):
    """Its split column does not count, leaks leave train, and a pair in both files stays in the test split."""
    data = write_lines("x.jsonl", [row(n) for n in range(6)] + [row(1, "another answer", "worse")])
    test = write_lines("t.jsonl", [row(1, "good", "bad"), row(2), row(7, split="train"), row(8, "same", "same")])
    pairs, report = run(data, test=str(test))
    prompts = {split: {p.prompt[0]["content"] for p in members} for split, members in by_split(pairs).items()}
    assert prompts == {
        "train": {f"Question {n}?" for n in (0, 3, 4, 5)},
        "test": {f"Question {n}?" for n in (1, 2, 7)},
    }
    assert report["read"]["rows"] == 11
    assert report["read"]["pairs"] == 10
    assert report["read"]["files"] == {str(data): 7, str(test): 4}
    assert report["read"]["dropped"]["chosen equals rejected"]["examples"] == [f"{test}, row 4"]
    assert report["read"]["unread"] == {str(test): {"split": 1}}
    steps = {step["step"]: step for step in report["steps"]}
    assert steps["duplicates"]["counts"] == {"exact": 1, "contradictory": 0, "train_pairs_in_test": 1}
    assert steps["leaks"]["counts"] == {"groups": 1, "train_pairs": 2}
    assert removal_sentences(report) == [
        "1 training pair is also in the test file and was removed from train.",
        "2 pairs (2 of train) share a prompt with a test or validation pair and were removed.",
    ]
    text = describe(report)
    assert all(f"            {sentence}\n" in text for sentence in removal_sentences(report))
    assert report["dataset"]["test_file"] == str(test)


def test_options_hold_for_the_file_of_test_pairs(run, write_lines):
    def renamed(number):
        return {"prompt": f"Question {number}?", "better": "a good long answer", "worse": "bad"}

    options = {"chosen_field": "better", "rejected_field": "worse"}
    data = write_lines("x.jsonl", [renamed(n) for n in range(3)])
    test = write_lines("t.jsonl", [renamed(n) for n in range(3, 5)])
    pairs, _ = run(data, test=str(test), options=options)
    assert {split: len(members) for split, members in by_split(pairs).items()} == {"train": 3, "test": 2}


def test_a_second_test_split_and_an_empty_one_are_refused(run, write_lines):
    data = write_lines("x.jsonl", [row(1), row(2, split="test")])
    test = write_lines("t.jsonl", [row(3)])
    with pytest.raises(DataError, match=r"data\.test: names .*t\.jsonl.* has a split test of 1 pairs"):
        run(data, test=str(test))
    with pytest.raises(DataError, match=r"no pair of data\.test \('.*e\.jsonl'\) is left"):
        run(write_lines("y.jsonl", [row(1)]), test=str(write_lines("e.jsonl", [row(3, "same", "same")])))


@pytest.mark.parametrize(
    ("split", "remedy"),
    [
        ("test", r"Set data\.test_fraction above 0, .* or name a file of test pairs: data\.test"),
        ("validation", r"Set data\.validation_fraction above 0"),
        ("iid", "Leave the split iid out"),
    ],
)
def test_a_split_that_a_benchmark_needs_and_the_data_lack_is_refused(write_lines, tmp_path, split, remedy):
    section = {"dataset": str(write_lines("x.jsonl", [row(1)])), "validation_fraction": 0.0}
    data = resolve({"experiment": "x", "data": section, "methods": {"longest": {}}})["data"]
    with pytest.raises(DataError, match=f"made of the split {split}, but the data has none. {remedy}"):
        prepare(data, tmp_path / "p.parquet", tmp_path / "r.json", [split])
    assert not (tmp_path / "p.parquet").exists()
