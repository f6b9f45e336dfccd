"""Generic preference data in TRL's formats (https://huggingface.co/docs/trl/dataset_formats#preference).

Text with an explicit and with an implicit prompt:

    {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    {"chosen": "Why? Because.", "rejected": "Why? No."}

Conversations with an explicit and with an implicit prompt:

    {"prompt": [{"role": "user", ...}], "chosen": [{"role": "assistant", ...}], "rejected": [...]}
    {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [...]}

With an explicit prompt, a conversational answer is one assistant message, or the whole conversation with the prompt. A
column may hold a conversation as text (JSON or Python's repr), which is parsed. A column `system` is the system turn,
a column `tools` the functions that an assistant may call (`rm_methods.preferences.tool_rows`).
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
    SPLITS,
    Row,
    Unusable,
    check_unicode,
    checked_pair,
    column,
    first_names,
    number_column,
    parsed_conversation,
    source_rows,
    split_name,
)
from rm_methods.preferences.pair import Message, PreferencePair
from rm_methods.preferences.read_report import NOTHING, ReadReport
from rm_methods.preferences.tool_calls import STORED_ROLES
from rm_methods.preferences.tool_rows import CALL_KEYS, RESULT_KEYS, RowMessages, with_tools

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
        "description": "Column of the system prompt, if any: it becomes the system turn. null: none.",
    },
    "tools_field": {
        **_OPTIONAL_NAME,
        "default": "tools",
        "description": "Column of the tools, if any: JSON schemas of functions, a list or its JSON text. null: none.",
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
        "description": "Column of the row's id, if any. An id must not occur twice. null: none.",
    },
    "split_field": {
        **_OPTIONAL_NAME,
        "default": "split",
        "description": "Column of the split, if any (valid, val and dev mean validation; case does not matter). "
        "Used where files do not name splits. null: none.",
    },
}

# Columns that hold the prompt in other data sets. In a file with one of them, an implicit prompt would be a guess.
PROMPT_COLUMNS = {
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
}
# Keys of a message that are read beside role and content, by role.
READ_KEYS = {"assistant": CALL_KEYS, "tool": RESULT_KEYS, "function": RESULT_KEYS}


def read(card: DatasetCard, root: Path | None, options: dict[str, Any], report: ReadReport) -> Iterator[PreferencePair]:
    """Read rows of any of the four forms.

    Raises:
        DataError: a column is missing or of the wrong type, an id occurs twice, or no row of a file has a column that
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
            f"Splits that nothing is trained on, because they are neither train nor validation: {first_names(others)}."
        )


def _pairs_of_file(
    rows: Iterator[Row], source: str, options: dict[str, Any], report: ReadReport, first_use: dict[str, str]
) -> Iterator[PreferencePair]:
    # Texts with an implicit prompt wait for the end of the file: they are right only if no row has an explicit prompt.
    implicit_rows = 0
    implicit_pairs = []
    for row in rows:
        row_id = row_id_of(row, options["id_field"], first_use)
        try:
            answers = _answers(row, options, report)
            explicit_prompt = _prompt(row, options["prompt_field"], report)
            is_implicit = explicit_prompt is None and isinstance(answers[0], str)
            implicit_rows += is_implicit
            prompt, chosen, rejected = _parts(explicit_prompt, answers, report)
            prompt = with_system_turn(prompt, row, options["system_field"], report)
            pair = checked_pair(
                row,
                with_tools(prompt, row, options["tools_field"], report),
                chosen,
                rejected,
                split=row.split or row_split(row, options["split_field"], report),
                source=source,
                strength=_strength(row, options),
                meta={"id": row_id} if row_id else {},
            )
        except Unusable as problem:
            report.drop(problem.reason, row.file, row.number, problem.why)
            continue
        if is_implicit:
            implicit_pairs.append(pair)
        else:
            yield pair
    check_named_columns(row, options, report)
    if implicit_rows:
        yield from _implicit_pairs(row.file, implicit_pairs, options["prompt_field"], report)


def check_named_columns(last_row: Row, options: dict[str, Any], report: ReadReport) -> None:
    """Refuse a file if none of its rows has a column that the options name.

    The columns of the default options are optional.
    """
    columns = report.columns[last_row.file].values
    used = ["prompt_field", "system_field", "tools_field", "id_field"]
    if not last_row.split:
        used.append("split_field")
    problems = []
    for option in used:
        name = options[option]
        if name in (None, OPTIONS[option]["default"]) or name in columns:
            continue
        problems.append(
            f"data.options.{option} is '{name}', but no row has that column. {nearest(name, columns, 'Found')}"
        )
    if problems:
        raise DataError(f"{last_row.file}: {' '.join(problems)}")


