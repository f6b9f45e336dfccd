"""Generic preference data in TRL's formats (https://huggingface.co/docs/trl/dataset_formats#preference), as text or as conversations.

    {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}                                     text, explicit prompt
    {"chosen": "Why? Because.", "rejected": "Why? No."}                                             text, implicit prompt
    {"prompt": [{"role": "user", ...}], "chosen": [{"role": "assistant", ...}], "rejected": [...]}  conversations, explicit prompt
    {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [...]}              conversations, implicit prompt

Beside an explicit prompt, a conversational answer is one assistant message, or the whole conversation with the prompt in
it.  A column may hold a conversation as text (JSON or Python's repr): it is parsed.  A column `system` is the system turn.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rm_methods.errors import ConfigError, DataError, nearest
from rm_methods.preferences.conversation_text import unwrapped
from rm_methods.preferences.dataset_card import DatasetCard
from rm_methods.preferences.file_formats import shown
from rm_methods.preferences.file_rows import (
    ROLES,
    SPLITS,
    Row,
    Unusable,
    check_unicode,
    checked_pair,
    column,
    number_column,
    parsed_conversation,
    source_rows,
    split_name,
)
from rm_methods.preferences.pair import Message, PreferencePair
from rm_methods.preferences.read_report import NOTHING, ReadReport

_NAME = {"type": "string", "minLength": 1}
_OPTIONAL_NAME = {"type": ["string", "null"], "minLength": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "prompt_field": {
        **_OPTIONAL_NAME,
        "default": "prompt",
        "description": "Column of the prompt. A file without it has implicit prompts; null: implicit in any case.",
    },
    "system_field": {
        **_OPTIONAL_NAME,
        "default": "system",
        "description": "Column of the system prompt, if there is one: it becomes the system turn. null: none.",
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
        **_OPTIONAL_NAME,
        "default": "id",
        "description": "Column of the row's id, if there is one. An id must not occur twice. null: none.",
    },
    "split_field": {
        **_OPTIONAL_NAME,
        "default": "split",
        "description": "Column of the split, if there is one (valid, val and dev mean validation; case does not matter). "
        "Used where files do not name splits. null: none.",
    },
}

# Columns that other data sets keep the prompt in: beside them an implicit prompt would be a guess.
PROMPT_COLUMNS = {
    *(
        "prompts",
        "question",
        "questions",
        "instruction",
        "instructions",
        "query",
        "input",
        "inputs",
        "user_input",
        "user",
        "request",
    ),
    *(
        "problem",
        "task",
        "post",
        "context",
        "message",
        "messages",
        "conversation",
        "conversations",
        "dialogue",
        "dialog",
        "history",
    ),
}
# Keys of a message that say something its text does not: without them the message is another one.
CALLS = ("tool_calls", "function_call")


def read(card: DatasetCard, root: Path | None, options: dict[str, Any], report: ReadReport) -> Iterator[PreferencePair]:
    """Read rows of any of the four forms.

    Raises:
        DataError: if a column is missing or of the wrong type, an id occurs twice, or no row of a file has a column that
            an option names.
    """
    if options["strength_field"] and options["score_fields"]:
        raise ConfigError(["data.options: give strength_field or score_fields, not both: they mean the same thing."])
    first_use: dict[str, str] = {}
    splits = set()
    for file, rows in itertools.groupby(source_rows(card, root, report), key=lambda row: row.file):
        source = f"{card.name}/{Path(file).name}" if root is not None else card.name
        for pair in _pairs_of_file(rows, source, options, report, first_use):
            splits.add(pair.split)
            yield pair
    if others := sorted(splits - {*SPLITS, *card.splits}):
        report.note(
            f"Splits that nothing is trained on, because they are neither train nor validation: {_listed(others)}."
        )


def _pairs_of_file(
    rows: Iterator[Row], source: str, options: dict[str, Any], report: ReadReport, first_use: dict[str, str]
) -> Iterator[PreferencePair]:
    implicit_rows, held_back = 0, []  # an implicit prompt is right only if no row of the file has an explicit one
    for row in rows:
        row_id = _row_id(row, options["id_field"], first_use)
        try:
            chosen, rejected = _answers(row, options, report)
            prompt = _prompt(row, options["prompt_field"], report)
            implicit = prompt is None and isinstance(chosen, str)
            implicit_rows += implicit
            prompt, chosen, rejected = _parts(prompt, chosen, rejected, report)
            pair = checked_pair(
                row,
                _with_system_turn(prompt, row, options["system_field"], report),
                chosen,
                rejected,
                split=row.split or _split(row, options["split_field"], report),
                source=source,
                strength=_strength(row, options),
                meta={"id": row_id} if row_id else {},
            )
        except Unusable as problem:
            report.drop(problem.reason, row.file, row.number, problem.why)
            continue
        if implicit:
            held_back.append(pair)
        else:
            yield pair
    _check_named_columns(row, options, report)
    if implicit_rows:
        yield from _implicit_pairs(row.file, held_back, options["prompt_field"], report)


def _check_named_columns(row: Row, options: dict[str, Any], report: ReadReport) -> None:
    """Refuse a file, of which `row` is the last row, if none of its rows has a column that the options name.

    The default names are not asked for: they say where a prompt, an id, ... is if there is one.
    """
    columns = report.columns[row.file].values
    used = ["prompt_field", "system_field", "id_field"] + ([] if row.split else ["split_field"])
    missing = [o for o in used if options[o] not in columns and options[o] not in (None, OPTIONS[o]["default"])]
    if missing:
        problems = [
            f"data.options.{o} is '{options[o]}', but no row has that column. {nearest(options[o], columns, 'Found')}"
            for o in missing
        ]
        raise DataError(f"{row.file}: {' '.join(problems)}")


def _implicit_pairs(
    file: str, pairs: list[PreferencePair], prompt_field: str | None, report: ReadReport
) -> Iterator[PreferencePair]:
    """The pairs of texts without a prompt, if that is how the file is meant.

    Raises:
        DataError: no row has a prompt, but a column that is not read may well hold it.
    """
    columns = report.columns[file]
    named = prompt_field in columns.values and prompt_field != OPTIONS["prompt_field"]["default"]
    if prompt_field and (named or columns.values[prompt_field]):
        for pair in pairs:
            report.drop("no prompt, in a file with prompts", file, pair.row)
        return
    if prompt_field and (others := [name for name in columns.unread if _may_be_prompt(name)]):
        raise DataError(
            f"{file}: no row has a prompt in the column '{prompt_field}', and the column '{others[0]}' is not read. If it "
            f"is the prompt, set data.options.prompt_field: {others[0]}. If the prompt is what both answers begin with, "
            f"set data.options.prompt_field: null. {nearest(prompt_field, columns.values, 'Found')}"
        )
    report.note("Implicit prompts of plain texts: words that both answers begin with are counted to the prompt.")
    yield from pairs


def _may_be_prompt(column: str) -> bool:
    name = column.strip().lower()
    return name in PROMPT_COLUMNS or bool(difflib.get_close_matches("prompt", [name], cutoff=0.85))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


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


def _answers(row: Row, options: dict[str, Any], report: ReadReport) -> list[str | list[Message]]:
    answers = [_text_or_messages(row, options[f"{side}_field"], report) for side in ("chosen", "rejected")]
    if isinstance(answers[0], str) != isinstance(answers[1], str):
        raise DataError(
            f"{row.file}, row {row.number}: one answer is text and the other is a list of messages; both must have one form."
        )
    return answers


def _prompt(row: Row, name: str | None, report: ReadReport) -> str | list[Message] | None:
    return None if name is None or row.fields.get(name) is None else _text_or_messages(row, name, report)


def _parts(
    prompt: str | list[Message] | None, chosen: str | list[Message], rejected: str | list[Message], report: ReadReport
) -> tuple[list[Message], str, str]:
    """Prompt and answers of a row in one form, whichever it has."""
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    if not isinstance(chosen, str):
        return _conversation_parts(prompt, chosen, rejected)
    if prompt is None:
        if chosen.lstrip().startswith("Human:"):
            report.note(
                "Texts begin with 'Human:', as HH-RLHF's transcripts do: the reader hh_rlhf takes such turns apart, this one does not."
            )
        prompt, chosen, rejected = split_implicit_prompt(chosen, rejected)
    return ([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt), chosen, rejected


def _conversation_parts(
    prompt: str | list[Message] | None, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], str, str]:
    text = prompt if isinstance(prompt, str) and prompt.strip() else None
    if not prompt or (isinstance(prompt, str) and (len(chosen) > 1 or text is None)):
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
    if text is not None and not _says(prompt, text):
        raise Unusable(
            "prompts differ: the column is not what the conversation begins with", f"the column: {text[:60]!r}"
        )
    return prompt, chosen[0]["content"], rejected[0]["content"]


def _says(prompt: Sequence[Message], text: str) -> bool:
    """Whether a text is a prompt's first user turn, its last one, or all its turns; white space does not matter."""
    users = [message["content"] for message in prompt if message["role"] == "user"]
    wanted = " ".join(text.split())
    everything = " ".join(message["content"] for message in prompt)
    return any(" ".join(turn.split()) == wanted for turn in (*users[:1], *users[-1:], everything))


