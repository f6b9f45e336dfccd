"""Policies: rendering of prompts, decoding of responses, saving and loading, unusable folders."""

from __future__ import annotations

import json

import pytest
import torch

from rm_methods.errors import UserError
from rm_methods.policies.policy import Policy, load_policy, make_policy, policy_from_backbone, prompts_of, save_policy
from rm_methods.policies.sft import response_token_ids
from rm_methods.preferences.pair import make_pair
from rm_methods.reward_models.model_folder import CHECKSUMS

PROMPT = [{"role": "user", "content": "paint it red, please"}]


@pytest.fixture(scope="module")
def policy(prepared) -> Policy:
    return policy_from_backbone(prepared[1], prepared[2]["backbone"], seed=0)


@pytest.fixture
def folder(policy, tmp_path):
    """An exported policy without checksums, so that tests may change its files."""
    save_policy(policy, tmp_path / "policy")
    (tmp_path / "policy" / CHECKSUMS).unlink()
    return tmp_path / "policy"


def change(file, **values):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in (content | values).items() if v != "absent"}))


def test_prompt_and_response_ids_are_those_of_the_whole_conversation(policy):
    for response in ("It is now red.", "red", "", " two  blanks\n", "äöü 漢字"):
        conversation = [*PROMPT, {"role": "assistant", "content": response}]
        whole = policy.tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False)
        prompt_ids = policy.encode_prompts([PROMPT], 100)[0][0]
        ids, merged = response_token_ids(policy, PROMPT, prompt_ids, response)
        assert prompt_ids + ids == whole
        assert not merged
        assert whole.count(policy.tokenizer.bos_token_id) == 1
        assert policy.decode(ids) == response


def test_text_after_the_first_end_token_and_special_tokens_are_not_part_of_the_response(policy):
    red, blue = (policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("red", "blue"))
    user = policy.tokenizer.convert_tokens_to_ids("<user>")
    assert policy.decode([*red, user, policy.end_ids[0], *blue, policy.end_ids[0]]) == "red"


def test_long_prompts_lose_their_oldest_turns_and_are_marked(policy):
    turns = [{"role": ("user", "assistant")[k % 2], "content": f"turn {k} " + "and so on " * 10} for k in range(5)]
    whole, whole_cut = policy.encode_prompts([turns], 1000)
    ids, cut = policy.encode_prompts([turns, PROMPT], 60)
    assert (whole_cut, cut) == ([False], [True, False])
    assert len(whole[0]) > 60 >= len(ids[0])
    text = policy.tokenizer.decode(ids[0])
    assert "turn 4" in text
    assert "turn 0" not in text
    assert text.endswith("<assistant>")


def test_a_prompt_that_just_fits_is_not_cut(policy):
    ids = policy.encode_prompts([PROMPT], 1000)[0][0]
    assert policy.encode_prompts([PROMPT], len(ids)) == ([ids], [False])
    assert policy.encode_prompts([PROMPT], len(ids) - 1)[1] == [True]


def test_no_room_for_the_template_is_an_error(policy):
    with pytest.raises(UserError, match="max_prompt_tokens = 2 is too small"):
        policy.encode_prompts([PROMPT], 2)


def test_more_tokens_than_positions_are_refused(policy):
    with pytest.raises(UserError, match="more than the 512 positions"):
        policy.check_room([[1] * 500], 13)
    policy.check_room([[1] * 500], 12)


def test_a_policy_is_read_with_the_attention_that_is_asked_for(folder):
    eager, default = load_policy(folder, attention="eager").model, load_policy(folder).model
    assert (eager.config._attn_implementation, default.config._attn_implementation) == ("eager", "sdpa")
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        assert torch.allclose(eager(ids).logits, default(ids).logits, atol=1e-4)


def test_a_saved_policy_is_a_plain_folder_that_anybody_can_load(policy, folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    assert (folder / "model.safetensors").exists()
    again, model = load_policy(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert again.end_ids == policy.end_ids == (policy.tokenizer.eos_token_id,)
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])
        assert torch.equal(weight, model.state_dict()[name])
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.pad_token_id == AutoTokenizer.from_pretrained(folder).pad_token_id == policy.pad_id
    assert generation.eos_token_id == list(policy.end_ids)
    assert generation.top_k == 0
    assert not again.model.training


def test_the_end_token_is_what_the_template_closes_a_response_with(prepared):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepared[1])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "{{ '<turn>\\n' }}")
    model = policy_from_backbone(prepared[1], prepared[2]["backbone"], 0).model
    model.resize_token_embeddings(len(tokenizer))
    policy = make_policy(model, tokenizer)
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    assert policy.end_ids == (turn, tokenizer.eos_token_id)
    ids, merged = response_token_ids(policy, PROMPT, policy.encode_prompts([PROMPT], 100)[0][0], "red")
    assert ids[-1] == turn
    assert not merged


def test_a_template_that_leaves_thoughts_out_does_not_teach_another_response_and_gets_a_fixed_date(prepared):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepared[1])
    shortened = tokenizer.chat_template.replace("message['content']", "message['content'].split('</think>')[-1]")
    tokenizer.chat_template = "{{ strftime_now('%d %B') }}" + shortened
    policy = make_policy(policy_from_backbone(prepared[1], prepared[2]["backbone"], 0).model, tokenizer)
    (prompt_ids,), _ = policy.encode_prompts([PROMPT], 100)
    assert policy.tokenizer.decode(prompt_ids).startswith("26 July")
    ids, merged = response_token_ids(policy, PROMPT, prompt_ids, "<think>A color.</think>red")
    assert policy.decode(ids) == "<think>A color.</think>red"
    assert merged
    assert not response_token_ids(policy, PROMPT, prompt_ids, "red")[1]


def test_a_missing_folder_and_a_folder_without_model_say_so(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_policy(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_policy(tmp_path)


def test_a_reward_model_is_not_a_policy(reward_model, tokenizer, tmp_path):
    reward_model.classifier.save_pretrained(tmp_path)
    tokenizer.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"missing: lm_head\.weight; .* Is this a reward model\? A language model needs"
    ):
        load_policy(tmp_path)


def test_a_tokenizer_without_chat_template_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        load_policy(folder)


def test_a_policy_without_end_token_names_where_to_set_one(folder):
    change(folder / "tokenizer_config.json", eos_token="absent")
    change(folder / "generation_config.json", eos_token_id="absent")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    )
    change(folder / "config.json", eos_token_id=None)
    with pytest.raises(UserError, match=r"no end token is named.*Set eos_token"):
        load_policy(folder)


def test_a_pad_token_that_ends_a_response_is_refused(folder):
    change(folder / "tokenizer_config.json", pad_token="<eos>")
    with pytest.raises(UserError, match="the pad token '<eos>' also ends a response"):
        load_policy(folder)


def test_prompts_of_pairs_are_each_there_once_in_their_order():
    pairs = [
        make_pair([{"role": "user", "content": text}], "a", "b", split="train", source="s") for text in ("x", "y", "x")
    ]
    pairs.append(make_pair([{"role": "user", "content": "x"}], "c", "d", split="train", source="s"))
    prompts = prompts_of(pairs)
    assert [prompt.messages[0]["content"] for prompt in prompts] == ["x", "y"]
    assert [prompt.prompt_id for prompt in prompts] == [pairs[0].group, pairs[1].group]


def test_a_policy_whose_weights_changed_since_its_export_is_refused(policy, tmp_path):
    save_policy(policy, tmp_path / "policy")
    weights = tmp_path / "policy" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1000:] = bytes(1000)
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors changed since the folder was written"):
        load_policy(tmp_path / "policy")
