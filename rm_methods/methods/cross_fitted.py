"""Bradley-Terry trained without one fold of the training pairs, so that it can judge them unseen.

    loss = -log sigmoid(r_chosen - r_rejected)

The fold left out is the run's seed modulo `folds`.  A hash of the prompt decides the fold of a pair, so pairs with one
prompt are in one fold, whatever the order of the file and the other pairs.  Cross-fitting is our addition to Wang et
al. 2024 (arXiv 2401.06080, section 2.1), who measure preference strength with models that were trained on the same
pairs.
"""

from __future__ import annotations

import hashlib

from rm_methods.errors import UserError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod


def fold_of(group: str, folds: int) -> int:
    """The fold, from 0, of a group of pairs (`PreferencePair.group`)."""
    return int.from_bytes(hashlib.sha256(f"fold/{group}".encode()).digest()[:8], "big") % folds


class Method(TrainedMethod):
    def training(self, training, seed):
        if self.settings["epochs"] is None:
            return training
        return training | {"epochs": self.settings["epochs"]}

    def transform_pairs(self, pairs, inputs):
        folds = self.settings["folds"]
        left_out = inputs.seed % folds
        kept = [pair for pair in pairs if fold_of(pair.group, folds) != left_out]
        if not kept:
            raise UserError(
                f"cross_fitted: fold {left_out} of {folds} holds all {len(pairs)} training pairs, so none is left to "
                "train on. Use more pairs with different prompts, or more folds."
            )
        self.counts = {
            "folds": folds,
            "fold_left_out": left_out,
            "pairs_left_out": len(pairs) - len(kept),
            "pairs_kept": len(kept),
        }
        return kept

    def loss(self, model, batch):
        return Loss(bradley_terry_loss(model(batch).rewards, batch.margin))

    def report(self):
        return self.counts
