"""The attention of student and teacher, without a training method."""

import pytest
import torch

from rm_methods.errors import UserError
from rm_methods.interaction.student_teacher import LayerChoice, StudentTeacher
from rm_methods.methods.registry import load_method_card
from rm_methods.reward_models.joint_reader import CHOSEN, PROMPT, REJECTED
from rm_methods.reward_models.layouts import lay_out


@pytest.fixture(scope="module")
def items(tokenizer, pairs):
    return tokenizer.encode((pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs[:5])


def regrouped(reward_model, student_teacher, items, positions, layout):
    """The student's attention in layer 1, from a forward in this layout."""
    reward_model.capture_attention((1,))
    batch = lay_out([items[position] for position in positions], layout, 0)
    with torch.no_grad():
        attention = reward_model(batch).attention[1]
    return student_teacher.student_attention(attention, batch, positions, with_values=True)


def test_packed_and_plain_forwards_give_the_same_attention(reward_model, tokenizer, items):
    student_teacher = StudentTeacher((1,), None, items, tokenizer)
    positions = [3, 0, 4]
    packed = regrouped(reward_model, student_teacher, items, positions, "packed")
    plain = regrouped(reward_model, student_teacher, items, positions, "plain")
    for name in ("group", "segment", "read"):
        assert torch.equal(getattr(packed, name), getattr(plain, name))
    is_token = packed.segment >= 0
    for name in ("query", "key", "value"):
        tokens = [getattr(attention, name).transpose(1, 2)[is_token] for attention in (packed, plain)]
        torch.testing.assert_close(tokens[0], tokens[1], atol=1e-5, rtol=1e-5)


def test_tokens_are_in_the_order_prompt_chosen_rejected(reward_model, tokenizer, items):
    student_teacher = StudentTeacher((1,), None, items, tokenizer)
    attention = regrouped(reward_model, student_teacher, items, [2, 1], "packed")
    for b, item in enumerate((items[2], items[1])):
        responses = [length - item.shared for length in item.lengths]
        counts = [int((attention.segment[b] == kind).sum()) for kind in (PROMPT, CHOSEN, REJECTED)]
        assert counts == [item.shared, *responses]
        # A reward is read from the last token of its response.
        for kind, column in zip((CHOSEN, REJECTED), attention.read[b].tolist(), strict=True):
            assert column == int(torch.nonzero(attention.segment[b] == kind).max())


def test_a_uniform_teacher_has_one_group_per_token_of_the_text(tokenizer, items):
    student_teacher = StudentTeacher((0, 1), None, items, tokenizer)
    assert student_teacher.maps[0] is student_teacher.maps[1]
    assert len(student_teacher.distinct_maps) == 1
    teacher = student_teacher.maps[0].batch([0], "cpu")
    groups = len(student_teacher.pairs[0].segment)
    torch.testing.assert_close(teacher.map[0], torch.full((groups, groups), 1 / groups))
    assert "teacher_attention_outside_text" not in student_teacher.report()
    with pytest.raises(UserError, match="a teacher that is not uniform"):
        student_teacher.teacher_vectors(student_teacher.maps[0], [0], "cpu")


@pytest.mark.parametrize(
    ("layers", "depth", "numbers"), [("auto", 30, (19,)), ("auto", 2, (0,)), ([1, -1], 4, (0, 3)), ([2], 2, (1,))]
)
def test_layers_are_counted_as_people_do(layers, depth, numbers):
    settings = load_method_card("interaction_distillation").defaults() | {"student_layers": layers}
    assert LayerChoice.from_settings(settings).student(depth) == numbers


def test_a_layer_that_does_not_exist_is_refused():
    settings = load_method_card("interaction_distillation").defaults() | {"student_layers": [3]}
    with pytest.raises(UserError, match=r"student_layers: the model has 2 layers, so \[3\] do not exist"):
        LayerChoice.from_settings(settings).student(2)
