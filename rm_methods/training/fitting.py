"""Fitting one model: arguments of the Trainer, batch plan, training with resume, and an earlier training on text."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_methods.errors import UserError, first_line
from rm_methods.files import is_intact, written_with_checksum
from rm_methods.system.deepspeed import check_installed, configuration_file
from rm_methods.system.memory import check_offload, is_out_of_memory
from rm_methods.training.resume import fitted_to

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

    from rm_methods.methods.contract import Adaptation, Inputs, TrainedMethod
    from rm_methods.reward_models.batching import StepPlan
    from rm_methods.reward_models.model import RewardModel
    from rm_methods.reward_models.tokenization import TokenizedItem
    from rm_methods.training.trainer import PlannedSteps, RewardTrainer, RunLog
    from rm_methods.training.training_data import TrainingData
    from rm_methods.training.validation import Validation

# Ranks may wait hours for one of them (a teacher's maps, validation); the default is 10 or 30 minutes.
_PATIENCE = timedelta(days=7)
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def training_arguments(training: Mapping[str, Any], seed: int, work: Path, steps: int) -> TrainingArguments:
    """The transformers `TrainingArguments` of a run.

    Gradient accumulation is 1 because one item of our data loader is a whole optimizer step.  The Trainer's mixed
    precision is off, too: the reward model autocasts its backbone, so that weights stay fp32 and the head is computed
    in fp32 under every stage of DeepSpeed.
    """
    import torch
    from transformers import TrainingArguments

    check_installed("training.deepspeed", training["deepspeed"])
    deepspeed_file = configuration_file(training["deepspeed"])
    if deepspeed_file and not torch.cuda.is_available():
        # On a CPU the Trainer starts torch.distributed but not DeepSpeed's layer above it, which ZeRO-3 needs to create
        # the model in shards.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo", timeout=_PATIENCE, verbose=False)
    elif "RANK" in os.environ and not torch.cuda.is_available() and not torch.distributed.is_initialized():
        # The Trainer passes its timeout on for GPUs only.
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    arguments = TrainingArguments(
        **common_arguments(training, seed, work, steps),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        deepspeed=deepspeed_file,
        ddp_timeout=int(_PATIENCE.total_seconds()),
    )
    one_device(arguments)
    return arguments


def common_arguments(training: Mapping[str, Any], seed: int, work: Path, steps: int) -> dict[str, Any]:
    """The `TrainingArguments` that trainings of reward models and fine-tunings of policies have in common.

    Args:
        training: optimizer, schedule and logging: section `training` or the settings of `sft`.
        work: folder for checkpoints.
        steps: optimizer steps of the whole training; the warmup is a fraction of them.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(work),
        "learning_rate": training["learning_rate"],
        "weight_decay": training["weight_decay"],
        "adam_beta1": training["adam_betas"][0],
        "adam_beta2": training["adam_betas"][1],
        "lr_scheduler_type": _SCHEDULES[training["schedule"]],
        "warmup_steps": round(training["warmup_fraction"] * steps),
        "max_grad_norm": training["max_gradient_norm"],
        "optim": "adamw_torch_fused",
        "use_cpu": not on_gpu,
        "ddp_backend": "gloo" if "RANK" in os.environ and not on_gpu else None,
        "ddp_find_unused_parameters": False,
        "seed": seed,
        "data_seed": seed,
        "logging_steps": training["log_every_steps"],
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if training["checkpoint_every_steps"] else "no",
        "save_steps": training["checkpoint_every_steps"] or 1,
        "save_total_limit": 2,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }


def one_device(arguments: TrainingArguments) -> None:
    """Make a process use one GPU.

    By default the Trainer spreads a process over all GPUs that it sees, and multiplies the batch by their number.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def planned_steps(training: Mapping[str, Any], pairs: int) -> int:
    """Optimizer steps of a `training` section on so many pairs."""
    return training["epochs"] * -(-pairs // training["pairs_per_step"])


def plan_training(
    training: Mapping[str, Any],
    items: Sequence[TokenizedItem],
    *,
    seed: int,
    ranks: int,
    layout: str,
    budget: int | None = None,
) -> list[StepPlan]:
    """The batch plan that a `training` section asks for.

    Args:
        budget: number of pairs that sets the number of steps; None takes the number of items.
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


