"""The card that a training writes: what it says, and that its code runs."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.cli import main
from rm_methods.experiment.layout import Layout
from rm_methods.model_card.facts import CardFacts, gather_facts, summary_of, without_folders
from rm_methods.model_card.measured import Measured, MeasuredMetric
from rm_methods.model_card.text import card_text, is_edited
from rm_methods.reward_models.model_folder import check_checksums, weights_hash
from rm_methods.scoring.scorer import ScoringSettings, load_scorer
from rm_methods.statistics.intervals import Estimate

RUNS = [("bradley_terry", 0), ("ensemble", 0), ("longest", 0), ("joint_encoder", 0)]


def card_of(root, variant, seed=0) -> str:
    return (Layout(root).model(variant, seed) / "README.md").read_text(encoding="utf-8")


def facts_with(root, variant="bradley_terry", **backbone) -> CardFacts:
    """Facts of a run whose summary has another section `backbone.prepared`."""
    folder = Layout(root).model(variant, 0)
    summary = summary_of(folder)
    prepared = summary["backbone"]["prepared"] | backbone
    section = summary["backbone"] | {"source": prepared["source"], "prepared": prepared}
    return gather_facts(folder, summary | {"backbone": section})


@pytest.mark.parametrize(("variant", "seed"), RUNS)
def test_every_kind_of_model_folder_has_a_card_with_front_matter(trained_experiment, variant, seed):
    text = card_of(trained_experiment, variant, seed)
    data = ModelCard(text).data
    assert data.tags == ["reward-model", "rm-methods", variant]
    assert data.pipeline_tag == "text-classification"
    assert data.library_name == ("transformers" if variant == "bradley_terry" else "rm-methods")
    assert data.license is None
    assert data.base_model is None
    assert data.eval_results is None
    assert "No license is stated" in text
    assert "Not measured yet" in text


@pytest.mark.parametrize(("variant", "seed"), RUNS)
def test_no_card_names_a_folder_of_this_machine(trained_experiment, variant, seed):
    text = card_of(trained_experiment, variant, seed)
    assert str(trained_experiment.parents[2]) not in text
    assert "* Data set: `pairs.jsonl`" in text


def test_the_card_says_what_the_summary_says(trained_experiment):
    text = card_of(trained_experiment, "bradley_terry", 1)
    summary = summary_of(Layout(trained_experiment).model("bradley_terry", 1))
    cost = summary["cost"]
    for expected in (
        "variant `bradley_terry` with seed 1 of the experiment `test`",
        "Ouyang et al. 2022, arXiv:2203.02155",
        "loss = -log sigmoid(r_chosen - r_rejected - margin)",
        "* Training pairs: 48",
        f"* Hash of the prepared pairs: `{summary['data']['hash']}`",
        f"| Tokens | {cost['tokens']:,} |",
        f"| Optimizer steps | {cost['optimizer_steps']} |",
        "| Seed | 1 |",
        "* `learning_rate`: `0.003`",
        "* Name: none: the weights were drawn at random",
        f"| Run key | {summary['run_key']} |",
        f"| Hash of the weights | {summary['weights_hash']} |",
    ):
        assert expected in text, expected


def test_an_ensemble_names_its_members(trained_experiment):
    text = card_of(trained_experiment, "ensemble")
    for seed in (0, 1):
        member = summary_of(Layout(trained_experiment).model("bradley_terry", seed))
        assert f"| {seed} | 48 | {member['run_key']} | {member['weights_hash']} |" in text


def test_the_python_code_of_the_card_gives_the_score_of_the_score_stage(trained_experiment):
    folder = Layout(trained_experiment).model("bradley_terry", 0)
    (code,) = re.findall(r"```python\n(.*?)```", card_of(trained_experiment, "bradley_terry"), flags=re.DOTALL)
    assert code.count('"FOLDER"') == 1
    names: dict = {}
    exec(code.replace("FOLDER", str(folder)), names)
    items = [
        BenchmarkItem(str(k), "s", turns[:-1], [turns[-1]["content"]], 0)
        for k, turns in enumerate(names["conversations"])
    ]
    expected = [row.score for row in load_scorer(folder, ScoringSettings(max_length=256)).score(items)]
    assert abs(expected[0] - expected[1]) > 1e-3
    torch.testing.assert_close(names["rewards"], torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("variant", "seed"), RUNS)
def test_the_command_of_the_card_runs(trained_experiment, tmp_path, variant, seed):
    (command,) = re.findall(r"^    rm-methods (score .*)$", card_of(trained_experiment, variant, seed), re.MULTILINE)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "Paint it red.", "chosen": "It is now red.", "rejected": "No."}) + "\n")
    paths = {
        "FOLDER": str(Layout(trained_experiment).model(variant, seed)),
        "pairs.jsonl": str(pairs),
        "scores.csv": str(tmp_path / "scores.csv"),
    }
    result = CliRunner().invoke(main, [paths.get(word, word) for word in command.split()])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "scores.csv").is_file()


def test_a_changed_card_is_no_damage(experiment):
    folder = experiment.model("bradley_terry", 0)
    before = weights_hash(folder)
    assert "README.md" not in (folder / "SHA256SUMS").read_text()
    (folder / "README.md").write_text("other")
    check_checksums(folder)
    (folder / "README.md").unlink()
    check_checksums(folder)
    assert weights_hash(folder) == before == summary_of(folder)["weights_hash"]


def test_exported_files_have_the_permissions_of_the_umask(trained_experiment):
    umask = os.umask(0o022)
    os.umask(umask)
    for variant, seed in RUNS:
        for file in Layout(trained_experiment).model(variant, seed).iterdir():
            assert file.stat().st_mode & 0o777 == 0o666 & ~umask, file


def test_license_of_a_local_base_model_is_that_of_its_readme(trained_experiment, tmp_path):
    base = tmp_path / "my_base"
    base.mkdir()
    facts = facts_with(trained_experiment, kind="pretrained", source=str(base), weights=str(base))
    text = card_text(facts)
    assert "* License: unknown: look at the base model's page" in text
    assert "* Name: `my_base`" in text
    assert ModelCard(text).data.license is None
    assert str(tmp_path) not in text
    (base / "README.md").write_text(
        "---\nlicense: other\nlicense_name: mine\nlicense_link: https://a.b/c\n---\n# Base\n"
    )
    facts = facts_with(trained_experiment, kind="pretrained", source=str(base), weights=str(base))
    data = ModelCard(card_text(facts)).data
    assert (data.license, data.license_name, data.license_link) == ("other", "mine", "https://a.b/c")
    stated = card_text(facts, license="mit")
    assert ModelCard(stated).data.license == "mit"
    assert "The model is licensed under mit." in stated


@pytest.mark.parametrize(
    "readme", ["---\n: {\n---\n", "no front matter, license: mit", "---\n- a list\n---\n", "---\nlicense: 3\n---\n"]
)
def test_a_readme_without_a_usable_license_counts_as_unknown(trained_experiment, tmp_path, readme):
    (tmp_path / "README.md").write_text(readme)
    facts = facts_with(trained_experiment, kind="pretrained", source=str(tmp_path), weights=str(tmp_path))
    assert facts.base.license == {}


def test_a_base_model_of_the_hub_is_named_with_its_revision(trained_experiment):
    facts = facts_with(trained_experiment, kind="pretrained", source="a/base", weights="a/base", revision="b" * 40)
    text = card_text(facts)
    assert ModelCard(text).data.base_model == "a/base"
    assert f"* Revision: `{'b' * 40}`" in text
    assert "* License: unknown: look at the base model's page" in text


def test_the_base_model_of_an_ensemble_is_that_of_its_members(experiment):
    for seed in (0, 1):
        file = experiment.summary("bradley_terry", seed)
        summary = json.loads(file.read_text())
        del summary["checksum"]
        summary["backbone"]["prepared"] |= {"kind": "pretrained", "source": "a/base", "weights": "a/base"}
        file.write_text(json.dumps(summary))
    folder = experiment.model("ensemble", 0)
    assert gather_facts(folder, summary_of(folder)).base.hub_id == "a/base"


def test_data_that_excludes_commercial_use_is_pointed_out(trained_experiment):
    folder = Layout(trained_experiment).model("bradley_terry", 0)
    summary = summary_of(folder)
    for name, restricted in (("alpaca_eval", True), ("hh_rlhf", False)):
        facts = gather_facts(folder, summary | {"data": summary["data"] | {"dataset": name}})
        text = card_text(facts, license="apache-2.0")
        assert facts.data.is_non_commercial is restricted
        assert ("does not allow commercial use" in text) is restricted
        assert ModelCard(text).data.datasets == (["Anthropic/hh-rlhf"] if name == "hh_rlhf" else None)
        assert facts.data.citation.strip() in text


def test_measured_metrics_are_in_the_front_matter_and_in_the_table(trained_experiment):
    folder = Layout(trained_experiment).model("bradley_terry", 0)
    own = Estimate(0.71234567, 0.6, 0.8, None, "items", 1, 100, 100)
    metric = MeasuredMetric("bench", "Bench", "org/bench", "c" * 40, "accuracy", "Bench acc", own)
    text = card_text(gather_facts(folder, summary_of(folder)), Measured((metric,), notes=("A note.",)))
    (result,) = ModelCard(text).data.eval_results
    assert (result.dataset_type, result.dataset_name, result.metric_value) == ("org/bench", "Bench", 0.7123)
    assert "| Bench | Bench acc | 71.2 \\[60.0, 80.0\\] | 100 |" in text
    assert "* A note." in text
    assert "Not measured yet" not in text


def test_a_card_that_was_edited_by_hand_is_recognized(trained_experiment):
    text = card_of(trained_experiment, "bradley_terry")
    assert not is_edited(text)
    assert is_edited(text.replace("## Limits", "## My limits"))
    assert is_edited("# My card\n")
    assert is_edited(text + "\nMore.\n")


def test_paths_are_reduced_to_their_last_part():
    value = {"a": "/home/me/teacher/", "b": ["~/x/y", "../z", "C:\\models\\w"], "c": "org/name", "d": "/", "e": 3}
    expected = {"a": "teacher", "b": ["y", "z", "w"], "c": "org/name", "d": "/", "e": 3}
    assert without_folders(value) == expected


@pytest.mark.parametrize("content", [None, "{", "[]", '{"splits": 3}', '{"splits": {"train": {}}}'])
def test_a_missing_or_damaged_report_on_the_pairs_only_leaves_out_the_splits(experiment, content):
    folder = experiment.model("bradley_terry", 0)
    if content is not None:
        experiment.pairs_report.write_text(content)
    assert "* Splits" not in card_text(gather_facts(folder, summary_of(folder)))
    experiment.pairs_report.write_text(json.dumps({"splits": {"train": {"pairs": 48}, "test": {"pairs": 1200}}}))
    assert "* Splits: train 48, test 1,200" in card_text(gather_facts(folder, summary_of(folder)))


def test_a_damaged_card_of_the_data_set_does_not_fail_a_training(experiment, tmp_path, monkeypatch):
    (tmp_path / "data" / "datasets").mkdir(parents=True)
    (tmp_path / "data" / "datasets" / "mine.yaml").write_text("title: [")
    monkeypatch.chdir(tmp_path)
    folder = experiment.model("bradley_terry", 0)
    summary = summary_of(folder)
    facts = gather_facts(folder, summary | {"data": summary["data"] | {"dataset": "mine"}})
    assert facts.data.name == "`mine`"
    assert facts.data.license is None


def test_the_card_of_a_mixture_has_the_licenses_of_all_sources(experiment):
    """One source without commercial use binds the whole mixture."""
    described = {"name": "2 a + 1 b", "license": "MIT; CC BY-NC 4.0 (non-commercial)", "citation": "first; second"}
    experiment.pairs_report.write_text(json.dumps({"dataset": described, "sources": [], "splits": {}}))
    folder = experiment.model("bradley_terry", 0)
    summary = summary_of(folder)
    mixed = summary | {"data": summary["data"] | {"dataset": "2 a + 1 b"}}
    data = gather_facts(folder, mixed).data
    assert data.license == described["license"]
    assert data.citation == "first; second"
    assert data.name == "`2 a + 1 b`"
    assert data.is_non_commercial
    experiment.pairs_report.write_text(json.dumps({"dataset": described, "splits": {}}))
    assert gather_facts(folder, summary).data.license is None
