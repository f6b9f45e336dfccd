"""Linear probe: only the head is trained, on the states of a frozen backbone.

    loss = -log sigmoid(r_chosen - r_rejected),   r = w . h(x, y),   h frozen

The first stage of fine-tuning from a probe (Kumar et al. 2022, arXiv 2202.10054).  The members of a weight average
start from it (Rame et al. 2024, arXiv 2401.12187).
"""

from __future__ import annotations

from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod


class Method(TrainedMethod):
    def training(self, training, seed):
        # The backbone is frozen, so LoRA adapters would never be trained.
        return training | {
            "learning_rate": training["learning_rate"] * self.settings["learning_rate_factor"],
            "lora": None,
        }

    def is_frozen(self, parameter):
        return not parameter.startswith("score.")

    def build(self, model, inputs):
        for name, parameter in model.classifier.named_parameters():
            parameter.requires_grad_(not self.is_frozen(name))

    def loss(self, model, batch):
        return Loss(bradley_terry_loss(model(batch).rewards, batch.margin))
