"""Measures how a chat template changes conversations, on a few made-up ones when a tokenizer is loaded.

A reward model reads the output of the template, so the template must be a function of the conversation alone: two
different responses give different tokens, and the date gives none.  A template that prints the date gets a fixed one,
which is written into the template.  So a resumed training, a later scoring and any other server of the saved model read
the same tokens.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rm_methods.errors import UserError
from rm_methods.preferences.pair import Message
from rm_methods.preferences.tool_calls import (
    MARK,
    compact_json,
    split_tools,
    stored_tools,
    text_and_records,
    with_records,
)

TEMPLATE_DATE = datetime.date(2024, 7, 26)  # the date that Llama 3's templates print if they know none
_DATE_NOTE = "Conversations are rendered with the date {date}."
_DATE_CODES = [*"aAbBcdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ", "-d", "-e", "-H", "-I", "-j", "-m", "-M", "-S", "-y"]
_FOLD_NOTE = "The text of a system turn is put into the first user turn."
_FOLD_SYSTEM = (
    "{#- " + _FOLD_NOTE + " #}"
    "{%- if messages|length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' -%}"
    "{%- set folded = {'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']} -%}"
    "{%- set messages = [folded] + messages[2:] -%}"
    # The line break behind the last block is removed by Jinja's trim_blocks, which transformers sets; it protects one
    # of the template.
    "{%- endif %}\n"
)
_SYSTEM = "Name rivers only."
_FIRST = "Which one is long?"
_ANSWER = "The Danube is."
_LAST = "And which one is short?"
_RESPONSE = "Perhaps the Reprua."
_OTHER_RESPONSE = "It may be the Roe."
_THOUGHT = "I remember a short one."
_CALLED = "river_length"
_NOT_CALLED = "lake_depth"
_ARGUMENTS = {"basin": "Drava"}
_RESULT = "It measures 710 km."
_CALL_ID = "a1b2c3d4e"  # Mistral's templates take nothing but nine letters and digits
_CHARACTERS = 'A Ä é Ω 河 🙂 "it\'s" a_b\t{1: [2]} 3.5 % !'


class RefusedConversation(UserError):
    """The chat template raises an error for a conversation: roles that do not alternate, no system turn allowed, ...

    Attributes:
        reason: the roles of its turns, and the template's message.
    """

    def __init__(self, tokenizer_name: str, messages: Sequence[Message], error: Exception):
        self.reason = f"turns {' '.join(m['role'] for m in messages)}: {str(error).rstrip('.')}"
        super().__init__(f"The chat template of {tokenizer_name} refuses a conversation ({self.reason}).")


@dataclass(frozen=True)
class CallForm:
    """The form in which a template prints tool calls; templates differ in it.

    Attributes:
        arguments_as_text: whether arguments are handed over as JSON text, not as an object.
        empty_content: whether a turn with calls and without text has the content "", not none. transformers removes a
            content that is null.
    """

    arguments_as_text: bool = False
    empty_content: bool = False


FORMS = (CallForm(), CallForm(False, True), CallForm(True, False), CallForm(True, True))


def render(
    tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False, form: CallForm = FORMS[0]
) -> str:
    """The text of a conversation.

    Args:
        messages: in the stored form (`rm_methods.preferences.tool_calls`).
        form: of tool calls.

    Raises:
        RefusedConversation: the template raises an error for it.
    """
    tools, turns = split_tools(messages)
    given = [_template_message(message, form) if MARK in message["content"] else message for message in turns]
    try:
        return tokenizer.apply_chat_template(
            given, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # whatever a template calls or raises
        raise RefusedConversation(tokenizer.name_or_path, messages, error) from None


def _template_message(message: Message, form: CallForm) -> dict[str, Any]:
    """A message with its calls, or with what a tool turn says of its call, as chat templates take it."""
    text, records = text_and_records(message)
    if not records or message["role"] == "tool":
        return {"role": message["role"], "content": text} | (records[0] if records else {})
    calls = []
    for record in records:
        arguments = compact_json(record["arguments"]) if form.arguments_as_text else record["arguments"]
        call = {"type": "function", "function": {"name": record["name"], "arguments": arguments}}
        calls.append({"id": record["id"], **call} if "id" in record else call)
    content = {"content": text} if text or form.empty_content else {}
    return {"role": "assistant", **content, "tool_calls": calls}


def conversation(prompt: Sequence[Message], response: str) -> tuple[Message, ...]:
    """The messages of a prompt and its response."""
    return (*prompt, {"role": "assistant", "content": response})


def contains(text: str, content: str) -> bool:
    """Whether a rendered conversation has all of a message's text; a template may print other white space."""
    return content in text or _without_space(content) in _without_space(text)


