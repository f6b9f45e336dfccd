"""Tools, tool calls and contents in parts, as rows of data sets hold them (TRL, the OpenAI and Hugging Face formats).

    {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {...}}}]}
    {"role": "tool", "name": "weather", "content": "12 C"}
    tools: [{"type": "function", "function": {"name": "weather", "description": "...", "parameters": {...}}}]

Arguments, calls and tools may be JSON texts. The older `function_call` and the role `function` mean the same. Keys
with null are left out of objects, because Arrow files write null for a missing key; JSON texts keep theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rm_methods.preferences.file_formats import strict_json
from rm_methods.preferences.file_rows import Row, Unusable, check_unicode
from rm_methods.preferences.pair import Message
from rm_methods.preferences.read_report import NOTHING, ReadReport
from rm_methods.preferences.tool_calls import (
    MARK,
    TOOLS,
    compact_json,
    function_name,
    split_tools,
    stored_tools,
    with_records,
)

BAD_CALLS = "tool calls that cannot be read"
BAD_TOOLS = "tools are not JSON schemas of functions"
CALL_KEYS = ("tool_calls", "function_call")
RESULT_KEYS = ("name", "tool_call_id")
_TEXT_PARTS = ("text", "input_text", "output_text")


class RowMessages:
    """Reads the messages of a column that are more than a role and a text.

    Attributes:
        unread: keys of calls that hold something and are not read, such as "tool_calls[].index".
    """

    def __init__(self, row: Row, report: ReadReport):
        self.unread: set[str] = set()
        self._row = row
        self._report = report
        self._changes: set[str] = set()

    def message(self, role: str, message: Mapping[str, Any], where: str) -> Message | None:
        """A message in the stored form; None if its content is neither text, parts nor missing.

        Args:
            role: of `STORED_ROLES`, or "function".
            where: for the reasons, such as "field 'prompt', message 2".

        Raises:
            Unusable: calls, tools or parts that cannot be read, no text and no call.
        """
        if role == "function":
            role = "tool"
            self._change("the role 'function' became 'tool'")
        content = message.get("content")
        if isinstance(content, list):
            content = self._joined_parts(content, where)
        if role == TOOLS:
            return stored_tools(self.tools(content, where))
        calls = self._calls(message, where)
        if calls and role != "assistant":
            raise Unusable(BAD_CALLS, f"{where}: calls in a turn of the role {role}")
        if content is None:
            if not calls:
                raise Unusable("message without text", where)
            content = ""
        if not isinstance(content, str):
            return None
        records = calls or (self._result(message, where) if role == "tool" else [])
        if records and MARK in content:
            raise Unusable("control character (record separator) in the text of a message with calls", where)
        return {"role": role, "content": with_records(content, records)}

    def tools(self, value: Any, where: str) -> list[dict[str, Any]]:
        """A list of function schemas, or the JSON text of one.

        Raises:
            Unusable: it is anything else.
        """
        tools = _parsed(value) if isinstance(value, str) else self._without_nulls(value)
        if not isinstance(tools, list):
            raise Unusable(BAD_TOOLS, f"{where} is {value!r:.60}; expected a list of schemas, or its JSON text")
        read = []
        for number, member in enumerate(tools, start=1):
            tool = _parsed(member)
            if function_name(tool) is None:
                raise Unusable(BAD_TOOLS, f"{where}, tool {number} is {member!r:.60}; expected a function with a name")
            read.append(tool)
        _check_json(read, BAD_TOOLS, where)
        return read

    def _calls(self, message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
        """The calls of a message in the form that is stored."""
        calls = message.get("tool_calls")
        single = message.get("function_call")
        if calls in NOTHING and single in NOTHING:
            return []
        if calls in NOTHING:
            calls = [{"function": _parsed(single)}]
            self._change("'function_call' became a tool call")
        calls = _parsed(calls)
        if not isinstance(calls, list):
            raise Unusable(BAD_CALLS, f"{where}: calls are {calls!r:.60}; expected a list")
        read = [self._call(call, f"{where}, call {number}") for number, call in enumerate(calls, start=1)]
        _check_json(read, BAD_CALLS, where)
        return read

    def _call(self, call: Any, where: str) -> dict[str, Any]:
        if isinstance(call, dict) and "name" in call and "function" not in call:
            # {"name", "arguments"} without the wrapper.
            inner = {key: call[key] for key in ("name", "arguments") if key in call}
            call = {key: value for key, value in call.items() if key not in inner} | {"function": inner}
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise Unusable(BAD_CALLS, f"{where} is {call!r:.60}; expected an object with a function")
        if call.get("type") not in (None, "function"):
            raise Unusable(BAD_CALLS, f"{where} is of type {call['type']!r:.40}; only functions are read")
        name = function.get("name")
        if not _is_name(name):
            raise Unusable(BAD_CALLS, f"{where} has the name {name!r:.40}; expected text")
        arguments = function.get("arguments")
        if arguments is None or arguments == "":
            arguments = {}
        elif isinstance(arguments, str):
            arguments = _parsed(arguments)
        else:
            arguments = self._without_nulls(arguments)
        if not isinstance(arguments, dict):
            value = function["arguments"]
            raise Unusable(BAD_CALLS, f"{where} has the arguments {value!r:.60}; expected a JSON object")
        for value, read in ((function, {"name", "arguments"}), (call, {"id", "type", "function"})):
            unread = [key for key, member in value.items() if key not in read and member not in NOTHING]
            self.unread.update(f"tool_calls[].{key}" for key in unread)
        record: dict[str, Any] = {"name": name, "arguments": arguments}
        if call.get("id") is None:
            return record
        if not isinstance(call["id"], str):
            raise Unusable(BAD_CALLS, f"{where} has the id {call['id']!r:.40}; expected text")
        return record | {"id": call["id"]}

    def _result(self, message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
        """What a tool turn says of its call, if anything."""
        record = {key: message[key] for key in RESULT_KEYS if message.get(key) not in NOTHING}
        for key, value in record.items():
            if not isinstance(value, str):
                raise Unusable(BAD_CALLS, f"{where}: {key} is {value!r:.40}; expected text")
        return [record] if record else []

    def _joined_parts(self, parts: list[Any], where: str) -> str:
        """The texts of a content in parts, one after the other, as templates that take parts print them."""
        texts = []
        for part in parts:
            text = part.get("text") if isinstance(part, dict) and part.get("type") in _TEXT_PARTS else None
            if not isinstance(text, str):
                kind = part.get("type") if isinstance(part, dict) else part
                raise Unusable("content that is not text", f"{where}: a part of type {kind!r:.40}; only text is read")
            texts.append(text)
        if len(texts) > 1:
            self._change("content in several text parts: joined")
        return "".join(texts)

    def _without_nulls(self, value: Any) -> Any:
        kept = _without_nulls(value)
        if kept != value:
            self._change("keys with null left out of calls or tools")
        return kept

    def _change(self, what: str) -> None:
        """Count a change once a column."""
        if what not in self._changes:
            self._changes.add(what)
            self._report.change(f"{what} (a column each)", self._row.file, self._row.number)


def with_tools(prompt: list[Message], row: Row, name: str | None, report: ReadReport) -> list[Message]:
    """The prompt, with the tools that a column of the row holds.

    Raises:
        Unusable: the column is not a list of schemas, or its tools are not those of the conversation.
    """
    value = row.fields.get(name) if name else None
    if value in NOTHING or (isinstance(value, str) and not value.strip()):
        return prompt
    where = f"field '{name}'"
    try:
        tools = RowMessages(row, report).tools(value, where)
    except Unusable as problem:
        hint = "If the column is something else, set data.options.tools_field: null"
        raise Unusable(problem.reason, f"{problem.why}. {hint}") from None
    if not tools:
        return prompt
    others, rest = split_tools(prompt)
    if others is not None and others != tools:
        raise Unusable(f"tools differ: the conversation's and the column '{name}'")
    return [stored_tools(tools), *rest]


def _parsed(value: Any) -> Any:
    """The value of a JSON text; anything else is returned unchanged, also a text that is not JSON."""
    if not isinstance(value, str):
        return value
    try:
        parsed = strict_json(value)
    except (ValueError, RecursionError):
        return value
    check_unicode({"": parsed})
    return parsed


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(member) for key, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_without_nulls(member) for member in value]
    return value


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_json(value: Sequence[Any], reason: str, where: str) -> None:
    try:
        compact_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unusable(reason, f"{where}: {error!s:.80}") from None
