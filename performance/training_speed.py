"""Training speed on real pairs: our packed trainer against TRL's RewardTrainer.

    RM_METHODS_DATA=FOLDER python -m performance run training_speed

Each side trains `passes` passes over the same pairs in bf16.  The time is that of the training loop: forward, backward
and optimizer, without tokenization, loading and saving.  The pairs are the first ones whose texts have at most 1,024
tokens, which is TRL's limit: it drops longer pairs.  TRL has its defaults, once unchanged (gradient
checkpointing, 8 pairs per batch) and once without gradient checkpointing.  The details of a record split the time into
the first pass, in which memory grows and kernels are chosen, and the passes after it.
"""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path
from typing import Any

from performance.harness.benchmark import Benchmark, Case, Measurement, Option, Proof, Side, Work
from performance.harness.inputs import (
    BACKBONE_OPTION,
    SMOL_PACKAGE,
    one_step,
    pairs_of_rows,
    read_rows,
    resolved,
    short_pairs,
    smol_backbone,
    write_rows,
)
from performance.harness.stopwatch import Stopwatch

MAX_LENGTH = 1024
PROVEN_PAIRS = 4


def prepare(work: Work) -> None:
    """Write the pairs of a case, and the backbone."""
    pairs = short_pairs(work.case, smol_backbone(work), MAX_LENGTH, work.options["pairs"])
    write_rows(pairs, work.folder / "rows.json")


def our_config(options: Any) -> dict[str, Any]:
    """The resolved configuration of our side."""
    training = {
        "epochs": options["passes"],
        "pairs_per_step": options["pairs_per_step"],
        "tokens_per_microbatch": options["tokens_per_microbatch"],
        "checkpoint_every_steps": None,
    }
    return resolved(training=training)


def pass_times(started: float, stamps: list[float], passes: int) -> dict[str, float]:
    """Seconds of the first pass, and the mean of the others.

    Args:
        started: clock at the start of the training.
        stamps: clock at the end of each optimizer step; passes have equally many steps.
    """
    steps = len(stamps) // passes
    first = stamps[steps - 1] - started
    if passes == 1:
        return {"first_pass_seconds": first}
    later = (stamps[-1] - stamps[steps - 1]) / (passes - 1)
    return {"first_pass_seconds": first, "later_pass_seconds": later, "first_pass_overhead_seconds": first - later}


def timed_training(trainer: Any, passes: int, pairs: int) -> Measurement:
    """Run a trainer of either side."""
    from transformers import TrainerCallback

    stamps: list[float] = []

    class Clock(TrainerCallback):
        """Notes when steps end."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            stamps.append(time.perf_counter())

    trainer.add_callback(Clock())
    with Stopwatch() as watch:
        started = time.perf_counter()
        trainer.train()
    return watch.measurement(amount=pairs * passes, details=pass_times(started, stamps, passes))


def measure_ours(work: Work) -> Measurement:
    """Our trainer, on this rank."""
    import tempfile

    import torch

    from rm_methods.methods.registry import load_method, load_method_card
    from rm_methods.reward_models.backbones import load_classifier, load_tokenizer
    from rm_methods.reward_models.batching import plan_cost
    from rm_methods.reward_models.model import RewardModel
    from rm_methods.system.cpu import prepare_cpu
    from rm_methods.training.fitting import plan_training, training_arguments
    from rm_methods.training.trainer import PlannedSteps, RewardTrainer

    prepare_cpu(threads=0)
    config = our_config(work.options)
    backbone = smol_backbone(work)
    tokenizer = load_tokenizer(backbone, MAX_LENGTH)
    pairs = pairs_of_rows(read_rows(work.folder / "rows.json"))
    items = tokenizer.encode((pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs)
    model = RewardModel(load_classifier(backbone, config["backbone"], 0), autocast=torch.bfloat16)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    plan = plan_training(config["training"], items, seed=0, ranks=ranks, layout="packed")
    with tempfile.TemporaryDirectory() as scratch:
        arguments = training_arguments(config["training"], 0, Path(scratch), len(plan))
        method = load_method("bradley_terry", load_method_card("bradley_terry").defaults())
        steps = PlannedSteps(plan, pairs, items, layout="packed", rank=arguments.process_index, pad_id=tokenizer.pad_id)
        trainer = RewardTrainer(method=method, steps=steps, model=model, args=arguments)
        measured = timed_training(trainer, work.options["passes"], len(pairs))
        loss = float(trainer.state.log_history[-1]["train_loss"])
    cpu, memory = over_ranks(measured.cpu_seconds, measured.peak_memory_bytes)
    return Measurement(
        seconds=measured.seconds,
        cpu_seconds=cpu,
        peak_memory_bytes=memory,
        amount=measured.amount,
        result=(loss,),
        details={**measured.details, **plan_cost(plan, items, "packed"), "loss": loss},
    )


def over_ranks(cpu_seconds: float, memory_bytes: int) -> tuple[float, int]:
    """CPU seconds and peak memory of all ranks together."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return cpu_seconds, memory_bytes
    total = torch.tensor([cpu_seconds, float(memory_bytes)], dtype=torch.float64)
    torch.distributed.all_reduce(total)
    return float(total[0]), int(total[1])


