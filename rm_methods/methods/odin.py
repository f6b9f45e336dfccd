"""ODIN: two linear heads on the same states, one for quality and one for what length explains.

    loss = -log sigmoid((r_Q + r_L)_chosen - (r_Q + r_L)_rejected)
           + length_weight * (|rho(r_Q, length)| + 1 - rho(r_L, length)) + orthogonality_weight * |cos(w_Q, w_L)|

rho is the Pearson correlation over responses.  Only r_Q, the model's own head, is exported.  Chen et al. 2024 (arXiv
2402.07319).

Our choice: a correlation needs more responses than a micro-batch has, and it has no per-pair form.  So means and
deviations come from a memory of the responses of earlier optimizer steps.  Each pair adds the first-order expansion of
rho about that memory (`expanded_correlation`); the mean of the expansions over the pairs of a step has the gradient of
rho over the responses of the step.  It is a per-pair loss like any other, so the division of a step into micro-batches
and ranks does not matter.
"""

from __future__ import annotations

import zlib

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.reward_models.response_tokens import response_tokens

FEWEST = 64  # responses; with fewer, a correlation is mostly chance, and its terms count nothing
CONSTANT = 1e-6  # if the deviation of values is below this share of their size (or this number), it is only rounding

STAMP, ORDER, QUALITY, LENGTH_HEAD, LENGTH = range(5)  # columns of the memory


def standardized(values: torch.Tensor, reference_M: torch.Tensor) -> torch.Tensor:
    """(values - mean) / deviation, both of the reference; 0, not NaN, if the reference is constant."""
    mean = reference_M.mean()
    deviation = reference_M.std(correction=0)
    constant = deviation <= CONSTANT * (1 + mean.abs())
    return torch.where(constant, 0.0, (values - mean) / torch.where(constant, 1.0, deviation))


def pearson(first_M: torch.Tensor, second_M: torch.Tensor) -> torch.Tensor:
    """Correlation in [-1, 1], a scalar; 0 if either side is constant."""
    return (standardized(first_M, first_M) * standardized(second_M, second_M)).mean().clamp(-1, 1)


