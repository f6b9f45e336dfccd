import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_methods.errors import UserError
from rm_methods.interaction.alignment import NO_GROUP, align, group_tokens
from rm_methods.reward_models.joint_reader import CHOSEN, OUTSIDE, PROMPT, REJECTED, JointRow
from rm_methods.reward_models.tokenization import spans_in_text


def groups(text, student, teacher):
    spans = (np.array(side, dtype=np.int64).reshape(-1, 2) for side in (student, teacher))
    groups = group_tokens(*spans, text)
    return groups.student.tolist(), groups.teacher.tolist(), groups.count, groups.unmatched


def test_groups_by_hand():
    # "unhappy cat": student un|happy| cat, teacher unhap|py|cat: the first two tokens of each side make one group.
    assert groups("unhappy cat", [(0, 2), (2, 7), (7, 11)], [(0, 5), (5, 7), (8, 11)]) == ([0, 0, 1], [0, 0, 1], 2, 0)


def test_tokens_outside_the_text_and_without_a_partner():
    # Empty spans are special tokens; the teacher has no token for the emoji.
    student_group, teacher_group, count, unmatched = groups(
        "hi \U0001f600 yo", [(0, 0), (0, 2), (2, 4), (4, 7)], [(0, 2), (5, 7), (0, 0)]
    )
    assert student_group == [NO_GROUP, 0, NO_GROUP, 1]
    assert teacher_group == [0, 1, NO_GROUP]
    assert (count, unmatched) == (2, 1)


def test_byte_tokens_of_one_character_are_one_group():
    assert groups("\U0001f600!", [(0, 1), (0, 1), (0, 1), (1, 2)], [(0, 1), (1, 2)]) == ([0, 0, 0, 1], [0, 1], 2, 0)


@st.composite
def cuts(draw, text):
    ends = draw(st.lists(st.integers(1, len(text)), max_size=len(text), unique=True))
    ends = sorted({*ends, len(text)})
    return list(zip([0, *ends[:-1]], ends, strict=True))


@settings(max_examples=200)
@given(data=st.data(), text=st.text(min_size=1, max_size=40))
def test_groups_partition_the_text_and_no_token_crosses_one(data, text):
    student, teacher = data.draw(cuts(text)), data.draw(cuts(text))
    student_group, teacher_group, count, unmatched = groups(text, student, teacher)
    assert unmatched == 0
    assert (
        sorted({g for g in student_group if g != NO_GROUP})
        == list(range(count))
        == sorted({g for g in teacher_group if g != NO_GROUP})
    )
    assert [g for g in student_group if g != NO_GROUP] == sorted(g for g in student_group if g != NO_GROUP)
    for g in range(count):
        covered = [
            "".join("".join(text[a:b].split()) for (a, b), group in zip(spans, actual, strict=True) if group == g)
            for spans, actual in ((student, student_group), (teacher, teacher_group))
        ]
        assert covered[0] == covered[1] != ""


@settings(max_examples=100)
@given(data=st.data(), text=st.text(alphabet="abcdé\u0301 \U0001f600", min_size=1, max_size=30))
def test_equal_tokenizers_give_singletons(data, text):
    spans = data.draw(cuts(text))
    student_group, teacher_group, count, _ = groups(text, spans, spans)
    assert student_group == teacher_group
    real = [g for g in student_group if g != NO_GROUP]
    assert real == list(range(count))


def test_segments_are_never_mixed():
    spans = np.array([(0, 2), (0, 2), (0, 2), (0, 0)])
    segments = np.array([PROMPT, CHOSEN, REJECTED, OUTSIDE])
    actual = align(("ab", "ab", "ab"), JointRow(None, segments, spans), JointRow(None, segments[[0, 2, 1, 3]], spans))
    assert actual.student.tolist() == [0, 1, 2, NO_GROUP]
    assert actual.teacher.tolist() == [0, 2, 1, NO_GROUP]
    assert actual.segment.tolist() == [PROMPT, CHOSEN, REJECTED]


def test_spans_of_a_rendered_conversation():
    rendered = "<u>user says hi</u><a>hi</a>"
    offsets = [(0, 3), (3, 7), (7, 12), (12, 15), (15, 19), (19, 22), (22, 24), (24, 28)]
    messages = [{"role": "user", "content": "user says hi"}, {"role": "assistant", "content": " hi"}]
    spans = spans_in_text(rendered, offsets, messages, response_start=22)
    # Contents joined by a newline: "user says hi" is 0 to 12, " hi" starts at 13, its word at 14.
    assert spans.tolist() == [[0, 0], [0, 4], [4, 9], [9, 12], [0, 0], [0, 0], [14, 16], [0, 0]]


def test_a_template_that_changes_characters_is_refused():
    with pytest.raises(UserError, match="changes the characters"):
        spans_in_text("<u>HELLO</u>", [(0, 3), (3, 8)], [{"role": "assistant", "content": "hello"}], response_start=3)


def test_words_that_also_stand_in_the_template_are_found_in_the_message(tokenizer):
    # "e" stands in the closing "<eos>", "user" in the role marker.
    item = tokenizer.encode([([{"role": "user", "content": "user"}], ("e", "os"))])[0]
    for sequence, conversation in zip(item.sequences, item.conversations, strict=True):
        spans = tokenizer.text_spans(conversation)
        is_text = spans[:, 0] < spans[:, 1]
        words = tokenizer.tokenizer.convert_ids_to_tokens(sequence)
        assert not is_text[0]
        assert not is_text[-1]
        assert next(word for word, inside in zip(words, is_text, strict=True) if inside)[0] == "u"
        assert not any(inside for word, inside in zip(words, is_text, strict=True) if word.startswith("<"))
