"""The preference between two responses A and B, as words or as a signed number.

HelpSteer3 (https://huggingface.co/datasets/nvidia/HelpSteer3) rates from -3 (response 1 is much better) to 3; 0 means
about the same.  Chatbot Arena (https://huggingface.co/datasets/lmsys/chatbot_arena_conversations) has words.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

from rm_methods.errors import DataError
from rm_methods.preferences.file_formats import shown
from rm_methods.preferences.file_rows import Row, Unusable

_WORDS_A = ("a", "response_a", "model_a")
_WORDS_B = ("b", "response_b", "model_b")
_WORDS_TIE = ("tie", "tied", "draw", "equal", "same", "tie (bothbad)")
_LISTS = {"a": "prefers_a", "b": "prefers_b", "tie": "means_tie"}


def rating_of(row: Row, name: str, options: dict[str, Any]) -> tuple[str, float | None]:
    """The preference of a row: "a", "b" or "tie", and its strength, the absolute value of a signed number.

    Raises:
        Unusable: the row has no preference.
        DataError: the value is no known word and no finite number.
    """
    value = row.fields[name]
    if value is None or value == "":
        raise Unusable("no preference")
    spelled = _spelled(value)
    lists = {side: options[option] for side, option in _LISTS.items()}
    if any(values is not None for values in lists.values()):
        for side, values in lists.items():
            if spelled in map(_spelled, values or ()):
                return side, None
        named = "; ".join(f"{_LISTS[side]}: {values}" for side, values in lists.items() if values)
        raise DataError(
            f"{row.file}, row {row.number}: field '{name}' is {shown(value)}, which data.options does not name "
            f"({named}). Add it to prefers_a, prefers_b or means_tie."
        )
    words = {
        "a": (*_WORDS_A, _spelled(options["response_a_field"])),
        "b": (*_WORDS_B, _spelled(options["response_b_field"])),
        "tie": _WORDS_TIE,
    }
    for side, allowed in words.items():
        if spelled in allowed:
            return side, None
    number = _number(value)
    if number is None:
        allowed_words = ", ".join(word for allowed in words.values() for word in dict.fromkeys(allowed))
        raise DataError(
            f"{row.file}, row {row.number}: field '{name}' is {shown(value)}; expected one of {allowed_words}, or a "
            "signed number. For other values set data.options.prefers_a and prefers_b (and means_tie) to lists of them."
        )
    if number == 0:
        return "tie", None
    prefers_a = (number < 0) == (options["positive_prefers"] != "a")
    return ("a" if prefers_a else "b"), abs(number)


def signed_number(row: Row, name: str, options: dict[str, Any]) -> float | None:
    """The number in a column, where `rating_of` reads it as a signed one; None for words."""
    if any(options[option] is not None for option in _LISTS.values()):
        return None
    return _number(row.fields[name])


def check_signs(numbers: dict[float, str]) -> None:
    """Refuse numbers that need not be signed: without one below 0, they may as well be 0 and 1, or 1 and 2.

    Args:
        numbers: the different numbers, each with its first place ("file, row N: field 'name'").

    Raises:
        DataError: no number is negative.
    """
    if not numbers or min(numbers) < 0:
        return
    first = next(iter(numbers.values()))
    seen = ", ".join(f"{number:g}" for number in sorted(numbers)[:8])
    raise DataError(
        f"{first}: the numbers of the column are {seen}. Without a number below 0 it is unclear which response they "
        "prefer. If they name the preferred response, set data.options.prefers_a and prefers_b to lists of them, such "
        "as prefers_a: [0] and prefers_b: [1]. If they are signed, set data.options.positive_prefers: b."
    )


def _spelled(value: Any) -> str:
    """A value in one spelling: 1, 1.0 and "1" are the same, and case does not matter."""
    number = None if isinstance(value, bool) else _number(value)
    return str(value).strip().casefold() if number is None else f"{number:g}"


def _number(value: Any) -> float | None:
    """A finite number, also one that a cell of CSV holds as text; otherwise None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    with contextlib.suppress(ValueError, OverflowError):
        number = float(value)
        return number if math.isfinite(number) else None
    return None