def pin_date(tokenizer) -> None:
    """Make a template that asks for the date get `TEMPLATE_DATE`; one that has a fixed date keeps it.

    transformers gives templates a function `strftime_now` that reads the clock, and no way to pass another one; a macro
    of that name in front of the template hides it.
    """
    _edit_template(tokenizer, lambda text: _date_macro() + text if _asks_for_date(text) else text)


def pinned_date(tokenizer) -> str | None:
    """The date that a template is rendered with, as YYYY-MM-DD; None for a template without a date."""
    match = re.search(re.escape(_DATE_NOTE).replace(re.escape("{date}"), r"(\d{4}-\d\d-\d\d)"), _text(tokenizer))
    return match and match[1]


def fold_system(tokenizer) -> None:
    """Make a template without system turns print their text in front of the first user turn.

    Users of Gemma and Mistral do this by hand.
    """
    if _system_turn(tokenizer) in ("refused", "left out"):
        _edit_template(tokenizer, lambda text: _FOLD_SYSTEM + text)


def probe_template(tokenizer) -> dict[str, Any]:
    """The properties of the template, by name; for `backbone.json`, run cards and reports.

    Returns:
        adds_bos: the text begins with the BOS token.
        ends_with: the text after a response ("<|im_end|>\\n"); its last token gives the reward, or, if it is empty, the
            response's last token.
        has_eos: the EOS token is part of that text.
        system_turn: "accepted", "merged" (into a user turn), "refused" or "left out".
        several_turns: "kept", "refused" or "changed" (text of an earlier turn is left out).
        consecutive_turns: two user turns in sequence are "kept", "refused" or "changed".
        strips_think: the text of `<think>...</think>` in a response is left out.
        strips_earlier_think: ... in an earlier assistant turn.
        trims_response: white space around a response is left out.
        keeps_characters: tokens decode to the text, also letters with accents, other scripts and signs; else some are
            unknown or folded.
        date: see `pinned_date`.
        tools: what becomes of tools and their calls, see `_tools`.

    Raises:
        UserError: the template refuses one user turn and its response, is not a function of the conversation, prints
            the BOS token twice, or prints the same for two responses.
    """
    name = tokenizer.name_or_path
    first = _user(_FIRST)
    try:
        text = render(tokenizer, conversation([first], _RESPONSE))
    except RefusedConversation as error:
        raise UserError(f"{error} {_REMEDY}") from None
    ids = _ids(tokenizer, text)
    if text != render(tokenizer, conversation([first], _RESPONSE)):
        raise UserError(f"{name}: its chat template prints another text each time it is asked. {_REMEDY}")
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise UserError(f"{name}: its chat template prints the BOS token twice; correct the template.")
    if text == render(tokenizer, conversation([first], _OTHER_RESPONSE)):
        raise UserError(
            f"{name}: its chat template prints the same for two different responses, so their scores would be equal. "
            f"{_REMEDY}"
        )
    if _RESPONSE not in text:
        raise UserError(
            f"{name}: its chat template changes the text of a response, {_RESPONSE!r}. It prints {text!r}. {_REMEDY}"
        )
    ends_with = text[text.rindex(_RESPONSE) + len(_RESPONSE) :]
    thinking = f"<think>\n{_THOUGHT}\n</think>\n\n"
    return {
        "adds_bos": bos is not None and ids[:1] == [bos],
        "ends_with": ends_with,
        "has_eos": tokenizer.eos_token_id in _ids(tokenizer, ends_with),
        "system_turn": _system_turn(tokenizer),
        "several_turns": _turns(tokenizer, [first, _assistant(_ANSWER), _user(_LAST)]),
        "consecutive_turns": _turns(tokenizer, [first, _user(_LAST)]),
        "strips_think": not contains(render(tokenizer, conversation([first], thinking + _RESPONSE)), _THOUGHT),
        "strips_earlier_think": _turns(tokenizer, [first, _assistant(thinking + _ANSWER), _user(_LAST)]) == "changed",
        "trims_response": f"  {_RESPONSE} \n " not in render(tokenizer, conversation([first], f"  {_RESPONSE} \n ")),
        "keeps_characters": _keeps_characters(tokenizer, [first]),
        "date": pinned_date(tokenizer),
        "tools": _tools(tokenizer),
    }


_REMEDY = (
    "Name a Jinja file in backbone.chat_template that prints the content of every message as text (templates of image "
    "models expect lists of parts)."
)


def _system_turn(tokenizer) -> str:
    try:
        text = render(tokenizer, conversation([{"role": "system", "content": _SYSTEM}, _user(_FIRST)], _RESPONSE))
    except RefusedConversation:
        return "refused"
    if _SYSTEM not in text:
        return "left out"
    between = text.partition(_SYSTEM)[2].partition(_FIRST)[0]
    return "accepted" if between.strip() else "merged"


