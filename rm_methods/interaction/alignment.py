"""Aligns the tokens of two tokenizers over the same text by character spans.

A group is a smallest stretch of text that both tokenizers cut out with whole tokens: between two neighboring groups
neither has a token that goes across.  Attention maps of different tokenizers are compared over groups: the mean over a
group's query rows, the sum over its key columns, so rows stay distributions.  Tokens outside the text (special tokens,
template tokens, blanks) are in no group.

The text of a pair has three segments, prompt, chosen and rejected, and no group ever crosses from one to another.
Shapes: L student tokens, M teacher tokens, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rm_methods.reward_models.joint_reader import JointRow

NO_GROUP = -1


@dataclass(frozen=True)
class Alignment:
    """Groups of one pair.

    Attributes:
        student: int64 [L], group of each student token, or NO_GROUP.
        teacher: int64 [M], group of each teacher token, or NO_GROUP.
        segment: int64 [G], segment of each group; groups are ordered by segment, then by place in the text.
        unmatched: tokens of the text (student and teacher together) that are in no group because the other tokenizer
            has none there.
    """

    student: np.ndarray
    teacher: np.ndarray
    segment: np.ndarray
    unmatched: int


def group_tokens(
    student_spans: np.ndarray, teacher_spans: np.ndarray, text: str
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Groups of one segment.

    Args:
        student_spans, teacher_spans: int64 [tokens, 2] in `text`; empty spans are tokens outside of it.
        text: of the segment.

    Returns:
        (student groups int64 [L], teacher groups int64 [M], number of groups, unmatched tokens); NO_GROUP where there
        is none.
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


def align(texts: tuple[str, str, str], student: JointRow, teacher: JointRow) -> Alignment:
    """Align the tokens of a pair.

    Args:
        texts: prompt, chosen and rejected.
        student, teacher: their tokens of these texts.
    """
    groups = [np.full(len(row.segment), NO_GROUP, dtype=np.int64) for row in (student, teacher)]
    segments, total, unmatched = [], 0, 0
    for segment, text in enumerate(texts):
        inside = [row.segment == segment for row in (student, teacher)]
        *own, count, lost = group_tokens(student.spans[inside[0]], teacher.spans[inside[1]], text)
        for side in range(2):
            groups[side][inside[side]] = np.where(own[side] == NO_GROUP, NO_GROUP, own[side] + total)
        segments.append(np.full(count, segment, dtype=np.int64))
        total += count
        unmatched += lost
    return Alignment(*groups, np.concatenate(segments), unmatched)
