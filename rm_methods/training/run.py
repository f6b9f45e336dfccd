"""One training run: pairs in; a plain reward-model folder, `metrics.jsonl` and `summary.json` out."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rm_methods.errors import UserError
from rm_methods.files import file_hash, read_json, write_json, written_atomically
from rm_methods.methods.registry import MethodCard, load_method, load_method_card
from rm_methods.model_card.text import write_card
from rm_methods.preferences.data_sources import dataset_name
from rm_methods.preferences.pair import PreferencePair, read_pairs
from rm_methods.reward_models.backbones import RECORD, WORLD_SCRATCH
from rm_methods.reward_models.model_folder import weights_hash, write_checksums
from rm_methods.reward_models.older_releases import add_older_names
from rm_methods.reward_models.pair_encoding import PairReader, encode_pairs
from rm_methods.run_card import (
    FinalMetrics,
    LayoutRecord,
    RunCost,
    RunData,
    RunSummary,
    TrainingRecords,
    ValidationMetrics,
)
from rm_methods.scoring.model_source import record_length
from rm_methods.scoring.scorer import SCORER_FILE
from rm_methods.stored import read_summary, with_checksum
from rm_methods.system.cpu import prepare_cpu
from rm_methods.system.deepspeed import check_installed
from rm_methods.system.provenance import key_of, peak_memory_bytes, provenance
from rm_methods.system.run_lock import run_lock
from rm_methods.training.fitting import (
    adapt,
    fit,
    gathered_weights,
    load_kept_weights,
    plan_training,
    planned_steps,
    training_arguments,
)
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
from rm_methods.training.training_data import TrainingData, training_data, training_pairs

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

    from rm_methods.methods.contract import Inputs, TrainedMethod
    from rm_methods.reward_models.model import RewardModel
    from rm_methods.training.observer import Observer
    from rm_methods.training.trainer import RewardTrainer


@dataclass(frozen=True)
class RunFiles:
    """The files of a run.

    Attributes:
        pairs: prepared pairs (read).
        backbone: folder of the prepared backbone (read).
        model: model folder (written).
        metrics: `metrics.jsonl`, one line for each logged step (written).
        summary: `summary.json` (written).
        work: folder for checkpoints; each run key has its own folder in it.
        required: model folders of the runs that the method's card requires, by setting (read).
    """

    pairs: Path
    backbone: Path
    model: Path
    metrics: Path
    summary: Path
    work: Path
    required: Mapping[str, Sequence[Path]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Run:
    """One variant with one seed.

    Attributes:
        config: resolved configuration.
        threads: CPU threads, shared by the ranks of a node; 0 leaves it to torch.
        observer: is told the lines of the log.
    """

    config: dict[str, Any]
    variant: str
    seed: int
    files: RunFiles
    threads: int
    observer: Observer | None = None

    @property
    def entry(self) -> dict[str, Any]:
        """The variant's entry in `methods`."""
        return self.config["methods"][self.variant]

    @property
    def card(self) -> MethodCard:
        """The card of the variant's method."""
        return load_method_card(self.entry["method"])

    @property
    def label(self) -> str:
        """Names the run in messages."""
        return f"{self.variant} seed {self.seed}"

    @cached_property
    def pairs_hash(self) -> str:
        """Hash of the file of prepared pairs."""
        return file_hash(self.files.pairs)

    @property
    def work_folder(self) -> Path:
        """Folder of the checkpoints.

        Two variants may be the same training (a control of the comparison), but two runs never share checkpoints.
        """
        config = without_world_size(self.config)
        key = run_key(config, self.variant, self.seed, self.pairs_hash, self.files.required)
        return self.files.work / f"{self.variant}_seed{self.seed}_{key}"


