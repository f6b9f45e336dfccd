"""One sentence on what the method does differently.

    loss = -log sigmoid((r_chosen - r_rejected) / temperature)

Source: authors, year (arXiv number, equation).  What here is your own choice, and why.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rm_methods.methods.contract import Loss, TrainedMethod


def tempered_loss(rewards: torch.Tensor, temperature: float) -> torch.Tensor:
    """fp32 [pairs] from rewards fp32 [pairs, 2] (chosen, rejected)."""
    return F.softplus(-(rewards[:, 0] - rewards[:, 1]) / temperature)


class Method(TrainedMethod):
    # Optional: transform_pairs (margins, soft targets, weights), build (extra modules), export (what is served); see
    # contract.py.

    def loss(self, model, batch):
        return Loss(tempered_loss(model(batch).rewards, self.settings["temperature"]))