def _with_system_turn(prompt: list[Message], row: Row, name: str | None, report: ReadReport) -> list[Message]:
    """The prompt, behind the system turn that a column of the row holds."""
    value = row.fields.get(name) if name else None
    if value is None or value == "":
        return prompt
    if not isinstance(value, str):
        raise DataError(
            f"{row.file}, row {row.number}: field '{name}' is {shown(value)}; expected the text of a system turn. "
            "If it is something else, set data.options.system_field: null."
        )
    if prompt and prompt[0]["role"] == "system":
        if prompt[0]["content"].strip() != value.strip():
            raise Unusable(f"system turns differ: the conversation's and the column '{name}'")
        return prompt
    if not value.strip():
        return prompt
    report.change(f"the column '{name}' became the system turn", row.file, row.number)
    return [{"role": "system", "content": value}, *prompt]


def _text_or_messages(row: Row, name: str, report: ReadReport) -> str | list[Message]:
    value = column(row, name)
    if value is None:
        raise Unusable(f"field '{name}' is null")
    if isinstance(value, str):
        messages = parsed_conversation(value, name)
        if messages is None:
            return value
        check_unicode(messages)
        report.change("conversation stored as text: parsed (a column each)", row.file, row.number, f"field '{name}'")
    else:
        messages = unwrapped(value) if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise DataError(
            f"{row.file}, row {row.number}: field '{name}' is {shown(value)}; "
            "expected text or a list of {role, content} messages."
        )
    read, unread = [], set()
    for position, message in enumerate(messages, start=1):
        if _is_plain(message):
            read.append(message)
            continue
        if isinstance(message, dict):
            unread.update(key for key, held in message.items() if held not in NOTHING)
        read.append(_message(message, f"field '{name}', message {position}", row))
    if unread:
        report.columns[row.file].message_keys.update(f"{name}[].{key}" for key in unread - {"role", "content"})
    return read


