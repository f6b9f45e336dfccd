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

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from rm_methods.errors import UserError
from rm_methods.files import read_json
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Loss, TrainedMethod
from rm_methods.reward_models.backbones import RECORD, changed_logits, load_language_model
from rm_methods.reward_models.batching import plan_steps
from rm_methods.reward_models.layouts import SequenceBatch, lay_out, token_positions
from rm_methods.reward_models.tokenization import TokenizedItem
from rm_methods.system.ranks import gathered, rank_and_ranks

# 256 MiB in fp32.  More tokens are done in parts, whose logits are computed again in the backward pass.
_LOGITS_AT_ONCE = 2**26


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


class LanguageHead(nn.Module):
    """Logits over the vocabulary.

    Args:
        weight, bias: of the output embedding, [V, H] and [V] or None; copied.
        autocast: dtype of the matrix product, or None for the weights' own.
        softcap: logits are squashed into (-softcap, softcap), as Gemma 2 does; None leaves them.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        autocast: torch.dtype | None = None,
        softcap: float | None = None,
    ):
        super().__init__()
        self.projection = nn.utils.skip_init(
            nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype
        )
        self.projection.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
        self.autocast = autocast
        self.softcap = softcap

    def forward(self, states_MH: torch.Tensor) -> torch.Tensor:
        """fp32 [M, V]."""
        with torch.autocast(states_MH.device.type, dtype=self.autocast) if self.autocast else nullcontext():
            logits_MV = self.projection(states_MH).float()
        if self.softcap is None:
            return logits_MV
        return self.softcap * torch.tanh(logits_MV / self.softcap)


def predicted_tokens(
    items: Sequence[TokenizedItem], batch: SequenceBatch, responses: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The response tokens (with the template's closing tokens) of a micro-batch, and where each is predicted.

    Args:
        items: those of the batch, in its order.
        responses: which of each item, 0 chosen, 1 rejected.

    Returns:
        int64 [M] each: position of the state that predicts the token, in the flattened hidden states of the batch; the
        token; number of the sequence it belongs to, counted over the requested responses, items in order.  The last
        token of the prompt predicts the first of the response.
    """
    rows = token_positions(items, "plain" if batch.attention_map is None else "packed")
    positions: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    sequence: list[np.ndarray] = []
    for b, item in enumerate(items):
        for k in responses:
            row = rows[b * batch.responses + k]
            # An item that shares no token does not count (see `build`), but its position must be valid.
            last_of_prompt = row[max(item.shared - 1, 0)]
            positions.append(np.concatenate([[last_of_prompt], row[item.shared : -1]]))
            tokens.append(item.sequences[k][item.shared :])
            sequence.append(np.full(len(row) - item.shared, len(sequence)))
    return _int64(positions), _int64(tokens), _int64(sequence)