def trl_trainer(backbone: Path, rows: list[dict], folder: Path, **changes: Any) -> Any:
    """TRL's RewardTrainer with its defaults and a few changes.

    Args:
        folder: for its files.
        changes: arguments of RewardConfig.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    from rm_methods.reward_models.loading import pretrained_model, pretrained_tokenizer

    model, _ = pretrained_model(AutoModelForSequenceClassification, backbone, new_head=True, num_labels=1)
    tokenizer = pretrained_tokenizer(backbone)
    model.config.pad_token_id = tokenizer.pad_token_id
    arguments = RewardConfig(
        output_dir=str(folder),
        report_to=[],
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        **changes,
    )
    trainer = RewardTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    if len(trainer.train_dataset) != len(rows):
        raise ValueError(f"TRL dropped pairs: it has {len(trainer.train_dataset)} of {len(rows)}.")
    return trainer


def measure_trl(work: Work) -> Measurement:
    """TRL's trainer."""
    import tempfile

    changes: dict[str, Any] = {"bf16": True, "num_train_epochs": work.options["passes"]}
    if work.side == "trl_no_checkpointing":
        changes["gradient_checkpointing"] = False
    rows = read_rows(work.folder / "rows.json")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trl_trainer(smol_backbone(work), rows, Path(scratch), **changes)
        return timed_training(trainer, work.options["passes"], len(rows))


def measure(work: Work) -> Measurement:
    """One side."""
    return measure_ours(work) if work.side in ("ours", "ours_two_ranks") else measure_trl(work)


def prove(work: Work) -> Proof:
    """With the same weights in fp32, loss and all gradients of a few pairs are those of TRL's trainer."""
    import tempfile

    import torch

    from rm_methods.methods.registry import load_method, load_method_card
    from rm_methods.reward_models.backbones import load_classifier, load_tokenizer
    from rm_methods.reward_models.model import RewardModel

    backbone = smol_backbone(work)
    # The shortest ones: gradients of long texts in fp32 take gigabytes.
    rows = sorted(read_rows(work.folder / "rows.json"), key=lambda row: len(json.dumps(row)))[:PROVEN_PAIRS]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trl_trainer(backbone, rows, Path(scratch), bf16=False, gradient_checkpointing=False)
        batch = trainer.data_collator([trainer.train_dataset[k] for k in range(len(rows))])
        their_loss = trainer.compute_loss(trainer.model, batch)
        their_loss.backward()
        gradients = {name: value.grad for name, value in trainer.model.named_parameters() if value.grad is not None}
        head = trainer.model.score.weight.detach().clone()
    del trainer
    gc.collect()
    tokenizer = load_tokenizer(backbone, MAX_LENGTH)
    model = RewardModel(load_classifier(backbone, our_config(work.options)["backbone"], 0))
    with torch.no_grad():
        model.classifier.score.weight.copy_(head)
    pairs = pairs_of_rows(rows)
    items = tokenizer.encode((pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs)
    method = load_method("bradley_terry", load_method_card("bradley_terry").defaults())
    loss = 0.0
    for micro_batch in one_step(pairs, items, tokenizer.pad_id, tokens_per_microbatch=1024):
        part = method.loss(model, micro_batch).per_pair.sum() / len(pairs)
        part.backward()
        loss += float(part.detach())
    ours = {name: value.grad for name, value in model.classifier.named_parameters() if value.grad is not None}
    if set(ours) != set(gradients):
        raise ValueError(f"Gradients of other parameters: {sorted(set(ours) ^ set(gradients))[:5]}")
    largest = max(float(value.abs().max()) for value in gradients.values())
    apart = max(float((ours[name] - value).abs().max()) for name, value in gradients.items())
    difference = max(abs(loss - float(their_loss.detach())), apart / largest)
    return Proof(
        statement=f"loss and gradients of {len(pairs)} pairs in fp32 are those of TRL's trainer",
        difference=difference,
        tolerance=1e-3,
    )


BENCHMARK = Benchmark(
    name="training_speed",
    title="Training",
    question="How much faster does our trainer learn real pairs than TRL's RewardTrainer?",
    sides=(
        Side("ours", "ours"),
        Side("ours_two_ranks", "ours, two ranks", ranks=2),
        Side("trl", "TRL, its defaults", external=True),
        Side("trl_no_checkpointing", "TRL, gradient checkpointing off", external=True),
    ),
    baseline="trl",
    cases=(
        Case("hh_rlhf", "HH-RLHF", data=("hh_rlhf",)),
        Case("alpaca_eval", "AlpacaEval", data=("alpaca_eval",)),
    ),
    tests=(
        "tests/training/test_trainer.py::test_how_a_step_is_cut_does_not_change_what_is_learned",
        "tests/training/test_trainer.py::test_the_step_loss_is_the_weighted_mean_of_the_pair_losses",
        "tests/reward_models/test_layouts.py",
        "tests/methods/test_bradley_terry.py",
    ),
    options={
        "pairs": Option(16, "pairs of each data set"),
        "passes": Option(2, "passes over them; the time is that of all passes"),
        "pairs_per_step": Option(16, "of our side; TRL's default is a batch of 8"),
        "tokens_per_microbatch": Option(4096, "of our side, as by default"),
        "backbone": BACKBONE_OPTION,
    },
    packages=("trl", SMOL_PACKAGE),
    prepare=prepare,
    prove=prove,
    measure=measure,
    rounds=2,
    unit="pairs",
    detail_columns={"later_pass_seconds": "later pass, s", "first_pass_overhead_seconds": "first pass: more s"},
)