def expanded_correlation(
    rewards_P2: torch.Tensor, lengths_P2: torch.Tensor, rewards_M: torch.Tensor, lengths_M: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """rho of the memory, and its first-order expansion for each pair (influence function of Pearson's rho).

    rho + z_r z_l - rho (z_r^2 + z_l^2) / 2, with z standardized by the memory, averaged over a pair's two responses.
    Over responses with the distribution of the memory, its mean is rho, and the gradient of the mean is that of rho.
    Influence function: Devlin, Gnanadesikan & Kettenring 1975.

    Args:
        rewards_P2: fp32 [pairs, 2], with gradient.
        lengths_P2: fp32 [pairs, 2], tokens.
        rewards_M, lengths_M: fp32 [M], of earlier responses.

    Returns:
        rho of the memory, a scalar, and the expansion, fp32 [pairs].
    """
    rho = pearson(rewards_M, lengths_M)
    rewards = standardized(rewards_P2, rewards_M)
    lengths = standardized(lengths_P2, lengths_M)
    return rho, (rho + rewards * lengths - rho * (rewards.square() + lengths.square()) / 2).mean(dim=1)


def direction(head: nn.Linear) -> torch.Tensor:
    """A head's weights, L2-normalized, fp32 [hidden]."""
    weight = head.weight
    if hasattr(weight, "ds_id"):
        # ZeRO-3 gathers the shards only while the module is called, so the weights are read by sending unit vectors in.
        unit = torch.eye(head.in_features, device=weight.device)
        weight = (head(unit) - head(torch.zeros_like(unit[:1]))).T
    return F.normalize(weight[0].float(), dim=0)


class LengthHead(nn.Module):
    """The head r_L, and the memory of responses that correlations are computed over.

    Args:
        hidden_size: of the states that the heads read.
        scale: standard deviation of the initial weights.
        seed: draws them.
        kept: M, responses that correlations are computed over.
        most_per_step: responses of an optimizer step, at most.

    Attributes:
        memory: fp32 [M + most_per_step, 5], oldest first, with columns STAMP (progress of the step; -1: empty), ORDER
            (within the step), QUALITY (r_Q), LENGTH_HEAD (r_L), LENGTH (tokens).  A buffer, so that it is checkpointed;
            changed in place, because DDP keeps a reference to it.
    """

    memory: torch.Tensor

    def __init__(self, hidden_size: int, *, scale: float, seed: int, kept: int, most_per_step: int):
        super().__init__()
        self.kept = kept
        self.most_per_step = most_per_step
        self.score = nn.Linear(hidden_size, 1, bias=False)
        generator = torch.Generator().manual_seed(zlib.crc32(f"length head {seed}".encode()))
        self.score.weight.data = torch.randn(1, hidden_size, generator=generator) * scale
        self.register_buffer("memory", torch.zeros(kept + most_per_step, 5))
        self.memory[:, STAMP] = -1

    def forward(self, last_hidden_P2H: torch.Tensor) -> torch.Tensor:
        """r_L, fp32 [pairs, 2]."""
        return self.score(last_hidden_P2H.float())[..., 0]

    def earlier(self, progress: float) -> torch.Tensor:
        """The last M responses of earlier steps, [up to M, 5].  The same for all micro-batches of a step."""
        stamp = self.memory[:, STAMP]
        return self.memory[(stamp >= 0) & (stamp < stamp.new_tensor(progress))][-self.kept :]

    @torch.no_grad()
    def remember(self, rows: torch.Tensor) -> None:
        """Add the responses of this rank, [n, 5], and those of the others to the memory.

        The memory is sorted by step and then ORDER, so it does not depend on the order of the micro-batches.
        """
        rows = torch.cat([self.memory, _of_all_ranks(rows, self.most_per_step)])
        rows = rows[rows[:, ORDER].argsort(stable=True)]
        rows = rows[rows[:, STAMP].argsort(stable=True)]
        self.memory.copy_(rows[-len(self.memory) :])


def _of_all_ranks(rows: torch.Tensor, most: int) -> torch.Tensor:
    """The rows of all ranks.  Every rank calls this, with at most `most` rows."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    padded = rows.new_full((most, rows.shape[1]), -1.0)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, padded)
    whole = torch.cat(parts)
    return whole[whole[:, STAMP] >= 0]


class Method(TrainedMethod):
    def build(self, model, inputs):
        tokens = response_tokens(inputs.items, inputs.reader)
        self.lengths = {pair.pair_id: tuple(map(len, ids)) for pair, ids in zip(inputs.pairs, tokens, strict=True)}
        self.positions = {pair.pair_id: position for position, pair in enumerate(inputs.pairs)}
        scale = getattr(model.config, "initializer_range", 0.02)
        most_per_step = 2 * inputs.config["training"]["pairs_per_step"]
        self.head = LengthHead(
            model.hidden_size,
            scale=scale,
            seed=inputs.seed,
            kept=self.settings["memory"],
            most_per_step=most_per_step,
        )
        model.length_head = self.head
        self.quality_head = model.classifier.score

    def loss(self, model, batch):
        output = model(batch)
        quality = output.rewards
        length_head = self.head(output.last_hidden)
        lengths = quality.new_tensor([self.lengths[pair_id] for pair_id in batch.pair_ids])
        preference = bradley_terry_loss(quality + length_head)
        cosine = (direction(self.quality_head) * direction(self.head.score)).sum().abs().expand_as(preference)
        quality_term, length_head_term, terms = self._correlations(quality, length_head, lengths, batch.progress)
        if self.head.training and torch.is_grad_enabled():
            self._remember(batch, quality, length_head, lengths)
        total = preference + self.settings["length_weight"] * (quality_term + 1 - length_head_term)
        total = total + self.settings["orthogonality_weight"] * cosine
        return Loss(total, {"preference_loss": preference, "head_cosine": cosine} | terms)

    def _correlations(self, quality, length_head, lengths, progress: float):
        """Expansions of |rho(r_Q, length)| and rho(r_L, length), fp32 [pairs]; the memory's correlations to log."""
        earlier = self.head.earlier(progress)
        if len(earlier) < FEWEST:
            earlier = earlier.new_zeros(FEWEST, 5)  # constant, so without correlation
        rho_Q, quality_P = expanded_correlation(quality, lengths, earlier[:, QUALITY], earlier[:, LENGTH])
        rho_L, length_head_P = expanded_correlation(length_head, lengths, earlier[:, LENGTH_HEAD], earlier[:, LENGTH])
        terms = {
            "quality_correlation": rho_Q.expand_as(quality_P),
            "length_head_correlation": rho_L.expand_as(quality_P),
        }
        return rho_Q.sign() * quality_P, length_head_P, terms

    def _remember(self, batch, quality, length_head, lengths):
        positions = [self.positions[pair_id] for pair_id in batch.pair_ids]
        order = quality.new_tensor([[2 * position, 2 * position + 1] for position in positions])
        columns = {
            STAMP: torch.full_like(quality, batch.progress),
            ORDER: order,
            QUALITY: quality,
            LENGTH_HEAD: length_head,
            LENGTH: lengths,
        }
        rows = torch.stack([columns[column].detach() for column in sorted(columns)], dim=-1)
        is_counted = batch.weight > 0  # without the pairs that only keep the ranks in step
        self.head.remember(rows[is_counted].flatten(0, 1))

    def report(self):
        """Correlations with length over the last responses of the training."""
        last = self.head.earlier(2.0)
        counts = {"responses_in_memory": len(last)}
        for name, column in (("quality", QUALITY), ("length_head", LENGTH_HEAD)):
            if len(last):
                counts[f"{name}_correlation"] = round(float(pearson(last[:, column], last[:, LENGTH])), 4)
        return counts
