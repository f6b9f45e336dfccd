"""The two layouts of tokenized items in a forward.

Packed: all tokens of all items in one row, every prompt once, no padding.  All parts of a transformer except attention
work on single tokens, so they need no change.  Attention regroups the tokens, so that each prompt attends to itself and
each response to its prompt and itself (`AttentionMap`, rm_methods.reward_models.packed_attention).

Plain: one row per sequence `[prompt | response_k]`, right-padded, ordinary causal attention; the packed layout gives
the same results.

Positions count within the sequence, the reward is read at each sequence's last token by explicit length, and ids are
never compared with the pad token.

Shapes: R rows, L padded length, T packed tokens; I items, N responses of each, S = I x N sequences; G groups of a
bucket with Q queries and K keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
import torch

from rm_methods.errors import ListsFields
from rm_methods.reward_models.tokenization import TokenizedItem


@dataclass(frozen=True, eq=False)
class Bucket:
    """Groups of packed tokens that attention computes together, right-padded to common lengths with token 0.

    A group is a prompt, whose keys are the prompt itself, or a response, whose keys are `[prompt | response]`.  The
    last keys of a group are its queries, so query j sees the first K - Q + j + 1 keys except padding of the prompt.

    Attributes:
        queries: int64 [G, Q], packed tokens of each group.
        keys: int64 [G, K], what each group attends to.
        key_is_padding: bool [G, K], True at padding of a prompt before a response; None where that does not occur.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    key_is_padding: torch.Tensor | None

    @cached_property
    def _biases(self) -> dict[torch.dtype, torch.Tensor]:
        return {}

    def bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Additive mask [G, 1, Q, K], made once for all layers; None without keys before the queries.

        Such a group is causal as a whole, and kernels are faster without a mask.
        """
        if self.keys.shape == self.queries.shape:
            return None
        if dtype not in self._biases:
            length = self.queries.shape[1]
            is_hidden_QK = torch.ones(length, self.keys.shape[1], dtype=torch.bool, device=self.keys.device)
            is_hidden_GQK = is_hidden_QK.triu(self.keys.shape[1] - length + 1).expand(len(self.keys), -1, -1)
            if self.key_is_padding is not None:
                is_hidden_GQK = is_hidden_GQK | self.key_is_padding[:, None]
            zeros = torch.zeros(is_hidden_GQK.shape, dtype=dtype, device=self.keys.device)
            self._biases[dtype] = zeros.masked_fill_(is_hidden_GQK, torch.finfo(dtype).min)[:, None]
        return self._biases[dtype]


@dataclass(frozen=True, eq=False)
class Regrouping:
    """Packed tokens regrouped in buckets for attention.  Every token is a query once.

    Places count through the flattened, concatenated `queries` or `keys` of all buckets.

    Attributes:
        buckets: prompts first, then responses.
        query_tokens: int64 [query places], the token at each place.
        query_places: int64 [T], the place of a token.
        query_is_token: bool [query places], False at padding.
        has_padding: whether any place is padding.
        key_tokens: int64 [key places], the token at each place.
        key_places: int64 [T], the first place of a token.
        prompt_key_places: int64 [N, prompt tokens], the other places of the prompt tokens.
    """

    buckets: tuple[Bucket, ...]
    query_tokens: torch.Tensor
    query_places: torch.Tensor
    query_is_token: torch.Tensor
    has_padding: bool
    key_tokens: torch.Tensor
    key_places: torch.Tensor
    prompt_key_places: torch.Tensor


class AttentionMap:
    """Which packed token attends to which: each prompt to itself, each response to its prompt and itself, causally.

    `token_positions` defines the order of the tokens.

    Args:
        prompt_lengths: tokens of each of the I prompts.
        response_lengths: tokens of each of the S = I x N responses, items in order.
        device: of the tensors of a regrouping.

    Attributes:
        used: set by the attention that used this map, so that a model that does not pass it on is noticed.
    """

    def __init__(
        self, prompt_lengths: Sequence[int], response_lengths: Sequence[int], device: torch.device | str = "cpu"
    ):
        self.prompt_lengths = tuple(prompt_lengths)
        self.response_lengths = tuple(response_lengths)
        self.device = torch.device(device)
        self.used = False
        self._regroupings: dict[int | None, Regrouping] = {}

    def to(self, device: torch.device | str) -> AttentionMap:
        """The same map on `device`."""
        return AttentionMap(self.prompt_lengths, self.response_lengths, device)

    def regrouping(self, overhead: int | None = None) -> Regrouping:
        """The tokens in buckets; made once for all layers.

        Args:
            overhead: padded scores (query x key) of a bucket that cost as much as one more bucket.  None makes two
                buckets, prompts and responses, both in the order of the items.
        """
        if overhead not in self._regroupings:
            self._regroupings[overhead] = self._regrouped(overhead)
        return self._regroupings[overhead]

    def _regrouped(self, overhead: int | None) -> Regrouping:
        each = len(self.response_lengths) // len(self.prompt_lengths)
        prompt_end = np.cumsum([0, *self.prompt_lengths])
        response_end = np.cumsum([prompt_end[-1], *self.response_lengths])
        prompt_of = np.repeat(np.arange(len(self.prompt_lengths)), each)
        prompts = [(0, length) for length in self.prompt_lengths]
        responses = [(self.prompt_lengths[prompt_of[s]], length) for s, length in enumerate(self.response_lengths)]
        buckets = []
        is_token = []
        places = _KeyPlaces()
        for members in _similar_groups(prompts, overhead):
            queries, is_query = _padded_ranges(prompt_end[members], prompt_end[members + 1])
            places.add(queries, is_query)
            is_token.append(is_query.ravel())
            buckets.append(_bucket(queries, queries, None, self.device))
        for members in _similar_groups(responses, overhead):
            before, is_before = _padded_ranges(prompt_end[prompt_of[members]], prompt_end[prompt_of[members] + 1])
            queries, is_query = _padded_ranges(response_end[members], response_end[members + 1])
            keys = np.concatenate([before, queries], axis=1)
            places.add(keys, np.concatenate([is_before, is_query], axis=1))
            is_token.append(is_query.ravel())
            is_padding = np.concatenate([~is_before, np.zeros(queries.shape, dtype=bool)], axis=1)
            buckets.append(_bucket(queries, keys, is_padding if is_padding.any() else None, self.device))
        query_tokens = torch.cat([bucket.queries.flatten() for bucket in buckets])
        query_is_token = np.concatenate(is_token)
        query_places = np.empty(response_end[-1], dtype=np.int64)
        query_places[query_tokens.cpu().numpy()[query_is_token]] = np.flatnonzero(query_is_token)
        first, others = places.by_token(prompt_end[-1], each)
        return Regrouping(
            buckets=tuple(buckets),
            query_tokens=query_tokens,
            query_places=torch.from_numpy(query_places).to(self.device),
            query_is_token=torch.from_numpy(query_is_token).to(self.device),
            has_padding=not query_is_token.all(),
            key_tokens=torch.cat([bucket.keys.flatten() for bucket in buckets]),
            key_places=torch.from_numpy(first).to(self.device),
            prompt_key_places=torch.from_numpy(others).to(self.device),
        )


class _KeyPlaces:
    """Collects where tokens occur among the keys of buckets."""

    def __init__(self) -> None:
        self.count = 0
        self.token: list[np.ndarray] = []
        self.place: list[np.ndarray] = []

    def add(self, keys: np.ndarray, is_token: np.ndarray) -> None:
        """The keys [G, K] of the next bucket."""
        place = np.flatnonzero(is_token)
        self.token.append(keys.ravel()[place])
        self.place.append(self.count + place)
        self.count += keys.size

    def by_token(self, prompt_tokens: int, responses: int) -> tuple[np.ndarray, np.ndarray]:
        """The first place of each token, and the other ones [responses, prompt_tokens] of the prompt tokens."""
        token = np.concatenate(self.token)
        place = np.concatenate(self.place)[np.argsort(token, kind="stable")]
        # A prompt token occurs in its prompt and before each response; a response token once.
        of_prompts = place[: prompt_tokens * (1 + responses)].reshape(prompt_tokens, 1 + responses)
        first = np.concatenate([of_prompts[:, 0], place[of_prompts.size :]])
        return first, np.ascontiguousarray(of_prompts[:, 1:].T)


def _similar_groups(shapes: Sequence[tuple[int, int]], overhead: int | None) -> list[np.ndarray]:
    """Positions of the groups of each bucket; groups without queries are left out.

    Args:
        shapes: (keys before the queries, queries) of each group.
        overhead: see `AttentionMap.regrouping`.
    """
    positions = [g for g, (_, queries) in enumerate(shapes) if queries]
    if overhead is None:
        return [np.array(positions)] if positions else []
    positions.sort(key=lambda g: (-sum(shapes[g]), -shapes[g][1], g))
    buckets: list[list[int]] = []
    widest = (0, 0)
    for g in positions:
        before, queries = shapes[g]
        joined = (max(widest[0], before), max(widest[1], queries))
        if buckets:
            count = len(buckets[-1])
            added = (count + 1) * _scores(joined) - count * _scores(widest) - _scores(shapes[g])
        if not buckets or added > overhead:
            buckets.append([])
            joined = shapes[g]
        buckets[-1].append(g)
        widest = joined
    return [np.array(bucket) for bucket in buckets]


def _scores(shape: tuple[int, int]) -> int:
    before, queries = shape
    return queries * (before + queries)


def _bucket(queries: np.ndarray, keys: np.ndarray, key_is_padding: np.ndarray | None, device: torch.device) -> Bucket:
    return Bucket(
        queries=torch.from_numpy(queries).to(device),
        keys=torch.from_numpy(keys).to(device),
        key_is_padding=None if key_is_padding is None else torch.from_numpy(key_is_padding).to(device),
    )


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
            attention_map=AttentionMap([item.shared for item in items], response_lengths),
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


def _padded_ranges(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of tokens as rows, padded with 0, and a mask that is true at tokens."""
    column = np.arange((ends - starts).max(initial=0))
    is_token = column < (ends - starts)[:, None]
    return np.where(is_token, starts[:, None] + column, 0), is_token


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
