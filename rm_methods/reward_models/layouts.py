"""The two layouts of tokenized items in a forward.

Packed: all tokens of all items in one row, every prompt once, no padding.  All parts of a transformer except attention
work on single tokens, so they need no change.  Attention regroups the tokens, so that each prompt attends to itself and
each response to its prompt and itself (`AttentionMap`, rm_methods.reward_models.packed_attention).

Plain: one row per sequence `[prompt | response_k]`, right-padded, ordinary causal attention; the packed layout gives
the same results.

Positions count within the sequence, the reward is read at each sequence's last token by explicit length, and ids are
never compared with the pad token.

Shapes: R rows, L padded length, T packed tokens; I items, N responses of each, S = I x N sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
import torch

from rm_methods.errors import ListsFields
from rm_methods.reward_models.tokenization import TokenizedItem


@dataclass
class AttentionMap:
    """Regroups packed tokens for attention; `token_positions` defines their order.

    Every token is a query once, in its prompt [I, P] or its response [S, Q].  Keys of a prompt are the prompt, keys of
    a response are `[prompt | response]` [S, P + Q].  Groups are right-padded with token 0.

    Attributes:
        prompts: int64 [I, P], packed tokens of each prompt.
        responses: int64 [S, Q], packed tokens of each response.
        keys: int64 [S, P + Q], what each response attends to.
        allowed: bool [S, 1, Q, P + Q], True if the query may attend to the key.
        query_places: int64 [T], the place of a token in the flattened, concatenated `prompts` and `responses`.
        key_places: int64 [T], the first place of a token in the flattened, concatenated `prompts` and `keys`.
        prompt_key_places: int64 [N, prompt tokens], the other places of the prompt tokens.
        query_is_token: bool [I * P + S * Q], False at padding.
        used: set by the attention that used this map, so that a model that does not pass it on is noticed.
    """

    prompts: torch.Tensor
    responses: torch.Tensor
    keys: torch.Tensor
    allowed: torch.Tensor
    query_places: torch.Tensor
    key_places: torch.Tensor
    prompt_key_places: torch.Tensor
    query_is_token: torch.Tensor
    used: bool = False

    def __post_init__(self):
        self._bias: dict[torch.dtype, torch.Tensor] = {}

    @cached_property
    def queries(self) -> torch.Tensor:
        """int64 [I * P + S * Q], flattened, concatenated `prompts` and `responses`."""
        return torch.cat([self.prompts.flatten(), self.responses.flatten()])

    def bias(self, dtype: torch.dtype) -> torch.Tensor:
        """`allowed` as an additive mask, made once for all layers: a boolean one would be converted again in each."""
        if dtype not in self._bias:
            zeros = torch.zeros(self.allowed.shape, dtype=dtype, device=self.allowed.device)
            self._bias[dtype] = zeros.masked_fill_(~self.allowed, torch.finfo(dtype).min)
        return self._bias[dtype]

    def to(self, device: torch.device | str) -> AttentionMap:
        """The same map on `device`."""
        return _moved(self, device)


@dataclass
class SequenceBatch(ListsFields):
    """Rows of token ids, and where to read the rewards.

    Attributes:
        input_ids: int64 [R, L]; packed: [1, T].
        position_ids: int64, as input_ids: places within the sequence.
        attention_map: for the packed layout; None in the plain one, whose causal attention needs no mask (padding
            follows every real token).
        read_row, read_column: int64 [S], where sequence s ends, items in order, responses of an item in order.
        responses: N, the same for all items of the batch.
        real_tokens, launched_tokens: tokens without and with padding.
        longest: tokens of the longest sequence.
        first_column: int64 [S], where the first response of each joint row ends; None if the items do not say.
        items: what the batch is made of, in its order, for models that read more than the last token.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_map: AttentionMap | None
    read_row: torch.Tensor
    read_column: torch.Tensor
    responses: int
    real_tokens: int = 0
    launched_tokens: int = 0
    longest: int = 0
    first_column: torch.Tensor | None = None
    items: tuple[TokenizedItem, ...] = ()

    def to(self, device: torch.device | str):
        """The same batch with all tensors on `device`."""
        return _moved(self, device)


@dataclass
class PairBatch(SequenceBatch):
    """A micro-batch of preference pairs: N = 2, response 1 is chosen, response 2 is rejected.

    Attributes:
        margin, target, weight: fp32 [pairs], from the pairs (see PreferencePair).
        pair_ids: for error messages, per-pair records, and what a method keeps for each pair.  The pair itself is not
            in the batch: a method's `build` sees all pairs.
        progress: share of the optimizer steps done before this one, from 0 to 1.
    """

    margin: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    target: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    weight: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    pair_ids: tuple[str, ...] = ()
    progress: float = 0.0


def launched_tokens(items: Sequence[TokenizedItem], layout: str) -> int:
    """Tokens that a forward over `items` computes, with padding."""
    if layout == "packed":
        return sum(map(packed_length, items))
    rows = [length for item in items for length in item.lengths]
    return len(rows) * max(rows)


def packed_length(item: TokenizedItem) -> int:
    """Tokens of an item in the packed layout: its prompt once, and its responses."""
    return item.shared + sum(length - item.shared for length in item.lengths)


