"""How tokenised items are laid out as rows of a batch.

Packed: one row per item, `[prompt | response_1 | ... | response_N]`.  The prompt is computed once; every response attends to the
prompt and to itself; positions restart after the prompt; the reward is read at each response's last token.
Plain: one row per response, `[prompt | response_k]`, ordinary causal attention; the reference that the packed layout equals.

Both are right-padded and read by explicit length, never by comparing ids with the pad token.
Shapes: R rows, L padded length, S = pairs x N sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rm_methods.reward_models.tokenization import TokenizedItem

PAD_SEGMENT = -1
PROMPT_SEGMENT = 0

# Cost of one attended (query, key) position relative to one token through the linear layers, for a transformer of hidden size h:
# 4 h against 24 h^2 multiply-adds a layer, so 1 / (6 h).
_ATTENTION_COST = 1 / 6


@dataclass
class SequenceBatch:
    """Rows of token ids, and where to read the rewards.

    Attributes:
        input_ids: int64 [R, L].
        position_ids: int64 [R, L]; positions restart after the prompt in every response.
        segment_ids: int64 [R, L], PAD_SEGMENT, PROMPT_SEGMENT or 1..N for the response; None in the plain layout, where causal
            attention alone is right (right padding lies behind every real token).
        read_row, read_column: int64 [S], where sequence s ends, items in order, responses of an item in order.
        responses: N, the same for all items of the batch.
        real_tokens, launched_tokens: tokens without and with padding.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segment_ids: torch.Tensor | None
    read_row: torch.Tensor
    read_column: torch.Tensor
    responses: int
    real_tokens: int = 0
    launched_tokens: int = 0

    def to(self, device: torch.device | str):
        """The same batch with all tensors on `device`."""
        moved = {name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **moved)


@dataclass
class PairBatch(SequenceBatch):
    """A micro-batch of preference pairs: N = 2, response 1 is chosen, response 2 is rejected.

    Attributes:
        margin, target, weight: fp32 [pairs], from the pairs (see PreferencePair).
        pair_ids: for error messages and per-pair records.
    """

    margin: torch.Tensor = None
    target: torch.Tensor = None
    weight: torch.Tensor = None
    pair_ids: tuple[str, ...] = ()


def packed_length(item: TokenizedItem) -> int:
    """Tokens of an item in the packed layout."""
    return item.shared + sum(length - item.shared for length in item.lengths)


def row_lengths(item: TokenizedItem, layout: str) -> list[int]:
    """Lengths of the rows that an item takes."""
    return [packed_length(item)] if layout == "packed" else list(item.lengths)


def cheaper_layout(item: TokenizedItem, hidden_size: int) -> str:
    """Which layout computes an item with less work, for a backbone of `hidden_size`.

    Packing saves the prompt's tokens but its masked attention computes the whole L x L square; plain rows use causal attention,
    which skips the upper half.  Long responses to a short prompt are therefore cheaper in plain rows.
    """
    attention = _ATTENTION_COST / hidden_size
    packed = packed_length(item)
    packed_cost = packed + attention * packed**2
    plain_cost = sum(length + attention * length**2 / 2 for length in item.lengths)
    return "packed" if packed_cost <= plain_cost else "plain"


def lay_out(items: Sequence[TokenizedItem], layout: str, pad_id: int, padding_side: str = "right") -> SequenceBatch:
    """Build the batch of `items`, which must all have the same number of responses.

    Args:
        layout: "packed" or "plain".
        padding_side: "left" exists to test that the reward does not depend on it; only with the plain layout.
    """
    rows, positions, segments, read_row, read_column = [], [], [], [], []
    for item in items:
        if layout == "packed":
            ids, place, segment = [item.sequences[0][: item.shared]], [np.arange(item.shared)], [np.zeros(item.shared, dtype=np.int64)]
            end = item.shared
            for k, sequence in enumerate(item.sequences):
                length = len(sequence) - item.shared
                ids.append(sequence[item.shared :])
                place.append(np.arange(item.shared, item.shared + length))
                segment.append(np.full(length, k + 1, dtype=np.int64))
                end += length
                read_row.append(len(rows))
                read_column.append(end - 1)
            rows.append(np.concatenate(ids))
            positions.append(np.concatenate(place))
            segments.append(np.concatenate(segment))
        else:
            for sequence in item.sequences:
                read_row.append(len(rows))
                read_column.append(len(sequence) - 1)
                rows.append(sequence)
                positions.append(np.arange(len(sequence)))
    longest = max(map(len, rows))
    if padding_side == "left":
        if layout != "plain":
            raise ValueError("left padding is for the plain layout only")
        read_column = [longest - len(rows[r]) + c for r, c in zip(read_row, read_column, strict=True)]
        segments = [np.zeros(len(r), dtype=np.int64) for r in rows]
    return SequenceBatch(
        input_ids=_pad(rows, longest, pad_id, padding_side),
        position_ids=_pad(positions, longest, 0, padding_side),
        segment_ids=_pad(segments, longest, PAD_SEGMENT, padding_side) if segments else None,
        read_row=torch.tensor(read_row),
        read_column=torch.tensor(read_column),
        responses=len(items[0].sequences),
        real_tokens=sum(map(len, rows)),
        launched_tokens=len(rows) * longest,
    )


def attention_allowed(segment_ids: torch.Tensor) -> torch.Tensor:
    """The packed layout's attention mask.

    Args:
        segment_ids: int64 [R, L].

    Returns:
        bool [R, 1, L, L], True where query (third axis) may attend to key (fourth): causal, and the key is prompt or of the
        query's own response.  Padding attends to itself only, so that no row of the softmax is empty.
    """
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    length = segment_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    visible = ((key == PROMPT_SEGMENT) | (key == query)) & (query != PAD_SEGMENT) & causal
    visible |= torch.eye(length, dtype=torch.bool, device=segment_ids.device)
    return visible[:, None]


def _pad(rows: Sequence[np.ndarray], length: int, value: int, side: str) -> torch.Tensor:
    padded = np.full((len(rows), length), value, dtype=np.int64)
    for r, row in enumerate(rows):
        if side == "right":
            padded[r, : len(row)] = row
        else:
            padded[r, length - len(row) :] = row
    return torch.from_numpy(padded)