def _int64(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def summed_log_probabilities(
    head: LanguageHead,
    hidden_states: torch.Tensor,
    items: Sequence[TokenizedItem],
    batch: SequenceBatch,
    responses: Sequence[int],
) -> torch.Tensor:
    """Log-probability of each whole response given its prompt, fp32 [items, requested responses].

    Args:
        hidden_states: [R, L, H] of the batch, packed or plain; the rest as for `predicted_tokens`.
    """
    device = hidden_states.device
    positions, tokens, sequence = (x.to(device) for x in predicted_tokens(items, batch, responses))
    states_MH = hidden_states.flatten(0, 1).index_select(0, positions)
    at_once = max(1, _LOGITS_AT_ONCE // head.projection.out_features)
    total = torch.zeros(len(items) * len(responses), device=device)
    for start in range(0, len(tokens), at_once):
        part = slice(start, start + at_once)
        if len(tokens) > at_once and torch.is_grad_enabled():
            each_M = checkpoint(
                _token_log_probabilities,
                head,
                states_MH[part],
                tokens[part],
                use_reentrant=False,
                preserve_rng_state=False,
            )
        else:
            each_M = _token_log_probabilities(head, states_MH[part], tokens[part])
        total = total.index_add(0, sequence[part], each_M)
    return total.view(len(items), len(responses))


def _token_log_probabilities(head: LanguageHead, states_MH: torch.Tensor, tokens_M: torch.Tensor) -> torch.Tensor:
    return -F.cross_entropy(head(states_MH), tokens_M, reduction="none")


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
        # Truncation may leave the two sequences with different prompts; their shared tokens then end within the prompt.
        self.counts = torch.tensor([float(_one_prompt(item)) for item in inputs.items])
        model.language_head = self.head = _language_head(model, inputs)
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

    @torch.no_grad()
    def _reference(self, model, inputs) -> torch.Tensor:
        """log pi(chosen) - log pi(rejected) of every training pair under the starting weights, fp32 [pairs].

        Ranks share the work.  `build` comes before a checkpoint is loaded, so a resumed run gets the same numbers.
        """
        training = inputs.config["training"]
        layout = model.layout(training["layout"])
        rank, ranks = rank_and_ranks()
        (step,) = plan_steps(
            self.items,
            steps=1,
            pairs_per_step=len(self.items),
            tokens_per_microbatch=training["tokens_per_microbatch"],
            seed=0,
            ranks=ranks,
            layout=layout,
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        home = next(model.parameters()).device
        was_training = model.training
        model.eval().to(device)
        differences: dict[int, float] = {}
        for micro_batch in step.ranks[rank]:
            items = [self.items[i] for i in micro_batch.indices]
            batch = lay_out(items, layout, inputs.reader.pad_id).to(device)
            sums = summed_log_probabilities(self.head, model(batch).hidden_states, items, batch, (0, 1))
            differences |= dict(zip(micro_batch.indices, (sums[:, 0] - sums[:, 1]).tolist(), strict=True))
        model.train(was_training).to(home)
        of_all_ranks = {index: value for part in gathered(differences) for index, value in part.items()}
        return torch.tensor([of_all_ranks[k] for k in range(len(self.items))])


def _one_prompt(item: TokenizedItem) -> bool:
    return item.shared > 0 and item.conversations[0][:-1] == item.conversations[1][:-1]


def _language_head(model, inputs) -> LanguageHead:
    """A copy of the backbone's output embedding: its input embeddings if they are tied, otherwise its language head."""
    config = model.config
    scaled = changed_logits(config)
    softcap = scaled.pop("final_logit_softcapping", None)
    if scaled:
        raise UserError(
            f"grm: this backbone ('{config.model_type}') scales its logits ({scaled}). The language-model head of this "
            "method cannot. Use another backbone or another method."
        )
    bias = None
    if getattr(config, "tie_word_embeddings", False):
        weight = _whole(model.backbone.get_input_embeddings().weight)
    elif read_json(inputs.backbone / RECORD)["kind"] == "tiny":
        generator = torch.Generator().manual_seed(inputs.seed)
        weight = torch.randn(config.vocab_size, config.hidden_size, generator=generator) * config.initializer_range
    else:
        output = load_language_model(inputs.backbone, inputs.config["backbone"], inputs.seed).get_output_embeddings()
        weight = _whole(output.weight)
        if output.bias is not None:
            bias = _whole(output.bias)
    if weight.shape[1] != model.hidden_size:
        raise UserError(
            f"grm: the output embedding of this backbone ('{config.model_type}') reads {weight.shape[1]} numbers, but "
            f"its last layer gives {model.hidden_size}. Use another backbone or another method."
        )
    return LanguageHead(weight, bias, model.autocast, softcap)


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    """The values of a parameter that ZeRO-3 may have sharded."""
    whole: AbstractContextManager = nullcontext()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        whole = deepspeed.zero.GatheredParameters([parameter])
    with whole:
        return parameter.detach().cpu().clone()
