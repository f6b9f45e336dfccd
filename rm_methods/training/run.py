"""One training run: pairs in; a plain reward-model folder, `metrics.jsonl` and `summary.json` out."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.files import file_hash, read_json, write_json, written_atomically
from rm_methods.methods.registry import load_card, load_method
from rm_methods.preferences.pair import PreferencePair, read_pairs
from rm_methods.reward_models.model_folder import write_checksums
from rm_methods.reward_models.older_releases import add_older_names
from rm_methods.reward_models.pair_encoding import encode_pairs
from rm_methods.scoring.scorer import SCORER_FILE
from rm_methods.stored import with_checksum
from rm_methods.system.cpu import prepare_cpu
from rm_methods.system.provenance import key_of, peak_memory_bytes, provenance
from rm_methods.system.run_lock import run_lock
from rm_methods.training.fitting import adapt, fit, gathered_weights, plan_training, planned_steps, training_arguments
from rm_methods.training.launch import (
    check_gpus,
    dies_with_its_launcher,
    end_of_rank,
    launch_ranks,
    stops_on_signals,
    threads_of_rank,
)
from rm_methods.training.resume import without_world_size
from rm_methods.training.run_key import run_dependencies, run_key
from rm_methods.training.training_data import TrainingData, training_data


@dataclass(frozen=True)
class RunFiles:
    """Where a run reads (pairs, backbone, model folders of required runs) and writes; each run key gets its own folder in `work`."""

    pairs: Path
    backbone: Path
    model: Path
    metrics: Path
    summary: Path
    work: Path
    required: Mapping[str, Sequence[Path]] = field(default_factory=dict)


def train(config: dict[str, Any], variant: str, seed: int, files: RunFiles, threads: int = 0) -> dict[str, Any]:
    """Train one variant with one seed, or describe a scorer that has no weights.

    With `training.processes` > 1 this starts that many ranks of the running command through torchrun and waits for
    them; with `resources.nodes` > 1 on each node of the Slurm job.  No other process writes the same run meanwhile.

    Args:
        config: resolved configuration.
        threads: CPU threads, shared by the ranks of a node; 0 leaves it to torch.  Not part of the run key.

    Returns:
        The summary that was written.

    Raises:
        UserError: nothing to train on, a loss that is not finite, a rank that failed, an impossible setting, another
            process that writes this run, other GPUs than asked for.
    """
    with stops_on_signals():
        if "RANK" in os.environ:
            return _train_this_rank(config, variant, seed, files, threads)
        with run_lock(files.summary.parent):
            if not load_card(config["methods"][variant]["method"]).has_weights:
                return _make_scorer(config, variant, seed, files, threads)
            # DeepSpeed wants a launcher for a single rank too.
            if (
                config["training"]["processes"] > 1
                or config["resources"]["nodes"] > 1
                or config["training"]["deepspeed"]
            ):
                launch_ranks(config["training"]["processes"], config["resources"], sys.argv[1:])
                return read_json(files.summary)
            return _train_this_rank(config, variant, seed, files, threads)


@dataclass(frozen=True)
class _Fitted:
    """What is known of a training when its model is saved; holds no model.

    Attributes:
        arguments: the Trainer's.
        planned: what was computed, as `plan_cost` counts it.
        seconds_before: wall time of earlier parts of a resumed run.
        train_loss: the last that was logged.
        extra: entries of the summary.
    """

    arguments: Any
    planned: dict[str, int]
    seconds_before: float
    train_loss: float | None
    extra: dict[str, Any]


def _train_this_rank(
    config: dict[str, Any], variant: str, seed: int, files: RunFiles, threads: int
) -> dict[str, Any] | None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    started = time.monotonic()
    dies_with_its_launcher()
    prepare_cpu(threads_of_rank(threads))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        check_gpus(config["resources"]["gpus"], config["training"]["processes"], "training.processes")
    pairs_hash = file_hash(files.pairs)
    # Two variants may be the same training (a control of the comparison), but two runs never share checkpoints.
    work = (
        files.work
        / f"{variant}_seed{seed}_{run_key(without_world_size(config), variant, seed, pairs_hash, files.required)}"
    )
    fitted = _fit_and_export(config, variant, seed, files, work)
    summary = None
    if fitted.arguments.process_index == 0:
        with written_atomically(files.metrics) as path:
            shutil.copyfile(work / "metrics.jsonl", path)
        cost = _cost(fitted.planned, fitted.arguments, fitted.seconds_before + time.monotonic() - started)
        _free_memory()  # of the trained model: the saved one is loaded whole and in fp32
        final = {"train_loss": fitted.train_loss, **_validation(config, files)}
        summary = _write_summary(config, variant, seed, files, pairs_hash, cost, final, fitted.extra)
        shutil.rmtree(work, ignore_errors=True)
    end_of_rank(fitted.arguments.world_size)
    return summary


def _fit_and_export(config: dict[str, Any], variant: str, seed: int, files: RunFiles, work: Path) -> _Fitted:
    """Train and save the model; only rank 0 writes.  Afterwards nothing but cycles refers to the trained one."""
    from rm_methods.reward_models.batching import plan_cost
    from rm_methods.training.trainer import PlannedSteps, RunLog

    method, inputs = _method_and_inputs(config, variant, seed, files, work)
    training = inputs.config["training"]
    data = training_data(config, variant, files.pairs, method, inputs)
    model, arguments, adaptation_cost = _model_to_train(method, inputs, data)
    layout = model.layout(training["layout"])
    layout_record = {
        "used": layout,
        "probe": model.layout_probe.record() if model.layout_probe else "not measured: ZeRO-3 shards",
    }
    plan = plan_training(training, data.items, seed, arguments.world_size, layout, data.budget)
    method.build(model, replace(inputs, total_steps=len(plan), pairs=data.pairs, items=data.items, reader=data.reader))

    log = RunLog(plan, work / "metrics.jsonl", inputs.label)
    steps = PlannedSteps(plan, data.pairs, data.items, layout, arguments.process_index, data.reader.pad_id)
    trainer = fit(method, model, steps, arguments, log, work)
    state_dict = gathered_weights(trainer) if arguments.deepspeed and plan else None
    report = {}
    if arguments.process_index == 0:
        _export(trainer, method, data.reader, training, state_dict, files.model)
        report = method.report()
    # DeepSpeed's hooks hold the model and its optimizer where the garbage collector does not look.
    trainer.accelerator.free_memory()

    planned = plan_cost(plan, data.items, layout)
    planned |= {key: method.passes * planned[key] for key in ("tokens", "launched_tokens", "forwards")}
    planned = {key: count + adaptation_cost.get(key, 0) for key, count in planned.items()}
    extra = {
        "truncation": data.truncation,
        "training": training,
        "noise": data.noise,
        "report": report,
        "layout": layout_record,
    }
    return _Fitted(arguments, planned, log.before, log.last_loss, extra)


def _method_and_inputs(config: dict[str, Any], variant: str, seed: int, files: RunFiles, work: Path):
    """The method of a variant, and what it is given; its `training` section is the one that this seed goes by."""
    from rm_methods.methods.contract import Inputs

    entry = config["methods"][variant]
    method = load_method(entry["method"], entry["settings"])
    own_rate = {"learning_rate": entry["learning_rate"]} if entry["learning_rate"] else {}
    training = method.training(config["training"] | {"lora": entry["lora"]} | own_rate, seed)
    sections = {"backbone": config["backbone"], "training": training}
    return method, Inputs(
        seed, work, f"{variant} seed {seed}", sections, files.backbone, _required(config, variant, files)
    )


def _model_to_train(method, inputs, data: TrainingData):
    """The model, trained on text where the method asks for that; the Trainer's arguments; and the cost of that training on text."""
    from rm_methods.reward_models.lora import add_adapters, target_layers

    training = inputs.config["training"]
    # With ZeRO-3 the arguments make transformers create and load a model in shards, so they come first; a tiny model is
    # created whole, because random weights drawn in shards would be others than those of a run on one rank.
    whole = method.model_is_made_whole or inputs.config["backbone"]["source"] == "tiny"
    model = method.model(data.pairs, data.reader, inputs) if whole else None
    if model and training["lora"]:
        target_layers(
            model.classifier, training["lora"]["target_modules"]
        )  # what is wrong is said before hours of training on text
    adaptation_cost = adapt(
        model, method.adaptation(data.pairs, data.reader, inputs), data.pairs, data.items, data.reader, inputs
    )
    _free_memory()  # of the language model and its optimizer
    arguments = training_arguments(training, inputs.seed, inputs.work_folder, planned_steps(training, data.budget))
    model = model or method.model(data.pairs, data.reader, inputs)
    if training["lora"]:
        add_adapters(model, training["lora"], inputs.seed)
    if training["gradient_checkpointing"]:
        model.recompute_activations()
    return model, arguments, adaptation_cost


