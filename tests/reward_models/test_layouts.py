import numpy as np
import pytest
import torch

from rm_methods.reward_models.layouts import attention_allowed, cheaper_layout, lay_out, packed_length
from rm_methods.reward_models.tokenization import TokenizedItem


def item(prompt, *responses):
    sequences = tuple(np.array([*prompt, *r], dtype=np.int32) for r in responses)
    no = (False,) * len(responses)
    return TokenizedItem(sequences, len(prompt), no, no)


def test_packed_row_by_hand():
    batch = lay_out([item([1, 2], [3, 4, 5], [6]), item([7], [8], [9, 10])], "packed", pad_id=0)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2], [0, 1, 1, 2, 0, 0]]
    assert batch.segment_ids.tolist() == [[0, 0, 1, 1, 1, 2], [0, 1, 2, 2, -1, -1]]
    assert list(zip(batch.read_row.tolist(), batch.read_column.tolist(), strict=True)) == [(0, 4), (0, 5), (1, 1), (1, 3)]
    assert (batch.real_tokens, batch.launched_tokens) == (10, 12)


def test_plain_rows_by_hand():
    batch = lay_out([item([1, 2], [3, 4, 5], [6])], "plain", pad_id=0)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 6, 0, 0]]
    assert batch.segment_ids is None
    assert batch.read_column.tolist() == [4, 2]
    left = lay_out([item([1, 2], [3, 4, 5], [6])], "plain", pad_id=0, padding_side="left")
    assert left.input_ids.tolist() == [[1, 2, 3, 4, 5], [0, 0, 1, 2, 6]]
    assert left.read_column.tolist() == [4, 4]


def test_mask_by_hand():
    allowed = attention_allowed(torch.tensor([[0, 1, 1, 2, -1]]))[0, 0].int().tolist()
    assert allowed == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],  # the second response sees the prompt, not the first response
        [0, 0, 0, 0, 1],  # padding sees itself only
    ]


def test_packing_is_chosen_for_long_prompts_and_not_for_long_responses():
    assert cheaper_layout(item([1] * 400, [1] * 20, [1] * 20), hidden_size=576) == "packed"
    assert cheaper_layout(item([1] * 20, [1] * 900, [1] * 900), hidden_size=576) == "plain"


def test_packed_length():
    assert packed_length(item([1, 2], [3, 4, 5], [6])) == 6


def test_left_padding_is_for_plain_rows_only():
    with pytest.raises(ValueError, match="plain"):
        lay_out([item([1], [2], [3])], "packed", 0, padding_side="left")
