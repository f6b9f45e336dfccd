"""`rm-methods plan` on CPUs: work by hand, and nothing of GPUs."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner

from rm_methods.cli import main
from rm_methods.config.resolve import load_config, resolve
from rm_methods.errors import UserError
from rm_methods.experiment.experiment import Experiment
from rm_methods.experiment.layout import RECORDS
from rm_methods.files import write_json
from rm_methods.planning import cpu_text
from rm_methods.planning.cpu_plan import (
    OTHER_FIXED_SECONDS,
    TRAINING_OVERHEAD,
    CpuSpeed,
    Stage,
    cpu_stages,
    measured_speed,
    responses_of,
    texts_of,
    wall_seconds,
)
from rm_methods.planning.cpu_text import duration
from rm_methods.planning.plan import (
    Assumptions,
    backbone_configuration,
    model_shapes,
    operations_per_token,
    response_operations,
    training_operations,
)
from rm_methods.planning.shapes import published_configuration
from rm_methods.planning.sizes import shape_of
from rm_methods.preferences.pair import write_pairs
from rm_methods.preferences.prepare import prepare
from rm_methods.yaml_files import yaml_text
from tests.conftest import experiment_config, made_up_pairs

SPEED = CpuSpeed(training=1e9, scoring=2e9, sampling=0.5e9)
ASSUMED = Assumptions(prompt_tokens=10, response_tokens=5, pairs=1000)
WORLD = {"dataset": "world", "options": {"train_pairs": 60, "validation_pairs": 10, "test_pairs": 20}}


def small(tmp_path, **sections):
    return experiment_config(tmp_path, data=WORLD, **sections)


def seconds(stages):
    return {stage.rule: stage.seconds for stage in stages}


def test_training_and_scoring_by_hand(tmp_path):
    config = small(tmp_path, methods={"bradley_terry": {}, "longest": {}}, seeds=[0, 1], training={"epochs": 2})
    shape = model_shapes(config, None)["bradley_terry"]
    jobs = {"train": 3, "score": 3 * len(config["benchmarks"]), "all": 1}
    stages = cpu_stages(config, ASSUMED, {"iid": 50}, SPEED, jobs)
    training = training_operations(config, "bradley_terry", {"bradley_terry": shape}, ASSUMED)
    assert training == 2 * 1000 * 20 * operations_per_token(shape, 15, 6)
    assert seconds(stages)["train"] == pytest.approx(2 * TRAINING_OVERHEAD * training / 1e9 + 3 * OTHER_FIXED_SECONDS)
    responses = sum(
        ASSUMED.responses if count is None else count
        for count in (responses_of(config, name, {"iid": 50}) for name in config["benchmarks"])
    )
    scored = 2 * responses * 15 * operations_per_token(shape, 15, 2) / 2e9
    assert seconds(stages)["score"] == pytest.approx(scored + jobs["score"] * OTHER_FIXED_SECONDS)
    assert "all" not in seconds(stages)


def test_jobs_that_are_done_do_not_count(tmp_path):
    config = small(tmp_path, methods={"bradley_terry": {}}, seeds=[0, 1, 2, 3])
    half, whole = (
        seconds(cpu_stages(config, ASSUMED, {}, SPEED, {"train": count}))["train"] - count * OTHER_FIXED_SECONDS
        for count in (2, 4)
    )
    assert half == pytest.approx(whole / 2)


def test_a_benchmark_made_of_the_pairs_has_their_responses(tmp_path):
    config = small(tmp_path, benchmarks={"world": {"options": {"splits": ["iid", "cue_neutral"]}}})
    assert responses_of(config, "world", {"iid": 20, "cue_neutral": 30, "train": 500}) == 100
    assert responses_of(config, "world", {}) is None


def test_the_pairs_of_the_controlled_world_are_counted_before_they_are_prepared(tmp_path):
    texts = texts_of(small(tmp_path))
    assert texts.pairs["train"] == 60
    assert texts.pairs["iid"] == 20
    assert 5 < texts.prompt_tokens < 200
    assert 5 < texts.response_tokens < 200


def test_pairs_on_the_hub_are_not_read(tmp_path):
    config = experiment_config(tmp_path, data={"dataset": "hh_rlhf"})
    assert texts_of(config) is None


def test_the_pairs_of_a_mixture_are_counted_if_every_source_is_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def mixture(*sources):
        sections = {
            "data": {"sources": list(sources)},
            "methods": {"bradley_terry": {}},
            "backbone": {"source": "tiny"},
        }
        (tmp_path / "mixture.yaml").write_text(yaml_text({"experiment": "mixture", **sections}))
        return load_config([tmp_path / "mixture.yaml"])

    one = WORLD | {"name": "one"}
    other = {"dataset": "world", "name": "other", "options": WORLD["options"] | {"train_pairs": 40, "seed": 1}}
    assert texts_of(mixture(one, other)).pairs["train"] == 100
    assert texts_of(mixture(one, {"dataset": "hh_rlhf", "name": "hub"})) is None


def test_the_pairs_of_a_mixture_are_counted(tmp_path):
    rows = [{"prompt": f"Name tree {k}.", "chosen": "Oak.", "rejected": f"Rock {k}."} for k in range(40)]
    sources = []
    for name, part in (("a.jsonl", rows[:30]), ("b.jsonl", rows[30:])):
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in part))
        sources.append({"dataset": str(tmp_path / name)})
    config = {"experiment": "test", "results": str(tmp_path / "results"), "methods": {"bradley_terry": {}}}
    assert texts_of(resolve(config | {"data": {"sources": sources, "validation_fraction": 0.0}})).pairs == {"train": 40}
    assert texts_of(resolve(config | {"data": [*sources, {"dataset": "hh_rlhf"}]})) is None


def test_policies_are_counted_with_their_sampling(tmp_path):
    """Twice the candidates take twice the time; PPO scales with its updates."""
    optimization = {
        "prompts": "iid",
        "variants": ["bradley_terry"],
        "best_of_n": {"pools": ["samples"], "limit": 10, "samples": 8},
        "ppo": {"enabled": True, "updates": 4, "batch_size": 8, "train_prompts": 10, "evaluation_prompts": 5},
    }

    def of(**changes):
        section = {key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value
                   for key, value in optimization.items()}  # fmt: skip
        config = small(tmp_path, methods={"bradley_terry": {}}, overoptimization=section)
        jobs = {"sft": 1, "sample_pool": 1, "sample_references": 1, "ppo": 1}
        return {rule: value - OTHER_FIXED_SECONDS for rule, value in
                seconds(cpu_stages(config, ASSUMED, {"train": 1000}, SPEED, jobs)).items()}  # fmt: skip

    once, twice = of(), of(best_of_n={"samples": 16}, ppo={"updates": 8})
    assert min(once.values()) > 0
    assert twice["sample_pool"] == pytest.approx(2 * once["sample_pool"])
    assert once["ppo"] < twice["ppo"] < 2 * once["ppo"]
    assert twice["sft"] == once["sft"]


def test_a_model_that_starts_from_a_joint_language_model_does_not_train_on_text(tmp_path):
    config = small(
        tmp_path,
        methods={"joint_bidirectional": {"start": "world_joint"}, "x": {"method": "joint_bidirectional"}},
        backbone={"source": "world"},
    )
    shapes = model_shapes(config, None)
    started, whole = (training_operations(config, name, shapes, ASSUMED) for name in ("joint_bidirectional", "x"))
    epochs = config["methods"]["x"]["settings"]["epochs"]
    text = config["methods"]["x"]["settings"]["masked_language_epochs"]
    assert whole / started == pytest.approx((epochs + text) / epochs)


def test_an_external_row_has_the_size_of_its_model(tmp_path):
    methods = {"bradley_terry": {}, "external": {"model": "someone/Reward-8B"}}
    config = small(tmp_path, methods=methods)
    shapes = model_shapes(config, None)
    assert shapes["external"] == shape_of(published_configuration("8B"))
    costs = [response_operations(config, name, shapes[name], ASSUMED) for name in methods]
    assert costs[1] > 1000 * costs[0]


def test_wall_time_is_all_work_on_all_cores_but_never_less_than_one_job_of_each_rule():
    stages = [Stage("train", 10, 100.0), Stage("compare", 1, 6.0)]
    assert wall_seconds(stages, cores=2, threads=1) == 53.0
    assert wall_seconds(stages, cores=64, threads=1) == 16.0
    assert wall_seconds(stages, cores=64, threads=2) == 8.0


@pytest.mark.process
def test_the_speed_of_a_core_is_plausible_and_grows_with_the_size_of_the_products(tmp_path):
    config = small(tmp_path)
    tiny = measured_speed(backbone_configuration(config, None), 20, 20, "fp32")
    large = measured_speed(published_configuration("135M"), 20, 20, "fp32")
    for speed in (tiny, large):
        assert 1e7 < speed.sampling < 1e13
        assert 1e7 < speed.training < 1e13
    assert large.training > 2 * tiny.training


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "1 s"),
        (89, "89 s"),
        (380, "6 min"),
        (3600 * 2.5, "2 h 30 min"),
        (3600 * 30, "30 h"),
        (86400 * 3.2, "3 days 4 h"),
    ],
)
def test_durations_have_readable_units(value, text):
    assert duration(value) == text


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Runs the verb with a speed and a dry run that are given."""
    monkeypatch.setattr(cpu_text, "measured_speed", lambda *_: SPEED)
    monkeypatch.setattr(cpu_text, "job_counts", lambda _files: {"train": 2, "score": 2, "compare": 1, "all": 1})

    def run(*options, **sections):
        file = tmp_path / "x.yaml"
        config = {"experiment": "x", "data": WORLD, "methods": {"bradley_terry": {}}, "benchmarks": {"world": {}}}
        file.write_text(yaml_text(config | {"seeds": [0, 1], "results": str(tmp_path / "results")} | sections))
        return CliRunner().invoke(main, ["plan", "--config", str(file), *options])

    return run


