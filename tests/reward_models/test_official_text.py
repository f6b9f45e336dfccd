"""Tokens as in the official scripts: rendered, tokenized as text, cut at one side."""

from types import SimpleNamespace

import numpy as np
import pytest

from rm_methods.preferences.pair import Message
from rm_methods.reward_models.template_probe import conversation, render
from rm_methods.reward_models.tokenization import ChatTokenizer, OfficialText

PROMPT: list[Message] = [{"role": "user", "content": "one two three four five six seven eight nine ten " * 6}]
RESPONSES = ("yes", "no " * 40)


@pytest.fixture
def official(tokenizer):
    """Makes a tokenizer that follows an official script; the shared one stays as it is."""

    def make(max_length, side="left", keeps_double_bos=False):
        mine = ChatTokenizer(tokenizer.tokenizer, tokenizer.max_length)
        mine.official = OfficialText(max_length, side, keeps_double_bos)
        return mine

    return make


def expected(tokenizer, response, **options):
    """What `tokenizer(rendered text, truncation=True)` of the scripts gives."""
    text = render(tokenizer.tokenizer, conversation(PROMPT, response))
    return tokenizer.tokenizer(text, **options)["input_ids"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_long_texts_are_cut_at_one_side_and_marked(official, side):
    mine = official(64, side)
    (item,) = mine.encode([(PROMPT, RESPONSES)])
    before = mine.tokenizer.truncation_side
    for response, ids in zip(RESPONSES, item.sequences, strict=True):
        whole = expected(mine, response)
        assert len(whole) > 64
        assert ids.tolist() == (whole[-64:] if side == "left" else whole[:64])
    left = side == "left"
    assert item.prompt_cut == (left, left)
    assert item.response_cut == (not left, not left)
    assert mine.tokenizer.truncation_side == before


def test_without_a_limit_nothing_is_cut_and_the_prompt_is_shared(official, tokenizer):
    mine = official(None)
    (item,) = mine.encode([(PROMPT, RESPONSES)])
    (plain,) = ChatTokenizer(tokenizer.tokenizer, 10_000).encode([(PROMPT, RESPONSES)])
    assert item.truncated == (False, False)
    assert item.shared == plain.shared
    for ids, expected_ids in zip(item.sequences, plain.sequences, strict=True):
        assert ids.tolist() == expected_ids.tolist()
    assert item.conversations == plain.conversations


class AddsStart:
    """A tokenizer that puts a start token before each text, as those of Llama do."""

    def __init__(self, tokenizer):
        self.inner = tokenizer
        self.bos_token_id = tokenizer("a")["input_ids"][0]
        self.truncation_side = "right"

    def __call__(self, texts, return_offsets_mapping=False, **options):
        rows = [self.inner(text, return_offsets_mapping=True, add_special_tokens=False) for text in texts]
        return {
            "input_ids": [[self.bos_token_id, self.bos_token_id, *row["input_ids"]] for row in rows],
            "offset_mapping": [[(0, 0), (0, 0), *row["offset_mapping"]] for row in rows],
        }


@pytest.mark.parametrize(("keeps", "starts"), [(True, 2), (False, 1)])
def test_the_second_of_two_start_tokens_stays_only_where_the_script_leaves_it(tokenizer, keeps, starts):
    reader = SimpleNamespace(tokenizer=AddsStart(tokenizer.tokenizer))
    rules = OfficialText(None, "right", keeps)
    (item,) = ChatTokenizer._official_items(reader, [([], ("b",))], ["a b"], [2], rules)
    start = reader.tokenizer.bos_token_id
    assert np.count_nonzero(item.sequences[0][:3] == start) - (item.sequences[0][starts] == start) == starts
    assert len(item.sequences[0]) == starts + len(tokenizer.tokenizer("a b", add_special_tokens=False)["input_ids"])