def _is_plain(message: Any) -> bool:
    """Whether a message is nothing but a role that we have and a text; nearly all are, so this must be quick."""
    return (
        isinstance(message, dict)
        and len(message) == 2
        and message.get("role") in ROLES
        and isinstance(message.get("content"), str)
    )


def _message(message: Any, where: str, row: Row) -> Message:
    """One message, if its text is all that it says."""
    if not isinstance(message, dict) or "role" not in message:
        raise DataError(
            f"{row.file}, row {row.number}: {where} is {message!r:.60}; expected an object with role and content."
        )
    role, content = message["role"], message.get("content")
    if isinstance(role, str) and role not in ROLES:
        raise Unusable("unsupported role", f"{role!r:.40}; allowed are {', '.join(ROLES)}")
    if calls := [key for key in CALLS if message.get(key)]:
        raise Unusable("content beside role and content", f"{where}: {calls[0]}")
    if isinstance(content, list):
        content = _text_of_parts(content, where)
    if content is None:
        raise Unusable("message without text", where)
    if not isinstance(content, str) or not isinstance(role, str):
        raise DataError(f"{row.file}, row {row.number}: {where}: role and content must be text, found {message!r:.60}.")
    return {"role": role, "content": content}


def _text_of_parts(parts: list[Any], where: str) -> str:
    """The text of a content in parts, as multimodal data has it: exactly one part, a text."""
    if (
        len(parts) == 1
        and isinstance(parts[0], dict)
        and isinstance(parts[0].get("text"), str)
        and parts[0].get("type") == "text"
    ):
        return parts[0]["text"]
    raise Unusable("content is not one text", f"{where}: {parts!r:.60}")


def _row_id(row: Row, name: str | None, first_use: dict[str, str]) -> str:
    """The row's id as text, "" if it has none."""
    value = row.fields.get(name) if name else None
    if value is None or value == "":
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise DataError(
            f"{row.file}, row {row.number}: id {value!r:.60} is not text or a whole number. Name another column by "
            "data.options.id_field, or none: null."
        )
    row_id = str(value)
    if row_id in first_use:
        raise DataError(
            f"{row.file}, row {row.number}: id {row_id!r:.80} occurs twice, first in {first_use[row_id]}. Ids must be "
            f"unique. If the column '{name}' is no id of the row, set data.options.id_field: null."
        )
    first_use[row_id] = f"{row.file}, row {row.number}"
    return row_id


def _split(row: Row, name: str | None, report: ReadReport) -> str:
    if name is None or name not in row.fields:
        return "train"
    value = row.fields.get(name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{row.file}, row {row.number}: field '{name}' is {value!r:.60}; expected the name of a split.")
    if value is None or not value.strip():
        report.change("no split given: taken as train", row.file, row.number)
        return "train"
    return split_name(value)


def _strength(row: Row, options: dict[str, Any]) -> float | None:
    if options["strength_field"]:
        return number_column(row, options["strength_field"])
    if not options["score_fields"]:
        return None
    scores = [number_column(row, name) for name in options["score_fields"]]
    if None in scores:
        return None
    strength = scores[0] - scores[1]
    if not math.isfinite(strength):
        raise DataError(f"{row.file}, row {row.number}: the difference of the scores {scores} is beyond all floats.")
    return strength
