import json

import pytest
import torch
import yaml
from click.testing import CliRunner

from rm_methods.benchmarks.item import BenchmarkItem, write_items
from rm_methods.benchmarks.score_table import read_scores
from rm_methods.cli import main
from rm_methods.config.resolve import resolve
from rm_methods.diagnostics.diagnose import diagnose, measure
from rm_methods.diagnostics.pairs import select_pairs
from rm_methods.diagnostics.records import ATTENTION_COLUMNS, MASKING_COLUMNS, read_diagnostics
from rm_methods.errors import ConfigError, UserError
from rm_methods.files import read_json, write_json
from rm_methods.scoring.score import score_files
from rm_methods.scoring.scorer import RewardModelScorer, ScoringSettings
from rm_methods.system.provenance import key_of
from rm_methods.training.run_key import run_dependencies
from tests.conftest import experiment_config

pytestmark = pytest.mark.process


@pytest.fixture
def config(tmp_path):
    sections = {"benchmarks": {"heldout": {}}, "diagnostics": {"benchmarks": ["heldout"], "limit": None}}
    return experiment_config(tmp_path, methods={"bradley_terry": {}, "longest": {}}, **sections)


@pytest.fixture
def run(reward_model, tokenizer, items, tmp_path):
    """(model folder, items file) of a model with random weights; one item has three responses."""
    reward_model.save(tmp_path / "model")
    tokenizer.tokenizer.save_pretrained(tmp_path / "model")
    three = BenchmarkItem("three", "test", items[0].prompt, ["a", "b", "c"], 0)
    write_items([*items, three], tmp_path / "items.parquet")
    return tmp_path / "model", tmp_path / "items.parquet"


def test_diagnosing_a_run_writes_one_row_a_sequence_and_a_masking(config, run, items, tmp_path):
    model, item_table = run
    report = diagnose(config, "bradley_terry", [("heldout", item_table)], model, tmp_path / "out", threads=1)
    counts = {"n_items": 17, "not_a_pair": 1, "not_drawn": 0, "n_pairs": 16, "n_truncated": 0}
    assert report == {"variant": "bradley_terry", "layers": [1, 2], "n_layers": 2, "benchmarks": {"heldout": counts}}
    assert read_json(tmp_path / "out" / "report.json") == report
    attention = read_diagnostics(tmp_path / "out" / "attention.parquet", ATTENTION_COLUMNS)
    masking = read_diagnostics(tmp_path / "out" / "masking.parquet", MASKING_COLUMNS)
    assert len(attention) == 2 * len(items)
    assert len(masking) == 2 * 10 * len(items)
    assert attention["item_id"].tolist() == [item.item_id for item in items for _ in range(2)]
    for name in ("reward_row", "reward_row_text", "received", "received_text"):
        assert [sum(mass) for mass in attention[name]] == pytest.approx([1] * 32)
        assert {len(mass) for mass in attention[name]} == {10}
    assert attention["reward_row_dropped"].between(0.001, 0.999).all()

    score_files(model, [(str(item_table), tmp_path / "scores.parquet")], None, ScoringSettings(max_length=256))
    scores = read_scores(tmp_path / "scores.parquet").query("item_id != 'three'")
    assert attention["score"].tolist() == pytest.approx(scores["score"].tolist(), abs=1e-5)
    chosen, rejected = scores["score"].to_numpy().reshape(-1, 2).T
    assert attention["correct"].tolist() == [
        bool(c > r) for c, r in zip(chosen, rejected, strict=True) for _ in range(2)
    ]
    whole = masking.query("percent == 0")
    assert whole["credit"].mean() == (chosen > rejected).mean()
    assert set(attention["correct"]) == {True, False}


def test_layers_are_counted_as_people_do(config, run, tmp_path):
    model, item_table = run
    by_layers = []
    for layers in (None, [2], [-1]):
        config["diagnostics"]["layers"] = layers
        report = diagnose(config, "bradley_terry", [("heldout", item_table)], model, tmp_path / "out", threads=1)
        by_layers.append(
            (
                report["layers"],
                read_diagnostics(tmp_path / "out" / "attention.parquet", ATTENTION_COLUMNS)["reward_row"][0],
            )
        )
    assert [layers for layers, _ in by_layers] == [[1, 2], [2], [2]]
    assert by_layers[1][1].tolist() == by_layers[2][1].tolist() != by_layers[0][1].tolist()
    config["diagnostics"]["layers"] = [3]
    with pytest.raises(UserError, match=r"diagnostics.layers: the model has 2 layers, so \[3\] do not exist"):
        diagnose(config, "bradley_terry", [("heldout", item_table)], model, tmp_path / "out")


def test_a_backbone_that_is_not_exact_in_packed_rows_is_refused_with_the_reason(scorer, encoded, texts):
    scorer.model.packing_obstacle = "its layers are recurrent"
    with pytest.raises(UserError, match=r"as one packed row, and .*: its layers are recurrent"):
        measure(scorer, encoded, texts, (0,))


