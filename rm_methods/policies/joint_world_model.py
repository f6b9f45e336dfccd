"""A joint language model of the controlled world: it reads a prompt with two responses in both directions.

    <bos> user <end> first response <end> second response <end>

It predicts the user's reaction at the end of each response.  It starts from a causal model that has learned to compare.
Its causal mask fades: the attention score of a later token is lowered by a number that falls to 0 over the first half
of the training.  So what the causal model has learned is less disturbed (docs/world.md has figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rm_methods.policies.sft import IGNORED
from rm_methods.preferences.world.conversations import Comparison, first_tokens, reaction_openings
from rm_methods.preferences.world.vocabulary import SATISFIED

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LOWERED_BY = 8.0  # scores of later tokens at the start: their weights are divided by about 3,000
_FADED_AT = 0.5  # of the training


class JointTask:
    """Prediction of the first token of the reaction at the end of each response.

    Args:
        comparisons: of the training.
        held_out: other ones, for the measurement.

    Attributes: as of `rm_methods.policies.world_model.CausalTask`.
    """

    curve = "reactions"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        comparisons: Sequence[Comparison],
        held_out: Sequence[Comparison],
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.held_out = held_out
        self.ids, self.ends = joint_ids(tokenizer, comparisons)
        self.reactions = [first_tokens(tokenizer, comparison.reactions) for comparison in comparisons]
        self.sizes = {"comparisons_told": len(held_out)}
        self.progress = 0.0
        model.register_forward_pre_hook(self._fade, with_kwargs=True)

    def collate(self, batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Padded rows, and what each position predicts."""
        import torch

        padded = padded_rows([row["input_ids"] for row in batch], self.tokenizer.pad_token_id)
        labels_RL = torch.full_like(padded["input_ids"], IGNORED)
        for labels_L, row in zip(labels_RL, batch, strict=True):
            labels_L[list(self.ends[row["index"]])] = torch.tensor(self.reactions[row["index"]])
        return padded | {"labels": labels_RL}

    def loss(self, output, labels, num_items_in_batch=None) -> Any:
        """Mean negative log-likelihood of the reactions' first tokens."""
        import torch

        return torch.nn.functional.cross_entropy(output.logits.transpose(1, 2), labels, ignore_index=IGNORED)

    def measure(self) -> dict[str, Any]:
        """What the model tells about the comparisons held out (`told`)."""
        progress = self.progress
        self.progress = 1.0
        shares = told(self.model, self.tokenizer, self.held_out)
        self.progress = progress
        return {name: round(share, 4) for name, share in shares.items()}

    def _fade(self, module, args, kwargs):
        """Lowers the attention scores of later tokens, as much as the progress of the training says."""
        import torch

        lowered_by = _LOWERED_BY * max(0.0, 1 - self.progress / _FADED_AT)
        if not lowered_by:
            return None
        mask_R11L = kwargs["attention_mask"]
        length = mask_R11L.shape[-1]
        bias_R1LL = torch.zeros(mask_R11L.shape[0], 1, length, length)
        bias_R1LL += torch.triu(torch.full((length, length), -lowered_by), diagonal=1)
        bias_R1LL.masked_fill_(~mask_R11L, torch.finfo(torch.float32).min)
        return args, kwargs | {"attention_mask": bias_R1LL}


def joint_ids(
    tokenizer: PreTrainedTokenizerBase, comparisons: Sequence[Comparison]
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Rows of token ids, and where the two responses end in each."""
    from rm_methods.policies.world_model import token_ids

    texts = []
    for comparison in comparisons:
        first, second = ({"role": "assistant", "content": response} for response in comparison.responses)
        texts += [[*comparison.prompt, first], [*comparison.prompt, first, second]]
    ids = token_ids(tokenizer, texts)
    rows = ids[1::2]
    ends = [(len(short) - 1, len(whole) - 1) for short, whole in zip(ids[::2], rows, strict=True)]
    return rows, ends


def padded_rows(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Rows of token ids, padded, and a mask that shows every token of a row to every other, bool [R, 1, 1, L]."""
    import torch

    tensors = [torch.tensor(row) for row in rows]
    ids_RL = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=pad_id)
    is_token_RL = torch.arange(ids_RL.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return {"input_ids": ids_RL, "attention_mask": is_token_RL[:, None, None]}


def told(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[Comparison],
    batch_size: int = 64,
) -> dict[str, float]:
    """What a model that reads two responses together tells about them.

    Returns:
        "named_right": share of the responses of which it says right whether all is well; "ordered_right": share of the
        comparisons in which it gives the better response the higher log-odds that all is well.
    """
    import torch

    satisfied, _ = reaction_openings(tokenizer)
    rows, ends = joint_ids(tokenizer, comparisons)
    named, ordered = 0, 0
    for start in range(0, len(rows), batch_size):
        members = slice(start, start + batch_size)
        with torch.no_grad():
            logits_RLV = model(**padded_rows(rows[members], tokenizer.pad_token_id)).logits
        ends_R2 = torch.tensor(ends[members])
        logits_R2V = logits_RLV[torch.arange(len(ends_R2))[:, None], ends_R2]
        well_R2 = logits_R2V[..., satisfied] - logits_R2V.logsumexp(-1)
        says_well_R2 = logits_R2V.argmax(-1) == satisfied
        for comparison, says_well, well in zip(
            comparisons[members], says_well_R2.tolist(), well_R2.tolist(), strict=True
        ):
            is_well = [reaction == SATISFIED for reaction in comparison.reactions]
            named += sum(says == truth for says, truth in zip(says_well, is_well, strict=True))
            ordered += well[comparison.better] > well[1 - comparison.better]
    return {"named_right": named / (2 * len(rows)), "ordered_right": ordered / len(rows)}
