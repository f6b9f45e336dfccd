"""The contract that every trained method fulfills.

Equal treatment is built in: the trainer decides pairs, batches, schedule and budget from the seed.  A method defines
the loss of a micro-batch.  If it must, it also transforms the pairs, attaches modules, or changes the export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_methods.errors import ListsFields

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rm_methods.methods.masked_language import MaskedLanguageModel
    from rm_methods.preferences.pair import Message, PreferencePair
    from rm_methods.reward_models.joint_model import JointOutput
    from rm_methods.reward_models.layouts import PairBatch
    from rm_methods.reward_models.model import RewardModel, RewardOutput
    from rm_methods.reward_models.tokenization import TokenizedItem


@dataclass
class Loss:
    """The loss of one micro-batch.

    Attributes:
        per_pair: loss of each pair, fp32 [pairs].  The trainer weights it with the pairs' weights and divides by the
            total weight of the optimizer step, so the result does not depend on how the step was divided into
            micro-batches and ranks.
        terms: named fp32 [pairs] tensors to log; averaged like the loss.
        micro_batch: optional fp32 scalar for terms without a per-pair form (a correlation over the micro-batch, a
            penalty on weights); averaged over the micro-batches of the step.
        rewards: fp32 [pairs, 2] (chosen, rejected), from which the trainer logs accuracy, margin and rewards.  Only for
            a method whose rewards are not those of `model(batch)`; None takes these.
    """

    per_pair: torch.Tensor
    terms: dict[str, torch.Tensor] = field(default_factory=dict)
    micro_batch: torch.Tensor | None = None
    rewards: torch.Tensor | None = None


@dataclass(frozen=True)
class Inputs(ListsFields):
    """Facts about a run, for its method.

    Attributes:
        seed: the run's seed.
        work_folder: for files that may be kept between interruptions.
        label: of the run, for progress messages.
        config: sections `backbone` and `training` of the configuration.
        backbone: the prepared backbone's folder.
        required: model folders of the runs that the card's `requires` names, by setting, one for each seed.
        pairs, items, reader: training pairs, their tokens, and the reader that tokenized them; known from `build` on.
            The pairs are those that every `batch` of `loss` is made of: after `transform_pairs`, without dropped ones.
    """

    seed: int
    work_folder: Path
    label: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    backbone: Path | None = None
    required: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    pairs: Sequence[PreferencePair] = ()
    items: Sequence[TokenizedItem] = ()
    reader: Any = None


@dataclass(frozen=True)
class Adaptation:
    """A training on text that comes before the training on preferences.

    Attributes:
        model: holds a `language_model` whose `base_model` has the same weights as that of the model to be trained.
        method: its `loss` is like a method's.
        training: the `training` section that it follows.
    """

    model: MaskedLanguageModel
    method: Any
    training: Mapping[str, Any]


class ContentBlindMethod:
    """Base class of scorers without a model.

    Args:
        settings: resolved settings, exactly the keys of the card.

    Attributes:
        fitted: what `fit` returned in the run that the scorer belongs to.
    """

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings
        self.fitted: dict[str, Any] = {}

    def fit(self, pairs: Sequence[PreferencePair]) -> dict[str, Any]:
        """Learn from the training pairs what `score` needs; by default nothing.

        Returns:
            JSON values, stored in the run's `scorer.json`, and in its summary under `report`.
        """
        return {}

    def score(self, prompt: Sequence[Message], response: str, seed: int) -> float:
        """The score of one response."""
        raise TypeError(f"{type(self).__module__} defines no score.")


class ExternalMethod:
    """Base class of reward models from elsewhere, which are only scored.

    Args:
        settings: resolved settings, exactly the keys of the card.
    """

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings

    def describe(self) -> dict[str, Any]:
        """What `scorer.json` says of the model: "model" is its folder; the rest is read by scoring.scorer.

        Raises:
            UserError: no such model exists.
        """
        raise TypeError(f"{type(self).__module__} describes no model.")


class CombinedMethod:
    """Base class of methods that train nothing: they make a scorer from runs that the card requires.

    Args:
        settings: resolved settings, exactly the keys of the card.
    """

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings

    def combine(self, pairs: Sequence[PreferencePair], inputs: Inputs, folder: Path) -> dict[str, Any]:
        """Fill an empty model folder: with a sequence-classification checkpoint, or `scorer.json` (scoring.scorer).

        Args:
            pairs: the validation pairs.
            inputs: `required` and `config` are used.
            folder: the model folder.

        Returns:
            Counts and measurements for the run's summary.
        """
        raise TypeError(f"{type(self).__module__} combines nothing.")

    def left_out_scores(
        self, members_MR: np.ndarray, combined_R: np.ndarray, report: Mapping[str, Any]
    ) -> np.ndarray | None:
        """The scores that the combination would give without each of its members.

        Their spread measures how much the combination depends on the members that happened to be trained (the
        jackknife: Efron and Stein, "The jackknife estimate of variance", Annals of Statistics 1981).

        Args:
            members_MR: scores of M members, at least two, for R responses; fp64.  NaN where a member has none.
            combined_R: scores of the combination for the same responses, fp64.
            report: what `combine` returned.

        Returns:
            fp64 [M, R], row j without member j; None if the method does not define them.
        """
        return None


class TrainedMethod:
    """Base class: plain defaults for everything but the loss.

    Args:
        settings: resolved settings, exactly the keys of the card.

    Attributes:
        model_is_made_whole: under ZeRO-3 the model may not be created in shards; each rank makes it whole, then it is
            sharded.
        depends_on_cut: the loss compares pairs of a micro-batch, or draws random numbers, so the trained model depends
            on how a step is divided into micro-batches and ranks.
        passes: forwards, with their backwards, of each micro-batch, for the cost of a run.
    """

    model_is_made_whole = False
    depends_on_cut = False
    passes = 1

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings

    def training_seed(self, seed: int) -> int:
        """The seed of first weights, order of the data and dropout; that of the run, except in a control."""
        return seed

    def training(self, training: dict[str, Any], seed: int) -> dict[str, Any]:
        """The `training` section for the run of this seed.

        Reward-model methods return it unchanged, so that methods are compared at equal budgets; the exception is a
        method whose seeds must differ.
        """
        return training

    def is_frozen(self, parameter: str) -> bool:
        """Whether a parameter, by its name in the exported folder, keeps its first weights; `build` must ensure it."""
        return False

    def transform_pairs(self, pairs: Sequence[PreferencePair], inputs: Inputs) -> Sequence[PreferencePair]:
        """Change the training pairs before the batch plan is made (margins, soft targets, flips, augmentation).

        Pure and seeded: equal arguments give equal pairs, on every rank.  The number of optimizer steps stays that of
        `pairs`, however many pairs are returned.
        """
        return pairs

    def reader(self, pairs: Sequence[PreferencePair], inputs: Inputs):
        """Turns pairs into tokens: has `encode(items) -> list[TokenizedItem]`, `pad_id`, and a `tokenizer` to save."""
        from rm_methods.reward_models.backbones import load_tokenizer

        assert inputs.backbone is not None
        return load_tokenizer(
            inputs.backbone, inputs.config["training"]["max_length"] or inputs.config["backbone"]["max_length"]
        )

    def model(self, pairs: Sequence[PreferencePair], reader, inputs: Inputs) -> RewardModel:
        """The model to train, the same for all reward-model methods."""
        import torch

        from rm_methods.reward_models.backbones import load_classifier
        from rm_methods.reward_models.model import RewardModel

        assert inputs.backbone is not None
        autocast = torch.bfloat16 if inputs.config["training"]["precision"] == "bf16" else None
        return RewardModel(load_classifier(inputs.backbone, inputs.config["backbone"], inputs.seed), autocast)

    def adaptation(self, pairs: Sequence[PreferencePair], reader, inputs: Inputs) -> Adaptation | None:
        """A training on text before the training on preferences; its result replaces the weights of the model."""
        return None

    def build(self, model: RewardModel, inputs: Inputs) -> None:
        """Attach modules to `model` (they are trained, checkpointed and moved with it) before the optimizer is made."""

    def loss(self, model: RewardModel, batch: PairBatch) -> Loss:
        """The loss of one micro-batch; `model(batch).rewards` is fp32 [pairs, 2] (chosen, rejected)."""
        raise TypeError(f"{type(self).__module__} defines no loss.")

    def evaluate(self, model: RewardModel, batch: PairBatch) -> RewardOutput | JointOutput:
        """The output that the exported model would have for these pairs, for the validation during training.

        `model` is in evaluation mode.  A method that exports other rewards than those of `model(batch)` overrides this.
        """
        return model(batch)

    def report(self) -> dict[str, Any]:
        """Counts and measurements of the method, for the run's summary."""
        return {}

    def export(self, model: RewardModel, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write the reward model that the method serves: a plain sequence-classification folder."""
        model.save(folder, state_dict)