def train(
    config: dict[str, Any],
    variant: str,
    seed: int,
    files: RunFiles,
    threads: int = 0,
    observer: Observer | None = None,
) -> RunSummary | None:
    """Train one variant with one seed, or describe a scorer that has no weights.

    With `training.processes` > 1 this starts that many ranks of the running command through torchrun and waits for
    them; with `resources.nodes` > 1 on each node of the Slurm job.  No other process writes the same run meanwhile.

    Args:
        config: resolved configuration.
        threads: CPU threads, shared by the ranks of a node; 0 leaves it to torch.  Not part of the run key.
        observer: is told the lines of the log, on rank 0.

    Returns:
        The summary that was written; None on ranks other than the first.

    Raises:
        UserError: nothing to train on, a loss that is not finite, a rank that failed, an impossible setting, another
            process that writes this run, other GPUs than asked for.
    """
    run = _Run(config, variant, seed, files, threads, observer)
    with stops_on_signals():
        if "RANK" in os.environ:
            return _train_this_rank(run)
        with run_lock(files.summary.parent):
            if not run.card.has_weights:
                return _make_scorer(run)
            training = config["training"]
            check_installed("training.deepspeed", training["deepspeed"])
            # DeepSpeed needs a launcher even for a single rank.
            if training["processes"] > 1 or config["resources"]["nodes"] > 1 or training["deepspeed"]:
                launch_ranks(training["processes"], config["resources"], sys.argv[1:])
                return read_summary(files.summary)
            return _train_this_rank(run)


@dataclass(frozen=True)
class _Fitted:
    """The results of a training besides its saved model.

    Attributes:
        arguments: the Trainer's.
        cost: the computation, as `plan_cost` counts it.
        seconds_before: wall time of earlier parts of a resumed run.
        train_loss: the last logged one.
        pairs_offered, pairs_used: of the summary's `data`.
        records: entries of the summary: truncation, training, noise, report, layout.
    """

    arguments: TrainingArguments
    cost: dict[str, int]
    seconds_before: float
    train_loss: float | None
    pairs_offered: int
    pairs_used: int
    records: TrainingRecords


def _train_this_rank(run: _Run) -> RunSummary | None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    started = time.monotonic()
    dies_with_its_launcher()
    prepare_cpu(threads_of_rank(run.threads), run.config["training"]["precision"])
    if os.environ.get("LOCAL_RANK", "0") == "0":
        check_gpus(run.config["resources"]["gpus"], run.config["training"]["processes"], "training.processes")
    live_run = None
    is_finished = False
    try:
        fitted = _fit_and_export(run)
        is_finished = True
    finally:
        if run.observer is not None:
            live_run = run.observer.end(is_finished=is_finished)
    summary = None
    if fitted.arguments.process_index == 0:
        with written_atomically(run.files.metrics) as path:
            shutil.copyfile(run.work_folder / "metrics.jsonl", path)
        cost = _training_cost(fitted, fitted.seconds_before + time.monotonic() - started)
        _free_memory()  # of the trained model: the saved one is loaded whole and in fp32
        metrics: FinalMetrics = {"train_loss": fitted.train_loss, **_validation(run)}
        records = fitted.records | ({"live_run": live_run} if live_run else {})
        counts: RunData = {"pairs_offered": fitted.pairs_offered, "pairs_used": fitted.pairs_used}
        summary = _write_summary(run, cost, metrics, cast(TrainingRecords, records), counts)
        shutil.rmtree(run.work_folder, ignore_errors=True)
    end_of_rank(fitted.arguments.world_size)
    return summary


