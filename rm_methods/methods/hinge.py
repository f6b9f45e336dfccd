"""Hinge loss: a pair counts until its chosen response is ahead by a margin, and then no more.

    loss = max(0, margin - z),   z = r_chosen - r_rejected

Ranking SVM: Joachims 2002; for language models Zhao et al. 2023 (SLiC-HF, arXiv 2305.10425) and TRL's loss type
"hinge".
"""

from __future__ import annotations

import torch

from rm_methods.methods.contract import Loss, TrainedMethod


def hinge_loss(rewards: torch.Tensor, margin: float) -> torch.Tensor:
    """fp32 [pairs] from rewards fp32 [pairs, 2] (chosen, rejected).  The slope is -1 below the margin, 0 from it on."""
    return torch.relu(margin - (rewards[:, 0] - rewards[:, 1]))


class Method(TrainedMethod):
    def loss(self, model, batch):
        return Loss(hinge_loss(model(batch).rewards, self.settings["margin"]))