def test_in_bf16_a_pair_has_the_same_numbers_whatever_else_is_diagnosed(reward_model, tokenizer, encoded, texts):
    reward_model.autocast = torch.bfloat16
    settings = ScoringSettings(max_length=256, tokens_per_batch=10_000, precision="bf16")
    scorer = RewardModelScorer(reward_model, tokenizer, settings)
    together = measure(scorer, encoded, texts, (0, 1))
    for k in (0, 7, 15):
        alone = measure(scorer, encoded[k : k + 1], texts[k : k + 1], (0, 1))
        assert all((alone.scores[masking][0] == together.scores[masking][k]).all() for masking in alone.scores)
        assert all((a == b).all() for a, b in zip(alone.masses[0], together.masses[k], strict=True))


def test_content_blind_variants_and_benchmarks_without_pairs_are_refused(config, run, items, tmp_path):
    model, item_table = run
    with pytest.raises(UserError, match="'longest' cannot be diagnosed"):
        diagnose(config, "longest", [("heldout", item_table)], model, tmp_path / "out")
    alone = [BenchmarkItem("three", "test", items[0].prompt, ["a", "b", "c"], 0)]
    with pytest.raises(UserError, match="no item of 'heldout' has two responses"):
        select_pairs("heldout", alone, None)


def test_the_limit_draws_the_same_pairs_each_time_from_each_subset(items):
    two = [*items, *(BenchmarkItem(f"v{i.item_id}", "validation", i.prompt, i.responses, 1) for i in items)]
    pairs, counts = select_pairs("heldout", two, 5)
    assert counts == {"n_items": 32, "not_a_pair": 0, "not_drawn": 22, "n_pairs": 10}
    assert [pair.item.subset for pair in pairs].count("test") == 5
    assert {pair.better for pair in pairs if pair.item.subset == "validation"} == {1}
    again, _ = select_pairs("heldout", two[::-1], 5)
    assert {pair.item.item_id for pair in again} == {pair.item.item_id for pair in pairs}


def test_the_second_response_may_be_the_better_one(config, run, items, tmp_path):
    model, _ = run
    swapped = [BenchmarkItem(i.item_id, "test", i.prompt, i.responses[::-1], 1) for i in items]
    write_items(items, tmp_path / "straight.parquet")
    write_items(swapped, tmp_path / "swapped.parquet")
    credits = []
    for name in ("straight", "swapped"):
        diagnose(
            config, "bradley_terry", [("heldout", tmp_path / f"{name}.parquet")], model, tmp_path / name, threads=1
        )
        credits.append(read_diagnostics(tmp_path / name / "masking.parquet", MASKING_COLUMNS)["credit"].tolist())
    assert credits[0] == credits[1]


def test_the_verbs_diagnose_and_summarize(config, run, tmp_path):
    model, item_table = run
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    folder = tmp_path / "experiment"
    out = folder / "diagnostics" / "bradley_terry" / "seed0"
    depends_on = run_dependencies(config, "bradley_terry", 0, "pairs")
    identity = {"variant": "bradley_terry", "method": "bradley_terry", "seed": 0, "run_key": key_of(depends_on)}
    write_json(folder / "runs" / "bradley_terry" / "seed0" / "summary.json", identity | {"depends_on": depends_on})
    common = ["--config", tmp_path / "config.yaml"]
    data = ["--benchmark", "heldout", "--items", item_table]
    steps = (
        ["diagnose", *common, "--variant", "bradley_terry", "--model", model, *data, "--out", out],
        ["diagnose-summary", *common, "--experiment", folder, "--out", folder / "diagnostics"],
    )
    for arguments in steps:
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
    assert "heldout: all" in result.output
    assert (folder / "diagnostics" / "table.txt").read_text() in result.output + "\n"
    wrong = CliRunner().invoke(main, [str(a) for a in [*steps[0][:3], "--variant", "bradly_terry", *steps[0][5:]]])
    assert wrong.exit_code == 2
    assert "Did you mean 'bradley_terry'" in wrong.output


def test_configuration_problems_are_found_before_anything_runs(config):
    def problems(**sections):
        with pytest.raises(ConfigError) as error:
            resolve(config | sections)
        return error.value.problems

    (found,) = problems(diagnostics={"benchmarks": ["heldut"]})
    assert (
        found
        == "diagnostics.benchmarks: 'heldut' is not among the benchmarks. Did you mean 'heldout'? Allowed: heldout."
    )
    assert "no method is a trained one" in problems(methods={"longest": {}})[0]
    assert "backbone.attention 'auto' or 'sdpa'" in problems(backbone=config["backbone"] | {"attention": "eager"})[0]
    assert "diagnostics.limit: is 0; must be at least 1." in problems(diagnostics={"limit": 0})
    assert resolve({k: v for k, v in config.items() if k != "diagnostics"})["diagnostics"]["benchmarks"] == []