def _turns(tokenizer, prompt: Sequence[Message]) -> str:
    """Whether all turns of a prompt, and the response, are printed in their order."""
    try:
        rest = _without_space(render(tokenizer, conversation(prompt, _RESPONSE)))
    except RefusedConversation:
        return "refused"
    for message in conversation(prompt, _RESPONSE):
        _, printed, rest = rest.partition(_without_space(message["content"]))
        if not printed:
            return "changed"
    return "kept"


def _tools(tokenizer) -> dict[str, Any]:
    """Whether tools, calls and results of tools are printed.

    Returns:
        schemas, calls, results: "kept", "left out" or "refused"; calls are left out if their names or arguments are.
        arguments_as_text, empty_content: the first of `FORMS` in which calls are printed, best with their arguments
            as JSON.
    """
    levels = [_calls_printed(tokenizer, form) for form in FORMS]
    form = FORMS[levels.index(max(levels))]
    calls = {-1: "refused", 0: "left out"}.get(max(levels), "kept")
    schemas = results = "refused"
    if (text := _rendered_or_none(tokenizer, _tool_conversation(), form)) is not None:
        results = "kept" if contains(text, _RESULT) else "left out"
    with_schemas = _rendered_or_none(tokenizer, _tool_conversation()[:2], form)
    if with_schemas is not None:
        schemas = "kept" if _NOT_CALLED in with_schemas else "left out"
    return {
        "schemas": schemas,
        "calls": calls,
        "results": results,
        "arguments_as_text": form.arguments_as_text,
        "empty_content": form.empty_content,
    }


def _calls_printed(tokenizer, form: CallForm) -> int:
    """How a template prints a call in the prompt and one in the response: -1 for not at all, because it refuses one of
    them; 0 for incompletely; 1 for name and arguments; 2 for arguments as JSON."""
    history = _tool_conversation()
    texts = [_rendered_or_none(tokenizer, turns, form) for turns in (history, history[:3])]
    level = 2
    for text in texts:
        if text is None:
            return -1
        words = (_CALLED, *_ARGUMENTS, *_ARGUMENTS.values())
        if not all(word in text for word in words) or "None" in text:
            return 0
        if _without_space(json.dumps(_ARGUMENTS)) not in _without_space(text):
            level = 1
    return level


def _tool_conversation() -> list[Message]:
    """Tools, a user turn, a call, its result, and an answer."""
    call = {"name": _CALLED, "arguments": _ARGUMENTS, "id": _CALL_ID}
    schema = {"name": _NOT_CALLED, "description": "Deep.", "parameters": {"type": "object", "properties": {}}}
    return [
        stored_tools([{"type": "function", "function": schema}]),
        _user(_FIRST),
        _assistant(with_records("", [call])),
        {"role": "tool", "content": with_records(_RESULT, [{"name": _CALLED, "tool_call_id": _CALL_ID}])},
        _assistant(_RESPONSE),
    ]


def _rendered_or_none(tokenizer, messages: Sequence[Message], form: CallForm) -> str | None:
    try:
        return render(tokenizer, messages, form=form)
    except RefusedConversation:
        return None


def _keeps_characters(tokenizer, prompt: Sequence[Message]) -> bool:
    ids = _ids(tokenizer, render(tokenizer, conversation(prompt, _CHARACTERS)))
    return contains(tokenizer.decode(ids, clean_up_tokenization_spaces=False), _CHARACTERS)


def _date_macro() -> str:
    """Jinja text that defines `strftime_now` for `TEMPLATE_DATE`."""
    midnight = datetime.datetime.combine(TEMPLATE_DATE, datetime.time())
    values = [["%" + code, midnight.strftime("%" + code)] for code in _DATE_CODES]
    note = _DATE_NOTE.format(date=TEMPLATE_DATE.isoformat())
    return (
        "{#- " + note + " #}"
        "{%- macro strftime_now(format) -%}"
        "{%- set pinned = namespace(date=format) -%}"
        "{%- for code, value in " + repr(values) + " -%}"
        "{%- set pinned.date = pinned.date | replace(code, value) -%}"
        "{%- endfor -%}"
        "{{- pinned.date -}}"
        "{%- endmacro %}\n"  # as in _FOLD_SYSTEM
    )


def _asks_for_date(template: str) -> bool:
    return "strftime_now" in template and not re.search(r"macro\s+strftime_now\b", template)


def _edit_template(tokenizer, edit: Callable[[str], str]) -> None:
    """Change the template, or each of those that a tokenizer has by name."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        tokenizer.chat_template = {name: edit(text) for name, text in template.items()}
    elif template:
        tokenizer.chat_template = edit(template)


def _text(tokenizer) -> str:
    template = tokenizer.chat_template
    return "\n".join(template.values()) if isinstance(template, dict) else template or ""


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _without_space(text: str) -> str:
    return "".join(text.split())
