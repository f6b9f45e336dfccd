"""Member of a weight average: Bradley-Terry from a linear probe, with a learning rate and a dropout chosen by the seed.

    loss = -log sigmoid(r_chosen - r_rejected)

Rame et al. 2024 (WARM, arXiv 2401.12187): the members start from one backbone and one probed head, so that their
weights can be averaged.  They differ in the order of the data, the learning rate and the dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.stored import read_run_key


def of_seed(values: Sequence[float], seed: int) -> float:
    """The value of a list for a seed: position seed modulo the length of the list."""
    return values[seed % len(values)]


class Method(TrainedMethod):
    depends_on_cut = True

    def training(self, training, seed):
        factor = of_seed(self.settings["learning_rate_factors"], seed)
        return training | {"learning_rate": training["learning_rate"] * factor}

    def model(self, pairs, reader, inputs):
        from transformers import AutoModelForSequenceClassification

        from rm_methods.reward_models.loading import pretrained_model
        from rm_methods.reward_models.model import RewardModel

        backbone = inputs.config["backbone"]
        # All weights of the probe, not only its head: those of a tiny backbone depend on the seed.
        classifier, _ = pretrained_model(
            AutoModelForSequenceClassification,
            inputs.required["start"][0],
            dtype=backbone["dtype"],
            attention=backbone["attention"],
            num_labels=1,
        )
        autocast = torch.bfloat16 if inputs.config["training"]["precision"] == "bf16" else None
        return RewardModel(classifier, autocast)

    def build(self, model, inputs):
        self.dropout = of_seed(self.settings["dropout"], inputs.seed)
        self.learning_rate = inputs.config["training"]["learning_rate"]
        self.start = read_run_key(Path(inputs.required["start"][0]).parent / "summary.json")
        model.classifier.score.register_forward_pre_hook(self._drop)

    def _drop(self, head, states):
        return F.dropout(states[0], self.dropout, training=head.training)

    def loss(self, model, batch):
        return Loss(bradley_terry_loss(model(batch).rewards, batch.margin))

    def report(self):
        return {"start_run_key": self.start, "learning_rate": self.learning_rate, "dropout": self.dropout}
