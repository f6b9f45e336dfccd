"""Training with LoRA: its settings, what is trained and what is not, resume, and an export that has no trace of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from rm_methods.config.resolve import resolve
from rm_methods.errors import ConfigError, UserError
from rm_methods.reward_models.backbones import load_classifier
from rm_methods.training import run as running
from rm_methods.training.run import run_key, train
from rm_methods.training.trainer import RewardTrainer
from tests.conftest import experiment_config
from tests.reward_models.test_lora import LORA
from tests.training.commands import killed_in_training, losses, run_to_the_end, train_command, weights
from tests.training.test_trainer import killed_after, log, run_files

pytestmark = pytest.mark.process

SMALL = {"rank": 2, "alpha": 4}
ENCODER = {"joint_encoder": {"masked_language_epochs": 1, "epochs": 1}}


def trained(prepared, folder: Path, variant: str = "bradley_terry", methods: dict | None = None, **training) -> Path:
    config = experiment_config(folder, methods=methods or {"bradley_terry": {}}, training={"lora": SMALL} | training)
    train(config, variant, 0, run_files(prepared, folder))
    return folder


def starting_weights(prepared) -> dict[str, torch.Tensor]:
    return load_classifier(prepared[1], prepared[2]["backbone"], seed=0).state_dict()


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory) -> Path:
    """A run with LoRA, three epochs long."""
    return trained(prepared, tmp_path_factory.mktemp("lora"), epochs=3)


def test_the_learned_update_of_every_layer_has_the_rank_and_nothing_but_the_head_changed_besides(prepared, run):
    before, after = starting_weights(prepared), weights(run)
    assert after.keys() == before.keys()
    for name, weight in before.items():
        update = (after[name] - weight).double()
        if ".self_attn." in name or ".mlp." in name:
            values = torch.linalg.svdvals(update)
            assert values[0] > 1e-4, name
            assert values[2] < 1e-6, f"{name}: its update has more than rank 2"
        elif name == "score.weight":
            assert update.abs().max() > 1e-4
        else:
            assert torch.equal(after[name], weight), name


def test_it_learns(run):
    found = losses(run)
    assert sum(found[-3:]) / 3 < sum(found[:3]) / 3 - 0.02


def test_the_export_has_the_layout_of_a_full_fine_tuning(prepared, run, tmp_path):
    full = trained(prepared, tmp_path, lora=None, epochs=1)
    ours, theirs = ({path.name for path in (folder / "model").iterdir()} for folder in (run, full))
    assert ours == theirs
    assert (run / "model" / "config.json").read_bytes() == (full / "model" / "config.json").read_bytes()
    described = [{name: (w.shape, w.dtype) for name, w in weights(folder).items()} for folder in (run, full)]
    assert described[0] == described[1]
    # The header of the file: names, types, shapes and places of the weights.
    headers = [(folder / "model" / "model.safetensors").read_bytes()[:2000] for folder in (run, full)]
    length = 8 + int.from_bytes(headers[0][:8], "little")
    assert headers[0][: min(length, 2000)] == headers[1][: min(length, 2000)]


def test_only_adapters_and_head_are_trained_and_in_the_optimizer(prepared, tmp_path, monkeypatch):
    seen = {}
    original = RewardTrainer.training_step

    def training_step(self, model, *args, **kwargs):
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        seen["held"] = sorted(name for name, p in model.named_parameters() if id(p) in held)
        seen["trained"] = sorted(name for name, p in model.named_parameters() if p.requires_grad)
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(RewardTrainer, "training_step", training_step)
    trained(prepared, tmp_path)
    assert seen["held"] == seen["trained"]
    assert "classifier.score.weight" in seen["held"]
    assert all("lora_" in name or name == "classifier.score.weight" for name in seen["held"])
    assert len(seen["held"]) == 1 + 2 * 7 * 2  # A and B of the 7 linear layers of 2 decoder layers


def test_the_first_loss_is_that_of_full_fine_tuning(prepared, run, tmp_path):
    full = trained(prepared, tmp_path, lora=None, epochs=3)
    assert losses(full)[0] == losses(run)[0]
    assert losses(full)[5] != losses(run)[5]


def test_a_resumed_run_equals_the_uninterrupted_one(prepared, tmp_path, monkeypatch):
    options = {"epochs": 2, "checkpoint_every_steps": 4, "lora": SMALL | {"dropout": 0.1}}
    trained(prepared, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        killed_after(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            trained(prepared, tmp_path / "killed", **options)
    trained(prepared, tmp_path / "killed", **options)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    "change", [{"gradient_checkpointing": True}, {"layout": "plain"}, {"tokens_per_microbatch": 100}]
)
def test_how_it_is_computed_does_not_change_what_is_learned(prepared, run, tmp_path, change):
    changed = trained(prepared, tmp_path, epochs=3, **change)
    assert losses(changed) == pytest.approx(losses(run), abs=1e-4)


def test_autocast_and_dropout_learn_too(prepared, run, tmp_path):
    found = losses(trained(prepared, tmp_path, epochs=3, precision="bf16", lora=SMALL | {"dropout": 0.2}))
    assert found[0] == pytest.approx(losses(run)[0], abs=0.05)
    assert sum(found[-3:]) < sum(found[:3])


@pytest.mark.parametrize("method", ["inform", "odin", "grm", "meta_rm", "contrastive"])
def test_methods_with_modules_of_their_own_train_them_in_full(prepared, tmp_path, monkeypatch, method):
    seen = {}

    def fit(method, model, steps, **options):
        seen["before"] = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer = original(method, model, steps, **options)
        seen["after"] = {name: p.detach().clone() for name, p in model.named_parameters()}
        return trainer

    original = running.fit
    monkeypatch.setattr(running, "fit", fit)
    trained(prepared, tmp_path, method, {method: {}})
    moved = {name for name, p in seen["before"].items() if not torch.equal(p, seen["after"][name])}
    own = {name for name in seen["before"] if not name.startswith("classifier.")}
    assert {name for name in own if "center" not in name} <= moved
    backbone = {name for name in seen["before"] if name.startswith("classifier.model.")}
    assert {name for name in backbone if "lora_" in name} <= moved
    assert not {name for name in backbone if "lora_" not in name} & moved
    assert weights(tmp_path).keys() == load_classifier(prepared[1], prepared[2]["backbone"], 0).state_dict().keys()


def test_attention_is_captured_through_adapters_and_draws_them_to_the_teachers(prepared, tmp_path):
    student = {"method": "interaction_distillation", "warmup_fraction": 0.0, "student_layers": [1, 2]}
    methods = ENCODER | {"strong": student | {"weight": 100.0}, "none": student | {"weight": 0.0}}
    teacher = trained(prepared, tmp_path / "teacher", "joint_encoder", methods)
    assert not [name for name in weights(teacher) if "lora" in name]
    for name, variant, lora in (("lora", "strong", SMALL), ("unaligned", "none", SMALL), ("full", "strong", None)):
        config = experiment_config(tmp_path / name, methods=methods, training={"lora": lora})
        files = run_files(prepared, tmp_path / name)
        train(config, variant, 0, running.RunFiles(**(vars(files) | {"required": {"teacher": [teacher / "model"]}})))
    first = [log(tmp_path / name / "metrics.jsonl")[0] for name in ("lora", "full")]
    assert first[0]["alignment_loss"] == first[1]["alignment_loss"] > 0
    aligned, unaligned = (weights(tmp_path / name) for name in ("lora", "unaligned"))
    for layer in (0, 1):
        key = f"model.layers.{layer}.self_attn.k_proj.weight"
        assert (aligned[key] - unaligned[key]).abs().max() > 1e-4


def test_a_linear_probe_has_no_adapters(prepared, tmp_path):
    folder = trained(prepared, tmp_path, "linear_probe", {"linear_probe": {}})
    assert json.loads((folder / "summary.json").read_text())["training"]["lora"] is None
    before = starting_weights(prepared)
    assert {name for name, weight in weights(folder).items() if not torch.equal(weight, before[name])} == {
        "score.weight"
    }


@pytest.mark.parametrize("name", ["q_prj", "proj", "embed_tokens", "score", "self_attn"])
def test_a_layer_that_is_not_there_is_named_with_those_that_are(prepared, tmp_path, name):
    with pytest.raises(
        UserError, match=rf"no linear layer '{name}'.*Allowed: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj"
    ):
        trained(prepared, tmp_path, lora=SMALL | {"target_modules": ["v_proj", name]})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_wrong_layer_is_refused_before_the_training_on_text(prepared, tmp_path):
    with pytest.raises(UserError, match="ModernBertForSequenceClassification has no linear layer 'q_proj'"):
        trained(prepared, tmp_path, "joint_encoder", ENCODER, lora=SMALL | {"target_modules": ["q_proj"]})
    assert not list((tmp_path / "work").rglob("adaptation"))


def minimal(lora, methods=None):
    training = {} if lora == "absent" else {"training": {"lora": lora}}
    return {"experiment": "x", "data": {"dataset": "world"}, "methods": methods or {"bradley_terry": {}}} | training


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 0}, "training.lora.rank: is 0; must be at least 1"),
        ({"rank": 2.5}, "training.lora.rank: is 2.5; expected a whole number"),
        ({"alpha": 0}, "training.lora.alpha: is 0; must be more than 0"),
        ({"dropout": 1.0}, "training.lora.dropout: is 1.0; must be less than 1"),
        (
            {"target_modules": "q_proj"},
            'training.lora.target_modules: is "q_proj"; the only text allowed is all-linear',
        ),
        ({"target_modules": []}, "training.lora.target_modules: is []"),
        ({"ranks": 4}, "training.lora.ranks: unknown key. Did you mean 'rank'?"),
        (True, "training.lora: is true; expected a mapping or null"),
    ],
)
def test_impossible_settings_are_refused(lora, message):
    with pytest.raises(ConfigError) as failure:
        resolve(minimal(lora))
    assert any(message in problem for problem in failure.value.problems), failure.value.problems
    with pytest.raises(ConfigError) as failure:
        resolve(minimal("absent", {"bradley_terry": {"lora": lora}}))
    own = message.replace("training.lora", "methods.bradley_terry.lora")
    assert any(own in problem for problem in failure.value.problems), failure.value.problems


def test_a_variant_has_the_experiments_lora_or_its_own():
    methods = {"bradley_terry": {}, "wide": {"method": "bradley_terry", "lora": {"rank": 64}}, "joint_decoder": {},
        "longest": {},
               "full": {"method": "bradley_terry", "lora": None}}  # fmt: skip
    config = resolve(minimal(SMALL, methods))
    assert resolve(config) == config
    found = {name: entry["lora"] for name, entry in config["methods"].items()}
    assert found == {
        "bradley_terry": LORA,
        "wide": LORA | {"rank": 64},
        "joint_decoder": LORA,
        "longest": None,
        "full": None,
    }
    config = resolve(minimal("absent", methods))
    assert config["training"]["lora"] is None
    assert config["methods"]["wide"]["lora"] == {
        "rank": 64,
        "alpha": 32,
        "dropout": 0.0,
        "target_modules": "all-linear",
    }
    assert config["methods"]["bradley_terry"]["lora"] is None
    with pytest.raises(ConfigError, match=r"methods\.longest\.lora: unknown key"):
        resolve(minimal("absent", {"longest": {"lora": SMALL}}))


def test_a_variants_own_lora_is_what_it_trains_with(prepared, tmp_path):
    methods = {"full": {"method": "bradley_terry", "lora": None}, "bradley_terry": {}}
    folder = trained(prepared, tmp_path, "full", methods)
    assert json.loads((folder / "summary.json").read_text())["training"]["lora"] is None
    before = starting_weights(prepared)
    assert not torch.equal(weights(folder)["model.norm.weight"], before["model.norm.weight"])
    config = experiment_config(tmp_path, methods=methods, training={"lora": SMALL})
    assert run_key(config, "full", 0, "pairs") != run_key(config, "bradley_terry", 0, "pairs")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, "zero0", "zero1", "zero2", "zero3", "zero3_offload"])
def test_two_ranks_learn_what_one_rank_learns(prepared, run, tmp_path, stage):
    options = {"epochs": 3, "lora": SMALL, "gradient_checkpointing": True}
    run_to_the_end(train_command(prepared, tmp_path, **options, processes=2, deepspeed=stage))
    assert losses(tmp_path) == pytest.approx(losses(run), abs=1e-3)
    ours, theirs = weights(run), weights(tmp_path)
    assert {name: w.shape for name, w in ours.items()} == {name: w.shape for name, w in theirs.items()}
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-2


@pytest.fixture
def stored(prepared, tmp_path) -> tuple[Path, Path]:
    """The prepared experiment with its backbone's weights in a folder, so that ZeRO-3 loads them in shards."""
    folder = tmp_path / "stored"
    shutil.copytree(prepared[1], folder)
    load_classifier(prepared[1], prepared[2]["backbone"], seed=0).save_pretrained(folder)
    (folder / "backbone.json").write_text(
        json.dumps({"kind": "pretrained", "weights": "here", "revision": None, "source": str(folder)})
    )
    return prepared[0], folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "dtype"), [("zero3", "float32"), ("zero3", "bfloat16"), ("zero2", "bfloat16"), (None, "bfloat16")]
)
def test_pretrained_weights_in_shards_and_in_16_bits_get_the_same_adapters(stored, tmp_path, stage, dtype):
    for ranks in (1, 2):
        options = {
            "epochs": 3,
            "lora": SMALL,
            "precision": "fp32" if dtype == "float32" else "bf16",
            "processes": ranks,
        }
        command = train_command(stored, tmp_path / str(ranks), **options, deepspeed=stage if ranks == 2 else None)
        file = tmp_path / str(ranks) / "config.yaml"
        config = yaml.safe_load(file.read_text())
        config["backbone"] |= {"source": str(stored[1]), "dtype": dtype}
        file.write_text(yaml.safe_dump(config))
        run_to_the_end(command)
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), abs=1e-3 if dtype == "float32" else 2e-2)
    ours, theirs = (weights(tmp_path / str(ranks)) for ranks in (1, 2))
    assert {name: w.shape for name, w in ours.items()} == {name: w.shape for name, w in theirs.items()}
    assert {w.dtype for w in (*ours.values(), *theirs.values())} == {torch.float32}
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-2
    assert json.loads((tmp_path / "2" / "model" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 1])
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_run_that_was_killed_on_two_ranks_continues(prepared, tmp_path, stage, ranks):
    options = {"epochs": 9, "learning_rate": 3e-4, "checkpoint_every_steps": 20, "lora": SMALL}
    trained(prepared, tmp_path / "whole", **options)
    folder = tmp_path / "killed"
    command = train_command(prepared, folder, **options, processes=2, deepspeed=stage)
    killed_in_training(command, folder)
    assert "resumes from" in run_to_the_end(
        train_command(prepared, folder, **options, processes=ranks, deepspeed=stage)
    )
    assert losses(folder) == pytest.approx(losses(tmp_path / "whole"), abs=1e-3)
    ours, theirs = weights(tmp_path / "whole"), weights(folder)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 5e-3