def fit(
    method: TrainedMethod,
    model: torch.nn.Module,
    steps: PlannedSteps,
    *,
    arguments: TrainingArguments,
    log: RunLog,
    work: Path,
    validation: Validation | None = None,
) -> RewardTrainer:
    """Train `model` with the loss of `method` on planned steps; continues from the last complete checkpoint in `work`.

    Returns:
        The trainer.
    """
    from transformers.trainer_callback import PrinterCallback

    from rm_methods.system.ranks import from_rank_zero
    from rm_methods.training.micro_batches import forget_reductions
    from rm_methods.training.trainer import RestoredSettings, RewardTrainer, last_complete_checkpoint

    if arguments.deepspeed:
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
        nodes = arguments.world_size // int(os.environ.get("LOCAL_WORLD_SIZE", arguments.world_size))
        check_offload(parameters, arguments.hf_deepspeed_config.config.get("zero_optimization", {}), nodes)
    trainer = RewardTrainer(method=method, steps=steps, label=log.label, model=model, args=arguments, callbacks=[log])
    trainer.remove_callback(PrinterCallback)
    if validation is not None:
        validation.trainer = trainer
        trainer.add_callback(validation)
    if not len(steps):
        log.on_train_begin(arguments, trainer.state, trainer.control)
        return trainer
    is_first_rank = arguments.process_index == 0
    checkpoint = last_complete_checkpoint(work) if is_first_rank else None
    universal = is_first_rank and fitted_to(checkpoint, arguments.world_size)
    # Only rank 0 looks for checkpoints, so that no two ranks disagree or delete under each other.
    checkpoint, universal = from_rank_zero((checkpoint, universal))
    if universal:
        arguments.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}
        trainer.add_callback(RestoredSettings(trainer))
    if checkpoint and is_first_rank:
        print(f"{log.label}: resumes from {checkpoint}", file=sys.stderr, flush=True)
    elif is_first_rank and log.path.exists():
        print(f"{log.label}: {_from_the_beginning(arguments)}", file=sys.stderr, flush=True)
    made = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0
    if checkpoint:
        trainer.follow_reductions()
    elif is_first_rank:
        forget_reductions(work)
    trainer.fit_to_main_memory(made, bf16=getattr(model, "autocast", None) is not None)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (RuntimeError, MemoryError) as error:
        # A step's forward and backward handle this themselves; what remains is the optimizer, or a validation.
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{log.label}: out of memory outside of the forward and backward passes, for instance in the optimizer. "
            f"Use more memory, training.lora, or a ZeRO stage (training.deepspeed). The cause: {first_line(error)}"
        ) from error
    return trainer


def _from_the_beginning(arguments: TrainingArguments) -> str:
    """Why a training that was begun before does not continue."""
    is_saved = arguments.save_strategy != "no"
    checkpoints = f"one is made every {arguments.save_steps:g} steps" if is_saved else "none is made"
    return f"starts from the beginning, because an earlier attempt left no checkpoint ({checkpoints})"


def load_kept_weights(
    trainer: RewardTrainer, kept: Mapping[str, torch.Tensor], state_dict: dict[str, torch.Tensor] | None
) -> dict[str, torch.Tensor] | None:
    """Replace the trained weights by those that are kept; called on rank 0.

    Args:
        kept: `Validation.best_weights`.
        state_dict: gathered weights, where the model's tensors are only shards.

    Returns:
        `state_dict` with the kept weights; None where the model itself has got them.
    """
    if state_dict is not None:
        return state_dict | dict(kept)
    trainer.accelerator.unwrap_model(trainer.model_wrapped).load_state_dict(kept, strict=False)
    return None


def gathered_weights(trainer: RewardTrainer) -> dict[str, torch.Tensor]:
    """Whole weights (ZeRO-3 holds shards); every rank calls this.  Models loaded afterward have whole weights, too."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    unset_hf_deepspeed_config()
    return state_dict


def adapt(model: RewardModel, adaptation: Adaptation, data: TrainingData, inputs: Inputs) -> dict[str, int]:
    """Train on text first (`TrainedMethod.adaptation`) and give the result to `model`.

    The training is done once, also if the run is interrupted later.

    Returns:
        The computation, as `plan_cost` counts it.

    Raises:
        UserError: language model and classifier have different weights.
    """
    from safetensors.torch import load_file, save_file

    from rm_methods.reward_models.batching import plan_cost
    from rm_methods.system.ranks import from_rank_zero, wait_for_ranks
    from rm_methods.training.trainer import PlannedSteps, RunLog

    work = inputs.work_folder / "adaptation"
    training = adaptation.training
    adapted = work / "adapted.safetensors"
    if training["gradient_checkpointing"]:
        adaptation.model.recompute_activations()
    arguments = training_arguments(training, inputs.seed, work, planned_steps(training, len(data.pairs)))
    plan = plan_training(training, data.items, seed=inputs.seed, ranks=arguments.world_size, layout="plain")
    is_first_rank = arguments.process_index == 0
    if not from_rank_zero(is_first_rank and is_intact(adapted)):
        steps = PlannedSteps(
            plan,
            data.pairs,
            data.items,
            layout="plain",
            rank=arguments.process_index,
            pad_id=data.reader.pad_id,
            limit=training["tokens_per_microbatch"],
        )
        log = RunLog(plan, work / "metrics.jsonl", f"{inputs.label} (masked language modeling)")
        trainer = fit(adaptation.method, adaptation.model, steps, arguments=arguments, log=log, work=work)
        state_dict = gathered_weights(trainer) if arguments.deepspeed else None
        if is_first_rank:
            with written_with_checksum(adapted) as path:
                save_file(adaptation.model.inner_weights(state_dict), path)
        trainer.accelerator.free_memory()  # of DeepSpeed's engine: another engine trains the preferences
        wait_for_ranks()
    missing, unexpected = model.backbone.load_state_dict(load_file(adapted), strict=False)
    # Some classifiers have a pooler that their language models lack; any other difference means different models.
    if unexpected or any("pooler" not in name for name in missing):
        raise UserError(
            f"{inputs.label}: language model and classifier of the source have different weights "
            f"({unexpected or missing})."
        )
    return plan_cost(plan, data.items, "plain")
