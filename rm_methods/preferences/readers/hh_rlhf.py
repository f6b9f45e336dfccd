"""HH-RLHF (Bai et al. 2022): rows of two transcripts that differ in the last turn of the assistant.

Format and counts: https://github.com/anthropics/hh-rlhf. A transcript is ``\\n\\nHuman: ...\\n\\nAssistant: ...``. The
prompt is everything before the last ``\\n\\nAssistant:``, and the response is the rest (the last-turn rule).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rm_methods.errors import DataError
from rm_methods.preferences.dataset_card import DatasetCard
from rm_methods.preferences.file_rows import Row, Unusable, checked_pair, source_rows, text_column
from rm_methods.preferences.pair import Message, PreferencePair
from rm_methods.preferences.read_report import ReadReport

SUBSETS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
OPTIONS: dict[str, dict[str, Any]] = {
    "subsets": {
        "type": ["array", "null"],
        "items": {"enum": list(SUBSETS)},
        "minItems": 1,
        "uniqueItems": True,
        "default": None,
        "description": "Tranches to read. null: all four from the hub, or all in the local root.",
    }
}

# Only a speaker's name at the start of a paragraph begins a turn: "Human:" also occurs in running text.
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLE_OF_SPEAKER = {"Human": "user", "Assistant": "assistant"}


def parse_transcript(text: str) -> list[Message]:
    """Split a transcript into messages, without merging consecutive turns of one speaker.

    The white space around each turn is removed.  The last message is the assistant's and may be empty.

    >>> parse_transcript("\\n\\nHuman: Hello?\\n\\nAssistant: Hi.")
    [{'role': 'user', 'content': 'Hello?'}, {'role': 'assistant', 'content': 'Hi.'}]

    Raises:
        ValueError: text before the first turn, no turn at all, or a transcript that does not begin with a Human turn
            and end with an Assistant turn.
    """
    before, *turns = TURN.split(text)
    if not turns:
        raise ValueError("it has no 'Human:' or 'Assistant:' turn")
    if before.strip():
        raise ValueError(f"it begins with {before[:40]!r} instead of 'Human:'")
    messages = []
    for speaker, content in zip(turns[::2], turns[1::2], strict=True):
        messages.append({"role": _ROLE_OF_SPEAKER[speaker], "content": content.strip()})
    if messages[0]["role"] != "user":
        raise ValueError("it begins with an Assistant turn, not with a Human turn")
    if messages[-1]["role"] != "assistant":
        raise ValueError("it ends with a Human turn, so it has no answer to judge")
    return messages


def merge_turns(messages: list[Message]) -> list[Message]:
    """Join consecutive turns of one speaker by a blank line, as in the transcript.

    >>> merge_turns([{"role": "user", "content": "Hi."}, {"role": "user", "content": "Well?"}])
    [{'role': 'user', 'content': 'Hi.\\n\\nWell?'}]
    """
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"]:
            merged[-1] = {
                "role": message["role"],
                "content": f"{merged[-1]['content']}\n\n{message['content']}".strip(),
            }
        else:
            merged.append(message)
    return merged


def read(card: DatasetCard, root: Path | None, options: dict[str, Any], report: ReadReport) -> Iterator[PreferencePair]:
    """Read the tranches.

    A row is dropped and counted if its transcripts differ before the last turn, if a last answer is empty, or if it has
    no transcripts. Consecutive turns of one speaker are merged, and counted once per transcript.
    """
    for subset in _subsets(card, root, options["subsets"], report):
        folder = None if root is None else root / subset
        for row in source_rows(card, folder, report, data_dir=subset):
            try:
                yield _pair(row, f"{card.name}/{subset}", report)
            except Unusable as problem:
                report.drop(problem.reason, row.file, row.number, problem.why)


def _subsets(card: DatasetCard, root: Path | None, requested: list[str] | None, report: ReadReport) -> list[str]:
    if root is None:
        return requested or list(SUBSETS)
    present = [subset for subset in SUBSETS if (root / subset).is_dir()]
    missing = [subset for subset in requested or SUBSETS if subset not in present]
    if not present or (requested and missing):
        raise DataError(
            f"{root}: the folders {', '.join(missing)} of data set '{card.name}' are missing. "
            f"data.root must be the folder that holds them: {card.local_files}"
        )
    if missing:
        report.note(f"Not in the local root, so not read: {', '.join(missing)}.")
    return requested or present


def _pair(row: Row, source: str, report: ReadReport) -> PreferencePair:
    transcripts = {}
    for side in ("chosen", "rejected"):
        try:
            transcripts[side] = parse_transcript(text_column(row, side))
        except ValueError as error:
            raise Unusable("malformed transcript", f"{side}: {error}") from None
    merged = {}
    for side, messages in transcripts.items():
        merged[side] = merge_turns(messages)
        if len(merged[side]) < len(messages):
            report.change("transcript with consecutive turns of one speaker: merged", row.file, row.number, side)
    if not all(messages[-1]["content"] for messages in transcripts.values()):
        raise Unusable("empty response")
    # Compared before merging: the last-turn rule refers to the text up to the last "Assistant:".
    if transcripts["chosen"][:-1] != transcripts["rejected"][:-1]:
        raise Unusable("prompts of chosen and rejected differ")
    chosen = merged["chosen"][-1]["content"]
    rejected = merged["rejected"][-1]["content"]
    return checked_pair(row, merged["chosen"][:-1], chosen, rejected, source=source)
