"""Generic preference data in TRL's formats (https://huggingface.co/docs/trl/dataset_formats#preference), as text or as conversations.

    {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}                                     text, explicit prompt
    {"chosen": "Why? Because.", "rejected": "Why? No."}                                             text, implicit prompt
    {"prompt": [{"role": "user", ...}], "chosen": [{"role": "assistant", ...}], "rejected": [...]}  conversations, explicit prompt
    {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [...]}              conversations, implicit prompt

Beside an explicit prompt, a conversational answer is one assistant message, or the whole conversation with the prompt in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_methods.errors import ConfigError, DataError
from rm_methods.preferences.file_rows import (
    ROLES,
    SPLIT_SYNONYMS,
    Row,
    Unusable,
    check_unicode,
    checked_pair,
    field,
    number_field,
    source_rows,
)
from rm_methods.preferences.pair import Message, PreferencePair
from rm_methods.preferences.read_report import ReadReport

if TYPE_CHECKING:
    from rm_methods.preferences.cards import DatasetCard

_NAME = {"type": "string", "minLength": 1}
_OPTIONAL_NAME = {"type": ["string", "null"], "minLength": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "prompt_field": {
        **_NAME,
        "default": "prompt",
        "description": "Column of the prompt. Rows without it have an implicit prompt.",
    },
    "chosen_field": {**_NAME, "default": "chosen", "description": "Column of the preferred answer."},
    "rejected_field": {**_NAME, "default": "rejected", "description": "Column of the other answer."},
    "strength_field": {
        **_OPTIONAL_NAME,
        "default": None,
        "description": "Column of the label's strength (larger is surer); null: none.",
    },
    "score_fields": {
        "type": ["array", "null"],
        "items": _NAME,
        "minItems": 2,
        "maxItems": 2,
        "default": None,
        "description": "Columns with the scores of chosen and rejected: the strength is their difference. null: none.",
    },
    "id_field": {
        **_NAME,
        "default": "id",
        "description": "Column of the row's id, if there is one. An id must not occur twice.",
    },
    "split_field": {
        **_NAME,
        "default": "split",
        "description": "Column of the split, if there is one (valid, val and dev mean validation). Used where files do not name splits.",
    },
}


def read(card: DatasetCard, root: Path | None, options: dict[str, Any], report: ReadReport) -> Iterator[PreferencePair]:
    """Read rows of any of the four forms.

    Raises:
        DataError: if a column is missing or of the wrong type, or an id occurs twice.
    """
    if options["strength_field"] and options["score_fields"]:
        raise ConfigError(["data.options: give strength_field or score_fields, not both: they mean the same thing."])
    first_use: dict[str, str] = {}
    for row in source_rows(card, root, report):
        row_id = _row_id(row, options["id_field"], first_use)
        try:
            prompt, chosen, rejected = _parts(row, options, report)
            yield checked_pair(
                row,
                prompt,
                chosen,
                rejected,
                split=row.split or _split(row, options["split_field"]),
                source=f"{card.name}/{Path(row.file).name}" if root is not None else card.name,
                strength=_strength(row, options),
                meta={"id": row_id} if row_id else {},
            )
        except Unusable as problem:
            report.drop(problem.reason, row.file, row.number, problem.why)


def split_implicit_prompt(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt, chosen and rejected from two texts that both begin with the prompt; prompt + answer is the text as it was.

    The prompt is the longest common prefix, cut back to before its last white space so that no word is torn.  TRL's
    `extract_prompt` gives the same where the answers differ in their first letter, but leaves common first letters of the two
    answers in the prompt ("The sky is bl").  Words that both answers begin with end up in the prompt here too: a file with an
    explicit prompt is always better.

    >>> split_implicit_prompt("The sky is blue.", "The sky is black.")
    ('The sky is', ' blue.', ' black.')
    """
    common = chosen[: _common_length(chosen, rejected)]
    cut = re.search(r"\s*\S*\Z", common).start()
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _common_length(first: Sequence, second: Sequence) -> int:
    differences = (position for position, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differences, min(len(first), len(second)))


