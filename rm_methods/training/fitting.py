"""Fitting one model: arguments of the Trainer, the batch plan, training with resume, and the training on text that may come before."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.files import is_intact, written_with_checksum
from rm_methods.system.deepspeed import configuration_file
from rm_methods.system.memory import check_offload
from rm_methods.training.resume import fitted_to

# Ranks wait for one another where one may take hours (a teacher's maps, validation); the default is 10 or 30 minutes.
_PATIENCE = timedelta(days=7)


def training_arguments(training: dict[str, Any], seed: int, work: Path, steps: int):
    """The transformers `TrainingArguments` of a run.

    Gradient accumulation is 1 because one item of our data loader is a whole optimizer step.  Mixed precision is not
    the Trainer's either: the reward model autocasts its backbone, so that weights stay fp32 and the head is computed in
    fp32 under every stage of DeepSpeed.
    """
    import torch
    from transformers import TrainingArguments

    deepspeed_file = configuration_file(training["deepspeed"])
    if deepspeed_file and not torch.cuda.is_available():
        # On a CPU the Trainer starts torch.distributed but not DeepSpeed's own layer, which ZeRO-3 needs to create the
        # model in shards.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo", timeout=_PATIENCE, verbose=False)
    elif "RANK" in os.environ and not torch.cuda.is_available() and not torch.distributed.is_initialized():
        # The Trainer hands its timeout on for GPUs only.
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=training["learning_rate"],
        weight_decay=training["weight_decay"],
        adam_beta1=training["adam_betas"][0],
        adam_beta2=training["adam_betas"][1],
        lr_scheduler_type={"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}[
            training["schedule"]
        ],
        warmup_steps=round(training["warmup_fraction"] * steps),
        max_grad_norm=training["max_gradient_norm"],
        optim="adamw_torch_fused",
        deepspeed=deepspeed_file,
        use_cpu=not torch.cuda.is_available(),
        ddp_backend="gloo" if "RANK" in os.environ and not torch.cuda.is_available() else None,
        ddp_find_unused_parameters=False,
        ddp_timeout=int(_PATIENCE.total_seconds()),
        seed=seed,
        data_seed=seed,
        logging_steps=training["log_every_steps"],
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps" if training["checkpoint_every_steps"] else "no",
        save_steps=training["checkpoint_every_steps"] or 1,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    one_device(arguments)
    return arguments


def one_device(arguments) -> None:
    """A process uses one GPU.  Left alone, the Trainer puts a process that sees several on all of them, with as many times the batch."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def planned_steps(training: dict[str, Any], pairs: int) -> int:
    """Optimizer steps of a `training` section on so many pairs."""
    return training["epochs"] * -(-pairs // training["pairs_per_step"])


def plan_training(
    training: dict[str, Any], items: Sequence, seed: int, ranks: int, layout: str, budget: int | None = None
):
    """The batch plan that a `training` section asks for.

    Args:
        budget: number of pairs that the number of steps is counted from; None takes the number of items.
    """
    from rm_methods.reward_models.batching import plan_steps

    return plan_steps(
        items,
        steps=planned_steps(training, len(items) if budget is None else budget),
        pairs_per_step=training["pairs_per_step"],
        tokens_per_microbatch=training["tokens_per_microbatch"],
        seed=seed,
        ranks=ranks,
        layout=layout,
    )


def fit(method, model, steps, arguments, log, work: Path):
    """Train `model` with the loss of `method` on planned steps; continues from the last complete checkpoint in `work`.

    Returns:
        The trainer.
    """
    from transformers.trainer_callback import PrinterCallback

    from rm_methods.system.ranks import from_rank_zero
    from rm_methods.training.trainer import RestoredSettings, RewardTrainer, last_complete_checkpoint

    if arguments.deepspeed:
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
        nodes = arguments.world_size // int(os.environ.get("LOCAL_WORLD_SIZE", arguments.world_size))
        check_offload(parameters, arguments.hf_deepspeed_config.config.get("zero_optimization", {}), nodes)
    trainer = RewardTrainer(method=method, steps=steps, model=model, args=arguments, callbacks=[log])
    trainer.remove_callback(PrinterCallback)
    if not len(steps):
        log.on_train_begin(arguments, trainer.state, trainer.control)
        return trainer
    first = arguments.process_index == 0
    checkpoint = last_complete_checkpoint(work) if first else None
    universal = first and fitted_to(checkpoint, arguments.world_size)
    # Only rank 0 looks for checkpoints, so that no two ranks disagree or delete under each other.
    checkpoint, universal = from_rank_zero((checkpoint, universal))
    if universal:
        arguments.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}
        trainer.add_callback(RestoredSettings(trainer))
    if checkpoint and arguments.process_index == 0:
        print(f"{log.label}: resumes from {checkpoint}", file=sys.stderr, flush=True)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer


def gathered_weights(trainer) -> dict:
    """Whole weights (ZeRO-3 holds shards), on every rank's call.  Models loaded after this are ordinary ones again."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    unset_hf_deepspeed_config()
    return state_dict


def adapt(model, adaptation, pairs: Sequence, items: Sequence, reader, inputs) -> dict[str, int]:
    """Train on text first (`TrainedMethod.adaptation`) and give the result to `model`; done once, also if the run is interrupted later.

    Returns:
        What it computed, as `plan_cost` counts it; nothing if there is no adaptation.
    """
    if adaptation is None:
        return {}
    from safetensors.torch import load_file, save_file

    from rm_methods.reward_models.batching import plan_cost
    from rm_methods.system.ranks import from_rank_zero, wait_for_ranks
    from rm_methods.training.trainer import PlannedSteps, RunLog

    work, training = inputs.work_folder / "adaptation", adaptation.training
    adapted = work / "adapted.safetensors"
    if training["gradient_checkpointing"]:
        adaptation.model.recompute_activations()
    arguments = training_arguments(training, inputs.seed, work, planned_steps(training, len(pairs)))
    plan = plan_training(training, items, inputs.seed, arguments.world_size, "plain")
    if not from_rank_zero(arguments.process_index == 0 and is_intact(adapted)):
        steps = PlannedSteps(plan, pairs, items, "plain", arguments.process_index, reader.pad_id)
        log = RunLog(plan, work / "metrics.jsonl", f"{inputs.label} (masked language modelling)")
        trainer = fit(adaptation.method, adaptation.model, steps, arguments, log, work)
        state_dict = gathered_weights(trainer) if arguments.deepspeed else None
        if arguments.process_index == 0:
            with written_with_checksum(adapted) as path:
                save_file(adaptation.model.inner_weights(state_dict), path)
        trainer.accelerator.free_memory()  # what DeepSpeed holds: another of its engines trains the preferences
        wait_for_ranks()
    missing, unexpected = model.classifier.base_model.load_state_dict(load_file(adapted), strict=False)
    # Some classifiers have a pooler that their language models lack; anything else would mean that they are different
    # models.
    if unexpected or any("pooler" not in name for name in missing):
        raise UserError(
            f"{inputs.label}: language model and classifier of the source have different weights ({unexpected or missing})."
        )
    return plan_cost(plan, items, "plain")
