"""GRM, the Generalizable Reward Model: the hidden states that give the reward must also keep predicting text.

    loss = (1 - weight) * -log sigmoid(r_chosen - r_rejected) + weight * regularizer

    sft               softplus(-beta * log pi(chosen)), or -log pi(chosen) if not saturated
    dpo_no_reference  softplus(-beta * [log pi(chosen) - log pi(rejected)])
    dpo               the same, minus that difference under the weights that training starts from

pi is a language-model head on the same last hidden states; log pi(y) is the sum over the tokens of the response given
the prompt.  Yang et al. 2024 (arXiv 2406.10216), code YangRui2015/Generalizable-Reward-Model,
reward_models/grm_reward_trainer.py.  Our choices: the reward head stays linear (the paper has an MLP), so that the
export is a plain checkpoint; the language-model head is a separate copy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.methods.reference import reference_log_probabilities
from rm_methods.reward_models.language_head import has_one_prompt, language_head, summed_log_probabilities


def sft_regularizer(log_chosen: torch.Tensor, beta: float, saturated: bool = True) -> torch.Tensor:
    """-log sigmoid(beta log pi), or plain -log pi, fp32 [pairs], from the log-probability of each chosen response."""
    return F.softplus(-beta * log_chosen) if saturated else -log_chosen


def dpo_regularizer(
    log_probabilities: torch.Tensor, beta: float, reference: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """-log sigmoid(beta (log pi(chosen) - log pi(rejected) - reference)), fp32 [pairs].

    Args:
        log_probabilities: fp32 [pairs, 2], summed over each response, column 0 chosen.
        reference: [pairs], the same difference under the reference model; 0 is DPO without a reference.
    """
    return F.softplus(-beta * (log_probabilities[:, 0] - log_probabilities[:, 1] - reference))


class Method(TrainedMethod):
    """With weight 0 it is Bradley-Terry, to the bit."""

    def __init__(self, settings):
        super().__init__(settings)
        # Reference log-probabilities come from whole weights: they are computed before ZeRO-3 shards the model.
        self.model_is_made_whole = settings["weight"] > 0 and settings["regularizer"] == "dpo"
        self.responses = (0,) if settings["regularizer"] == "sft" else (0, 1)

    def build(self, model, inputs):
        if not self.settings["weight"]:
            return
        self.items = inputs.items
        self.positions = {pair.pair_id: position for position, pair in enumerate(inputs.pairs)}
        self.counts = torch.tensor([float(has_one_prompt(item)) for item in inputs.items])
        backbone = inputs.config["backbone"]
        self.head = language_head(model, inputs.backbone, backbone, inputs.seed, method="grm")
        model.language_head = self.head
        if self.settings["regularizer"] == "dpo":
            self.reference = self._reference(model, inputs)

    def loss(self, model, batch):
        weight = self.settings["weight"]
        beta = self.settings["beta"]
        kind = self.settings["regularizer"]
        output = model(batch)
        preference = bradley_terry_loss(output.rewards)
        if not weight:
            return Loss(preference)
        positions = [self.positions[pair_id] for pair_id in batch.pair_ids]
        items = [self.items[position] for position in positions]
        log_probabilities = summed_log_probabilities(self.head, output.hidden_states, items, batch, self.responses)
        if kind == "sft":
            regularizer = sft_regularizer(log_probabilities[:, 0], beta, self.settings["saturated"])
        else:
            reference = self.reference[positions].to(preference.device) if kind == "dpo" else 0.0
            regularizer = dpo_regularizer(log_probabilities, beta, reference)
        regularizer = regularizer * self.counts[positions].to(preference.device)
        terms = {
            "preference_loss": preference,
            "regularizer": regularizer,
            "chosen_log_probability": log_probabilities[:, 0],
        }
        return Loss((1 - weight) * preference + weight * regularizer, terms)

    def report(self):
        return {"pairs_without_regularizer": int((self.counts == 0).sum())} if self.settings["weight"] else {}

    def _reference(self, model, inputs) -> torch.Tensor:
        """log pi(chosen) - log pi(rejected) of every training pair under the starting weights, fp32 [pairs]."""

        def log_probabilities(items, batch):
            return summed_log_probabilities(self.head, model(batch).hidden_states, items, batch, (0, 1))

        reference = reference_log_probabilities(model, inputs, log_probabilities)
        return reference[:, 0] - reference[:, 1]