def _implicit_pairs(
    file: str, pairs: list[PreferencePair], prompt_field: str | None, report: ReadReport
) -> Iterator[PreferencePair]:
    """The pairs of texts without a prompt, if no row of the file has one.

    Raises:
        DataError: no row has a prompt, but a column that is not read may hold it.
    """
    columns = report.columns[file]
    named = prompt_field in columns.values and prompt_field != OPTIONS["prompt_field"]["default"]
    if prompt_field and (named or columns.values[prompt_field]):
        for pair in pairs:
            report.drop("no prompt, in a file with prompts", file, pair.row)
        return
    if prompt_field and (others := [name for name in columns.unread if _may_be_prompt(name)]):
        raise DataError(
            f"{file}: no row has a prompt in the column '{prompt_field}', and the column '{others[0]}' is not read. If "
            f"it is the prompt, set data.options.prompt_field: {others[0]}. If both answers begin with the prompt, set "
            f"data.options.prompt_field: null. {nearest(prompt_field, columns.values, 'Found')}"
        )
    report.note("Implicit prompts of plain texts: words that both answers begin with are counted to the prompt.")
    yield from pairs


def _may_be_prompt(column: str) -> bool:
    name = column.strip().lower()
    return name in PROMPT_COLUMNS or bool(difflib.get_close_matches("prompt", [name], cutoff=0.85))