def _parts(row: Row, options: dict[str, Any], report: ReadReport) -> tuple[list[Message], str, str]:
    chosen, rejected = (_text_or_messages(row, options[f"{side}_field"]) for side in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(
            f"{row.file}, row {row.number}: one answer is text and the other is a list of messages; both must have one form."
        )
    prompt = (
        _text_or_messages(row, options["prompt_field"]) if row.fields.get(options["prompt_field"]) is not None else None
    )
    if isinstance(chosen, str):
        return _text_parts(prompt, chosen, rejected, report)
    return _conversation_parts(prompt, chosen, rejected)


def _text_parts(
    prompt: str | list[Message] | None, chosen: str, rejected: str, report: ReadReport
) -> tuple[list[Message], str, str]:
    if prompt is None:
        if chosen.lstrip().startswith("Human:"):
            report.note(
                "Texts begin with 'Human:', as HH-RLHF's transcripts do: the reader hh_rlhf takes such turns apart, this one does not."
            )
        report.note("Implicit prompts of plain texts: words that both answers begin with are counted to the prompt.")
        if chosen == rejected:
            raise Unusable("chosen equals rejected")
        prompt, chosen, rejected = split_implicit_prompt(chosen, rejected)
    return ([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt), chosen, rejected


def _conversation_parts(
    prompt: str | list[Message] | None, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], str, str]:
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    if prompt is None or (isinstance(prompt, str) and len(chosen) > 1):
        shared = _common_length(chosen, rejected)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    elif isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    elif chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    for answer in (chosen, rejected):
        roles = [message["role"] for message in answer]
        if not roles:
            raise Unusable("empty response", "one conversation is the beginning of the other")
        if len(roles) > 1:
            raise Unusable(
                "prompts of chosen and rejected differ", f"after what they share come the turns {', '.join(roles)}"
            )
        if roles != ["assistant"]:
            raise Unusable("the answer is not an assistant turn", f"role {roles[0]}")
    return prompt, chosen[0]["content"], rejected[0]["content"]


def _text_or_messages(row: Row, name: str) -> str | list[Message]:
    value = field(row, name)
    if isinstance(value, str):
        check_unicode(value)
        return value
    where = f"{row.file}, row {row.number}: field '{name}'"
    if not isinstance(value, list):
        raise DataError(
            f"{where} is {value!r:.60} ({type(value).__name__}); expected text or a list of {{role, content}} messages."
        )
    for position, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(
                f"{where}, message {position} is {message!r:.60}; expected an object with role and content."
            )
        if not isinstance(message["content"], str) or not isinstance(message["role"], str):
            raise DataError(f"{where}, message {position}: role and content must be text, found {message!r:.60}.")
        if message["role"] not in ROLES:
            raise Unusable("unsupported role", f"'{message['role']}'; allowed are {', '.join(ROLES)}")
        check_unicode(message["content"])
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _row_id(row: Row, name: str, first_use: dict[str, str]) -> str:
    """The row's id as text, "" if it has none."""
    value = row.fields.get(name)
    if value is None or value == "":
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise DataError(f"{row.file}, row {row.number}: id {value!r:.60} is not text or a whole number.")
    row_id = str(value)
    if row_id in first_use:
        raise DataError(
            f"{row.file}, row {row.number}: id {row_id!r:.80} occurs twice, first in {first_use[row_id]}. Ids must be unique."
        )
    first_use[row_id] = f"{row.file}, row {row.number}"
    return row_id


def _split(row: Row, name: str) -> str:
    value = row.fields.get(name)
    if value is None or value == "":
        return "train"
    if not isinstance(value, str):
        raise DataError(f"{row.file}, row {row.number}: field '{name}' is {value!r:.60}; expected the name of a split.")
    return SPLIT_SYNONYMS.get(value, value)


def _strength(row: Row, options: dict[str, Any]) -> float | None:
    if options["strength_field"]:
        return number_field(row, options["strength_field"])
    if options["score_fields"]:
        scores = [number_field(row, name) for name in options["score_fields"]]
        return None if None in scores else scores[0] - scores[1]
    return None
