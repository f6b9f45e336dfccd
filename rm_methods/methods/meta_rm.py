"""MetaRM: the gradient of the preference loss is taken one step away, where unlabeled responses are further apart.

    J(theta) = 2 / k^2 * sum over i < j of sigmoid(|r(x, s_i) - r(x, s_j)|)
    theta'   = theta + eta * grad J(theta)
    g        = gradient of the Bradley-Terry loss at theta'; the optimizer applies it to theta

s_1 ... s_k are unlabeled responses to a prompt.  Dou et al. 2024 (arXiv 2405.00438), the first-order form of its
algorithm. The paper draws the responses from the policy as it shifts in RLHF.  Training here is offline: they are read
from a file (`samples`), or they are the two responses of the training pairs, without their labels.
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
    """J of each prompt: the distance between the rewards of its k responses.

    Args:
        rewards: fp32 [prompts, k], k at least 2.

    Returns:
        fp32 [prompts]: (k - 1) / (2 k) if all rewards are equal, up to twice that if all are far apart.
    """
    responses = rewards.shape[1]
    i, j = torch.triu_indices(responses, responses, offset=1, device=rewards.device)
    return torch.sigmoid((rewards[:, i] - rewards[:, j]).abs()).sum(dim=1) * (2 / responses**2)


def losses_at_shifted_parameters(
    parameters: Sequence[torch.nn.Parameter],
    objective: torch.Tensor,
    losses: Callable[[], torch.Tensor],
    *,
    weight: torch.Tensor,
    eta: float,
) -> torch.Tensor:
    """Losses, and their gradient, at theta' = theta + eta * grad objective.

    Afterward the parameters are theta again, to the bit.

    Args:
        parameters: theta.
        objective: scalar, computed from theta.
        losses: computes the losses [pairs] from the parameters at the time of the call.
        weight: [pairs], not negative; the backward pass must start from a multiple of the sum of weight * loss.

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
    reached_gradients = [gradients[k] for k in reached]
    # Autograd takes the parameters as positional arguments only.
    return _WithGradient.apply(values.detach(), weight, reached_gradients, *(parameters[k] for k in reached))


class _WithGradient(torch.autograd.Function):
    """Losses [pairs] with a given gradient of sum(weight * losses).

    The gradient reaches the parameters in the usual way, so ranks exchange it.
    """

    @staticmethod
    def forward(ctx, losses, weight, gradients, *parameters):
        ctx.weight = weight
        ctx.gradients = gradients
        return losses.clone()

    @staticmethod
    def backward(ctx, upstream):
        # Upstream is weight times the trainer's factor.  The pairs of a filler all have weight 0, so its gradient is 0.
        total = ctx.weight.sum()
        factor = upstream.sum() / torch.where(total > 0, total, 1)
        return None, None, None, *(factor * gradient for gradient in ctx.gradients)


class Method(TrainedMethod):
    depends_on_cut = True
    passes = 2

    def build(self, model, inputs):
        self.seed = inputs.seed
        self.items = []
        self.counts = {}
        if not self.settings["samples"]:
            return
        samples = read_pairs(self.settings["samples"])
        if not samples:
            raise UserError(
                f"meta_rm.samples: {self.settings['samples']} has no pairs. Name a file of prepared pairs, or null."
            )
        samples, self.items = encode_pairs(samples, inputs.reader, inputs.config["backbone"]["refused_conversations"])
        self.pad_id = inputs.reader.pad_id
        self.tokens = inputs.config["training"]["tokens_per_microbatch"]
        cut = sum(any(item.truncated) for item in self.items)
        self.counts = {
            "sample_prompts": len(samples),
            "samples_cut": cut,
            "samples_hash": file_hash(self.settings["samples"]),
        }

    @torch.enable_grad()
    def loss(self, model, batch):
        # Only the first forward uses the wrapper of DDP or DeepSpeed, which prepares the exchange of gradients.
        bare = getattr(model, "module", model)
        rewards = model(self.meta_batch(batch)).rewards
        objective = difference_objective(rewards).mean()
        per_pair = losses_at_shifted_parameters(
            [parameter for parameter in bare.parameters() if parameter.requires_grad],
            objective,
            lambda: bradley_terry_loss(bare(batch).rewards, batch.margin),
            weight=batch.weight,
            eta=self.settings["eta"],
        )
        return Loss(per_pair, {"difference_objective": objective.detach().expand(len(per_pair))})

    def meta_batch(self, batch) -> SequenceBatch:
        """The unlabeled responses for a micro-batch: its own, or one prompt per pair from the file of samples.

        The draw depends only on seed, step and pairs.  It has fewer prompts if more would not fit into a micro-batch.
        """
        if not self.items:
            return batch
        key = zlib.crc32(json.dumps([batch.pair_ids, batch.progress]).encode())
        order = np.random.default_rng([self.seed, key]).permutation(len(self.items))[: len(batch.pair_ids)]
        layout = "plain" if batch.attention_map is None else "packed"
        samples = [self.items[k] for k in order]
        while len(samples) > 1 and launched_tokens(samples, layout) > self.tokens:
            samples.pop()
        return lay_out(samples, layout, self.pad_id).to(batch.input_ids.device)

    def report(self):
        return self.counts
