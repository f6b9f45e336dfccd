"""The contract that every trained method fulfils.

Equal treatment is built in: pairs, batches, schedule and budget come from the trainer by seed; a method only says what the
loss of a micro-batch is and, where it must, transforms the pairs, attaches modules, or changes what is exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from rm_methods.preferences.pair import PreferencePair
    from rm_methods.reward_models.layouts import PairBatch
    from rm_methods.reward_models.model import RewardModel


@dataclass
class Loss:
    """What a method's loss gives back for one micro-batch.

    Attributes:
        per_pair: loss of each pair, fp32 [pairs].  The trainer weights it with the pairs' weights and divides by the total
            weight of the optimizer step, so the result does not depend on how the step was cut into micro-batches or ranks.
        terms: named fp32 [pairs] tensors to log; averaged like the loss.
        micro_batch: optional fp32 scalar for terms that have no per-pair form (a correlation over the micro-batch, a penalty on
            weights); averaged over the micro-batches of the step.
    """

    per_pair: torch.Tensor
    terms: dict[str, torch.Tensor] = field(default_factory=dict)
    micro_batch: torch.Tensor | None = None


@dataclass(frozen=True)
class Inputs:
    """What a run gives its method besides the batch.

    Attributes:
        seed: the run's seed.
        total_steps: optimizer steps of the whole run (None before the plan is made).
        work_folder: for files that may be kept between interruptions.
    """

    seed: int
    total_steps: int | None
    work_folder: Path


class TrainedMethod:
    """Base class: plain defaults for everything but the loss.

    Args:
        settings: resolved settings, exactly the keys of the card.
    """

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings

    def transform_pairs(self, pairs: Sequence[PreferencePair], inputs: Inputs) -> Sequence[PreferencePair]:
        """Change the training pairs before the batch plan is made (margins, soft targets, flips, augmentation).

        Pure and seeded: equal arguments give equal pairs, on every rank.
        """
        return pairs

    def build(self, model: RewardModel, inputs: Inputs) -> None:
        """Attach modules to `model` (they are trained, checkpointed and moved with it) before the optimizer is made."""

    def loss(self, model: RewardModel, batch: PairBatch) -> Loss:
        """The loss of one micro-batch; calls `model(batch)` for rewards fp32 [pairs, 2], column 0 chosen, column 1 rejected."""
        raise TypeError(f"{type(self).__module__} defines no loss.")

    def export(self, model: RewardModel, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write the reward model that the method serves: a plain sequence-classification folder."""
        model.save(folder, state_dict)
