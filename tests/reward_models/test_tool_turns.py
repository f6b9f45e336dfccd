"""Tools, tool calls and their results in the forms that well-known chat templates print."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from rm_methods.errors import DataError
from rm_methods.preferences.tool_calls import stored_tools, with_records
from rm_methods.reward_models.pair_encoding import encode_pairs
from rm_methods.reward_models.template_probe import render
from rm_methods.reward_models.tokenization import ChatTokenizer, RefusedConversations
from rm_methods.reward_models.tool_turns import without_last_arguments, without_oldest
from tests.conftest import made_up_pairs

# In the style of Qwen 2.5 and 3: several calls, results of one step in one user turn.
QWEN = (
    "{%- if tools %}{{- '<s>system\n' }}{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n' }}"
    "{%- endif %}"
    "{{- '<tools>' }}{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}{{- '\n</tools></s>\n' }}"
    "{%- elif messages[0].role == 'system' %}{{- '<s>system\n' + messages[0].content + '</s>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}"
    "{{- '<s>' + message.role + '\n' + message.content + '</s>\n' }}"
    "{%- elif message.role == 'assistant' %}"
    "{%- set content = message.content.split('</think>')[-1] %}{{- '<s>assistant\n' + content }}"
    "{%- if message.tool_calls %}{%- for tool_call in message.tool_calls %}"
    "{%- if (loop.first and content) or (not loop.first) %}{{- '\n' }}{%- endif %}"
    "{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}"
    '{{- \'<tool_call>\n{"name": "\' + tool_call.name + \'", "arguments": \' }}'
    "{%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}"
    "{%- endif %}{{- '}\n</tool_call>' }}{%- endfor %}{%- endif %}{{- eos_token + '\n' }}"
    "{%- elif message.role == 'tool' %}"
    "{%- if loop.first or (messages[loop.index0 - 1].role != 'tool') %}{{- '<s>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}{{- '</s>\n' }}{%- endif %}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<s>assistant\n' }}{%- endif %}"
)
# In the style of Llama 3.1: tools in the first user turn, one call a turn, no text beside it.
LLAMA = (
    "{{- bos_token }}{%- if not tools is defined %}{%- set tools = none %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{{- '[system]' + messages[0]['content'] + '[end]' }}"
    "{%- set messages = messages[1:] %}{%- endif %}"
    "{%- if tools is not none %}{{- '[user]' }}{%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\n\n' }}"
    "{%- endfor %}{{- messages[0]['content'] | trim + '[end]' }}{%- set messages = messages[1:] %}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}"
    "{{- '[' + message['role'] + ']' + message['content'] | trim + eos_token }}"
    "{%- elif 'tool_calls' in message %}{%- if not message.tool_calls | length == 1 %}"
    "{{- raise_exception('This model only supports single tool-calls at once!') }}{%- endif %}"
    "{%- set tool_call = message.tool_calls[0].function %}"
    '{{- \'[assistant]{"name": "\' + tool_call.name + \'", "parameters": \' }}'
    "{{- tool_call.arguments | tojson }}{{- '}' + eos_token }}"
    "{%- else %}{{- '[ipython]' }}"
    "{%- if message.content is mapping or (message.content is iterable and message.content is not string) %}"
    "{{- message.content | tojson }}{%- else %}{{- message.content }}{%- endif %}{{- '[end]' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %}"
)
# In the style of Hermes: schemas without their wrapper, results with the name of their tool.
HERMES = (
    "{{- bos_token }}{%- if tools %}{{- '<s>system\n<tools>' }}"
    "{%- for tool in tools %}{{- (tool.function if tool.function is defined else tool) | tojson }}{%- endfor %}"
    "{{- '</tools></s>' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' and message.tool_calls is defined %}{{- '<s>assistant\n' + message.content }}"
    "{%- for tool_call in message.tool_calls %}{{- '\n<tool_call>\n' }}{{- tool_call.function | tojson }}"
    "{{- '\n</tool_call>' }}{%- endfor %}{{- eos_token }}"
    "{%- elif message.role == 'tool' %}"
    "{{- '<s>tool\n<tool_response>' + message.name + ': ' + message.content + '</tool_response></s>' }}"
    "{%- else %}{{- '<s>' + message.role + '\n' + message.content + eos_token }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<s>assistant\n' }}{%- endif %}"
)
# In the style of Mistral: calls and results need ids of nine characters, and as many results as calls.
MISTRAL = (
    "{{- bos_token }}{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}{%- if tools is not none and message == users[-1] %}"
    "{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{{- '[INST]' + message.content + '[/INST]' }}"
    "{%- elif message.tool_calls is defined and message.tool_calls is not none %}{{- '[TOOL_CALLS][' }}"
    "{%- for tool_call in message.tool_calls %}{%- set out = tool_call.function | tojson %}{{- out[:-1] }}"
    "{%- if not tool_call.id is defined or tool_call.id | length != 9 %}"
    "{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}"
    "{{- ', \"id\": \"' + tool_call.id + '\"}' }}{%- endfor %}{{- ']' + eos_token }}"
    "{%- elif message.role == 'tool' %}"
    "{{- '[TOOL_RESULTS]{\"content\": ' + message.content + ', \"call_id\": \"' + message.tool_call_id + '\"}' }}"
    "{%- else %}{{- ' ' + message.content + eos_token }}{%- endif %}{%- endfor %}"
)
# In the style of DeepSeek R1: arguments as text, which are joined with "+".
DEEPSEEK = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{- '<user>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' and 'tool_calls' in message %}{{- '<assistant>' + message['content'] }}"
    "{%- for tool in message['tool_calls'] %}"
    "{{- '<call>' + tool['function']['name'] + '\n```json\n' + tool['function']['arguments'] + '\n```' }}{%- endfor %}"
    "{{- eos_token }}"
    "{%- elif message['role'] == 'tool' %}{{- '<output>' + message['content'] + '</output>' }}"
    "{%- else %}{{- '<assistant>' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
IGNORES = "{{ bos_token }}{% for m in messages %}{{ '<' + m.role + '>' + m.content + eos_token }}{% endfor %}"
IGNORES_RESULTS = QWEN.replace("{%- elif message.role == 'tool' %}", "{%- elif message.role == 'result' %}")

SCHEMA = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
USER = {"role": "user", "content": "Weather in Graz?"}
ANSWER = "It is 12 C."


def call(city="Graz", text="", call_id="abcdefg01", **arguments):
    """A turn with a call: as the user of a template writes it, and as it is stored."""
    arguments = {"city": city, **arguments}
    function = {"name": "weather", "arguments": arguments}
    given = {
        "role": "assistant",
        "content": text,
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }
    return given, {"role": "assistant", "content": with_records(text, [function | {"id": call_id}])}


def result(text="12 C", call_id="abcdefg01"):
    record = {"name": "weather", "tool_call_id": call_id}
    return {"role": "tool", "content": text, **record}, {"role": "tool", "content": with_records(text, [record])}


def plain(message):
    return message, message


@pytest.fixture
def chat(tokenizer):
    def make(template, max_length=2000):
        changed = copy.deepcopy(tokenizer.tokenizer)
        changed.chat_template = template
        return ChatTokenizer(changed, max_length)

    return make


def expected_ids(chat, messages, tools):
    return list(chat.tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=True)["input_ids"])


SYSTEM = {"role": "system", "content": "Be brief."}
STEP = [plain(USER), call(), result()]
CONVERSATIONS = {
    "a call is the response": ([plain(USER)], call()),
    "text and a call": ([plain(USER)], call(text="I look it up.")),
    "results in the prompt": (STEP, plain({"role": "assistant", "content": ANSWER})),
    "two exchanges": ([*STEP, plain({"role": "assistant", "content": ANSWER}), plain(USER)], call("Wien")),
    "two steps": ([*STEP, call("Wien"), result("9 C")], plain({"role": "assistant", "content": ANSWER})),
    "a system turn": ([plain(SYSTEM), *STEP], plain({"role": "assistant", "content": ANSWER})),
    "characters": ([plain(USER)], call('Zürich "7"', note="a\u001eb 河\n")),
}


@pytest.mark.parametrize("template", [QWEN, LLAMA, HERMES, MISTRAL], ids=["qwen", "llama", "hermes", "mistral"])
@pytest.mark.parametrize("with_tools", [True, False])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_are_those_of_the_chat_template(chat, template, with_tools, name):
    prompt, answer = CONVERSATIONS[name]
    reader = chat(template)
    tools = [SCHEMA] if with_tools else None
    stored = [stored_tools(tools)] if tools else []
    stored += [message for _, message in prompt]
    other = "I cannot know."
    item = reader.encode([(stored, [answer[1]["content"], other])])[0]
    given = [message for message, _ in prompt]
    assert item.sequences[0].tolist() == expected_ids(reader, [*given, answer[0]], tools)
    last = {"role": "assistant", "content": other}
    assert item.sequences[1].tolist() == expected_ids(reader, [*given, last], tools)
    assert not any(item.truncated)
    assert not any(item.prompt_changed)
    # These templates print no text beside a call: that is marked, as for thoughts.
    text_is_lost = template in (LLAMA, MISTRAL) and name == "text and a call"
    assert item.response_changed == (text_is_lost, False)
    assert 0 < item.shared < len(item.sequences[0])


def test_a_template_of_arguments_in_text_and_empty_content_gets_them(chat):
    reader = chat(DEEPSEEK)
    given, stored = call()
    given["tool_calls"][0]["function"]["arguments"] = '{"city":"Graz"}'
    item = reader.encode([([USER], [stored["content"]])])[0]
    assert item.sequences[0].tolist() == expected_ids(reader, [USER, given], None)
    assert reader.template["tools"] == {
        "schemas": "left out", "calls": "kept", "results": "kept", "arguments_as_text": True, "empty_content": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("template", "empty_content"), [(QWEN, True), (LLAMA, False), (HERMES, True), (MISTRAL, False)]
)
def test_templates_that_print_all_are_recognized(chat, template, empty_content):
    assert chat(template).template["tools"] == {
        "schemas": "kept", "calls": "kept", "results": "kept", "arguments_as_text": False,
        "empty_content": empty_content,
    }  # fmt: skip


def test_a_content_that_is_missing_gives_the_same_ids_where_the_template_takes_it(chat):
    reader = chat(LLAMA)
    given, stored = call()
    del given["content"]
    item = reader.encode([([USER], [stored["content"]])])[0]
    assert item.sequences[0].tolist() == expected_ids(reader, [USER, given], None)


def test_the_tiny_backbones_template_prints_tools_calls_and_results(tokenizer):
    given, stored = call(text="I look.")
    messages = [USER, given, result()[0], {"role": "assistant", "content": ANSWER}]
    text = tokenizer.tokenizer.apply_chat_template(messages, tools=[{"name": "weather"}], tokenize=False)
    assert text == (
        '<bos><tools>[{"name": "weather"}]<eos><user>Weather in Graz?<eos><assistant>I look.\n'
        '{"name": "weather", "arguments": {"city": "Graz"}}<eos><tool>12 C<eos><assistant>It is 12 C.<eos>'
    )
    prompt = [stored_tools([{"name": "weather"}]), USER, stored, result()[1]]
    assert render(tokenizer.tokenizer, [*prompt, messages[-1]]) == text


@pytest.mark.parametrize(
    ("template", "prompt", "response", "reason"),
    [
        (IGNORES, [stored_tools([SCHEMA]), USER], ANSWER, "the template does not print the tools"),
        (IGNORES, [USER], call()[1]["content"], "the template does not print tool calls"),
        (IGNORES, [USER, call()[1], result()[1]], ANSWER, "the template does not print tool calls"),
        (IGNORES_RESULTS, [USER, call()[1], result()[1]], ANSWER, "the template does not print results of tools"),
        (LLAMA, [USER], call()[1]["content"] + call("Wien")[1]["content"], "only supports single tool-calls at once"),
        (MISTRAL, [USER], call(call_id="x")[1]["content"], "IDs should be alphanumeric strings with length 9"),
    ],
)
def test_a_conversation_that_the_template_does_not_print_is_refused_and_no_other(
    chat, template, prompt, response, reason
):
    reader = chat(template)
    with pytest.raises(RefusedConversations, match="refuses 1 of 2 conversations") as caught:
        reader.encode([([USER], [ANSWER]), (prompt, [ANSWER + "!", response])])
    assert list(caught.value.reasons) == [1]
    assert reason in caught.value.reasons[1]


def test_calls_that_a_template_prints_only_beside_tools_are_refused_without_tools(chat):
    reader = chat(QWEN.replace("message.tool_calls %}{%- for", "tools and message.tool_calls %}{%- for"))
    assert reader.template["tools"]["calls"] == "kept"
    response = call()[1]["content"]
    assert len(reader.encode([([stored_tools([SCHEMA]), USER], [response])])) == 1
    with pytest.raises(RefusedConversations, match="does not print tool calls"):
        reader.encode([([USER], [response])])


def test_plain_text_that_looks_like_a_call_stays_text(chat):
    reader = chat(QWEN)
    for text in ('<tool_call>\n{"name": "weather"}\n</tool_call>', 'a\x1e{"name": "weather"}\n', "a\x1eb"):
        item = reader.encode([([USER], [text])])[0]
        assert item.sequences[0].tolist() == expected_ids(reader, [USER, {"role": "assistant", "content": text}], None)


# Cuts


def test_whole_exchanges_go_first_and_then_the_oldest_calls_with_their_results():
    user, (_, first), (_, second) = USER, call("Graz"), call("Wien")
    tool = result()[1]
    answer = {"role": "assistant", "content": ANSWER}
    turns = [user, first, tool, tool, second, tool, answer, user, first, tool, tool, second, tool]
    turns = without_oldest(turns)
    assert turns == [user, first, tool, tool, second, tool]
    turns = without_oldest(turns)
    assert turns == [user, second, tool]
    assert without_oldest(turns) is None
    assert without_oldest([user, answer, user]) == [user]
    assert without_oldest([user]) is None


@pytest.mark.parametrize(
    ("template", "max_length"),
    [(QWEN, 700), (QWEN, 520), (QWEN, 380), (LLAMA, 500), (LLAMA, 330), (LLAMA, 260), (HERMES, 520), (HERMES, 380)],
)
def test_a_cut_conversation_fits_and_is_one_that_the_template_prints(chat, template, max_length):
    reader = chat(template, max_length)
    long = {"role": "user", "content": "first " + "red " * 100 + "last"}
    turns = []
    for city in ("Graz", "Linz"):
        turns += [long, call(city)[1], result(f"{city}: " + "blue " * 40)[1], {"role": "assistant", "content": ANSWER}]
    turns += [long, call("Wien")[1], result("old")[1], call("Bonn")[1], result("new: " + "blue " * 80)[1]]
    prompt = [stored_tools([{"name": "weather"}]), *turns]
    item = reader.encode([(prompt, [call("Rom")[1]["content"], "It is red."])])[0]
    assert item.prompt_cut == (True, True)
    assert item.response_cut == (False, False)
    for conversation, sequence in zip(item.conversations, item.sequences, strict=True):
        assert len(sequence) <= max_length
        assert conversation[0] == prompt[0]
        roles = [message["role"] for message in conversation[1:]]
        assert roles[-3:] == ["assistant", "tool", "assistant"]
        assert roles[0] == "user"
        text = reader.rendered(conversation)
        assert "Bonn" in text
        assert ("Graz" in text, "Linz" in text) == (False, False)
        assert text.count("Wien") == text.count("old")
        assert reader.tokenizer(text, add_special_tokens=False)["input_ids"] == sequence.tolist()


def test_the_arguments_of_a_call_that_does_not_fit_are_emptied_and_that_is_a_cut_response(chat):
    reader = chat(QWEN, 128)
    long = call("Graz " * 200, text="I look.")[1]["content"]
    item = reader.encode([([USER], [long, call()[1]["content"]])])[0]
    assert item.response_cut == (True, False)
    assert max(item.lengths) <= 128
    assert '"arguments": {}' in reader.tokenizer.decode(item.sequences[0])


def test_tools_that_do_not_fit_are_a_refused_conversation(chat):
    reader = chat(QWEN, 128)
    tools = stored_tools([{"name": f"tool_{k}", "description": "red"} for k in range(50)])
    with pytest.raises(
        RefusedConversations, match=r"tools and template alone take \d+ tokens, more than 128"
    ) as caught:
        reader.encode([([USER], ["Yes."]), ([tools, USER], ["Yes."])])
    assert list(caught.value.reasons) == [1]


def test_pairs_refused_before_and_after_truncation_are_all_left_out_if_so_asked(chat):
    reader = chat(LLAMA, 128)
    tools = stored_tools([{"name": f"tool_{k}", "description": "red"} for k in range(50)])
    pairs = made_up_pairs(3)
    two_calls = call()[1]["content"] + call("Wien")[1]["content"]  # which this template refuses
    pairs[0] = replace(pairs[0], chosen=two_calls)
    pairs[1] = replace(pairs[1], prompt=[tools, *pairs[1].prompt])
    kept, items = encode_pairs(pairs, reader, "drop")
    assert (kept, len(items)) == ([pairs[2]], 1)
    with pytest.raises(DataError, match=f"refuses 1 of 3 .*Refused: pair {pairs[0].pair_id}"):
        encode_pairs(pairs, reader, "error")
    with pytest.raises(DataError, match=f"refuses 1 of 1 .*Refused: pair {pairs[1].pair_id}"):
        encode_pairs(pairs[:2], reader, "drop")


def test_arguments_are_emptied_from_the_last_call_on():
    first = {"name": "a", "arguments": {"x": 1}}
    message = {"role": "assistant", "content": with_records("Both.", [first, {"name": "b", "arguments": {"y": 2}}])}
    message = without_last_arguments(message)
    assert message["content"] == with_records("Both.", [first, {"name": "b", "arguments": {}}])
    message = without_last_arguments(message)
    assert message["content"] == with_records("Both.", [{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}])
    assert without_last_arguments(message) is None