def _fit_and_export(run: _Run) -> _Fitted:
    """Train and save the model; only rank 0 writes.  Afterward only reference cycles hold the trained model."""
    from rm_methods.reward_models.batching import plan_cost
    from rm_methods.training.trainer import PlannedSteps, RunLog
    from rm_methods.training.validation import last_step_kept, validation_of

    method, inputs = _method_and_inputs(run)
    training = inputs.config["training"]
    data = training_data(run.config, run.variant, run.files.pairs, method, inputs)
    model, arguments, adaptation_cost = _model_to_train(method, inputs, data, run.config["resources"]["state_folder"])
    layout = model.layout(training["layout"])
    probe = model.layout_probe
    layout_record: LayoutRecord = {
        "used": layout,
        "probe": probe.record() if probe else "not measured: ZeRO-3 shards",
    }
    plan = plan_training(
        training, data.items, seed=inputs.seed, ranks=arguments.world_size, layout=layout, budget=data.budget
    )
    method.build(model, replace(inputs, pairs=data.pairs, items=data.items, reader=data.reader))
    _check_captured_layers(run, model)

    log = RunLog(plan, inputs.work_folder / "metrics.jsonl", inputs.label, run.observer)
    validation = validation_of(run.config, run.files.pairs, inputs, data, arguments=arguments, layout=layout, log=log)
    steps = PlannedSteps(
        plan,
        data.pairs,
        data.items,
        layout=layout,
        rank=arguments.process_index,
        pad_id=data.reader.pad_id,
        limit=training["tokens_per_microbatch"],
    )
    trainer = fit(method, model, steps, arguments=arguments, log=log, work=inputs.work_folder, validation=validation)
    state_dict = gathered_weights(trainer) if arguments.deepspeed and plan else None
    report = {}
    if arguments.process_index == 0:
        if validation is not None and (kept := validation.best_weights()) is not None:
            state_dict = load_kept_weights(trainer, kept, state_dict)
        _export(
            trainer,
            method,
            data.reader,
            training=training,
            max_length=run.config["backbone"]["max_length"],
            state_dict=state_dict,
            target=run.files.model,
        )
        report = method.report()
    # The garbage collector does not see that DeepSpeed's hooks hold the model and its optimizer.
    trainer.accelerator.free_memory()

    made = trainer.state.global_step
    cost = plan_cost(steps.plan[:made], data.items, layout)
    for key in ("tokens", "launched_tokens", "forwards"):
        cost[key] *= method.passes
    for key, count in adaptation_cost.items():
        cost[key] += count
    records: TrainingRecords = {
        "truncation": data.truncation,
        "training": training,
        "noise": data.noise,
        "report": report,
        "layout": layout_record,
        "steps": validation.record(len(plan)) if validation else last_step_kept(len(plan), made),
    }
    if trainer.reductions:
        records["reductions"] = trainer.reductions
    return _Fitted(
        arguments,
        cost,
        log.seconds_before,
        log.last_loss,
        pairs_offered=data.offered,
        pairs_used=len(data.pairs),
        records=records,
    )


def _method_and_inputs(run: _Run) -> tuple[TrainedMethod, Inputs]:
    """The method of a variant, and its inputs; their `training` section is the one that this seed uses."""
    from rm_methods.methods.contract import Inputs

    method = load_method(run.entry["method"], run.entry["settings"])
    training = run.config["training"] | {"lora": run.entry["lora"]}
    if run.entry["learning_rate"]:
        training["learning_rate"] = run.entry["learning_rate"]
    seed = method.training_seed(run.seed)
    sections = {"backbone": run.config["backbone"], "training": method.training(training, seed)}
    return method, Inputs(
        seed=seed,
        work_folder=run.work_folder,
        label=run.label,
        config=sections,
        backbone=run.files.backbone,
        required=_required(run),
    )


def _model_to_train(
    method: TrainedMethod, inputs: Inputs, data: TrainingData, state_folder: str | None
) -> tuple[RewardModel, TrainingArguments, dict[str, int]]:
    """The model, after the training on text that a method may ask for.

    Args:
        state_folder: of stored states, if only the last layers are trained.

    Returns:
        The model, the Trainer's arguments, and the cost of the training on text.
    """
    from rm_methods.reward_models.lora import add_adapters, target_layers

    training = inputs.config["training"]
    # With ZeRO-3 the arguments make transformers create and load a model in shards, so they come first. A tiny model is
    # created whole, because random weights drawn in shards would be others than those of a run on one rank.
    whole = method.model_is_made_whole or inputs.config["backbone"]["source"] in ("tiny", WORLD_SCRATCH)
    model = method.model(data.pairs, data.reader, inputs) if whole else None
    if model is not None and training["lora"]:
        # Wrong names of layers are reported before hours of training on text.
        target_layers(model.classifier, training["lora"]["target_modules"])
    adaptation = method.adaptation(data.pairs, data.reader, inputs)
    adaptation_cost = {}
    if adaptation is not None:
        if model is None:
            raise TypeError(f"{type(method).__module__}: a method with an adaptation needs model_is_made_whole = True.")
        adaptation_cost = adapt(model, adaptation, data, inputs)
    _free_memory()  # of the language model and its optimizer
    steps = planned_steps(training, data.budget)
    arguments = training_arguments(training, inputs.seed, inputs.work_folder, steps)
    if model is None:
        model = method.model(data.pairs, data.reader, inputs)
    if training["lora"]:
        add_adapters(model, training["lora"], inputs.seed)
    if training["trained_layers"]:
        model.freeze_lower_layers(training["trained_layers"], Path(state_folder) if state_folder else None)
    if training["gradient_checkpointing"]:
        model.recompute_activations()
    return model, arguments, adaptation_cost


