"""GRM, the Generalizable Reward Model: the hidden states that make the reward must also go on making language.

    loss = (1 - weight) * -log sigmoid(r_chosen - r_rejected) + weight * regularizer

    sft               softplus(-beta * log pi(chosen)), or -log pi(chosen) where not saturated
    dpo_no_reference  softplus(-beta * [log pi(chosen) - log pi(rejected)])
    dpo               the same, less that difference under the weights that training starts from

pi is a language-model head on the same last hidden states, log pi(y) the sum over the tokens of the response given the prompt.
Yang et al. 2024 (arXiv 2406.10216), code YangRui2015/Generalizable-Reward-Model, reward_models/grm_reward_trainer.py.  Ours: the reward
head stays linear (the paper has an MLP), so that the export is a plain checkpoint; the language-model head is a copy of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

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

_LOGITS_AT_ONCE = (
    2**26
)  # 256 MiB in fp32; more tokens are done in parts, and each part's logits again in the backward pass


def sft_regularizer(log_chosen: torch.Tensor, beta: float, saturated: bool = True) -> torch.Tensor:
    """fp32 [pairs] from the summed log-probability of each chosen response: -log sigmoid(beta log pi), or plain -log pi."""
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
        self.autocast, self.softcap = autocast, softcap

    def forward(self, states_MH: torch.Tensor) -> torch.Tensor:
        """fp32 [M, V]."""
        with torch.autocast(states_MH.device.type, dtype=self.autocast) if self.autocast else nullcontext():
            logits_MV = self.projection(states_MH).float()
        return logits_MV if self.softcap is None else self.softcap * torch.tanh(logits_MV / self.softcap)


def response_tokens(
    items: Sequence[TokenizedItem], batch: SequenceBatch, responses: Sequence[int]
) -> tuple[torch.Tensor, ...]:
    """The response tokens (with the template's closing tokens) of a micro-batch, and where each is predicted.

    Args:
        items: those of the batch, in its order.
        responses: which of each item, 0 chosen, 1 rejected.

    Returns:
        int64 [M] each: the place of the state that predicts the token, in the flattened hidden states of the batch; the token; which
        sequence it belongs to, counted over the wanted responses, items in order.  The first token of a response is predicted by the
        last one of the prompt.
    """
    positions = token_positions(items, "plain" if batch.attention_map is None else "packed")
    places, tokens, sequence = [], [], []
    for b, item in enumerate(items):
        for k in responses:
            row = positions[b * batch.responses + k]
            # An item that shares no token has no joint prompt and does not count (see `build`); its place must only be valid.
            last_of_prompt = row[max(item.shared - 1, 0)]
            places.append(np.concatenate([[last_of_prompt], row[item.shared : -1]]))
            tokens.append(item.sequences[k][item.shared :])
            sequence.append(np.full(len(row) - item.shared, len(sequence)))
    return tuple(torch.from_numpy(np.concatenate(x).astype(np.int64)) for x in (places, tokens, sequence))


def summed_log_probabilities(
    head: LanguageHead,
    hidden_states: torch.Tensor,
    items: Sequence[TokenizedItem],
    batch: SequenceBatch,
    responses: Sequence[int],
) -> torch.Tensor:
    """Log-probability of each whole response given its prompt, fp32 [items, wanted responses].

    Args:
        hidden_states: [R, L, H] of the batch, packed or plain; the rest as for `response_tokens`.
    """
    places, tokens, sequence = (x.to(hidden_states.device) for x in response_tokens(items, batch, responses))
    states_MH = hidden_states.flatten(0, 1).index_select(0, places)
    at_once = max(1, _LOGITS_AT_ONCE // head.projection.out_features)
    total = torch.zeros(len(items) * len(responses), device=hidden_states.device)
    for start in range(0, len(tokens), at_once):
        part = slice(start, start + at_once)
        arguments = head, states_MH[part], tokens[part]
        if len(tokens) > at_once and torch.is_grad_enabled():
            each = checkpoint(_token_log_probabilities, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            each = _token_log_probabilities(*arguments)
        total = total.index_add(0, sequence[part], each)
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
        self.place = {pair.pair_id: k for k, pair in enumerate(inputs.pairs)}
        # Truncation may leave the two sequences with different prompts; what they share then ends within the prompt.
        self.counts = torch.tensor([float(_one_prompt(item)) for item in inputs.items])
        model.language_head = self.head = _language_head(model, inputs)
        if self.settings["regularizer"] == "dpo":
            self.reference = self._reference(model, inputs)

    def loss(self, model, batch):
        weight, beta, kind = (self.settings[name] for name in ("weight", "beta", "regularizer"))
        output = model(batch)
        preference = bradley_terry_loss(output.rewards)
        if not weight:
            return Loss(preference)
        places = [self.place[pair_id] for pair_id in batch.pair_ids]
        items = [self.items[place] for place in places]
        log_probabilities = summed_log_probabilities(self.head, output.hidden_states, items, batch, self.responses)
        if kind == "sft":
            regularizer = sft_regularizer(log_probabilities[:, 0], beta, self.settings["saturated"])
        else:
            reference = self.reference[places].to(preference.device) if kind == "dpo" else 0.0
            regularizer = dpo_regularizer(log_probabilities, beta, reference)
        regularizer = regularizer * self.counts[places].to(preference.device)
        loss = (1 - weight) * preference + weight * regularizer
        return Loss(
            loss,
            {
                "preference_loss": preference,
                "regularizer": regularizer,
                "chosen_log_probability": log_probabilities[:, 0],
            },
        )

    def report(self):
        return {"pairs_without_regularizer": int((self.counts == 0).sum())} if self.settings["weight"] else {}

    @torch.no_grad()
    def _reference(self, model, inputs) -> torch.Tensor:
        """log pi(chosen) - log pi(rejected) of every training pair under the starting weights, fp32 [pairs]; ranks share the work.

        `build` comes before a checkpoint is loaded, so a resumed run gets the same numbers.
        """
        training, layout = inputs.config["training"], model.layout(inputs.config["training"]["layout"])
        rank, ranks = rank_and_ranks()
        options = {
            "pairs_per_step": len(self.items),
            "tokens_per_microbatch": training["tokens_per_microbatch"],
            "seed": 0,
        }
        plan = plan_steps(self.items, steps=1, ranks=ranks, layout=layout, **options)[0].ranks[rank]
        device, home, was_training = (
            "cuda" if torch.cuda.is_available() else "cpu",
            next(model.parameters()).device,
            model.training,
        )
        model.eval().to(device)
        found: dict[int, float] = {}
        for micro_batch in plan:
            items = [self.items[i] for i in micro_batch.indices]
            batch = lay_out(items, layout, inputs.reader.pad_id).to(device)
            sums = summed_log_probabilities(self.head, model(batch).hidden_states, items, batch, (0, 1))
            found |= dict(zip(micro_batch.indices, (sums[:, 0] - sums[:, 1]).tolist(), strict=True))
        model.train(was_training).to(home)
        everywhere = {index: value for part in gathered(found) for index, value in part.items()}
        return torch.tensor([everywhere[k] for k in range(len(self.items))])


def _one_prompt(item: TokenizedItem) -> bool:
    return item.shared > 0 and item.conversations[0][:-1] == item.conversations[1][:-1]


def _language_head(model, inputs) -> LanguageHead:
    """A copy of the backbone's own output embedding: its input embeddings where they are tied, else its language model's head."""
    config = model.config
    scaled = changed_logits(config)
    softcap = scaled.pop("final_logit_softcapping", None)
    if scaled:
        raise UserError(
            f"grm: this backbone ('{config.model_type}') scales its logits ({scaled}), which the language-model head here does not. "
            "Use another backbone or another method."
        )
    if getattr(config, "tie_word_embeddings", False):
        weight, bias = _whole(model.backbone.get_input_embeddings().weight), None
    elif read_json(inputs.backbone / RECORD)["kind"] == "tiny":
        drawn = torch.randn(config.vocab_size, config.hidden_size, generator=torch.Generator().manual_seed(inputs.seed))
        weight, bias = drawn * config.initializer_range, None
    else:
        output = load_language_model(inputs.backbone, inputs.config["backbone"], inputs.seed).get_output_embeddings()
        weight, bias = _whole(output.weight), None if output.bias is None else _whole(output.bias)
    if weight.shape[1] != model.hidden_size:
        raise UserError(
            f"grm: the output embedding of this backbone ('{config.model_type}') reads {weight.shape[1]} numbers, its last layer gives "
            f"{model.hidden_size}. Use another backbone or another method."
        )
    return LanguageHead(weight, bias, model.autocast, softcap)


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    """The values of a parameter that ZeRO-3 may have sharded."""
    gathered = nullcontext()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters([parameter])
    with gathered:
        return parameter.detach().cpu().clone()
