"""What a model folder is shared as: whole, complete, and nothing private."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.cli import main
from rm_methods.errors import UserError
from rm_methods.files import read_json, write_json
from rm_methods.model_card.facts import summary_of
from rm_methods.reward_models.model_folder import check_checksums, write_checksums
from rm_methods.scoring.scorer import ScoringSettings, load_scorer
from rm_methods.sharing.contents import shared_contents, write_contents
from tests.conftest import made_up_pairs

SETTINGS = ScoringSettings(max_length=256, threads=1)
CARD = "---\nlicense: mit\n---\n# Card\n"


def contents_of(folder, card=CARD):
    return shared_contents(folder, summary_of(folder), card)


def scores(folder):
    items = [BenchmarkItem(p.pair_id, "s", p.prompt, [p.chosen, p.rejected], 0) for p in made_up_pairs(5, seed=9)]
    return [row.score for row in load_scorer(folder, SETTINGS).score(items)]


def run_verb(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("variant", ["bradley_terry", "longest", "joint_encoder"])
def test_a_folder_is_shared_as_it_was_exported_with_the_new_card(experiment, variant):
    folder = experiment.model(variant, 0)
    contents = contents_of(folder)
    assert {file.name for file in contents.files} == {path.name for path in folder.iterdir()}
    for file in contents.files:
        assert file.content == (CARD.encode() if file.name == "README.md" else folder / file.name)
        assert file.size == (len(CARD) if file.name == "README.md" else (folder / file.name).stat().st_size)
    assert contents.notes == ()


def test_an_ensemble_that_is_copied_scores_alike_without_the_experiment(experiment, tmp_path):
    folder = experiment.model("ensemble", 0)
    expected = scores(folder)
    assert np.std(expected) > 1e-3
    copy = tmp_path / "elsewhere" / "ensemble"
    result = run_verb("copy-model", "--model", folder, "--out", copy)
    assert result.exit_code == 0, result.output
    shutil.rmtree(experiment.folder)
    moved = copy.rename(tmp_path / "moved")
    assert scores(moved) == expected
    check_checksums(moved)
    for member in ("members/0", "members/1"):
        check_checksums(moved / member)
    assert read_json(moved / "scorer.json")["members"] == ["members/0", "members/1"]
    assert ".." not in (moved / "scorer.json").read_text()


def test_the_message_about_missing_members_names_the_way_out(experiment, tmp_path):
    shutil.copytree(experiment.model("ensemble", 0), tmp_path / "alone")
    with pytest.raises(UserError, match="copy-model"):
        load_scorer(tmp_path / "alone", SETTINGS)


def test_an_ensemble_without_a_member_is_refused(experiment):
    shutil.rmtree(experiment.model("bradley_terry", 1))
    with pytest.raises(UserError, match=r"member 1 is missing .*whole experiment"):
        contents_of(experiment.model("ensemble", 0))


def test_a_damaged_member_is_refused(experiment):
    file = experiment.model("bradley_terry", 1) / "tokenizer_config.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(UserError, match=r"tokenizer_config.json changed since"):
        contents_of(experiment.model("ensemble", 0))


def test_damaged_weights_are_refused(experiment):
    file = experiment.model("bradley_terry", 0) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"model.safetensors changed since"):
        contents_of(experiment.model("bradley_terry", 0))


def test_a_missing_file_and_missing_checksums_are_refused(experiment):
    folder = experiment.model("bradley_terry", 0)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json \(missing\)"):
        contents_of(folder)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match="SHA256SUMS is missing"):
        contents_of(folder)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("optimizer.pt", "optimizer.pt is a pickled file"),
        ("pytorch_model.bin", "pytorch_model.bin is a pickled file"),
        ("notes.txt", "notes.txt was added after the export"),
        ("pairs.parquet", "pairs.parquet was added after the export"),
        ("model.py", "model.py was added after the export"),
    ],
)
def test_files_that_the_export_did_not_write_are_refused(experiment, name, expected):
    folder = experiment.model("bradley_terry", 0)
    (folder / name).write_text("x")
    with pytest.raises(UserError, match=expected):
        contents_of(folder)


def test_files_of_other_kinds_are_refused_even_if_the_checksums_list_them(experiment):
    folder = experiment.model("bradley_terry", 0)
    (folder / "pairs.parquet").write_text("x")
    write_checksums(folder)
    with pytest.raises(UserError, match=r"pairs.parquet is no file of a model"):
        contents_of(folder)


def test_checkpoints_and_links_are_refused(experiment, tmp_path):
    folder = experiment.model("bradley_terry", 0)
    (folder / "checkpoint-3").mkdir()
    with pytest.raises(UserError, match="checkpoint-3 is a folder"):
        contents_of(folder)
    (folder / "checkpoint-3").rmdir()
    (tmp_path / "secret.json").write_text("{}")
    (folder / "secret.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UserError, match=r"secret.json is a link"):
        contents_of(folder)


def test_the_workflows_time_stamp_is_left_out_and_said(experiment):
    folder = experiment.model("bradley_terry", 0)
    (folder / ".snakemake_timestamp").touch()
    contents = contents_of(folder)
    assert ".snakemake_timestamp" not in {file.name for file in contents.files}
    assert contents.notes == ("Left out: .snakemake_timestamp, which only the workflow needs.",)


def test_the_folder_that_a_model_was_loaded_from_is_removed_and_the_checksums_fit(experiment, tmp_path):
    folder = experiment.model("bradley_terry", 0)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"_name_or_path": "/home/me/base"})
    write_checksums(folder)
    contents = contents_of(folder)
    assert contents.notes == ("Changed: config.json does not name the folder that it was loaded from (_name_or_path).",)
    write_contents(contents, tmp_path / "copy")
    assert read_json(tmp_path / "copy" / "config.json") == config
    check_checksums(tmp_path / "copy")
    assert "/home/me" in (folder / "config.json").read_text()


@pytest.mark.parametrize("path", ["/home/me/template.jinja", "~/x", "../../data/x", "C:\\data\\x"])
def test_other_paths_of_this_machine_are_refused(experiment, path):
    folder = experiment.model("longest", 0)
    write_json(folder / "scorer.json", read_json(folder / "scorer.json") | {"settings": {"file": path}})
    write_checksums(folder)
    with pytest.raises(UserError, match=r"scorer.json names .*paths of this machine"):
        contents_of(folder)


def test_a_card_that_names_the_experiments_folder_or_the_home_folder_is_refused(experiment, monkeypatch):
    folder = experiment.model("longest", 0)
    monkeypatch.setenv("HOME", "/home/me")
    with pytest.raises(UserError, match=r"README.md names '/home/me': paths of this machine"):
        contents_of(folder, f"{CARD}See /home/me/notes.")
    with pytest.raises(UserError, match=r"README.md names .*paths of this machine"):
        contents_of(folder, f"{CARD}See {folder.parent}.")


@pytest.mark.parametrize("place", ["scorer.json", "README.md"])
def test_texts_of_the_training_pairs_are_refused(experiment, place):
    folder = experiment.model("longest", 0)
    text = next(p.chosen for p in made_up_pairs(48) if len(p.chosen) >= 40)
    card = CARD
    if place == "README.md":
        card += f"For example: {text}"
    else:
        write_json(folder / "scorer.json", read_json(folder / "scorer.json") | {"fitted": {"example": f"It: {text}"}})
        write_checksums(folder)
    with pytest.raises(UserError, match=f"{place} holds a text of pair"):
        contents_of(folder, card)


def test_weights_of_another_run_are_refused(experiment):
    folder = experiment.model("bradley_terry", 0)
    shutil.rmtree(folder)
    shutil.copytree(experiment.model("bradley_terry", 1), folder)
    with pytest.raises(UserError, match="its weights are not those of"):
        contents_of(folder)


def test_a_reference_to_a_model_from_elsewhere_is_refused(experiment):
    folder = experiment.model("longest", 0)
    with pytest.raises(UserError, match="model from elsewhere"):
        shared_contents(folder, summary_of(folder) | {"kind": "external"}, CARD)


@pytest.mark.parametrize("verb", ["model-card", "copy-model", "push"])
def test_folders_that_are_no_model_of_a_run_are_refused(experiment, tmp_path, verb):
    rest = {"copy-model": ["--out", tmp_path / "out"], "push": ["--to", "me/model", "--dry-run"]}.get(verb, [])
    result = run_verb(verb, "--model", tmp_path / "nothing", *rest)
    assert result.exit_code == 2
    assert "no such model folder" in result.output
    folder = experiment.model("bradley_terry", 0)
    experiment.summary("bradley_terry", 0).unlink()
    result = run_verb(verb, "--model", folder, *rest)
    assert result.exit_code == 2
    assert "not the model folder of a finished run" in result.output
    experiment.summary("bradley_terry", 0).write_text(json.dumps({"run_key": "x"}))
    result = run_verb(verb, "--model", folder, *rest)
    assert result.exit_code == 2
    assert "not a summary.json of a run" in result.output


def test_copies_never_replace_a_folder(experiment, tmp_path):
    (tmp_path / "out").mkdir()
    result = run_verb("copy-model", "--model", experiment.model("longest", 0), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "exists already" in result.output
    (tmp_path / "file").touch()
    result = run_verb("copy-model", "--model", experiment.model("longest", 0), "--out", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert list((tmp_path / "out").iterdir()) == []