def token_positions(items: Sequence[TokenizedItem], layout: str) -> list[np.ndarray]:
    """The positions of the tokens of each sequence in the flattened rows of a batch of `items`.

    The packed layout holds the prompts of all items, then all responses; the plain one a padded row for each sequence.

    Args:
        layout: "packed" or "plain".

    Returns:
        int64 [L] for each sequence, items in order, responses of an item in order.  Packed, the sequences of an item
        have the positions of its prompt in common.
    """
    if layout == "plain":
        lengths = [length for item in items for length in item.lengths]
        return [row * max(lengths) + np.arange(length) for row, length in enumerate(lengths)]
    positions = []
    prompt_start = 0
    response_start = sum(item.shared for item in items)
    for item in items:
        prompt = np.arange(prompt_start, prompt_start + item.shared)
        prompt_start += item.shared
        for length in item.lengths:
            response_end = response_start + length - item.shared
            positions.append(np.concatenate([prompt, np.arange(response_start, response_end)]))
            response_start = response_end
    return positions


def lay_out(items: Sequence[TokenizedItem], layout: str, pad_id: int) -> SequenceBatch:
    """Build the batch of `items`, which must all have the same number of responses.

    Args:
        layout: "packed" or "plain".
        pad_id: fills the plain layout's rows; any id works.
    """
    sequences = [sequence for item in items for sequence in item.sequences]
    longest = max(map(len, sequences))
    real_tokens = sum(map(packed_length, items))
    responses = len(items[0].sequences)
    if layout == "packed":
        positions = token_positions(items, "packed")
        input_ids = np.empty(real_tokens, dtype=np.int64)
        position_ids = np.empty(real_tokens, dtype=np.int64)
        for positions_of_sequence, sequence in zip(positions, sequences, strict=True):
            input_ids[positions_of_sequence] = sequence
            position_ids[positions_of_sequence] = np.arange(len(sequence))
        response_lengths = [length - item.shared for item in items for length in item.lengths]
        return SequenceBatch(
            input_ids=torch.from_numpy(input_ids)[None],
            position_ids=torch.from_numpy(position_ids)[None],
            attention_map=_attention_map([item.shared for item in items], response_lengths),
            read_row=torch.zeros(len(sequences), dtype=torch.int64),
            read_column=torch.tensor([positions_of_sequence[-1] for positions_of_sequence in positions]),
            responses=responses,
            real_tokens=real_tokens,
            launched_tokens=real_tokens,
            longest=longest,
            items=tuple(items),
        )
    first_ends = [end for item in items for end in item.first_ends]
    return SequenceBatch(
        input_ids=_pad(sequences, longest, pad_id),
        position_ids=_pad([np.arange(len(sequence)) for sequence in sequences], longest, 0),
        attention_map=None,
        read_row=torch.arange(len(sequences)),
        read_column=torch.tensor([len(sequence) - 1 for sequence in sequences]),
        responses=responses,
        real_tokens=real_tokens,
        launched_tokens=len(sequences) * longest,
        longest=longest,
        first_column=torch.tensor(first_ends) if first_ends else None,
        items=tuple(items),
    )


def _attention_map(prompt_lengths: list[int], response_lengths: list[int]) -> AttentionMap:
    """The map of items with these prompts (I) and responses (S = I x N, items in order)."""
    items = len(prompt_lengths)
    rows = len(response_lengths)
    each = rows // items  # responses of an item
    prompt_end = np.cumsum([0, *prompt_lengths])
    response_end = np.cumsum([prompt_end[-1], *response_lengths])
    prompts, is_prompt = _grouped(prompt_end)
    responses, is_response = _grouped(response_end)
    width = prompts.shape[1]
    length = responses.shape[1]
    item_of = np.repeat(np.arange(items), each)
    causal = np.tril(np.ones((length, length), dtype=bool))
    allowed = np.concatenate(
        [np.repeat(is_prompt[item_of][:, None], length, axis=1), np.broadcast_to(causal, (rows, length, length))],
        axis=2,
    )
    query_is_token = np.concatenate([is_prompt.ravel(), is_response.ravel()])
    # Places of the prompt tokens in each group of keys: first their own prompt, then before each of their item's
    # responses.
    prompt_key = np.flatnonzero(is_prompt)
    item = prompt_key // max(width, 1)
    column = prompt_key % max(width, 1)
    first_row = items * width + (item * each) * (width + length) + column
    row, response_column = np.nonzero(is_response)
    response_key = items * width + row * (width + length) + width + response_column
    prompt_key_places = np.stack([first_row + k * (width + length) for k in range(each)])
    return AttentionMap(
        prompts=torch.from_numpy(prompts),
        responses=torch.from_numpy(responses),
        keys=torch.from_numpy(np.concatenate([prompts[item_of], responses], axis=1)),
        allowed=torch.from_numpy(allowed[:, None]),
        query_places=torch.from_numpy(np.flatnonzero(query_is_token)),
        key_places=torch.from_numpy(np.concatenate([prompt_key, response_key])),
        prompt_key_places=torch.from_numpy(prompt_key_places),
        query_is_token=torch.from_numpy(query_is_token),
    )


def _grouped(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Consecutive tokens as rows, padded with 0, and a mask that is true at tokens.

    Args:
        ends: int64 [groups + 1]; group g holds the tokens from ends[g] to ends[g + 1].
    """
    lengths = np.diff(ends)
    column = np.arange(lengths.max(initial=0))
    is_token = column < lengths[:, None]
    return np.where(is_token, ends[:-1, None] + column, 0), is_token


def _moved(batch, device):
    values = {entry.name: getattr(batch, entry.name) for entry in fields(batch)}
    on_device = {
        name: value.to(device) for name, value in values.items() if isinstance(value, torch.Tensor | AttentionMap)
    }
    return replace(batch, **on_device)


def _pad(rows: Sequence[np.ndarray], length: int, value: int) -> torch.Tensor:
    padded = np.full((len(rows), length), value, dtype=np.int64)
    for r, row in enumerate(rows):
        padded[r, : len(row)] = row
    return torch.from_numpy(padded)
