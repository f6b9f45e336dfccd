"""Code that comes with a model is never run, whatever its folder says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import UserError
from rm_methods.files import read_json, write_json
from rm_methods.planning.shapes import configuration_of
from rm_methods.policies.policy import load_policy
from rm_methods.reward_models.backbones import prepare_backbone
from rm_methods.reward_models.joint_model import load_joint
from rm_methods.scoring.scorer import ScoringSettings, load_scorer

SETTINGS = ScoringSettings(max_length=256, threads=1)
CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForSequenceClassification

Path({marker!r}).touch()


class PaintedConfig(LlamaConfig):
    model_type = "painted"


class PaintedForSequenceClassification(LlamaForSequenceClassification):
    config_class = PaintedConfig
"""


@pytest.fixture
def painted(reward_model, tokenizer, tmp_path, monkeypatch):
    """Makes a reward-model folder with code for a model type; the file `ran` beside it shows that the code was run."""

    def make(model_type: str) -> Path:
        folder = tmp_path / "painted"
        reward_model.save(folder)
        tokenizer.tokenizer.save_pretrained(folder)
        (folder / "modeling_painted.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
        classes = {
            "AutoConfig": "PaintedConfig",
            "AutoModelForSequenceClassification": "PaintedForSequenceClassification",
        }
        auto_map = {name: f"modeling_painted.{own}" for name, own in classes.items()}
        write_json(
            folder / "config.json", read_json(folder / "config.json") | {"model_type": model_type, "auto_map": auto_map}
        )
        return folder

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    return make


def reward_model_scorer(folder: Path):
    return load_scorer(folder, SETTINGS)


def joint(folder: Path):
    """As a joint model is loaded."""
    write_json(folder / "joint.json", {"decoder": True})
    return load_joint(folder, 256)


def planned(folder: Path):
    """As the plan of an experiment finds a model's size."""
    return configuration_of(str(folder))


@pytest.mark.parametrize("load", [reward_model_scorer, joint, load_policy, planned])
def test_a_model_that_needs_code_of_its_own_is_refused(painted, tmp_path, load):
    folder = painted("painted")
    with pytest.raises(
        UserError,
        match=r"needs code that comes with it .*is never run\. Use a model whose class is part of transformers",
    ):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_backbone_that_needs_code_of_its_own_is_refused(prepared, painted, tmp_path):
    backbone = prepared[2]["backbone"] | {"source": str(painted("painted"))}
    with pytest.raises(UserError, match="needs code that comes with it"):
        prepare_backbone(backbone, [], tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()
    assert not (tmp_path / "ran").exists()


def test_a_type_that_transformers_knows_is_read_with_its_own_class(painted, tmp_path, pairs):
    items = [BenchmarkItem("a", "s", pairs[0].prompt, [pairs[0].chosen, pairs[0].rejected], 0)]
    folder = painted("llama")
    scorer = load_scorer(folder, SETTINGS)
    assert type(scorer.model.classifier).__name__ == "LlamaForSequenceClassification"
    scores = [row.score for row in scorer.score(items)]
    configuration = read_json(folder / "config.json")
    write_json(folder / "config.json", {key: value for key, value in configuration.items() if key != "auto_map"})
    assert [row.score for row in load_scorer(folder, SETTINGS).score(items)] == scores
    assert not (tmp_path / "ran").exists()


def test_the_code_of_these_tests_would_leave_its_mark(painted, tmp_path, monkeypatch):
    from transformers import AutoConfig

    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    AutoConfig.from_pretrained(painted("painted"), trust_remote_code=True)
    assert (tmp_path / "ran").exists()
