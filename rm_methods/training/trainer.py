"""The transformers `Trainer`, fed with planned optimizer steps.

One item of the data loader is one optimizer step of one rank: a list of micro-batches.  So this module accumulates the
gradients: each micro-batch's loss is the weighted sum over its pairs divided by the total weight of the *step* (over
all ranks), and gradients do not depend on the division of a step into micro-batches and ranks.  The Trainer does the
rest (optimizer, schedule, DeepSpeed, DDP, checkpoints, random states).

If a micro-batch does not fit into memory, its step is computed again in smaller ones
(`rm_methods.training.micro_batches`).
"""

from __future__ import annotations

import copy
import gc
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rm_methods.errors import UserError, first_line
from rm_methods.files import damage, read_json_lines, seal, write_text
from rm_methods.preferences.pair import PreferencePair
from rm_methods.reward_models.activations import attention_weights
from rm_methods.reward_models.batching import MicroBatch, StepPlan, divided
from rm_methods.reward_models.joint_model import JointOutput
from rm_methods.reward_models.layouts import PairBatch, launched_tokens, lay_out
from rm_methods.reward_models.model import RewardOutput
from rm_methods.reward_models.tokenization import TokenizedItem
from rm_methods.run_card import Reduction
from rm_methods.system.cpu import return_freed_memory
from rm_methods.system.engines import look_for_engines_only_with_deepspeed
from rm_methods.system.memory import is_out_of_memory, unused_memory
from rm_methods.system.progress import Progress
from rm_methods.system.ranks import gathered, print_once, wait_for_ranks
from rm_methods.training.loss_check import check_loss, code_of
from rm_methods.training.micro_batches import (
    StateBefore,
    cannot_reduce,
    does_not_fit,
    needed_bytes,
    read_reductions,
    smaller_limit,
    write_reductions,
)
from rm_methods.training.pair_statistics import PAIR_METRICS, PairStatistics
from rm_methods.training.resume import restore_settings

if TYPE_CHECKING:
    from rm_methods.methods.contract import Loss, TrainedMethod
    from rm_methods.training.observer import Observer


class StepBatches(TypedDict):
    """One optimizer step of one rank."""

    micro_batches: list[PairBatch]  # of this rank
    total_weight: float  # of the step's pairs, over all ranks
    total_micro_batches: int  # over all ranks, without fillers


class PlannedSteps(Dataset):
    """The optimizer steps of one rank, each as a list of micro-batches.

    Args:
        layout: "packed" or "plain".
        pad_id: fills plain rows.
        limit: `tokens_per_microbatch` of the plan.
    """

    def __init__(
        self,
        plan: Sequence[StepPlan],
        pairs: Sequence[PreferencePair],
        items: Sequence[TokenizedItem],
        *,
        layout: str,
        rank: int,
        pad_id: int,
        limit: int = 4096,
    ):
        self.plan = plan
        self.pairs = pairs
        self.items = items
        self.layout = layout
        self.rank = rank
        self.pad_id = pad_id
        self.limit = limit

    def divide(self, first: int, limit: int) -> None:
        """Give the steps from `first` on micro-batches of at most `limit` tokens."""
        self.plan = divided(self.plan, self.items, first=first, tokens_per_microbatch=limit, layout=self.layout)
        self.limit = limit

    def largest_micro_batch(self, first: int) -> tuple[int, int, int]:
        """The largest micro-batch of all ranks, from step `first` on; of equal ones that with the most pairs.

        Returns:
            Its tokens, its pairs, and the attention weights that one head keeps; (0, 1, 0) without steps.
        """
        batches = [
            [self.items[i] for i in batch.indices]
            for step in self.plan[first:]
            for rank in step.ranks
            for batch in rank
        ]
        sizes = [
            (launched_tokens(items, self.layout), len(items), attention_weights(items, self.layout))
            for items in batches
        ]
        return max(sizes, default=(0, 1, 0))

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> StepBatches:
        plan = self.plan[step]
        progress = step / len(self.plan)
        return {
            "micro_batches": list(self.micro_batches(step, progress)),
            "total_weight": sum(self.pairs[i].weight for i in plan.indices),
            "total_micro_batches": plan.micro_batches,
        }

    def micro_batches(self, step: int, progress: float = 0.0) -> Iterator[PairBatch]:
        """The micro-batches of this rank in a step, one at a time."""
        for batch in self.plan[step].ranks[self.rank]:
            yield self._micro_batch(batch, progress)

    def _micro_batch(self, batch: MicroBatch, progress: float) -> PairBatch:
        pairs = [self.pairs[i] for i in batch.indices]
        rows = lay_out([self.items[i] for i in batch.indices], self.layout, self.pad_id)
        return PairBatch(
            **vars(rows),
            margin=torch.tensor([pair.margin for pair in pairs], dtype=torch.float32),
            target=torch.tensor([pair.target for pair in pairs], dtype=torch.float32),
            weight=torch.tensor([0.0 if batch.filler else pair.weight for pair in pairs], dtype=torch.float32),
            pair_ids=tuple(pair.pair_id for pair in pairs),
            progress=progress,
        )


