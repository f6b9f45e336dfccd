"""Validation during training: curves on several sets of pairs, the best checkpoint, and early stopping.

It computes no gradients, draws no random numbers that the training uses, and changes no weights.  So the training ends
with the same weights with and without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainingArguments

from rm_methods.errors import UserError
from rm_methods.files import is_intact, remove_with_checksum, written_with_checksum
from rm_methods.reward_models.batching import plan_steps
from rm_methods.reward_models.pair_encoding import encode_pairs
from rm_methods.run_card import StepsRecord
from rm_methods.scoring.pair_sets import choosing_set, pairs_of_set, title_of_set
from rm_methods.system.ranks import from_rank_zero
from rm_methods.training.fitting import planned_steps
from rm_methods.training.pair_statistics import PairStatistics
from rm_methods.training.trainer import PlannedSteps, RewardTrainer, TrainingLog, scalar_rewards

if TYPE_CHECKING:
    from rm_methods.methods.contract import Inputs
    from rm_methods.reward_models.pair_encoding import PairReader
    from rm_methods.training.training_data import TrainingData


@dataclass(frozen=True)
class ValidationSet:
    """A set of pairs, in micro-batches.

    Attributes:
        title: its name in metrics.
        batches: a plan of one step with all pairs.
    """

    title: str
    batches: PlannedSteps


def validation_sets(
    names: Sequence[str],
    method_inputs: Inputs,
    reader: PairReader,
    *,
    prepared: Path,
    benchmarks: Mapping[str, Any],
    layout: str,
    rank: int,
    ranks: int,
) -> list[ValidationSet]:
    """Read sets of pairs as the training reads its pairs; a response that does not fit is cut.

    Args:
        names: `training.validation.sets`.
        prepared: file of the prepared pairs.
        benchmarks: section of the configuration.

    Raises:
        UserError: a set does not exist, or the chat template refuses its pairs.
    """
    training = method_inputs.config["training"]
    refused = method_inputs.config["backbone"]["refused_conversations"]
    sets = []
    for name in names:
        pairs = pairs_of_set(name, prepared, benchmarks, training["validation"]["max_pairs"])
        readable, items = encode_pairs(pairs, reader, refused)
        plan = plan_steps(
            items,
            steps=1,
            pairs_per_step=len(items),
            tokens_per_microbatch=training["tokens_per_microbatch"],
            seed=0,
            ranks=ranks,
            layout=layout,
        )
        batches = PlannedSteps(plan, readable, items, layout=layout, rank=rank, pad_id=reader.pad_id)
        sets.append(ValidationSet(title_of_set(name), batches))
    return sets


def steps_to_validate(settings: Mapping[str, Any], planned: int) -> frozenset[int]:
    """The optimizer steps after which to validate; the last planned one always, if any.

    Args:
        settings: `training.validation`.
        planned: optimizer steps of the training.

    >>> sorted(steps_to_validate({"every_steps": 4, "times": None}, 10))
    [4, 8, 10]
    >>> sorted(steps_to_validate({"every_steps": None, "times": 3}, 10))
    [4, 7, 10]
    """
    if settings["every_steps"]:
        return frozenset([*range(settings["every_steps"], planned, settings["every_steps"]), planned])
    times = settings["times"] or 0
    return frozenset(-(-planned * k // times) for k in range(1, times + 1))


@dataclass
class History:
    """The measured values of the metric that chooses.

    Attributes:
        metric: "accuracy" (more is better) or "loss" (less is better).
        values: by optimizer step, in order.
    """

    metric: str
    values: dict[int, float]

    @property
    def best(self) -> int | None:
        """The first step with the best value; None if no value is a number."""
        sign = 1 if self.metric == "accuracy" else -1
        numbers = {step: sign * value for step, value in self.values.items() if math.isfinite(value)}
        return max(numbers, key=lambda step: numbers[step]) if numbers else None

    @property
    def without_gain(self) -> int:
        """Number of validations since the best one."""
        return sum(step > (self.best or 0) for step in self.values)


class Validation(TrainerCallback):
    """Validates during a training, keeps the weights of the best validation, and stops early, as the settings say.

    The best weights before each checkpoint of the run stay on disk as long as the checkpoint, so that a resumed run has
    them.

    Args:
        training: the `training` section.
        sets: the sets of pairs, in the order of `training.validation.sets`.
        steps: the optimizer steps after which to validate.
        log: gets a line for each validation.
        work: folder for the best weights.

    Attributes:
        trainer: set by `fit`.
    """

    trainer: RewardTrainer

    def __init__(
        self,
        training: Mapping[str, Any],
        sets: Sequence[ValidationSet],
        steps: frozenset[int],
        *,
        log: TrainingLog,
        work: Path,
    ):
        self.sets = sets
        self.steps = steps
        self.log = log
        self.work = work
        self.keeps_best = training["keep"] == "best"
        self.patience = training["early_stopping"]["patience"]
        self.best_set = title_of_set(choosing_set(training))
        self.history = History(training["best"]["metric"], {})
        self.stopped_at: int | None = None
        self._best_at_save: int | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        name = self._name(self.best_set, self.history.metric)
        rows = self.log.rows_before  # empty on ranks other than the first
        values = {row["step"]: row[name] for row in rows if name in row}
        self.history.values = from_rank_zero(values)
        self._best_at_save = self.history.best

    def on_step_end(self, args, state, control, **kwargs):
        step = state.global_step
        if step not in self.steps:
            return
        metrics = {}
        for validation_set in self.sets:
            for metric, value in self._measure(validation_set).items():
                metrics[self._name(validation_set.title, metric)] = value
        if state.is_world_process_zero:
            self.log.write(step, metrics)
        self.history.values[step] = metrics[self._name(self.best_set, self.history.metric)]
        if self.keeps_best and self.history.best == step:
            self._keep_weights(step)
            if args.save_strategy == "no" and state.is_world_process_zero:
                self._remove_weights(except_of={step})
        is_last = step >= state.max_steps
        if self.patience and self.history.without_gain >= self.patience and not is_last:
            self.stopped_at = step
            control.should_training_stop = True
            control.should_log = True
            # A run that resumed here could not stop before another step.
            control.should_save = False

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.keeps_best:
            # The checkpoint before this one is used if this one is damaged.
            self._remove_weights(except_of={self.history.best, self._best_at_save})
        self._best_at_save = self.history.best

    def best_weights(self) -> dict[str, torch.Tensor] | None:
        """The trained weights of the best validation; None if the last weights are kept.

        Raises:
            UserError: their file is damaged.
        """
        from safetensors.torch import load_file

        step = self.history.best
        if not self.keeps_best or step is None or step == self.trainer.state.global_step:
            return None
        file = self._file(step)
        if not is_intact(file):
            raise UserError(
                f"{self.log.label}: the weights of the best validation (step {step}) are missing or damaged: {file}. "
                f"Remove {self.work}, so that the training begins anew."
            )
        return load_file(file)

    def record(self, planned: int) -> StepsRecord:
        """The steps that were planned and made, and the one whose weights were kept."""
        made = self.trainer.state.global_step
        record = last_step_kept(planned, made)
        chosen_by = f"{self.history.metric} on {self.best_set}"
        best = self.history.best
        if self.keeps_best and best is not None:
            value = self.history.values[best]
            record["kept"] = best
            record["kept_because"] = f"best {chosen_by} ({value:.4f}) of {len(self.history.values)} validations"
        if self.stopped_at is not None:
            record["stopped_because"] = f"no better {chosen_by} in {self.history.without_gain} validations"
        return record

    def _measure(self, validation_set: ValidationSet) -> dict[str, float]:
        """The metrics of a set, over all ranks."""
        trainer = self.trainer
        # Under ZeRO-3 only the engine gathers the shards. DDP would exchange buffers for nothing.
        model: Any = trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
        device = trainer.args.device
        statistics = PairStatistics()
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for batch in validation_set.batches.micro_batches(0):
                batch = batch.to(device)
                output = trainer.method.evaluate(model, batch)
                statistics.add(output.margins, scalar_rewards(output), batch.weight)
        model.train()
        return statistics.reduced()

    def _keep_weights(self, step: int) -> None:
        """Write the trained weights and the buffers; every rank calls this."""
        from safetensors.torch import save_file

        trainer = self.trainer
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if not trainer.is_world_process_zero():
            return
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        names += [name for name, _ in model.named_buffers() if name in weights]
        kept = {name: weights[name].detach().cpu().contiguous().clone() for name in names}
        with written_with_checksum(self._file(step)) as path:
            save_file(kept, path)

    def _file(self, step: int) -> Path:
        return self.work / f"best-{step}.safetensors"

    def _remove_weights(self, *, except_of: set[int | None]) -> None:
        kept = {self._file(step) for step in except_of if step is not None}
        for file in set(self.work.glob("best-*.safetensors")) - kept:
            remove_with_checksum(file)

    @staticmethod
    def _name(title: str, metric: str) -> str:
        return f"validation/{title}/{metric}"


def validation_of(
    config: Mapping[str, Any],
    prepared: Path,
    inputs: Inputs,
    data: TrainingData,
    *,
    arguments: TrainingArguments,
    layout: str,
    log: TrainingLog,
) -> Validation | None:
    """The validation during a training, None if the configuration asks for none.

    Args:
        config: resolved configuration.
        prepared: file of the prepared pairs.
        inputs: of the method; its `training` section counts.
    """
    training = inputs.config["training"]
    steps = steps_to_validate(training["validation"], planned_steps(training, data.budget))
    if not steps:
        return None
    sets = validation_sets(
        training["validation"]["sets"],
        inputs,
        data.reader,
        prepared=prepared,
        benchmarks=config["benchmarks"],
        layout=layout,
        rank=arguments.process_index,
        ranks=arguments.world_size,
    )
    return Validation(training, sets, steps, log=log, work=inputs.work_folder)


def last_step_kept(planned: int, made: int) -> StepsRecord:
    """The record of a training whose last weights are kept."""
    return {"planned": planned, "made": made, "kept": made, "kept_because": "the last step", "stopped_because": None}
