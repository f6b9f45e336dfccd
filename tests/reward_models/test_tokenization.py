import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_methods.errors import UserError
from rm_methods.reward_models.tokenization import ChatTokenizer, RefusedConversations

USER = [{"role": "user", "content": "Paint it red, please."}]


def apply_template(tokenizer, prompt, response):
    messages = [*prompt, {"role": "assistant", "content": response}]
    return list(tokenizer.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])


def test_ids_are_those_of_the_chat_template_with_one_bos(tokenizer):
    item = tokenizer.encode([(USER, ["It is red.", "No."])])[0]
    assert [s.tolist() for s in item.sequences] == [apply_template(tokenizer, USER, r) for r in ("It is red.", "No.")]
    bos = tokenizer.tokenizer.bos_token_id
    assert all((s == bos).sum() == 1 and s[0] == bos for s in item.sequences)


def test_shared_part_ends_where_the_responses_begin(tokenizer):
    item = tokenizer.encode([(USER, ["It is red.", "It was blue."])])[0]
    prompt = tokenizer.tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    assert tokenizer.tokenizer.decode(item.sequences[0][: item.shared]) == prompt


@settings(max_examples=60)
@given(prompt=st.text(max_size=40), responses=st.lists(st.text(max_size=40), min_size=1, max_size=3))
def test_any_text_shares_exactly_a_common_prefix_and_leaves_every_response_a_token(tokenizer, prompt, responses):
    item = tokenizer.encode([([{"role": "user", "content": prompt}], responses)])[0]
    first = item.sequences[0][: item.shared]
    assert all(np.array_equal(s[: item.shared], first) and len(s) > item.shared for s in item.sequences)
    assert not any(item.truncated)
    for response, sequence in zip(responses, item.sequences, strict=True):
        assert sequence.tolist() == apply_template(tokenizer, [{"role": "user", "content": prompt}], response)


def conversation(turns):
    roles = ["user", "assistant"]
    return [{"role": roles[k % 2], "content": f"turn {k}: " + "red " * 20} for k in range(turns)]


def test_oldest_turns_are_dropped_first_and_the_rest_stays_whole(tokenizer):
    short = ChatTokenizer(tokenizer.tokenizer, 128)
    prompt = conversation(9)
    item = short.encode([(prompt, ["It is red."])])[0]
    text = tokenizer.tokenizer.decode(item.sequences[0])
    assert item.prompt_cut == (True,)
    assert item.response_cut == (False,)
    assert len(item.sequences[0]) <= 128
    assert prompt[-1]["content"] in text
    assert "It is red." in text
    assert "turn 0" not in text
    assert text.startswith("<bos><user>turn ")


def test_system_turn_survives_the_cut(tokenizer):
    short = ChatTokenizer(tokenizer.tokenizer, 128)
    item = short.encode([([{"role": "system", "content": "Be kind."}, *conversation(9)], ["Yes."])])[0]
    assert "<system>Be kind." in tokenizer.tokenizer.decode(item.sequences[0])


def test_a_single_long_turn_loses_its_start_not_its_end(tokenizer):
    short = ChatTokenizer(tokenizer.tokenizer, 64)
    prompt = [{"role": "user", "content": "first " + "red " * 200 + "last"}]
    item = short.encode([(prompt, ["It is red."])])[0]
    text = tokenizer.tokenizer.decode(item.sequences[0])
    assert item.prompt_cut == (True,)
    assert "first" not in text
    assert "red last<eos><assistant>It is red.<eos>" in text


def test_a_response_too_long_is_cut_at_its_end_and_marked_and_keeps_the_closing_token(tokenizer):
    short = ChatTokenizer(tokenizer.tokenizer, 64)
    item = short.encode([(USER, ["start " + "blue " * 300 + "end", "It is red."])])[0]
    text = tokenizer.tokenizer.decode(item.sequences[0])
    assert item.response_cut == (True, False)
    assert len(item.sequences[0]) <= 64
    assert "start" in text
    assert "end" not in text
    assert item.sequences[0][-1] == tokenizer.tokenizer.eos_token_id
    # The other response is not touched: a score never depends on a sibling.
    assert item.sequences[1].tolist() == short.encode([(USER, ["It is red."])])[0].sequences[0].tolist()


def test_a_template_that_prints_bos_twice_is_refused(tokenizer):
    double = copy.deepcopy(tokenizer.tokenizer)
    double.chat_template = "{{ bos_token }}" + double.chat_template
    with pytest.raises(UserError, match="BOS token twice"):
        ChatTokenizer(double, 64)


def test_a_missing_template_is_refused_with_what_to_do(tokenizer):
    bare = copy.deepcopy(tokenizer.tokenizer)
    bare.chat_template = None
    with pytest.raises(UserError, match=r"backbone\.chat_template"):
        ChatTokenizer(bare, 64)


def test_a_template_error_counts_the_conversations_and_names_their_roles(tokenizer):
    strict = copy.deepcopy(tokenizer.tokenizer)
    strict.chat_template = (
        "{% if messages|length > 2 %}{{ raise_exception('roles must alternate') }}{% endif %}" + strict.chat_template
    )
    chat = ChatTokenizer(strict, 64)
    with pytest.raises(
        RefusedConversations, match=r"refuses 1 of 2 .*user user assistant.*roles must alternate"
    ) as caught:
        chat.encode([(USER, ["a", "b"]), ([*USER, *USER], ["b"])])
    assert list(caught.value.reasons) == [1]
    assert caught.value.naming(["first", "second"], "Leave it out.").endswith("Refused: second. Leave it out.")


def test_text_that_the_template_leaves_out_is_marked(tokenizer):
    strips = copy.deepcopy(tokenizer.tokenizer)
    strips.chat_template = strips.chat_template.replace(
        "message['content']", "message['content'].split('</think>')[-1].strip()"
    )
    chat = ChatTokenizer(strips, 256)
    thinking = "<think>Red is a color.</think> It is red."
    item = chat.encode([(USER, [thinking, " It is red. ", "It is\n red."])])[0]
    assert item.response_changed == (True, False, False)
    assert item.prompt_changed == (False, False, False)
    item = chat.encode([([*USER, {"role": "assistant", "content": thinking}, *USER], ["Yes."])])[0]
    assert item.prompt_changed == (True,)
    assert item.response_changed == (False,)


def test_the_hash_notices_template_special_tokens_and_their_treatment(tokenizer):
    plain = copy.deepcopy(tokenizer.tokenizer)
    plain.chat_template = "{% if messages|length > 2 %}{{ bos_token }}{% endif %}" + plain.chat_template.replace(
        "{{ bos_token }}", ""
    )
    hashes = {ChatTokenizer(plain, 64).hash(), ChatTokenizer(copy.deepcopy(plain), 128).hash()}
    assert len(hashes) == 1
    for attribute, value in (
        ("bos_token", "<pad>"),
        ("split_special_tokens", True),
        ("chat_template", plain.chat_template + "{{ eos_token }}"),
    ):
        other = copy.deepcopy(plain)
        setattr(other, attribute, value)
        hashes.add(ChatTokenizer(other, 64).hash())
    assert len(hashes) == 4
