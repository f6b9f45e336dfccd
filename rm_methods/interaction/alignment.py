"""Aligns the tokens of two tokenizers over the same text by character spans.

A group is a smallest stretch of text that both tokenizers cut out with whole tokens: between two neighbouring groups neither has a
token that goes across.  Attention maps of different tokenizers are compared over groups: the mean over a group's query rows, the sum
over its key columns, so rows stay distributions.  Tokens outside the text (special tokens, template tokens, blanks) are in no group.

The text of a pair has three segments, prompt, chosen and rejected, and no group ever crosses from one to another.
Shapes: L student tokens, M teacher tokens, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rm_methods.errors import UserError

NO_GROUP = -1
PROMPT, CHOSEN, REJECTED = 0, 1, 2


@dataclass(frozen=True)
class Alignment:
    """Groups of one pair.

    Attributes:
        student: int64 [L], group of each student token, or NO_GROUP.
        teacher: int64 [M], group of each teacher token, or NO_GROUP.
        segment: int64 [G], segment of each group; groups are ordered by segment, then by place in the text.
        unmatched: tokens of the text (student and teacher together) that are in no group because the other tokenizer has none there.
    """

    student: np.ndarray
    teacher: np.ndarray
    segment: np.ndarray
    unmatched: int


def spans_in_text(rendered: str, offsets: Sequence[tuple[int, int]], contents: Sequence[str]) -> np.ndarray:
    """Where tokens of a rendered conversation lie in the text of its messages.

    Args:
        rendered: the conversation as the chat template prints it.
        offsets: character spans [start, end) of the tokens in `rendered`.
        contents: the messages' contents in their order, as the template must print them (blanks at the ends may be cut).

    Returns:
        int64 [tokens, 2], spans in the contents joined by one newline each; (0, 0) for tokens outside of them.

    Raises:
        UserError: the template changes a message's characters.
    """
    offsets = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    spans = np.zeros_like(offsets)
    # From the last message back: a message's words may stand in the template's text before it, never behind the last one's end.
    end, place = len(rendered), sum(len(c) + 1 for c in contents)
    for content in reversed(contents):
        place -= len(content) + 1
        words = content.strip()
        if not words:
            continue
        start = rendered.rfind(words, 0, end)
        if start < 0:
            raise UserError(
                f"The chat template changes the characters of a message, so tokens cannot be aligned: {words[:80]!r} "
                "is not in the rendered conversation. Use a template that prints messages as they are."
            )
        shift = place + content.index(words) - start
        first, last = np.maximum(offsets[:, 0], start), np.minimum(offsets[:, 1], start + len(words))
        inside = first < last
        spans[inside] = np.stack([first, last], axis=1)[inside] + shift
        end = start
    return spans


def group_tokens(student_spans: np.ndarray, teacher_spans: np.ndarray, text: str) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Groups of one segment.

    Args:
        student_spans, teacher_spans: int64 [tokens, 2] in `text`; empty spans are tokens outside of it.
        text: of the segment.

    Returns:
        (student groups int64 [L], teacher groups int64 [M], number of groups, unmatched tokens); NO_GROUP where there is none.
    """
    blank = np.fromiter((c.isspace() for c in text), dtype=bool, count=len(text))
    # Characters without blanks: BPE counts the blank before a word to its token, WordPiece to none.
    place = np.concatenate([[0], np.cumsum(~blank)])
    sides = [place[np.clip(spans, 0, len(text))] for spans in (student_spans, teacher_spans)]
    count = int(place[-1])
    glued = np.zeros(count + 1, dtype=np.int64)
    covered = np.zeros((2, count + 1), dtype=np.int64)
    for side, spans in enumerate(sides):
        real = spans[spans[:, 0] < spans[:, 1]]
        np.add.at(glued, real[:, 0], 1)
        np.add.at(glued, real[:, 1] - 1, -1)
        np.add.at(covered[side], real[:, 0], 1)
        np.add.at(covered[side], real[:, 1], -1)
    # glued[i] > 0: some token holds characters i and i + 1, so no group ends between them.
    is_end = np.cumsum(glued)[:count] == 0
    raw_group = np.concatenate([[0], np.cumsum(is_end)[:-1]]) if count else np.zeros(0, dtype=np.int64)
    both = [np.zeros(int(is_end.sum()), dtype=bool) for _ in range(2)]
    for side in range(2):
        both[side][raw_group[np.cumsum(covered[side])[:count] > 0]] = True
    matched = both[0] & both[1]
    number = np.where(matched, np.cumsum(matched) - 1, NO_GROUP)
    groups, unmatched = [], 0
    for spans in sides:
        inside = spans[:, 0] < spans[:, 1]
        own = np.full(len(spans), NO_GROUP, dtype=np.int64)
        own[inside] = number[raw_group[spans[inside, 0]]]
        unmatched += int((own[inside] == NO_GROUP).sum())
        groups.append(own)
    return groups[0], groups[1], int(matched.sum()), unmatched


def align(
    texts: Sequence[str],
    student_segments: np.ndarray,
    student_spans: np.ndarray,
    teacher_segments: np.ndarray,
    teacher_spans: np.ndarray,
) -> Alignment:
    """Align the tokens of a pair.

    Args:
        texts: prompt, chosen and rejected.
        student_segments, teacher_segments: int64 [tokens], PROMPT, CHOSEN, REJECTED, or NO_GROUP for tokens outside the texts.
        student_spans, teacher_spans: int64 [tokens, 2], each in the text of its token's segment.
    """
    student = np.full(len(student_segments), NO_GROUP, dtype=np.int64)
    teacher = np.full(len(teacher_segments), NO_GROUP, dtype=np.int64)
    segments, total, unmatched = [], 0, 0
    for segment, text in enumerate(texts):
        mine, theirs = student_segments == segment, teacher_segments == segment
        own, other, count, lost = group_tokens(student_spans[mine], teacher_spans[theirs], text)
        student[mine] = np.where(own == NO_GROUP, NO_GROUP, own + total)
        teacher[theirs] = np.where(other == NO_GROUP, NO_GROUP, other + total)
        segments.append(np.full(count, segment, dtype=np.int64))
        total += count
        unmatched += lost
    return Alignment(student, teacher, np.concatenate(segments), unmatched)
