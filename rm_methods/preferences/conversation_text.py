"""Conversations that a column holds as text: JSON or Python's repr of a list of messages, as CSV exports have them."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from rm_methods.preferences.file_formats import strict_json

# The beginning of a list of objects, or of one object, with a key in quotation marks.
_BEGINNING = re.compile(r"""\s*(\[\s*)?\{\s*(['"])[\w ]+\2\s*:""")
_KEYS = (
    re.compile(r"""(['"])(role|from)\1\s*:"""),
    re.compile(r"""(['"])(content|value|tool_calls|function_call)\1\s*:"""),
)
WRAPPERS = ("messages", "conversation", "conversations")


class BrokenConversation(ValueError):
    """A text begins as a list of messages, but cannot be parsed as one."""


def conversation_in_text(text: str) -> list[Any] | None:
    """The messages that a text holds as JSON or as Python's repr, unchecked; None for any other text.

    >>> conversation_in_text("[{'role': 'user', 'content': 'Hello?'}]")
    [{'role': 'user', 'content': 'Hello?'}]
    >>> conversation_in_text('{"answer": 42}') is None
    True

    Raises:
        BrokenConversation: the text begins as a list of messages, but is cut off, lacks commas (as in numpy's print),
            or has a key twice.
    """
    beginning = _BEGINNING.match(text)
    if not beginning or not all(key.search(text) for key in _KEYS):
        return None
    value = _parsed(text)
    if value is None and beginning[1]:
        raise BrokenConversation(f"begins as a list of messages, but is neither JSON nor a Python list: {text[:40]!r}")
    return unwrapped(value)


def unwrapped(value: Any) -> list[Any] | None:
    """The messages in a value: a list of them, the list under "messages" or "conversation(s)", or one; else None."""
    if isinstance(value, dict):
        wrapper = next((key for key in WRAPPERS if isinstance(value.get(key), list)), None)
        value = value[wrapper] if wrapper else [value]
    if not isinstance(value, list) or not value or not all(map(_is_message, value)):
        return None
    return value


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return bool(value.keys() & {"role", "from"} and value.keys() & {"content", "value", "tool_calls", "function_call"})


def _parsed(text: str) -> Any:
    try:
        return strict_json(text)
    except json.JSONDecodeError:
        pass
    except (ValueError, RecursionError):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of escapes in the user's text
            return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
