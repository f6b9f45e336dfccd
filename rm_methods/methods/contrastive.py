"""Contrastive reward model: dropout makes two views of each response, whose states attract each other.

    loss = (BT(view s) + BT(view t)) / 2 + weight * contrastive(H_s, H_t)
    simcse:  -log [ exp(cos(h_s_i, h_t_i) / temperature) / sum_j exp(cos(h_s_i, h_t_j) / temperature) ]
    swav:    CE(q_s_i, p_t_i) + CE(q_t_i, p_s_i),   p = softmax(h . prototypes / temperature),   q by Sinkhorn

Wang et al. 2024, "Secrets of RLHF Part II" (arXiv 2401.06080); SimCSE: Gao et al. 2021 (arXiv 2104.08821); SwAV: Caron
et al. 2020 (arXiv 2006.09882).  H holds two states of each pair, {h_c, h_r} or {h_c - h_r, h_r - h_c}, at the tokens
that the rewards are read from.  Current decoders have no dropout that could make views, so `add_dropout` adds it after
attention and MLP of each layer, in training only.

Shapes: B pairs of a micro-batch, N = 2 B states of a view, D hidden size, K prototypes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from rm_methods.errors import UserError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel


def simcse_loss(first_ND: torch.Tensor, second_ND: torch.Tensor, temperature: float) -> torch.Tensor:
    """-log of the share of a state's second view among those of all states, fp32 [N]; 0 for a single state."""
    cosine_NN = F.normalize(first_ND, dim=1) @ F.normalize(second_ND, dim=1).T
    same_state_N = torch.arange(len(first_ND), device=first_ND.device)
    return F.cross_entropy(cosine_NN / temperature, same_state_N, reduction="none")


def sinkhorn(scores_NK: torch.Tensor, regularization: float, iterations: int) -> torch.Tensor:
    """Assignment of states to prototypes that uses all prototypes alike.

    Args:
        scores_NK: the higher, the better a prototype fits.
        regularization: entropy regularization in units of the scores; the smaller, the harder the assignment.
        iterations: passes; each makes the columns equal, then the rows distributions.

    Returns:
        [N, K].  Rows sum to 1 after any number of iterations, columns approach N / K with many.
    """
    log_NK = scores_NK / regularization
    for _ in range(iterations):
        log_NK = log_NK - log_NK.logsumexp(dim=0, keepdim=True)
        log_NK = log_NK - log_NK.logsumexp(dim=1, keepdim=True)
    return log_NK.exp()


def swav_loss(
    first_NK: torch.Tensor,
    second_NK: torch.Tensor,
    *,
    temperature: float,
    regularization: float,
    iterations: int,
) -> torch.Tensor:
    """Swapped prediction: each view predicts the other's assignment, fp32 [N].

    Args:
        first_NK, second_NK: cosines of the states of each view with the prototypes.
        regularization, iterations: see `sinkhorn`; assignments are targets, no gradient goes through them.
    """
    first_target_NK = sinkhorn(first_NK.detach(), regularization, iterations)
    second_target_NK = sinkhorn(second_NK.detach(), regularization, iterations)
    from_second_N = F.cross_entropy(second_NK / temperature, first_target_NK, reduction="none")
    from_first_N = F.cross_entropy(first_NK / temperature, second_target_NK, reduction="none")
    return from_second_N + from_first_N


def contrasted_states(last_hidden_B2D: torch.Tensor, states: str) -> torch.Tensor:
    """The states that are contrasted, fp32 [N, D]; the two of a pair follow each other.

    Args:
        states: "pairs" (chosen, rejected) or "difference" (chosen - rejected, rejected - chosen).
    """
    states_B2D = last_hidden_B2D.float()
    if states == "difference":
        states_B2D = states_B2D - states_B2D.flip(1)
    return states_B2D.flatten(0, 1)


class Prototypes(nn.Module):
    """Learned directions that SwAV assigns states to; cosines are taken, so their lengths do not matter."""

    def __init__(self, count: int, hidden_size: int, seed: int):
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(count, hidden_size, generator=torch.Generator().manual_seed(seed)) / hidden_size**0.5
        )

    def forward(self, states_ND: torch.Tensor) -> torch.Tensor:
        """Cosines, fp32 [N, K]."""
        return F.normalize(states_ND, dim=1) @ F.normalize(self.weight.float(), dim=1).T


def add_dropout(backbone: PreTrainedModel, probability: float) -> list[RemovableHandle]:
    """Apply dropout to the outputs of attention and MLP in each layer of a decoder, in training mode only.

    Hooks change no module, so the saved model has no trace of them.  Attention and MLP are the parts of a layer that
    have parts themselves (norms have none), whatever an architecture calls them.

    Args:
        backbone: a transformers decoder without head.
        probability: that a number is set to zero (the others are scaled up).

    Returns:
        Handles of the hooks, for removing them.

    Raises:
        UserError: no decoder layers with such parts are found.
    """
    count = backbone.config.num_hidden_layers
    lists = (module for module in backbone.modules() if isinstance(module, nn.ModuleList))
    layers = next((modules for modules in lists if len(modules) == count), nn.ModuleList())
    parts = [part for layer in layers for part in layer.children() if any(part.children())]
    if not parts:
        raise UserError(
            f"contrastive: {type(backbone).__name__} has no layers with attention and MLP that dropout can be added "
            "to. Without dropout, both views of a response are the same. Use a backbone whose layers are a list of "
            "modules, such as Llama, Qwen, Gemma or GPT-2."
        )

    def drop(part, inputs, output):
        if not part.training:
            return output
        if isinstance(output, tuple):
            return F.dropout(output[0], probability), *output[1:]
        return F.dropout(output, probability)

    return [part.register_forward_hook(drop) for part in parts]


class Method(TrainedMethod):
    depends_on_cut = True
    passes = 2

    def build(self, model, inputs):
        settings = self.settings
        add_dropout(model.backbone, settings["dropout"])
        if settings["objective"] == "swav":
            model.prototypes = Prototypes(settings["prototypes"], model.hidden_size, inputs.seed)
            # Kept here, because under DDP and DeepSpeed `loss` gets a wrapped model.
            self.prototypes = model.prototypes

    def loss(self, model, batch):
        first = model(batch)
        second = model(batch)
        first_loss = bradley_terry_loss(first.rewards, batch.margin)
        preference = (first_loss + bradley_terry_loss(second.rewards, batch.margin)) / 2
        states = self.settings["states"]
        contrast_N = self._contrast(
            contrasted_states(first.last_hidden, states), contrasted_states(second.last_hidden, states)
        )
        contrast = contrast_N.view(-1, 2).mean(dim=1)
        terms = {"preference_loss": preference, "contrastive_loss": contrast}
        return Loss(preference + self.settings["weight"] * contrast, terms)

    def _contrast(self, first_ND: torch.Tensor, second_ND: torch.Tensor) -> torch.Tensor:
        settings = self.settings
        if settings["objective"] == "simcse":
            return simcse_loss(first_ND, second_ND, settings["temperature"])
        return swav_loss(
            self.prototypes(first_ND),
            self.prototypes(second_ND),
            temperature=settings["temperature"],
            regularization=settings["sinkhorn_regularization"],
            iterations=settings["sinkhorn_iterations"],
        )
