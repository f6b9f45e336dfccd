"""What tokenization must know of tools and calls: whether the template prints them, and how to cut around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rm_methods.preferences.pair import Message
from rm_methods.preferences.tool_calls import (
    calls_of,
    function_name,
    split_tools,
    stored_tools,
    text_and_records,
    with_records,
)
from rm_methods.reward_models.template_probe import RefusedConversation, contains

Render = Callable[[Sequence[Message]], str]


def left_out(template: dict[str, Any], render: Render, messages: Sequence[Message], text: str) -> str | None:
    """What the chat template leaves out of a conversation with tools, calls or results; None if it prints everything.

    Args:
        template: properties of the template, of `template_probe.probe_template`.
        render: renders a conversation.
        text: the rendered conversation.
    """
    tools, turns = split_tools(messages)
    if tools and _prints_the_same(render, turns, text):
        return "the tools"
    if any(map(calls_of, turns)):
        renamed = _with_renamed_calls(turns)
        if template["tools"]["calls"] != "kept" or _prints_the_same(
            render, [stored_tools(tools), *renamed] if tools else renamed, text
        ):
            return "tool calls"
    results = [text_and_records(turn)[0] for turn in turns if turn["role"] == "tool"]
    if results and (template["tools"]["results"] != "kept" or not all(contains(text, result) for result in results)):
        return "results of tools"
    return None


def _prints_the_same(render: Render, messages: Sequence[Message], text: str) -> bool:
    try:
        return render(messages) == text
    except RefusedConversation:
        return False


def _with_renamed_calls(turns: Sequence[Message]) -> list[Message]:
    renamed = []
    for turn in turns:
        if calls := calls_of(turn):
            text, _ = text_and_records(turn)
            content = with_records(text, [call | {"name": f"{call['name']}_2"} for call in calls])
            turn = {**turn, "content": content}
        renamed.append(turn)
    return renamed


def prints(rendered: str, message: Message) -> bool:
    """Whether a rendered conversation has all of a message's text, and the names of its tools or calls."""
    tools, turns = split_tools([message])
    names = [str(function_name(tool)) for tool in tools or ()]
    texts = []
    for turn in turns:
        texts.append(text_and_records(turn)[0])
        names += [call["name"] for call in calls_of(turn)]
    return all(contains(rendered, words) for words in (*texts, *names))


def without_oldest(turns: Sequence[Message]) -> list[Message] | None:
    """The turns of a prompt without the oldest ones that can go; None if none can.

    Conversations lose an exchange: a user turn and the answer to it, with all calls and results between. The last
    exchange loses its oldest calls with their results, but for the last ones. So no result loses its call.
    """
    if not any(turn["role"] == "tool" for turn in turns):
        if len(turns) <= 1:
            return None
        return list(turns[2:] if len(turns) > 2 and turns[1]["role"] == "assistant" else turns[1:])
    users = [position for position, turn in enumerate(turns) if turn["role"] == "user" and position]
    if users:
        return list(turns[users[0] :])
    steps = [position for position, turn in enumerate(turns) if calls_of(turn)]
    return None if len(steps) < 2 else [turns[0], *turns[steps[1] :]]


def with_text(message: Message, text: str) -> Message:
    """A message with another text and the same calls."""
    return {**message, "content": with_records(text, text_and_records(message)[1])}


def without_last_arguments(message: Message) -> Message | None:
    """An assistant turn whose last call with arguments has none; None if no call has arguments."""
    text, calls = text_and_records(message)
    position = max((number for number, call in enumerate(calls) if call.get("arguments")), default=None)
    if position is None:
        return None
    changed = [call | {"arguments": {}} if number == position else call for number, call in enumerate(calls)]
    return {**message, "content": with_records(text, changed)}
