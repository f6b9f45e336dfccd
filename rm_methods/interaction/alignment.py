"""Aligns the tokens of two tokenizers over the same text by character spans.

A group is a smallest stretch of text that consists of whole tokens in both tokenizations: no token of either crosses
the boundary between two groups.  Attention maps of different tokenizers are compared over groups, by the mean over a
group's query rows and the sum over its key columns, so rows stay distributions.  Tokens outside the text (special
tokens, template tokens, blanks) are in no group.

The text of a pair has three segments, prompt, chosen and rejected, and no group crosses from one to another.
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
        segment: int64 [G], segment of each group; groups are ordered by segment, then by position in the text.
        unmatched: tokens of the text (student and teacher together) that are in no group because the other tokenizer
            has no token at that text.
    """

    student: np.ndarray
    teacher: np.ndarray
    segment: np.ndarray
    unmatched: int


@dataclass(frozen=True)
class SegmentGroups:
    """Groups of one segment.

    Attributes:
        student: int64 [tokens], group of each student token, or NO_GROUP.
        teacher: int64 [tokens], group of each teacher token, or NO_GROUP.
        count: number of groups.
        unmatched: tokens of the text (student and teacher together) that are in no group.
    """

    student: np.ndarray
    teacher: np.ndarray
    count: int
    unmatched: int


def group_tokens(student_spans: np.ndarray, teacher_spans: np.ndarray, text: str) -> SegmentGroups:
    """Groups of one segment.

    Args:
        student_spans, teacher_spans: int64 [tokens, 2], characters [start, end) of `text`; an empty span is a token
            outside.
        text: of the segment.
    """
    # Characters are counted without blanks: BPE makes the blank before a word part of its token, WordPiece does not.
    is_blank = np.fromiter((character.isspace() for character in text), dtype=bool, count=len(text))
    position = np.concatenate([[0], np.cumsum(~is_blank)])
    student = position[np.clip(student_spans, 0, len(text))]
    teacher = position[np.clip(teacher_spans, 0, len(text))]
    count = int(position[-1])
    # A group ends after a character unless a token of either side also holds the next one.
    ends_group = (_tokens_across(student, count) + _tokens_across(teacher, count)) == 0
    group_of_character = np.concatenate([[0], np.cumsum(ends_group)[:-1]]) if count else np.zeros(0, dtype=np.int64)
    # A group counts only if both sides have tokens in it.
    is_matched = _groups_with_tokens(student, group_of_character, count)
    is_matched &= _groups_with_tokens(teacher, group_of_character, count)
    number = np.where(is_matched, np.cumsum(is_matched) - 1, NO_GROUP)
    student_group, student_unmatched = _group_of_tokens(student, group_of_character, number)
    teacher_group, teacher_unmatched = _group_of_tokens(teacher, group_of_character, number)
    return SegmentGroups(
        student=student_group,
        teacher=teacher_group,
        count=int(is_matched.sum()),
        unmatched=student_unmatched + teacher_unmatched,
    )


def _tokens_across(spans: np.ndarray, count: int) -> np.ndarray:
    """For each character, the number of tokens that hold it and the next one, int64 [count]."""
    real = _not_empty(spans)
    change = np.zeros(count + 1, dtype=np.int64)
    np.add.at(change, real[:, 0], 1)
    np.add.at(change, real[:, 1] - 1, -1)
    return np.cumsum(change)[:count]


def _groups_with_tokens(spans: np.ndarray, group_of_character: np.ndarray, count: int) -> np.ndarray:
    """Which groups hold a character of a token, bool [groups]."""
    real = _not_empty(spans)
    change = np.zeros(count + 1, dtype=np.int64)
    np.add.at(change, real[:, 0], 1)
    np.add.at(change, real[:, 1], -1)
    is_covered = np.cumsum(change)[:count] > 0
    has_tokens = np.zeros(int(group_of_character[-1]) + 1 if count else 0, dtype=bool)
    has_tokens[group_of_character[is_covered]] = True
    return has_tokens


def _group_of_tokens(spans: np.ndarray, group_of_character: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, int]:
    """The final group of each token, int64 [tokens], and the number of tokens of the text without a group."""
    group = np.full(len(spans), NO_GROUP, dtype=np.int64)
    in_text = spans[:, 0] < spans[:, 1]
    group[in_text] = number[group_of_character[spans[in_text, 0]]]
    return group, int((group[in_text] == NO_GROUP).sum())


def _not_empty(spans: np.ndarray) -> np.ndarray:
    return spans[spans[:, 0] < spans[:, 1]]


def align(texts: tuple[str, str, str], student: JointRow, teacher: JointRow) -> Alignment:
    """Align the tokens of a pair.

    Args:
        texts: prompt, chosen and rejected.
        student, teacher: their tokens of these texts.
    """
    student_group = np.full(len(student.segment), NO_GROUP, dtype=np.int64)
    teacher_group = np.full(len(teacher.segment), NO_GROUP, dtype=np.int64)
    segments = []
    total = 0
    unmatched = 0
    for segment, text in enumerate(texts):
        in_student = student.segment == segment
        in_teacher = teacher.segment == segment
        groups = group_tokens(student.spans[in_student], teacher.spans[in_teacher], text)
        student_group[in_student] = np.where(groups.student == NO_GROUP, NO_GROUP, groups.student + total)
        teacher_group[in_teacher] = np.where(groups.teacher == NO_GROUP, NO_GROUP, groups.teacher + total)
        segments.append(np.full(groups.count, segment, dtype=np.int64))
        total += groups.count
        unmatched += groups.unmatched
    return Alignment(student_group, teacher_group, np.concatenate(segments), unmatched)