def _export(trainer, method, reader, training: Mapping[str, Any], state_dict: dict | None, target: Path) -> None:
    """Write the model folder; `state_dict` holds gathered weights, where the model's own are shards."""
    from rm_methods.reward_models.lora import merge_adapters

    with written_atomically(target) as folder:
        trained = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        method.export(trained, folder, merge_adapters(trained, state_dict) if training["lora"] else state_dict)
        reader.tokenizer.save_pretrained(folder)
        add_older_names(folder)
        write_checksums(folder)


def _required(config: dict[str, Any], variant: str, files: RunFiles) -> dict[str, Sequence[Path]]:
    """The model folders of the required runs, each checked to be there."""
    method = config["methods"][variant]
    card = load_card(method["method"])
    for key, other in card.required_variants(method["settings"]).items():
        folders = list(files.required.get(key, ()))
        missing = [str(folder) for folder in folders if not Path(folder).is_dir()]
        least = card.requires[key].get("at_least", 1)
        if missing or len(folders) < least:
            there = f", but {', '.join(missing)} is not there" if missing else ""
            raise UserError(
                f"methods.{variant}.{key}: needs model folders of {least} or more runs of '{other}', {len(folders)} were given"
                f"{there}. Train that variant first and give --required {key}=FOLDER for each; "
                "the workflow does both."
            )
    return dict(files.required)


