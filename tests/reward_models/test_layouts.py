import numpy as np
import pytest
import torch

from rm_methods.reward_models.layouts import launched_tokens, lay_out, packed_length, token_positions
from rm_methods.reward_models.tokenization import TokenizedItem


def item(prompt, *responses):
    sequences = tuple(np.array([*prompt, *r], dtype=np.int32) for r in responses)
    no = (False,) * len(responses)
    return TokenizedItem(sequences, len(prompt), no, no)


TWO_ITEMS = [item([1, 2], [3, 4, 5], [6]), item([7], [8], [9, 10])]


def test_packed_tokens_by_hand():
    batch = lay_out(TWO_ITEMS, "packed", pad_id=0)
    assert batch.input_ids.tolist() == [[1, 2, 7, 3, 4, 5, 6, 8, 9, 10]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 2, 3, 4, 2, 1, 1, 2]]
    assert batch.read_row.tolist() == [0] * 4
    assert batch.read_column.tolist() == [5, 6, 7, 9]
    assert (batch.real_tokens, batch.launched_tokens) == (10, 10)


def test_regrouping_by_hand():
    regrouping = lay_out(TWO_ITEMS, "packed", pad_id=0).attention_map.regrouping()
    prompts, responses = regrouping.buckets
    assert prompts.queries.tolist() == prompts.keys.tolist() == [[0, 1], [2, 0]]
    assert prompts.key_is_padding is None
    # A kernel computes whole prompts as causal attention, without a mask.
    assert prompts.bias(torch.float32) is None
    assert responses.queries.tolist() == [[3, 4, 5], [6, 0, 0], [7, 0, 0], [8, 9, 0]]
    assert responses.keys.tolist() == [[0, 1, 3, 4, 5], [0, 1, 6, 0, 0], [2, 0, 7, 0, 0], [2, 0, 8, 9, 0]]
    # The second item's prompt is one token long: its padding is never attended to.
    assert responses.key_is_padding.int().tolist() == [[0, 0, 0, 0, 0]] * 2 + [[0, 1, 0, 0, 0]] * 2
    visible = (responses.bias(torch.float32) == 0)[2, 0].int()
    assert visible.tolist() == [[1, 0, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 1, 1, 1]]
    assert regrouping.query_tokens.tolist() == [0, 1, 2, 0, 3, 4, 5, 6, 0, 0, 7, 0, 0, 8, 9, 0]
    assert regrouping.query_tokens[regrouping.query_places].tolist() == list(range(10))
    assert regrouping.query_is_token.sum() == 10


@pytest.mark.parametrize("overhead", [None, 0, 3, 10**6])
def test_every_place_of_a_token_is_known(overhead):
    regrouping = lay_out(TWO_ITEMS, "packed", pad_id=0).attention_map.regrouping(overhead)
    assert regrouping.key_tokens[regrouping.key_places].tolist() == list(range(10))
    assert regrouping.key_tokens[regrouping.prompt_key_places].tolist() == [[0, 1, 2]] * 2
    # Its own prompt or response, and for a prompt token once before each response.
    known = sorted([*regrouping.key_places.tolist(), *regrouping.prompt_key_places.flatten().tolist()])
    assert len(set(known)) == 10 + 2 * 3
    assert sorted(regrouping.query_tokens[regrouping.query_is_token].tolist()) == list(range(10))
    assert regrouping.has_padding == (not regrouping.query_is_token.all())


def test_plain_rows_by_hand():
    batch = lay_out([item([1, 2], [3, 4, 5], [6])], "plain", pad_id=0)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 6, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 0]]
    assert batch.attention_map is None
    assert batch.read_column.tolist() == [4, 2]
    assert (batch.real_tokens, batch.launched_tokens) == (6, 10)


def test_launched_tokens():
    assert packed_length(TWO_ITEMS[0]) == 6
    assert launched_tokens(TWO_ITEMS, "packed") == 6 + 4
    assert launched_tokens(TWO_ITEMS, "plain") == 4 * 5


def test_token_positions_by_hand():
    packed = [positions.tolist() for positions in token_positions(TWO_ITEMS, "packed")]
    assert packed == [[0, 1, 3, 4, 5], [0, 1, 6], [2, 7], [2, 8, 9]]
    plain = [positions.tolist() for positions in token_positions(TWO_ITEMS, "plain")]
    assert plain == [[0, 1, 2, 3, 4], [5, 6, 7], [10, 11], [15, 16, 17]]


@pytest.mark.parametrize("layout", ["packed", "plain"])
def test_token_positions_point_at_the_tokens_of_the_sequences(layout):
    tokens = lay_out(TWO_ITEMS, layout, pad_id=0).input_ids.flatten().numpy()
    sequences = [sequence for two_item in TWO_ITEMS for sequence in two_item.sequences]
    for positions, sequence in zip(token_positions(TWO_ITEMS, layout), sequences, strict=True):
        np.testing.assert_array_equal(tokens[positions], sequence)