def test_an_experiment_without_gpus_is_planned_in_wall_time(planned):
    done = planned("--cores", "2")
    assert done.exit_code == 0, done.output
    assert re.search(r"^About \d+ (s|min) on 2 cores of this machine, if nothing else runs", done.output, re.M)
    assert "60 training pairs" in done.output
    assert "of this experiment's pairs" in done.output
    assert "h100" not in done.output
    assert "GPU-h" not in done.output
    assert max(map(len, done.output.splitlines())) <= 150


@pytest.mark.parametrize(("load", "warns"), [(0.2, False), (7.5, True)])
def test_the_plan_says_when_other_programs_compute(planned, monkeypatch, load, warns):
    monkeypatch.setattr(cpu_text.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(cpu_text, "cores_of_this_machine", lambda: 2)
    done = planned("--cores", "2")
    assert "the machine is idle" in done.output
    assert ("Other programs compute on this machine now (load 7.5, 2 cores)" in done.output) == warns


def test_trainings_are_told_from_scorers_without_weights(planned):
    sentence = "Of the 3 runs, 2 are trainings; the train stage only sets up the others."
    assert sentence in planned("--cores", "2", methods={"bradley_terry": {}, "longest": {}}).output
    assert "are trainings" not in planned("--cores", "2").output


def test_the_plan_warns_of_too_few_seeds(planned):
    warning = "WARNING: With 2 seeds, no difference between methods can be tested."
    assert warning in planned("--cores", "2").stderr
    assert warning not in planned("--cores", "2", seeds=[0, 1, 2]).stderr


def test_what_is_not_known_is_said_to_be_assumed(planned):
    done = planned(
        "--pairs", "500", data={"dataset": "hh_rlhf"}, benchmarks={"rm_bench": {}}, backbone={"source": "tiny"}
    )
    assert done.exit_code == 0, done.output
    assert "500 training pairs" in done.output
    assert "(assumed; --pairs, --prompt-tokens, --response-tokens change it)" in done.output
    assert "10,000 responses of each benchmark that is not prepared: rm_bench (--responses)" in done.output


def test_cores_and_gpus_exclude_each_other(planned):
    done = planned("--cores", "2", "--gpu", "h100")
    assert done.exit_code == 2
    assert "--cores plans for CPUs and --gpu for GPUs" in done.output


def test_a_gpu_that_is_named_is_planned_for(planned, monkeypatch):
    monkeypatch.setattr("rm_methods.planning.plan.job_counts", lambda _files: {"train": 2})
    done = planned("--gpu", "a100", "--pairs", "60")
    assert done.exit_code == 0, done.output
    assert "GPU-hours" in done.output


def test_pairs_that_a_training_leaves_out_are_counted_with_the_tokenizer_of_the_backbone(tmp_path):
    from rm_methods.planning.plan_text import left_out_text
    from rm_methods.reward_models.backbones import prepare_backbone

    pairs = made_up_pairs(20)
    pairs[:12] = [replace(pair, rejected="blue " * 300) for pair in pairs[:12]]
    config = small(tmp_path, backbone={"max_length": 64}, results=str(tmp_path))
    layout = Experiment(config).layout
    layout.pairs.parent.mkdir(parents=True)
    write_pairs(pairs, layout.pairs)
    assert texts_of(config).left_out == 12, "the tiny tokenizer is trained on these pairs"
    assert "will be left out of these (training.overlong_pairs: drop); not counted yet" in left_out_text(
        config, 20, None
    )
    prepare_backbone(config["backbone"], pairs, layout.backbone)
    assert texts_of(config).left_out == 12
    text = left_out_text(config, 20, 12)
    assert text.startswith("12 of them are left out: a response does not fit into backbone.max_length 64")
    assert "WARNING: that is most of them" in text
    assert "WARNING" not in left_out_text(config, 24, 12)
    config["training"]["overlong_pairs"] = "truncate"
    assert texts_of(config).left_out == 0


def test_the_template_of_the_configuration_is_used_before_the_backbone_is_prepared(tmp_path):
    from rm_methods.reward_models.backbones import RECORD, prepare_backbone

    pairs = made_up_pairs(20)
    folder = tmp_path / "source"
    prepare_backbone(small(tmp_path)["backbone"], pairs, folder)
    (folder / RECORD).unlink()
    template = (folder / "chat_template.jinja").rename(tmp_path / "template.jinja")
    backbone = {"source": str(folder), "chat_template": str(template), "max_length": 256}
    config = small(tmp_path, backbone=backbone, results=str(tmp_path))
    assert texts_of(config).left_out == 0
    template.write_text("{{ raise_exception('no') if messages | length > 1 or messages[0].content | length > 12 }}x")
    pairs_file = Experiment(config).layout.pairs
    pairs_file.parent.mkdir(parents=True)
    write_pairs(pairs, pairs_file)
    with pytest.raises(UserError, match="template"):
        texts_of(config)


def test_pairs_that_were_prepared_with_other_settings_are_not_counted(tmp_path, monkeypatch):
    """As with a second configuration that lowers `max_pairs`, laid over the one that ran."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Name tree {k}.", "chosen": "Oak.", "rejected": f"Rock {k}."} for k in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = {"dataset": "pairs.jsonl", "validation_fraction": 0.0}
    config = resolve({"experiment": "test", "methods": {"bradley_terry": {}}, "data": data})
    experiment = Experiment(config)
    prepare(config["data"], experiment.layout.pairs, experiment.layout.pairs_report)
    write_json(experiment.folder / RECORDS["prepare"], experiment.asked("prepare"))
    smaller = config | {"data": config["data"] | {"max_pairs": {"train": 7}}}
    assert texts_of(config).pairs == {"train": 40}
    assert texts_of(smaller).pairs == {"train": 7}
    assert (experiment.has_prepared_pairs(), Experiment(smaller).has_prepared_pairs()) == (True, False)