def split_implicit_prompt(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt, chosen and rejected from two texts that both begin with the prompt; prompt + answer is the original text.

    The prompt is the longest common prefix, cut before its last white space so that no word is split. TRL's
    `extract_prompt` gives the same where the answers differ in their first letter, but leaves common first letters of
    the two answers in the prompt ("The sky is bl"). Words that both answers begin with become part of the prompt here
    too, so a file with an explicit prompt is always better.

    >>> split_implicit_prompt("The sky is blue.", "The sky is black.")
    ('The sky is', ' blue.', ' black.')
    """
    common = chosen[: _common_length(chosen, rejected)]
    cut = len(re.sub(r"\s*\S*\Z", "", common, count=1))
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _common_length(first: Sequence, second: Sequence) -> int:
    differences = (position for position, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differences, min(len(first), len(second)))


def _answers(
    row: Row, options: dict[str, Any], report: ReadReport
) -> tuple[str, str] | tuple[list[Message], list[Message]]:
    """The columns of chosen and rejected, in one form."""
    for option in ("chosen_field", "rejected_field"):
        if options[option] not in row.fields:
            raise DataError(
                f"{row.file}, row {row.number}: field '{options[option]}' is missing. If another column has this "
                f"answer, name it with data.options.{option}. {nearest(options[option], row.fields, 'Found')}"
            )
    chosen = text_or_messages(row, options["chosen_field"], report)
    rejected = text_or_messages(row, options["rejected_field"], report)
    if isinstance(chosen, str) and isinstance(rejected, str):
        return chosen, rejected
    if isinstance(chosen, list) and isinstance(rejected, list):
        return chosen, rejected
    raise DataError(
        f"{row.file}, row {row.number}: one answer is text and the other is a list of messages; "
        "both must have one form."
    )


def _prompt(row: Row, name: str | None, report: ReadReport) -> str | list[Message] | None:
    return None if name is None or row.fields.get(name) is None else text_or_messages(row, name, report)


def _parts(
    explicit_prompt: str | list[Message] | None,
    answers: tuple[str, str] | tuple[list[Message], list[Message]],
    report: ReadReport,
) -> tuple[list[Message], str, str]:
    """Prompt, chosen and rejected of a row of any of the forms."""
    chosen, rejected = answers
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _conversation_parts(explicit_prompt, chosen, rejected)
    assert isinstance(chosen, str)
    assert isinstance(rejected, str)
    prompt = explicit_prompt
    if prompt is None:
        if chosen.lstrip().startswith("Human:"):
            report.note(
                "Texts begin with 'Human:', like the transcripts of HH-RLHF: the reader hh_rlhf splits such turns, "
                "this one does not."
            )
        prompt, chosen, rejected = split_implicit_prompt(chosen, rejected)
    return as_messages(prompt), chosen, rejected


def as_messages(prompt: str | list[Message]) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _conversation_parts(
    explicit_prompt: str | list[Message] | None, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], str, str]:
    text = explicit_prompt if isinstance(explicit_prompt, str) and explicit_prompt.strip() else None
    if isinstance(explicit_prompt, list) and explicit_prompt:
        prompt = explicit_prompt
        answers_repeat_it = chosen[: len(prompt)] == prompt == rejected[: len(prompt)]
        prompt_turns = len(prompt) if answers_repeat_it else 0
    elif text is not None and len(chosen) <= 1:
        prompt = as_messages(text)
        prompt_turns = 0
    else:
        prompt_turns = _common_length(chosen, rejected)
        prompt = chosen[:prompt_turns]
    chosen_text = only_answer(chosen[prompt_turns:])
    rejected_text = only_answer(rejected[prompt_turns:])
    if text is not None and not _says(prompt, text):
        raise Unusable("prompts differ: the conversation does not begin with the column", f"the column: {text[:60]!r}")
    return prompt, chosen_text, rejected_text


def only_answer(turns: Sequence[Message]) -> str:
    """The text of the turns after the prompt, which must be one assistant turn."""
    roles = [message["role"] for message in turns]
    if not roles:
        raise Unusable("empty response", "one conversation is the beginning of the other")
    if len(roles) > 1:
        raise Unusable("prompts of chosen and rejected differ", f"after their common turns come {', '.join(roles)}")
    if roles != ["assistant"]:
        raise Unusable("the answer is not an assistant turn", f"role {roles[0]}")
    return turns[0]["content"]


def _says(prompt: Sequence[Message], text: str) -> bool:
    """Whether a text is a prompt's first user turn, its last one, or all its turns; white space does not matter."""
    user_turns = [message["content"] for message in prompt if message["role"] == "user"]
    all_turns = " ".join(message["content"] for message in prompt)
    candidates = [*user_turns[:1], *user_turns[-1:], all_turns]
    return any(candidate.split() == text.split() for candidate in candidates)


def with_system_turn(prompt: list[Message], row: Row, name: str | None, report: ReadReport) -> list[Message]:
    """The prompt, with the system turn that a column of the row holds."""
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


def text_or_messages(row: Row, name: str, report: ReadReport) -> str | list[Message]:
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
    read = []
    reader = RowMessages(row, report)
    for position, message in enumerate(messages, start=1):
        if _is_plain(message):
            read.append(message)
            continue
        if isinstance(message, dict):
            keys = {"role", "content", *READ_KEYS.get(str(message.get("role")), ())}
            reader.unread.update(key for key, value in message.items() if value not in NOTHING and key not in keys)
        read.append(_message(message, f"field '{name}', message {position}", row, reader))
    if reader.unread:
        report.columns[row.file].message_keys.update(f"{name}[].{key}" for key in reader.unread)
    return read


def _is_plain(message: Any) -> bool:
    """Whether a message is an allowed role and a text, and nothing else. Nearly all are, so this must be quick."""
    return (
        isinstance(message, dict)
        and len(message) == 2
        and message.get("role") in ("user", "assistant", "system", "tool")
        and isinstance(message.get("content"), str)
    )


def _message(message: Any, where: str, row: Row, reader: RowMessages) -> Message:
    """One message that is more than a role and a text."""
    if not isinstance(message, dict) or "role" not in message:
        raise DataError(
            f"{row.file}, row {row.number}: {where} is {message!r:.60}; expected an object with role and content."
        )
    role = message["role"]
    if isinstance(role, str) and role not in (*STORED_ROLES, "function"):
        raise Unusable("unsupported role", f"{role!r:.40}; allowed are {', '.join(STORED_ROLES)}")
    read = reader.message(role, message, where) if isinstance(role, str) else None
    if read is None:
        raise DataError(f"{row.file}, row {row.number}: {where}: role and content must be text, found {message!r:.60}.")
    return read


def row_id_of(row: Row, name: str | None, first_use: dict[str, str]) -> str:
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


def row_split(row: Row, name: str | None, report: ReadReport) -> str:
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
    chosen_score, rejected_score = (number_column(row, name) for name in options["score_fields"])
    if chosen_score is None or rejected_score is None:
        return None
    strength = chosen_score - rejected_score
    if not math.isfinite(strength):
        raise DataError(
            f"{row.file}, row {row.number}: the difference of the scores {[chosen_score, rejected_score]} is beyond "
            "all floats."
        )
    return strength