def _free_memory() -> None:
    """Give back what nothing refers to any more (a Trainer and its model refer to each other), on the GPU too."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def _cost(planned: dict[str, int], arguments, wall_seconds: float) -> dict[str, Any]:
    import torch

    on_gpu = arguments.device.type == "cuda"
    return {
        "wall_seconds": round(wall_seconds, 2),
        **planned,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_memory_bytes(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "world_size": arguments.world_size,
    }


def _validation(config: dict[str, Any], files: RunFiles) -> dict[str, float]:
    """Accuracy (ties are wrong) and Bradley-Terry loss of the saved model on the validation split; empty if there is none."""
    import numpy as np

    from rm_methods.scoring.scorer import load_scorer, pair_items, rewards_of_pairs, scoring_settings

    pairs, refused = _validation_pairs(config, files)
    if not pairs:
        return {}
    scorer = load_scorer(files.model, scoring_settings(config))
    scoring = scorer.compute(pair_items(pairs))
    rewards = rewards_of_pairs(scoring.responses)
    margins = rewards[:, 0] - rewards[:, 1]
    return {
        "validation_accuracy": float((margins > 0).mean()),
        "validation_loss": float(np.logaddexp(0, -margins).mean()),
        "validation_pairs": len(pairs),
        **({"validation_pairs_refused": refused} if refused else {}),
        **({} if scoring.position_bias is None else {"validation_position_bias": scoring.position_bias}),
    }


def _validation_pairs(config: dict[str, Any], files: RunFiles) -> tuple[list[PreferencePair], int]:
    """The validation pairs, without those that the chat template refuses if the configuration drops them; and how many these are."""
    from rm_methods.reward_models.backbones import load_tokenizer

    pairs, refused = read_pairs(files.pairs, splits=["validation"]), config["backbone"]["refused_conversations"]
    if refused != "drop":
        return pairs, 0
    readable, _ = encode_pairs(pairs, load_tokenizer(files.backbone, config["backbone"]["max_length"]), refused)
    return readable, len(pairs) - len(readable)


def _make_scorer(config: dict[str, Any], variant: str, seed: int, files: RunFiles, threads: int) -> dict[str, Any]:
    """A run without training: the description of a content-blind scorer, or what a method combines from other runs."""
    from rm_methods.methods.contract import Inputs

    entry = config["methods"][variant]
    extra, metrics = {}, {}
    combined = load_card(entry["method"]).kind == "combined"
    started = time.monotonic()
    with written_atomically(files.model) as folder:
        folder.mkdir()
        if combined:
            prepare_cpu(threads)
            method = load_method(entry["method"], entry["settings"])
            sections = {key: config[key] for key in ("backbone", "training", "scoring")}
            inputs = Inputs(
                seed, files.work, f"{variant} seed {seed}", sections, files.backbone, _required(config, variant, files)
            )
            extra["report"] = method.combine(_validation_pairs(config, files)[0], inputs, folder)
            add_older_names(folder)
        else:
            write_json(folder / SCORER_FILE, {"method": entry["method"], "settings": entry["settings"], "seed": seed})
        write_checksums(folder)
    if combined:
        metrics = _validation(config, files)
    with written_atomically(files.metrics) as path:
        path.touch()
    cost = dict.fromkeys(
        ("pairs_seen", "tokens", "launched_tokens", "optimizer_steps", "forwards", "peak_memory_bytes"), 0
    )
    cost = {"wall_seconds": round(time.monotonic() - started, 2), **cost, "device": "none", "world_size": 1}
    return _write_summary(config, variant, seed, files, file_hash(files.pairs), cost, metrics, extra)


def _write_summary(config, variant, seed, files: RunFiles, pairs_hash: str, cost, metrics, extra) -> dict[str, Any]:
    method = config["methods"][variant]
    card = load_card(method["method"])
    trained = card.has_weights
    record = files.backbone / "backbone.json"
    depends_on = run_dependencies(config, variant, seed, pairs_hash, files.required)
    summary = {
        "run_key": key_of(depends_on),
        "experiment": config["experiment"],
        "variant": variant,
        "method": method["method"],
        "seed": seed,
        "kind": card.kind,
        "scalar_reward": card.scalar_reward,
        "seed_free": card.seed_free,
        "settings": method["settings"],
        "training": config["training"] if trained else {},
        "backbone": config["backbone"] | {"prepared": read_json(record)} if trained else {},
        "data": {
            "dataset": config["data"]["dataset"],
            "hash": pairs_hash,
            "pairs": len(read_pairs(files.pairs, splits=["train"])),
        },
        "cost": cost,
        "metrics": metrics,
        **extra,
        "depends_on": depends_on,
        "provenance": provenance(depends_on["code"]),
    }
    summary = with_checksum(summary)
    write_json(files.summary, summary)
    return summary