class RewardTrainer(Trainer):
    """Trains a `RewardModel` with the loss of a method.

    Args:
        method: fulfills the contract of `rm_methods.methods.contract`.
        steps: the planned steps of this rank.
        label: of the run, for messages.
        options: of the transformers `Trainer`.

    Attributes:
        reductions: the smaller micro-batches that too little memory led to, in order.

    Raises:
        UserError: from `train`, if a loss is not what the contract says, or a loss or reward is not finite; names the
            method's file or the pairs.  Also if a micro-batch does not fit into memory and cannot be made smaller.
    """

    def __init__(self, *, method: TrainedMethod, steps: PlannedSteps, label: str = "training", **options: Any):
        look_for_engines_only_with_deepspeed()
        super().__init__(train_dataset=steps, **options)
        self.method = method
        self.steps = steps
        self.label = label
        self.reductions: list[Reduction] = []
        self.pair_statistics = PairStatistics()
        self._first_output: RewardOutput | JointOutput | None = None
        self._batch: PairBatch | None = None
        options["model"].register_forward_hook(self._keep_first_output)
        self.sums: dict[str, torch.Tensor] = {}
        # The step that `sums` begins with; not 0 in a run that is resumed.
        self.sums_from = 0

    def get_train_dataloader(self) -> DataLoader:
        """The plan already assigns steps to ranks, so accelerate must not distribute them again."""
        return DataLoader(self.steps, batch_size=1, shuffle=False, collate_fn=_single_item)

    def create_optimizer(self, model=None):
        """Two groups of weights, because norms and biases do not decay; DeepSpeed takes no empty group."""
        optimizer = super().create_optimizer(model)
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        self.weight_decays = [group["weight_decay"] for group in optimizer.param_groups]
        return optimizer

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward of all micro-batches of one optimizer step, again in smaller ones if they do not fit.

        Returns:
            This rank's share of the loss, times the number of ranks (`_backward`).
        """
        model.train()
        while True:
            before = StateBefore(model)
            counted = copy.copy(self.pair_statistics)
            sums = dict(self.sums)
            try:
                return self._whole_step(model, inputs)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                cause = first_line(error)
            # Outside of the handler: its traceback held the tensors of the step.
            before.restore()
            self.pair_statistics = counted
            self.sums = sums
            self._first_output = None
            del before, inputs
            gc.collect()
            torch.cuda.empty_cache()
            return_freed_memory()
            self._reduce(model, cause)
            inputs = self.steps[self.state.global_step]

    def _whole_step(self, model, inputs: StepBatches) -> torch.Tensor:
        batches = inputs["micro_batches"]
        total = torch.zeros((), device=self.args.device)
        for k, batch in enumerate(batches):
            total += self._backward(model, batch.to(self.args.device), inputs, last=k == len(batches) - 1)
        if not torch.isfinite(total):
            raise UserError(self._describe_failure(model, batches))
        return total

    def _reduce(self, model, cause: str) -> None:
        """Make less memory suffice for the present step and all later ones.

        Raises:
            UserError: that is not possible.
        """
        batch = self._batch
        self._batch = None
        assert batch is not None
        if reason := cannot_reduce(self.method, self.steps.limit, self.args.world_size, self.is_deepspeed_enabled):
            raise UserError(f"{self.label}: out of memory with {reason} The cause: {cause}")
        recompute = len(batch.pair_ids) == 1
        if recompute and (self._recomputes(model) or not hasattr(model, "recompute_activations")):
            raise does_not_fit(batch, self.label, cause)
        reduction: Reduction = {
            "step": self.state.global_step,
            "tokens_per_microbatch": self.steps.limit,
            "gradient_checkpointing": recompute,
            "because": cause,
        }
        if not recompute:
            reduction["tokens_per_microbatch"] = smaller_limit(self.steps.limit, batch.launched_tokens)
        what = f"a micro-batch of {len(batch.pair_ids)} pairs and {batch.launched_tokens:,} tokens did not fit"
        self.reduce(reduction, what)

    def reduce(self, reduction: Reduction, what: str) -> None:
        """Follow a reduction from its step on, say so, and record it for a resumed run.

        Args:
            what: happened, for the message; empty says nothing.
        """
        if reduction["gradient_checkpointing"]:
            self.accelerator.unwrap_model(self.model).recompute_activations()
            remedy = "activations are recomputed (gradient_checkpointing), which takes about a third more time"
        else:
            self.steps.divide(reduction["step"], reduction["tokens_per_microbatch"])
            remedy = f"micro-batches have at most {reduction['tokens_per_microbatch']:,} tokens"
        self.reductions.append(reduction)
        if what:
            print_once(
                f"{self.label}: {what} into memory ({reduction['because']}). From step {reduction['step'] + 1} on, "
                f"{remedy}; the pairs of a step, and the result up to rounding, stay the same."
            )
            if self.args.process_index == 0:
                write_reductions(self._work, self.reductions)

    def fit_to_main_memory(self, first: int, bf16: bool) -> None:
        """On a CPU, reduce micro-batches before the first step until the estimate of their need is free.

        All ranks decide the same; ranks of a node share its memory.

        Args:
            first: optimizer steps made already.
            bf16: whether the backbone computes in bf16.
        """
        if self.args.device.type != "cpu":
            return
        source, free = unused_memory()
        free = min(gathered(free)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        model = cast(torch.nn.Module, self.model)
        recomputes = self._recomputes(model)
        while True:
            tokens, pairs, weights = self.steps.largest_micro_batch(first)
            needed = needed_bytes(
                model,
                tokens,
                keys=weights / max(tokens, 1),
                passes=self.method.passes,
                bf16=bf16,
                recomputed=recomputes,
            )
            if needed is None or needed <= free:
                return
            estimate = f"estimated need {needed / 1e9:.1f} GB, {source} {free / 1e9:.1f} GB"
            can_recompute = not recomputes and hasattr(model, "recompute_activations")
            if self.method.depends_on_cut or (pairs == 1 and not can_recompute):
                print_once(
                    f"WARNING: {self.label}: a micro-batch of {tokens:,} tokens may not fit into memory ({estimate}). "
                    "If the training is killed, lower training.tokens_per_microbatch or training.max_length, set "
                    "training.gradient_checkpointing: true, or ask for more memory."
                )
                return
            recomputes = pairs == 1
            limit = self.steps.limit if recomputes else smaller_limit(self.steps.limit, tokens)
            reduction: Reduction = {
                "step": first,
                "tokens_per_microbatch": limit,
                "gradient_checkpointing": recomputes,
                "because": estimate,
            }
            self.reduce(reduction, f"a micro-batch of {pairs} pairs and {tokens:,} tokens would not fit")

    def follow_reductions(self) -> None:
        """Repeat the reductions of the earlier part of a resumed run."""
        for reduction in read_reductions(self._work):
            self.reduce(reduction, what="")

    @property
    def _work(self) -> Path:
        return Path(cast(str, self.args.output_dir))

    def _recomputes(self, model) -> bool:
        return any(reduction["gradient_checkpointing"] for reduction in self.reductions) or any(
            getattr(module, "gradient_checkpointing", False) for module in model.modules()
        )

    def _backward(self, model, batch: PairBatch, step: StepBatches, last: bool) -> torch.Tensor:
        """Forward and backward of one micro-batch.

        Ranks average their gradients, hence the factor world_size; in the log the mean over ranks is the loss.
        """
        world = self.args.world_size
        # Ranks exchange gradients once a step, with the last micro-batch.
        self.accelerator.gradient_state._set_sync_gradients(last)
        is_ddp = isinstance(model, torch.nn.parallel.DistributedDataParallel)
        if is_ddp:
            model.require_backward_grad_sync = last
        self._batch = batch
        self._first_output = None
        loss = self.method.loss(model, batch)
        check_loss(loss, len(batch.weight), self.method)
        self._count_pairs(loss, batch)
        share = batch.weight / step["total_weight"]
        objective = (share * loss.per_pair).sum()
        if loss.micro_batch is not None and batch.weight.any():
            objective = objective + loss.micro_batch / step["total_micro_batches"]
        objective = world * objective
        kwargs = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
        self.accelerator.backward(objective, **kwargs)
        for name, values in loss.terms.items():
            self._add(name, (share * values.detach()).sum())
        return objective.detach()

    def _keep_first_output(self, module, arguments, output) -> None:
        """Remember the first output of the model for the pairs of the micro-batch.

        So their rewards cost no further forward.  A method may call the model on other texts, too, or several times.
        """
        is_of_batch = (
            bool(arguments)
            and self._batch is not None
            and getattr(arguments[0], "pair_ids", None) == self._batch.pair_ids
        )
        if is_of_batch and self._first_output is None and isinstance(output, RewardOutput | JointOutput):
            self._first_output = output

    def _count_pairs(self, loss: Loss, batch: PairBatch) -> None:
        """Count the rewards of a micro-batch, if the method has any."""
        output = self._first_output
        self._first_output = None  # its graph must not outlive the backward pass
        if loss.rewards is not None:
            rewards = loss.rewards
            self.pair_statistics.add(rewards[:, 0] - rewards[:, 1], rewards, batch.weight)
        elif output is not None:
            self.pair_statistics.add(output.margins, scalar_rewards(output), batch.weight)

    def _add(self, name: str, value: torch.Tensor) -> None:
        if not self.sums:
            self.sums_from = self.state.global_step
        self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Adds accuracy, margin and rewards of the pairs since the last log, and the method's own terms.

        The terms are averaged over the steps and summed over the ranks' shares, like the loss.
        """
        if "loss" in logs:
            metrics = self.pair_statistics.reduced()
            logs |= {name: metrics[name] for name in PAIR_METRICS if name in metrics}
            self.pair_statistics = PairStatistics()
        if "loss" in logs and self.sums:
            steps = self.state.global_step - self.sums_from
            for name in sorted(self.sums):
                logs[name] = float(self.accelerator.reduce(self.sums[name], "sum")) / max(steps, 1)
                if not math.isfinite(logs[name]):
                    raise UserError(
                        f"{code_of(self.method)}: `Loss.terms[{name!r}]` is {logs[name]} at step "
                        f"{self.state.global_step}; expected finite numbers."
                    )
            self.sums = {}
        super().log(logs, *args, **kwargs)

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        if norm is not None and not np.isfinite(float(norm)):
            plan = self.steps.plan[self.state.global_step]
            ids = [self.steps.pairs[i].pair_id for i in plan.indices]
            raise UserError(
                f"Training stopped at step {self.state.global_step + 1}: the gradient is not finite ({float(norm)}). "
                f"Pairs of the step: {_some(ids)}. Lower training.learning_rate, or look at these pairs."
            )
        return norm

    def _describe_failure(self, model, batches: list[PairBatch]) -> str:
        bad = []
        with torch.no_grad():
            for batch in batches:
                values = self.method.loss(model, batch.to(self.args.device)).per_pair
                bad += [
                    pair_id
                    for pair_id, value in zip(batch.pair_ids, values.tolist(), strict=True)
                    if not np.isfinite(value)
                ]
        bad = bad or [pair_id for batch in batches for pair_id in batch.pair_ids]
        return (
            f"Training stopped at step {self.state.global_step + 1}: the loss is not finite. Pairs: {_some(bad)}. "
            f"The loss comes from {code_of(self.method)}. Lower training.learning_rate, use training.precision: fp32, "
            "or look at these pairs."
        )


