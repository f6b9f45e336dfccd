"""Contrastive reward model: two views of each response by dropout, whose states should be near each other and far from those of others.

    loss = (BT(view s) + BT(view t)) / 2 + weight * contrastive(H_s, H_t)
    simcse:  -log [ exp(cos(h_s_i, h_t_i) / temperature) / sum_j exp(cos(h_s_i, h_t_j) / temperature) ]
    swav:    CE(q_s_i, p_t_i) + CE(q_t_i, p_s_i),   p = softmax(h . prototypes / temperature),   q by Sinkhorn

Wang et al. 2024, "Secrets of RLHF Part II" (arXiv 2401.06080); SimCSE: Gao et al. 2021 (arXiv 2104.08821); SwAV: Caron et al. 2020
(arXiv 2006.09882).  H holds two states of each pair, {h_c, h_r} or {h_c - h_r, h_r - h_c}, of the tokens that the rewards are read from.

Today's decoders have no dropout to make views with, so `add_dropout` puts it behind attention and MLP of each layer, in training only.

Shapes: B pairs of a micro-batch, N = 2 B states of a view, D hidden size, K prototypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rm_methods.errors import UserError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod


def simcse_loss(first_ND: torch.Tensor, second_ND: torch.Tensor, temperature: float) -> torch.Tensor:
    """-log of the share that a state's own second view has among the second views of all, fp32 [N]; 0 if there is one state only."""
    cosine_NN = F.normalize(first_ND, dim=1) @ F.normalize(second_ND, dim=1).T
    return F.cross_entropy(
        cosine_NN / temperature, torch.arange(len(first_ND), device=first_ND.device), reduction="none"
    )


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
    first_NK: torch.Tensor, second_NK: torch.Tensor, temperature: float, regularization: float, iterations: int
) -> torch.Tensor:
    """Swapped prediction: each view predicts the other's assignment, fp32 [N].

    Args:
        first_NK, second_NK: cosines of the states of each view with the prototypes.
        regularization, iterations: see `sinkhorn`; assignments are targets, no gradient goes through them.
    """
    targets = [sinkhorn(scores_NK.detach(), regularization, iterations) for scores_NK in (first_NK, second_NK)]
    predictions = (second_NK / temperature, first_NK / temperature)
    return sum(F.cross_entropy(p_NK, q_NK, reduction="none") for p_NK, q_NK in zip(predictions, targets, strict=True))


def contrasted_states(last_hidden_B2D: torch.Tensor, states: str) -> torch.Tensor:
    """The states that are contrasted, fp32 [N, D], two for each pair and one after the other.

    Args:
        states: "pairs" (chosen, rejected) or "difference" (chosen - rejected, rejected - chosen).
    """
    states_B2D = last_hidden_B2D.float()
    return (states_B2D - states_B2D.flip(1) if states == "difference" else states_B2D).flatten(0, 1)


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


def add_dropout(backbone: nn.Module, probability: float) -> list:
    """Let dropout act on what attention and MLP add in each layer of a decoder, in training mode only.

    Hooks change no module, so nothing of it is saved.  Attention and MLP are the parts of a layer that have parts themselves
    (norms have none), whatever an architecture calls them.

    Args:
        backbone: a transformers decoder without head.
        probability: that a number is set to zero (the others are scaled up).

    Returns:
        Handles of the hooks, for removing them.

    Raises:
        UserError: no decoder layers with such parts are found.
    """
    count = backbone.config.num_hidden_layers
    layers = next((m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == count), ())
    parts = [part for layer in layers for part in layer.children() if any(part.children())]
    if not parts:
        raise UserError(
            f"contrastive: no attention or MLP to put dropout behind is found in {type(backbone).__name__}, and without dropout both views "
            "of a response are the same. Use a backbone whose layers are a list of modules, such as Llama, Qwen, Gemma or GPT-2."
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
            # Kept, because under DDP and DeepSpeed `loss` is given the model in a wrapping.
            self.prototypes = model.prototypes

    def loss(self, model, batch):
        views = model(batch), model(batch)
        preference = sum(bradley_terry_loss(view.rewards, batch.margin) for view in views) / 2
        contrast = self._contrast(*(contrasted_states(view.last_hidden, self.settings["states"]) for view in views))
        # Two states of a pair follow each other.
        contrast = contrast.view(-1, 2).mean(dim=1)
        terms = {"preference_loss": preference, "contrastive_loss": contrast}
        return Loss(preference + self.settings["weight"] * contrast, terms)

    def _contrast(self, first_ND: torch.Tensor, second_ND: torch.Tensor) -> torch.Tensor:
        settings = self.settings
        if settings["objective"] == "simcse":
            return simcse_loss(first_ND, second_ND, settings["temperature"])
        scores = (self.prototypes(states_ND) for states_ND in (first_ND, second_ND))
        return swav_loss(
            *scores, settings["temperature"], settings["sinkhorn_regularization"], settings["sinkhorn_iterations"]
        )
