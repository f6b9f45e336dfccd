"""MetaRM: the gradient of the preference loss is taken a step away, where the model tells unlabeled responses further apart.

    J(theta) = 2 / k^2 * sum over i < j of sigmoid(|r(x, s_i) - r(x, s_j)|)      unlabeled responses s_1 ... s_k of a prompt
    theta'   = theta + eta * grad J(theta)
    g        = gradient of the Bradley-Terry loss at theta'; the optimizer applies it to theta

Dou et al. 2024 (arXiv 2405.00438), the first-order form of its algorithm.  The paper draws the responses from the policy as it shifts
in RLHF; training here is offline, so they are read from a file (`samples`), or are the training pairs' own two, their labels unread.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from rm_methods.errors import UserError
from rm_methods.files import file_hash
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.preferences.pair import read_pairs
from rm_methods.reward_models.layouts import SequenceBatch, launched_tokens, lay_out
from rm_methods.reward_models.pair_encoding import encode_pairs


def difference_objective(rewards: torch.Tensor) -> torch.Tensor:
    """J of each prompt: how far apart the rewards of its k responses are.

    Args:
        rewards: fp32 [prompts, k], k at least 2.

    Returns:
        fp32 [prompts]: (k - 1) / (2 k) if all rewards are equal, towards twice that if all are far apart.
    """
    responses = rewards.shape[1]
    i, j = torch.triu_indices(responses, responses, offset=1, device=rewards.device)
    return torch.sigmoid((rewards[:, i] - rewards[:, j]).abs()).sum(dim=1) * (2 / responses**2)


def losses_at_shifted_parameters(
    parameters: Sequence[torch.nn.Parameter],
    objective: torch.Tensor,
    losses: Callable[[], torch.Tensor],
    weight: torch.Tensor,
    eta: float,
) -> torch.Tensor:
    """Losses, and their gradient, at theta' = theta + eta * grad objective; afterwards the parameters are theta again, to the bit.

    Args:
        parameters: theta.
        objective: scalar, computed from theta.
        losses: computes the losses [pairs] from the parameters as they are when it is called.
        weight: [pairs], not negative; what is backpropagated must be a multiple of the sum of weight * loss.

    Returns:
        Losses at theta' [pairs], whose backward pass gives theta the gradient that they have at theta'.
    """
    ascent = torch.autograd.grad(objective, parameters, allow_unused=True)
    originals = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, gradient in zip(parameters, ascent, strict=True):
                if gradient is not None:
                    parameter.add_(gradient, alpha=eta)
        del ascent
        values = losses()
        gradients = torch.autograd.grad((weight * values).sum(), parameters, allow_unused=True)
    finally:
        with torch.no_grad():
            for parameter, original in zip(parameters, originals, strict=True):
                parameter.copy_(original)
    reached = [k for k, gradient in enumerate(gradients) if gradient is not None]
    return _WithGradient.apply(
        values.detach(), weight, [gradients[k] for k in reached], *(parameters[k] for k in reached)
    )


class _WithGradient(torch.autograd.Function):
    """Losses [pairs] with a given gradient of sum(weight * losses), which reaches the parameters as any does, so that ranks exchange it."""

    @staticmethod
    def forward(ctx, losses, weight, gradients, *parameters):
        ctx.weight, ctx.gradients = weight, gradients
        return losses.clone()

    @staticmethod
    def backward(ctx, upstream):
        # Upstream is weight times the trainer's factor.  A filler's pairs all have weight 0, and so has its gradient.
        total = ctx.weight.sum()
        factor = upstream.sum() / torch.where(total > 0, total, 1)
        return None, None, None, *(factor * gradient for gradient in ctx.gradients)


class Method(TrainedMethod):
    depends_on_cut = True
    passes = 2

    def build(self, model, inputs):
        self.seed, self.items, self.counts = inputs.seed, [], {}
        if not self.settings["samples"]:
            return
        samples = read_pairs(self.settings["samples"])
        if not samples:
            raise UserError(
                f"meta_rm.samples: {self.settings['samples']} has no pairs. Name a file of prepared pairs that has some, or null."
            )
        samples, self.items = encode_pairs(samples, inputs.reader, inputs.config["backbone"]["refused_conversations"])
        self.pad_id, self.tokens = inputs.reader.pad_id, inputs.config["training"]["tokens_per_microbatch"]
        cut = sum(any(item.truncated) for item in self.items)
        self.counts = {
            "sample_prompts": len(samples),
            "samples_cut": cut,
            "samples_hash": file_hash(self.settings["samples"]),
        }

    @torch.enable_grad()
    def loss(self, model, batch):
        # The first forward goes through DDP's or DeepSpeed's wrapping, which makes them ready to exchange gradients; no others do.
        bare = getattr(model, "module", model)
        rewards = model(self.meta_batch(batch)).rewards
        objective = difference_objective(rewards).mean()
        per_pair = losses_at_shifted_parameters(
            [parameter for parameter in bare.parameters() if parameter.requires_grad],
            objective,
            lambda: bradley_terry_loss(bare(batch).rewards, batch.margin),
            batch.weight,
            self.settings["eta"],
        )
        return Loss(per_pair, {"difference_objective": objective.detach().expand(len(per_pair))})

    def meta_batch(self, batch) -> SequenceBatch:
        """The unlabeled responses for a micro-batch: its own, or as many prompts from the file of samples as it has pairs.

        Which ones are drawn depends on seed, step and pairs alone.  They are fewer where more would not fit into a micro-batch.
        """
        if not self.items:
            return batch
        key = zlib.crc32(json.dumps([batch.pair_ids, batch.progress]).encode())
        order = np.random.default_rng([self.seed, key]).permutation(len(self.items))[: len(batch.pair_ids)]
        layout = "plain" if batch.attention_map is None else "packed"
        chosen = [self.items[k] for k in order]
        while len(chosen) > 1 and launched_tokens(chosen, layout) > self.tokens:
            chosen.pop()
        return lay_out(chosen, layout, self.pad_id).to(batch.input_ids.device)

    def report(self):
        return self.counts