def scalar_rewards(output: RewardOutput | JointOutput) -> torch.Tensor | None:
    """The rewards of responses alone, fp32 [pairs, 2]; None for a joint model, which only compares them."""
    return output.rewards if isinstance(output, RewardOutput) else None


class RestoredSettings(TrainerCallback):
    """After a universal checkpoint was loaded (`resume.restore_settings`)."""

    def __init__(self, trainer: RewardTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        restore_settings(self.trainer.deepspeed.optimizer.optimizer, self.trainer.weight_decays)


class TrainingLog(TrainerCallback):
    """Progress on stderr, `metrics.jsonl` (one object for each logged step, flushed), and sealed checkpoints.

    Args:
        path: of `metrics.jsonl`.
        label: starts the lines on stderr.
        observer: is told every line, on rank 0.

    Attributes:
        last_loss: the last logged loss.
        last_row: the last line with a loss.
        rows_before: lines that an earlier part of a resumed run wrote up to its checkpoint.
        seconds_before: wall time of earlier parts of a resumed run.
    """

    def __init__(self, path: Path, label: str, observer: Observer | None = None):
        self.path = path
        self.label = label
        self.observer = observer
        self.last_loss: float | None = None
        self.last_row: dict[str, Any] = {}
        self.rows_before: list[dict[str, Any]] = []
        self.seconds_before = 0.0
        self.first_step = 0
        self.started = time.monotonic()
        self.progress = Progress(label, 0)

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.monotonic()
        self.first_step = state.global_step
        self.progress = Progress(self.label, state.max_steps, state.global_step, unit="steps", interval=2.0)
        if not state.is_world_process_zero:
            return
        rows = []
        if state.global_step:
            # A resumed run writes the steps after its checkpoint again; the lines of earlier ones stay.
            rows = [row for row in read_json_lines(self.path) if row["step"] <= state.global_step]
        self.rows_before = rows
        self.seconds_before = max((row["time"] for row in rows), default=0.0)
        # A run that was stopped after its last step logs nothing more.
        self.last_loss = next((row["loss"] for row in reversed(rows) if "loss" in row), None)
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        if self.observer is not None:
            self.observer.begin(rows)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        if not math.isfinite(logs["loss"]):
            raise UserError(
                f"{self.label} stopped at step {state.global_step}: the loss is {logs['loss']}. Lower learning_rate or "
                "use precision: fp32."
            )
        self.last_loss = float(logs["loss"])
        self.last_row = self.write(state.global_step, {name: v for name, v in logs.items() if name != "epoch"})
        elapsed = time.monotonic() - self.started
        self.progress.advance(state.global_step - self.progress.done, self.progress_text(state.global_step, elapsed))

    def write(self, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Append a line to `metrics.jsonl` and return it; on rank 0 alone."""
        elapsed = time.monotonic() - self.started
        row = {"step": step, "time": round(self.seconds_before + elapsed, 3)}
        row |= {name: float(value) for name, value in metrics.items()}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
        if self.observer is not None:
            self.observer.row(row)
        return row

    def progress_text(self, step: int, elapsed: float) -> str:
        """The text on a step in a line on stderr; `elapsed` is in seconds."""
        return f"loss {self.last_loss:.4f}"

    def on_save(self, args, state, control, **kwargs):
        mark_complete(args, state)


class RunLog(TrainingLog):
    """The log of a training on planned steps, which also shows its pace."""

    def __init__(self, plan: Sequence[StepPlan], path: Path, label: str, observer: Observer | None = None):
        super().__init__(path, label, observer)
        self.pairs_until = np.cumsum([0] + [len(step.indices) for step in plan])

    def on_step_end(self, args, state, control, **kwargs):
        # transformers logs only multiples of logging_steps, so most runs would not log their last step.
        if state.global_step >= state.max_steps:
            control.should_log = True

    def progress_text(self, step: int, elapsed: float) -> str:
        pairs = self.pairs_until[step] - self.pairs_until[self.first_step]
        parts = [super().progress_text(step, elapsed)]
        row = self.last_row
        if "accuracy" in row:
            parts.append(f"accuracy {row['accuracy']:.1%}  margin {row['margin']:+.3f}")
        if "reward_mean" in row:
            parts.append(f"reward {row['reward_mean']:+.2f} ({row['reward_min']:+.2f} to {row['reward_max']:+.2f})")
        return "  ".join([*parts, f"{pairs / elapsed:.1f} pairs/s"])


def mark_complete(args, state) -> None:
    """Seal the checkpoint of the present step when every rank has written its part; every rank calls this."""
    wait_for_ranks()
    if state.is_world_process_zero:
        seal(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


def last_complete_checkpoint(work_folder: Path, *, remove_incomplete: bool = True) -> Path | None:
    """The newest whole checkpoint; damaged and half-written ones are named and removed."""
    complete = []
    for folder in Path(work_folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        fault = damage(folder)
        if fault is None:
            complete.append(folder)
        elif remove_incomplete:
            print(
                f"{folder} {fault}; it is removed, and an older one is used if one exists.",
                file=sys.stderr,
                flush=True,
            )
            shutil.rmtree(folder, ignore_errors=True)
    return max(complete, key=lambda f: int(f.name.rsplit("-", 1)[1]), default=None)


def _single_item(batch: list):
    return batch[0]


def _some(ids: Sequence[str], limit: int = 8) -> str:
    return ", ".join(ids[:limit]) + (f" and {len(ids) - limit} more" if len(ids) > limit else "")
