"""Conversations with tools in every kind of model: packed rows, joint rows, encoders, the tiny backbone, policies."""

from __future__ import annotations

import pytest
import torch

from rm_methods.errors import UserError
from rm_methods.interaction.teacher_maps import PairAlignments
from rm_methods.methods.joint_encoder import _words
from rm_methods.policies.policy import prompts_of_split, refuse_tools
from rm_methods.preferences.pair import make_pair
from rm_methods.preferences.tool_calls import stored_tools, with_records
from rm_methods.reward_models.encoder_model import TextPairReader
from rm_methods.reward_models.joint_reader import DecoderReader, EncoderReader, pair_text
from rm_methods.reward_models.layouts import lay_out
from rm_methods.reward_models.response_tokens import response_tokens

USER = {"role": "user", "content": "Paint it red, please."}
TOOLS = stored_tools([{"type": "function", "function": {"name": "paint", "parameters": {}}}])


def call(color, text=""):
    return with_records(text, [{"name": "paint", "arguments": {"color": color}}])


PROMPT = [TOOLS, USER, {"role": "assistant", "content": call("red")}, {"role": "tool", "content": "done"}]
ITEMS = [
    ([TOOLS, USER], (call("red"), call("blue"))),
    ([TOOLS, USER], (call("red", "I paint."), "I cannot.")),
    (PROMPT, ("It is red.", "It is blue.")),
    ([USER], ("It is red.", "It is blue.")),
]


def test_packed_equals_plain(reward_model, tokenizer):
    items = tokenizer.encode(ITEMS)
    assert all(item.shared > 10 for item in items)
    with torch.no_grad():
        packed, plain = (reward_model(lay_out(items, layout, 0)).rewards for layout in ("packed", "plain"))
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=0)
    assert (packed[:, 0] != packed[:, 1]).all()


def test_joint_rows_of_a_decoder_are_the_sequences_of_the_chat_template(tokenizer):
    for item, joint in zip(tokenizer.encode(ITEMS), DecoderReader(tokenizer).encode(ITEMS), strict=True):
        first, second = (sequence.tolist() for sequence in item.sequences)
        assert joint.sequences[0].tolist() == first + second[item.shared :]
        assert joint.sequences[1].tolist() == second + first[item.shared :]


def test_encoders_read_tools_and_calls_as_json(pairs):
    pair = make_pair(*(ITEMS[1][0], *ITEMS[1][1]), split="train", source="x")
    words = _words([*pairs, pair], 1000)
    joint = EncoderReader(words, 200).encode([(pair.prompt, (pair.chosen, pair.rejected))])[0]
    text = words.decode(joint.sequences[0])
    assert text.index('" name " : " paint "') < text.index("please") < text.index('" color " : " red "')
    assert "[UNK]" not in text
    alone = TextPairReader(words, 200).encode([(pair.prompt, [pair.chosen])])[0]
    assert words.decode(alone.sequences[0]).endswith('" arguments " : { " color " : " red " } }')


def test_tokens_of_a_response_are_those_of_its_text_and_its_calls(tokenizer):
    items = tokenizer.encode(ITEMS[1:2])
    chosen, rejected = response_tokens(items, tokenizer)[0]
    assert tokenizer.tokenizer.decode(chosen) == 'I paint.\n{"name":"paint","arguments":{"color":"red"}}\n'
    assert tokenizer.tokenizer.decode(rejected) == "I cannot."


def test_text_beside_a_call_has_its_place_and_the_call_has_none(tokenizer):
    conversation = tokenizer.encode([(PROMPT, (call("red", "I paint."),))])[0].conversations[0]
    spans = tokenizer.text_spans(conversation)
    joined = "\n".join(message["content"] for message in conversation)
    texts = "".join(joined[start:end] for start, end in spans.tolist())
    assert texts == "Paint it red, please.doneI paint."


def test_pairs_with_tools_have_no_text_to_align(tokenizer):
    items = tokenizer.encode(ITEMS)
    assert [pair_text(tokenizer, item) is None for item in items] == [True, True, True, False]
    alignments = PairAlignments(items, tokenizer)
    assert alignments.counts["pairs_without_alignment"] == 3


@pytest.mark.parametrize(("with_tools", "size"), [(True, 2), (False, 0)])
def test_the_tiny_backbone_has_tokens_for_tools_if_its_pairs_have_tools(tmp_path, with_tools, size):
    from rm_methods.reward_models.backbones import load_tokenizer, prepare_backbone
    from tests.conftest import experiment_config

    section = experiment_config(tmp_path)["backbone"]
    chosen = call("red") if with_tools else "It is red."
    pair = make_pair([USER], chosen, "I cannot.", split="train", source="x")
    prepare_backbone(section, [pair], tmp_path / "backbone")
    vocabulary = load_tokenizer(tmp_path / "backbone", 256).tokenizer.get_vocab()
    assert len({"<tools>", "<tool>"} & vocabulary.keys()) == size


def test_policies_refuse_tools_with_a_sentence():
    pair = make_pair([TOOLS, USER], "Red.", "Blue.", split="test", source="x")
    with pytest.raises(UserError, match="Policies write text"):
        prompts_of_split([pair], "test", None)
    with pytest.raises(UserError, match="Policies write text"):
        refuse_tools([USER], [call("red")])
    refuse_tools([USER], ["Red."])