def _check_captured_layers(run: _Run, model: RewardModel) -> None:
    """Raises UserError if a method reads the attention of a layer that is not trained."""
    trained = run.config["training"]["trained_layers"]
    captured = getattr(model, "captured_layers", ())
    if not trained or not captured:
        return
    depth = model.config.get_text_config().num_hidden_layers
    frozen = [layer + 1 for layer in captured if layer < depth - trained]
    if frozen:
        raise UserError(
            f"methods.{run.variant}: reads the attention of layers {', '.join(map(str, frozen))}, which "
            f"training.trained_layers: {trained} freezes. Name layers from {depth - trained + 1} to {depth} (or -1 for "
            "the last) in the method's settings, or train more layers."
        )


def _export(
    trainer: RewardTrainer,
    method: TrainedMethod,
    reader: PairReader,
    *,
    training: Mapping[str, Any],
    max_length: int,
    state_dict: dict[str, torch.Tensor] | None,
    target: Path,
) -> None:
    """Write the model folder.

    Args:
        max_length: that scores of the model are computed with, in tokens.
        state_dict: gathered weights, where the model's tensors are only shards.
    """
    from rm_methods.reward_models.lora import merge_adapters

    with written_atomically(target) as folder:
        trained = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        weights = merge_adapters(trained, state_dict) if training["lora"] else state_dict
        method.export(trained, folder, weights)
        reader.tokenizer.save_pretrained(folder)
        add_older_names(folder)
        record_length(folder, max_length)
        write_checksums(folder)


def _required(run: _Run) -> dict[str, Sequence[Path]]:
    """The model folders of the required runs.

    Raises:
        UserError: a folder is missing, or too few were given.
    """
    card = run.card
    for key, other in card.required_variants(run.entry["settings"]).items():
        folders = list(run.files.required.get(key, ()))
        missing = [str(folder) for folder in folders if not Path(folder).is_dir()]
        least = card.requires[key].get("at_least", 1)
        if missing or len(folders) < least:
            missing_text = f", but {', '.join(missing)} is missing" if missing else ""
            raise UserError(
                f"methods.{run.variant}.{key}: needs model folders of {least} or more runs of '{other}'; "
                f"{len(folders)} were given{missing_text}. Train that variant first and give --required {key}=FOLDER "
                "for each; the workflow does both."
            )
    return dict(run.files.required)


