"""`rm-methods benchmark`: the numbers of the workflow, resumed after a stop, refused with all problems."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from rm_methods.benchmarks.evaluation import evaluate_run
from rm_methods.benchmarks.item import BenchmarkItem, write_items
from rm_methods.benchmarks.score_table import read_scores
from rm_methods.cli import main
from rm_methods.errors import ConfigError, UserError
from rm_methods.files import read_json, write_json
from rm_methods.leaderboard import model_run
from rm_methods.leaderboard.model_run import Target, run_model
from rm_methods.preferences.pair import make_pair, write_pairs
from rm_methods.scoring.model_options import ModelOptions
from rm_methods.scoring.scorer import SCORER_FILE, ScoringSettings

EXAMPLES = Path(__file__).parents[1] / "benchmarks" / "examples"
SETTINGS = ScoringSettings(threads=1)
TARGETS = [Target("rm_bench", EXAMPLES / "rm_bench"), Target("rewardbench2", EXAMPLES / "rewardbench2")]
IDENTITY = {"variant": "v", "method": "m", "seed": 0, "run_key": "k"}


@pytest.fixture
def longest(tmp_path) -> Path:
    folder = tmp_path / "longest"
    folder.mkdir()
    write_json(folder / SCORER_FILE, {"method": "longest", "settings": {}, "seed": 0})
    return folder


def test_metrics_are_those_of_the_evaluate_stage(longest, tmp_path):
    text = run_model(str(longest), TARGETS, tmp_path / "out", SETTINGS)
    record = read_json(tmp_path / "out" / "results.json")
    jobs = []
    for target in TARGETS:
        folder = tmp_path / "out" / target.name
        jobs.append((target.name, folder / "items.parquet", folder / "scores.parquet"))
    expected = evaluate_run(jobs, IDENTITY, tmp_path / "metrics.json", tmp_path / "credits.parquet")["benchmarks"]
    for result in record["benchmarks"]:
        name = result["benchmark"]
        values = {metric: parties["model"]["value"] for metric, parties in result["metrics"].items()}
        assert values == pytest.approx(expected[name]["metrics"])
        assert result["tie_rate"] == expected[name]["tie_rate"]
        # The model is the rule.
        assert all(parties["model"] == parties["longest"] for parties in result["metrics"].values())
    assert "RM-Bench: " in text
    assert "RewardBench 2: " in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_files_hold_the_same_numbers(longest, tmp_path):
    run_model(str(longest), TARGETS, tmp_path / "out", SETTINGS)
    record = read_json(tmp_path / "out" / "results.json")
    with open(tmp_path / "out" / "table.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for result in record["benchmarks"]:
        shared_format = read_json(tmp_path / "out" / result["benchmark"] / "every_eval_ever.json")
        by_metric = {entry["metric_config"]["metric_name"]: entry for entry in shared_format["evaluation_results"]}
        for metric, parties in result["metrics"].items():
            assert by_metric[metric]["score_details"]["score"] == parties["model"]["value"]
            named = [row for row in rows if (row["benchmark"], row["metric"]) == (result["benchmark"], metric)]
            assert [row["model"] for row in named] == [str(longest), "longest", "shortest", "random"]
            assert float(named[0]["value"]) == parties["model"]["value"]
        ties = by_metric.get("ties")
        if ties is not None:
            assert (ties["metric_config"]["min_score"], ties["metric_config"]["max_score"]) == (-0.01, 1.01)
    assert {path.name for path in (tmp_path / "out").glob("table.*")} == {
        "table.txt",
        "table.md",
        "table.csv",
        "table.tex",
    }


def test_a_stopped_run_continues_with_the_parts_it_has(longest, tmp_path, monkeypatch):
    whole = run_model(str(longest), TARGETS[:1], tmp_path / "whole", SETTINGS)
    monkeypatch.setattr(model_run, "_RESPONSES_AT_ONCE", 12)  # two items of RM-Bench
    scored = []
    load = model_run.load_scorer

    def stopping(stop_after):
        def load_counted(*arguments, **options):
            scorer = load(*arguments, **options)
            compute = scorer.compute

            def counted(items, label):
                if len(scored) == stop_after:
                    raise KeyboardInterrupt
                scored.append(len(items))
                return compute(items, label)

            scorer.compute = counted
            return scorer

        return load_counted

    monkeypatch.setattr(model_run, "load_scorer", stopping(2))
    with pytest.raises(KeyboardInterrupt):
        run_model(str(longest), TARGETS[:1], tmp_path / "out", SETTINGS)
    assert scored == [2, 2]
    monkeypatch.setattr(model_run, "load_scorer", stopping(None))
    assert run_model(str(longest), TARGETS[:1], tmp_path / "out", SETTINGS) == whole
    items = read_json(tmp_path / "out" / "rm_bench" / "items.json")["n_items"]
    assert sum(scored) == items
    assert not (tmp_path / "out" / "rm_bench" / "parts").exists()


def test_finished_scores_are_kept_until_model_or_settings_change(longest, tmp_path, monkeypatch):
    run_model(str(longest), TARGETS[:1], tmp_path / "out", SETTINGS)
    loads = []
    load = model_run.load_scorer
    monkeypatch.setattr(model_run, "load_scorer", lambda *a, **k: loads.append(1) or load(*a, **k))
    run_model(str(longest), TARGETS[:1], tmp_path / "out", SETTINGS)
    assert not loads
    run_model(str(longest), TARGETS[:1], tmp_path / "out", SETTINGS, max_length=64)
    assert len(loads) == 1
    write_json(longest / SCORER_FILE, {"method": "shortest", "settings": {}, "seed": 0})
    run_model(str(longest), TARGETS[:1], tmp_path / "out", SETTINGS, max_length=64)
    assert len(loads) == 2


def test_a_reward_model_reads_as_much_as_it_was_made_for(reward_model, tokenizer, tmp_path):
    reward_model.save(tmp_path / "model")
    tokenizer.tokenizer.save_pretrained(tmp_path / "model")
    folder = tmp_path / "model"
    run_model(str(folder), TARGETS[1:], tmp_path / "out", SETTINGS)
    limit = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    assert read_json(tmp_path / "out" / "results.json")["model"]["settings"]["max_length"] == limit


def test_another_reference_or_base_in_its_place_is_another_model(tmp_path):
    """Scores of the one before are not used."""
    folders = [tmp_path / name for name in ("adapters", "base", "reference")]
    for folder in folders:
        folder.mkdir()
        (folder / "model_part.txt").write_text("one")
    write_json(folders[0] / "adapter_config.json", {"base_model_name_or_path": str(folders[1])})
    options = ModelOptions(reference=str(folders[2]))
    keys = [model_run._model_key(folders[0], SETTINGS, options)]
    for folder in folders[1:]:
        (folder / "model_part.txt").write_text("another")
        keys.append(model_run._model_key(folders[0], SETTINGS, options))
    assert len(set(keys)) == 3


@pytest.fixture
def model(reward_model, tokenizer, tmp_path) -> Path:
    reward_model.save(tmp_path / "model")
    tokenizer.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_strict_gives_no_score_to_what_does_not_fit(model, tmp_path):
    """Of the same texts, those that were cut; the others keep their scores."""
    tables = {}
    for protocol in ("counted", "strict"):
        settings = ScoringSettings(threads=1, protocol=protocol)
        text = run_model(str(model), TARGETS[1:], tmp_path / protocol, settings, max_length=40)
        tables[protocol] = read_scores(tmp_path / protocol / "rewardbench2" / "scores.parquet")
    counted, strict = tables["counted"], tables["strict"]
    assert 0 < counted.truncated.sum() < len(counted)
    assert not counted.score.isna().any()
    assert strict.score.isna().tolist() == counted.truncated.tolist()
    kept = ~counted.truncated
    assert strict.score[kept].tolist() == counted.score[kept].tolist()
    assert "was too long, so it has no score" in " ".join(text.split())


def test_official_follows_each_script_and_says_so(model, tmp_path, monkeypatch):
    """RewardBench 2 cuts at the right, RM-Bench at the left; here after 40 tokens."""
    card_of = model_run.load_benchmark_card

    def shorter(name):
        card = card_of(name)
        return replace(card, official=card.official | {"max_length": 40}) if card.official else card

    monkeypatch.setattr(model_run, "load_benchmark_card", shorter)
    text = run_model(str(model), TARGETS, tmp_path / "out", SETTINGS, official=True)
    results = {result["benchmark"]: result for result in read_json(tmp_path / "out" / "results.json")["benchmarks"]}
    sides = {name: result["computation"]["truncation_side"] for name, result in results.items()}
    assert sides == {"rm_bench": "left", "rewardbench2": "right"}
    assert {result["computation"]["protocol"] for result in results.values()} == {"official"}
    for name in sides:
        assert read_scores(tmp_path / "out" / name / "scores.parquet").n_tokens.max() == 40
    one_line = " ".join(text.split())
    assert "tokens as in each benchmark's official script" in one_line
    assert "cut to 40 tokens at the right, as in allenai/reward-bench at 05a9005" in one_line


def test_official_needs_a_script_and_a_chat_model(model, longest, tmp_path):
    with pytest.raises(ConfigError, match=r"'hh_rlhf' has no official script .*Those that have one: judge_bench, "):
        run_model(str(model), [Target("hh_rlhf")], tmp_path / "out", SETTINGS, official=True)
    with pytest.raises(UserError, match="ContentBlindScorer reads no chat template"):
        run_model(str(longest), TARGETS[:1], tmp_path / "out", SETTINGS, official=True)


def test_all_problems_come_at_once(longest, tmp_path):
    targets = [Target("rm_bnch"), Target("rm_bench", tmp_path / "none"), Target("heldout"), Target("rm_bench")]
    with pytest.raises(ConfigError) as error:
        run_model(str(longest), targets, tmp_path / "out", SETTINGS)
    text = str(error.value)
    assert "4 problems" in text
    assert "Did you mean 'rm_bench'" in text
    assert "no such folder" in text
    assert "made of an experiment's own pairs" in text
    assert "'rm_bench' is named twice" in text
    assert not (tmp_path / "out").exists()


def test_a_folder_has_no_revision(longest, tmp_path):
    with pytest.raises(UserError, match="which has no revision"):
        run_model(str(longest), TARGETS[:1], tmp_path / "out", SETTINGS, revision="abc")


def test_the_command(longest, tmp_path):
    arguments = ["benchmark", "--model", str(longest), "--benchmarks", "rm_bench, rewardbench2", "--threads", "1"]
    roots = [f"--root={target.name}={target.root}" for target in TARGETS]
    done = CliRunner().invoke(main, [*arguments, *roots, "--limit", "1", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "RewardBench 2: " in done.output
    assert f"Tables and scores: {tmp_path / 'out'}" in done.output
    done = CliRunner().invoke(main, [*arguments, "--root", "hh_rlhf=x"])
    assert done.exit_code == 2
    assert "not among --benchmarks rm_bench,rewardbench2" in done.output


def rm_bench_rows() -> list[dict]:
    """Rows of a preference file that hold the prompts and the first two responses of the example items."""
    rows = []
    for file in sorted((EXAMPLES / "rm_bench").glob("*.json*")):
        if file.suffix == ".jsonl":
            content = [json.loads(line) for line in file.read_text().splitlines()]
        else:
            content = json.loads(file.read_text())
        rows += [
            {"prompt": row["prompt"], "chosen": row["chosen"][0], "rejected": row["rejected"][0]} for row in content
        ]
    return rows


def write_json_lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_items_that_are_in_the_training_data_are_counted(longest, tmp_path):
    rows = rm_bench_rows()
    leaked = write_json_lines(tmp_path / "leaked.jsonl", rows)
    prompt = [{"role": "user", "content": "An unrelated question?"}]
    pairs = [make_pair(prompt, "Yes.", "No.", split=split, source="made up") for split in ("test", "train")]
    write_pairs(pairs, tmp_path / "pairs.parquet")
    files = [str(leaked), str(tmp_path / "pairs.parquet")]
    arguments = ["benchmark", "--model", str(longest), "--benchmarks", "rm_bench,rewardbench2", "--threads", "1"]
    arguments += [f"--root={target.name}={target.root}" for target in TARGETS]
    arguments += [f"--training-data={file}" for file in files]
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    record = read_json(tmp_path / "out" / "results.json")
    n_items = record["benchmarks"][0]["items"]
    counts = record["benchmarks"][0]["contamination"]["counts"]
    assert counts["prompt"] == counts["prompt_and_response"] == n_items
    assert record["benchmarks"][1]["contamination"]["counts"]["prompt"] == 0
    n_rows = len(rows)
    assert record["training_data"] == [
        {"file": files[0], "pairs": n_rows, "other_splits": 0, "refused": 0, "notes": []},
        {"file": files[1], "pairs": 1, "other_splits": 1, "refused": 0, "notes": []},
    ]
    expected = f"rm_bench, overlap with {n_rows + 1} training pairs: {n_items} of {n_items} prompts occur in them"
    for text in (done.output, *((tmp_path / "out" / f"table.{suffix}").read_text() for suffix in ("txt", "md", "tex"))):
        assert expected in " ".join(text.replace("\\_", "_").split())
    assert "1 pairs of other splits left out" in " ".join(done.output.split())


def test_without_training_data_nothing_is_said_of_it(longest, tmp_path):
    text = run_model(str(longest), TARGETS[:1], tmp_path / "out", SETTINGS)
    assert "overlap" not in text
    record = read_json(tmp_path / "out" / "results.json")
    assert record["training_data"] == []
    assert "contamination" not in record["benchmarks"][0]


def test_rows_that_are_no_pairs_are_said(longest, tmp_path):
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": None}]
    file = write_json_lines(tmp_path / "pairs.jsonl", rows)
    text = run_model(str(longest), TARGETS[:1], tmp_path / "out", SETTINGS, training_data=[str(file)])
    assert "1 pairs, 1 rows are not pairs and were not compared" in " ".join(text.split())


def test_the_readers_remarks_are_said(longest, tmp_path):
    """Transcripts in one text are not split into turns, so they equal no prompt; their words are found."""
    texts = {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}
    file = write_json_lines(tmp_path / "pairs.jsonl", [texts])
    text = run_model(str(longest), TARGETS[:1], tmp_path / "out", SETTINGS, training_data=[str(file)])
    assert "Texts begin with 'Human:', like the transcripts of HH-RLHF" in " ".join(text.split())


def test_training_data_that_cannot_be_used_are_refused_before_scoring(longest, tmp_path):
    pair = make_pair([{"role": "user", "content": "a"}], "b", "c", split="test", source="made up")
    write_pairs([pair], tmp_path / "pairs.parquet")
    write_items([BenchmarkItem("i", "s", pair.prompt, ["b", "c"], 0)], tmp_path / "items.parquet")
    refused = {
        "none.jsonl": "no such file",
        "pairs.parquet": r"no pairs of the split 'train'. Its splits are: test \(1\)",
        "items.parquet": "no column says which of the responses in 'responses' is better",
    }
    for name, message in refused.items():
        with pytest.raises(UserError, match=message):
            run_model(str(longest), TARGETS[:1], tmp_path / "out", SETTINGS, training_data=[str(tmp_path / name)])
    assert not (tmp_path / "out").exists()
