"""InfoRM: the reward is read through a noisy bottleneck that keeps little of the hidden state.

    h    = mu(x, y) + exp(logvar(x, y) / 2) * noise,   r = g . h,   noise ~ N(0, I)
    loss = -log sigmoid(r_chosen - r_rejected) + weight * [KL(chosen) + KL(rejected)]
    KL   = 1/2 sum_k (mu_k^2 + exp(logvar_k) - 1 - logvar_k),   to N(0, I), summed over the latent dimensions

Miao et al. 2024 (arXiv 2402.09345; journal version 2510.13694).  mu and logvar are linear in the last hidden state,
and g is linear in h.  Without noise the reward is linear in the hidden state, so mu and g are merged into the head
that is exported.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from rm_methods.files import written_atomically
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.reward_models.layouts import PairBatch

FILE = "inform.safetensors"  # the bottleneck, beside the exported model

# Above this, exp would soon overflow; the KL term keeps the log variance far below it.
_LARGEST_LOG_VARIANCE = 10.0


def kl_to_standard_normal(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, diag exp(log_variance)) || N(0, I)), summed over the last dimension."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


class Bottleneck(nn.Module):
    """Encoder and decoder.

    Args:
        hidden_size, latent_size: width of hidden states and latents.
        scale: standard deviation of the starting weights of g, ten times that of mu; logvar starts at 0, the prior's.
        seed: of the starting weights.
    """

    def __init__(self, hidden_size: int, latent_size: int, scale: float, seed: int):
        super().__init__()
        self.mean = nn.Linear(hidden_size, latent_size, bias=False)
        self.center = nn.Parameter(torch.zeros(latent_size))
        self.log_variance = nn.Linear(hidden_size, latent_size)
        self.decoder = nn.Linear(latent_size, 1, bias=False)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.decoder.weight, std=scale, generator=generator)
        # Near the prior: with a larger mu, the KL would start as most of the loss, and a small learning rate would take
        # long to undo it.
        nn.init.normal_(self.mean.weight, std=scale / 10, generator=generator)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.zeros_(self.log_variance.bias)

    def forward(self, states: torch.Tensor, noise: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Rewards [...], mu [..., d] and logvar [..., d] of hidden states fp32 [..., H].

        mu is mean(states) + center.  The reward leaves out the constant g . center: it cancels in every difference of
        rewards, and an exported head has no bias that could hold it.

        Args:
            noise: [..., d]; None for evaluation.
        """
        offset = self.mean(states)
        log_variance = self.log_variance(states).clamp(max=_LARGEST_LOG_VARIANCE)
        latent = offset if noise is None else offset + (log_variance / 2).exp() * noise
        return self.decoder(latent)[..., 0], offset + self.center, log_variance


class Method(TrainedMethod):
    def build(self, model, inputs):
        self.seed = inputs.seed
        self.latent_size = min(self.settings["latent_size"], model.hidden_size)
        scale = getattr(model.config, "initializer_range", 0.02)
        self.bottleneck = Bottleneck(model.hidden_size, self.latent_size, scale, inputs.seed)
        model.bottleneck = self.bottleneck
        # Parameters outside the loss must not wait for a gradient.  The head is made anew at export.
        model.classifier.score.requires_grad_(False)
        self.bottleneck.center.requires_grad_(self.settings["weight"] > 0)

    def loss(self, model, batch):
        states = model(batch).last_hidden.float()
        noise = self._noise(batch).to(states.device) if self.bottleneck.training else None
        rewards, mean, log_variance = self.bottleneck(states, noise)
        preference = bradley_terry_loss(rewards)
        kl = kl_to_standard_normal(mean, log_variance).sum(1)
        loss = preference + self.settings["weight"] * kl if self.settings["weight"] else preference
        return Loss(loss, {"preference_loss": preference, "kl": kl}, rewards=rewards)

    def evaluate(self, model, batch):
        output = model(batch)
        return replace(output, rewards=self.bottleneck(output.last_hidden.float())[0])

    def _noise(self, batch: PairBatch) -> torch.Tensor:
        """Standard normal, fp32 [pairs, 2, d], decided by seed, progress and pair alone."""
        keys = (f"inform {self.seed} {batch.progress} {pair_id}" for pair_id in batch.pair_ids)
        generators = (torch.Generator().manual_seed(zlib.crc32(key.encode())) for key in keys)
        return torch.stack([torch.randn(2, self.latent_size, generator=generator) for generator in generators])

    def report(self):
        return {"latent_size": self.latent_size}

    def export(self, model, folder, state_dict=None):
        """A plain checkpoint whose head is g times the matrix of mu, and the bottleneck beside it."""
        from safetensors.torch import save_file

        if not hasattr(model, "bottleneck"):  # already exported once
            return model.save(folder, state_dict)
        weights = model.state_dict() if state_dict is None else state_dict
        prefix = "bottleneck."
        bottleneck = {
            name[len(prefix) :]: w.detach().float().cpu().contiguous()
            for name, w in weights.items()
            if name.startswith(prefix)
        }
        score = (bottleneck["decoder.weight"].double() @ bottleneck["mean.weight"].double()).float()
        model.save(folder, dict(weights) | {"classifier.score.weight": score})
        with written_atomically(Path(folder) / FILE) as path:
            save_file(bottleneck, path)