def _free_memory() -> None:
    """Free memory that only reference cycles hold (a Trainer and its model refer to each other), on the GPU too."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def _training_cost(fitted: _Fitted, wall_seconds: float) -> RunCost:
    import torch

    on_gpu = fitted.arguments.device.type == "cuda"
    counts = fitted.cost
    return {
        "wall_seconds": round(wall_seconds, 2),
        "pairs_seen": counts["pairs_seen"],
        "tokens": counts["tokens"],
        "launched_tokens": counts["launched_tokens"],
        "optimizer_steps": counts["optimizer_steps"],
        "forwards": counts["forwards"],
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_memory_bytes(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "world_size": fitted.arguments.world_size,
    }


def _validation(run: _Run) -> ValidationMetrics:
    """Measures of the saved model on the validation split; empty without validation pairs."""
    import numpy as np

    from rm_methods.scoring.scorer import load_scorer, pair_items, rewards_of_pairs, scoring_settings

    pairs, refused = _validation_pairs(run)
    if not pairs:
        return {}
    scoring = load_scorer(run.files.model, scoring_settings(run.config)).compute(pair_items(pairs))
    rewards = rewards_of_pairs(scoring.responses)
    margins = rewards[:, 0] - rewards[:, 1]
    metrics: ValidationMetrics = {
        "validation_accuracy": float((margins > 0).mean()),
        "validation_loss": float(np.logaddexp(0, -margins).mean()),
        "validation_pairs": len(pairs),
    }
    if refused:
        metrics["validation_pairs_refused"] = refused
    if scoring.position_bias is not None:
        metrics["validation_position_bias"] = scoring.position_bias
    return metrics


def _validation_pairs(run: _Run) -> tuple[list[PreferencePair], int]:
    """The validation pairs to score, and the number that is left out because the chat template refuses them.

    Pairs are left out only if the configuration says so; otherwise scoring names them in an error.
    """
    from rm_methods.reward_models.backbones import load_tokenizer

    pairs = read_pairs(run.files.pairs, splits=["validation"])
    backbone = run.config["backbone"]
    if backbone["refused_conversations"] != "drop":
        return pairs, 0
    tokenizer = load_tokenizer(run.files.backbone, backbone["max_length"])
    readable, _ = encode_pairs(pairs, tokenizer, backbone["refused_conversations"])
    return readable, len(pairs) - len(readable)


def _make_scorer(run: _Run) -> RunSummary:
    """A run that trains no model: a content-blind scorer, perhaps fitted, a model from elsewhere, or a scorer combined
    from other runs."""
    from rm_methods.methods.contract import ContentBlindMethod, ExternalMethod, Inputs

    combined = run.card.kind == "combined"
    external = run.card.kind == "external"
    records: TrainingRecords = {}
    metrics: FinalMetrics = {}
    started = time.monotonic()
    with written_atomically(run.files.model) as folder:
        folder.mkdir()
        if combined:
            prepare_cpu(run.threads)
            method = load_method(run.entry["method"], run.entry["settings"])
            inputs = Inputs(
                seed=run.seed,
                work_folder=run.files.work,
                label=run.label,
                config={key: run.config[key] for key in ("backbone", "training", "scoring", "resources")},
                backbone=run.files.backbone,
                required=_required(run),
            )
            pairs, _ = _validation_pairs(run)
            records["report"] = method.combine(pairs, inputs, folder)
            add_older_names(folder)
        else:
            method = load_method(run.entry["method"], run.entry["settings"])
            description = {"method": run.entry["method"], "settings": run.entry["settings"], "seed": run.seed}
            if isinstance(method, ExternalMethod):
                description |= method.describe()
                records["report"] = {"model": description["model"], "weights": description["weights"]}
            if isinstance(method, ContentBlindMethod):
                pairs, _ = training_pairs(run.config, run.variant, run.files.pairs)
                if fitted := method.fit(pairs):
                    description["fitted"] = fitted
                    records["report"] = fitted
            write_json(folder / SCORER_FILE, description)
        write_checksums(folder)
    if combined or external:
        metrics = {**_validation(run)}
    with written_atomically(run.files.metrics) as path:
        path.touch()
    cost: RunCost = {
        "wall_seconds": round(time.monotonic() - started, 2),
        "pairs_seen": 0,
        "tokens": 0,
        "launched_tokens": 0,
        "optimizer_steps": 0,
        "forwards": 0,
        "peak_memory_bytes": 0,
        "device": "none",
        "world_size": 1,
    }
    return _write_summary(run, cost, metrics, records)


def _write_summary(
    run: _Run, cost: RunCost, metrics: FinalMetrics, records: TrainingRecords, pair_counts: RunData | None = None
) -> RunSummary:
    """Write summary.json.

    Args:
        records: further entries, which override those of the configuration.
        pair_counts: further entries of `data`.
    """
    config = run.config
    trained = run.card.has_weights
    backbone = config["backbone"] | {"prepared": read_json(run.files.backbone / RECORD)} if trained else {}
    depends_on = run_dependencies(config, run.variant, run.seed, run.pairs_hash, run.files.required)
    summary: RunSummary = {
        "run_key": key_of(depends_on),
        "experiment": config["experiment"],
        "variant": run.variant,
        "method": run.entry["method"],
        "seed": run.seed,
        "kind": run.card.kind,
        "scalar_reward": run.card.scalar_reward,
        "seed_free": run.card.seed_free,
        "settings": run.entry["settings"],
        "training": config["training"] if trained else {},
        "backbone": backbone,
        "data": {
            "dataset": dataset_name(config["data"]),
            "hash": run.pairs_hash,
            "pairs": len(read_pairs(run.files.pairs, splits=["train"])),
            **(pair_counts or {}),
        },
        "cost": cost,
        "metrics": metrics,
        **records,
        "depends_on": depends_on,
        "provenance": provenance(depends_on["code"]),
    }
    if (weights := weights_hash(run.files.model)) is not None:
        summary["weights_hash"] = weights
    summary = cast(RunSummary, with_checksum(summary))
    write_json(run.files.summary, summary)
    write_card(run.files.model, summary)
    return summary
