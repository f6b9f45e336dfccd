"""Tools, tool calls and results of tools in a conversation whose messages are stored as role and text.

* Tools are the first message, with the role `tools`: a JSON list of function schemas.
* A call follows the text of its assistant turn, as one JSON record `{"name", "arguments"[, "id"]}`.
* The name of a result's tool, and the id of its call, follow the text of a tool turn, as one JSON record.

A record is a line that begins with the character "record separator", as in a JSON text sequence (RFC 7464). A message
without records is its text and nothing else. So ids, duplicates, splits, word counts and lengths take a response with
calls as they take any text: its length is that of its text and of each record.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rm_methods.errors import DataError
from rm_methods.preferences.pair import Message

TOOLS = "tools"
STORED_ROLES = (TOOLS, "system", "user", "assistant", "tool")  # of messages in files of pairs and items
MARK = "\x1e"
_CALL_KEYS = {"name", "arguments", "id"}
_RESULT_KEYS = {"name", "tool_call_id"}


def with_records(text: str, records: Iterable[dict[str, Any]]) -> str:
    """The stored content of a message.

    >>> with_records("I look.", [{"name": "weather", "arguments": {"city": "Graz"}}])
    'I look.\\x1e{"name":"weather","arguments":{"city":"Graz"}}\\n'
    """
    return text + "".join(f"{MARK}{compact_json(record)}\n" for record in records)


def compact_json(value: Any) -> str:
    """JSON without blanks, keys in their order.

    Raises:
        TypeError, ValueError: the value is not JSON.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def stored_tools(tools: Sequence[dict[str, Any]]) -> Message:
    """The message that stores the tools of a conversation."""
    return {"role": TOOLS, "content": compact_json(tools)}


def split_tools(messages: Sequence[Message]) -> tuple[list[dict[str, Any]] | None, list[Message]]:
    """The tools of a conversation (None for none), and its other messages.

    Raises:
        DataError: the message of the tools is not a JSON list of functions with names.
    """
    if not messages or messages[0]["role"] != TOOLS:
        return None, list(messages)
    content = messages[0]["content"]
    try:
        tools = json.loads(content)
    except (ValueError, RecursionError):
        tools = None
    if not isinstance(tools, list) or not all(map(function_name, tools)):
        raise DataError(
            f"A message of the role '{TOOLS}' is {content!r:.60}; expected a JSON list of functions with names."
        )
    return tools, list(messages[1:])


def function_name(tool: Any) -> str | None:
    """The name in a schema, None for a value that is no schema of a function."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) and name.strip() else None


def text_and_records(message: Message) -> tuple[str, list[dict[str, Any]]]:
    """The text of a message, and its records: the calls of an assistant turn, or what a tool turn says of its call.

    A content whose records are not those of the message's role is plain text.
    """
    text, *records = message["content"].split(MARK)
    if not records:
        return text, []
    try:
        values = [json.loads(record) for record in records]
    except (ValueError, RecursionError):
        return message["content"], []
    if (message["role"] == "assistant" and all(map(_is_call, values))) or (
        message["role"] == "tool" and len(values) == 1 and _is_result(values[0])
    ):
        return text, values
    return message["content"], []


def calls_of(message: Message) -> list[dict[str, Any]]:
    """The calls `{"name", "arguments"[, "id"]}` of an assistant turn; none for other messages."""
    return text_and_records(message)[1] if message["role"] == "assistant" else []


def uses_tools(prompt: Sequence[Message], responses: Iterable[str] = ()) -> bool:
    """Whether a conversation has tools, calls or results."""
    if any(message["role"] in (TOOLS, "tool") for message in prompt):
        return True
    turns = [*prompt, *({"role": "assistant", "content": response} for response in responses)]
    return any(MARK in message["content"] and calls_of(message) for message in turns)


def readable(content: str) -> str:
    """A stored content for readers of plain text: each record is a line of JSON."""
    return content.replace(MARK, "\n")


def prompt_text(prompt: Sequence[Message]) -> str:
    """A prompt for readers of plain text: its messages, one below the other."""
    return "\n".join(readable(message["content"]) for message in prompt)


def _is_call(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and {"name", "arguments"} <= record.keys() <= _CALL_KEYS
        and isinstance(record["name"], str)
        and isinstance(record["arguments"], dict)
        and isinstance(record.get("id", ""), str)
    )


def _is_result(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and bool(record)
        and record.keys() <= _RESULT_KEYS
        and all(isinstance(value, str) for value in record.values())
    )
