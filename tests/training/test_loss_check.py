"""What a method's loss may be: each violation is one sentence that names the method's file."""

import re

import pytest
import torch

from rm_methods.errors import UserError
from rm_methods.methods.contract import Loss
from rm_methods.training.loss_check import check_loss

PAIRS = 3


class Method:
    """A method in this file."""


def attached(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize(
    "loss",
    [
        Loss(attached(PAIRS)),
        Loss(attached(PAIRS, dtype=torch.float64), {"penalty": torch.zeros(PAIRS)}),
        Loss(attached(PAIRS), micro_batch=attached()),
        Loss(torch.zeros(PAIRS), micro_batch=attached(1)),
        Loss(attached(PAIRS), rewards=torch.zeros(PAIRS, 2)),
    ],
)
def test_what_the_contract_allows_passes(loss):
    check_loss(loss, PAIRS, Method())


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (attached(PAIRS), "`loss` returned a tensor of shape [3] and dtype float32; expected `Loss(per_pair)`"),
        (None, "`loss` returned None; expected `Loss(per_pair)` with one loss for each pair."),
        ((attached(PAIRS), {}), "`loss` returned a list; expected"),
        (Loss(0.5), "`Loss.per_pair` is a number; expected a floating-point tensor of shape [3]"),
        (
            Loss(attached()),
            "`Loss.per_pair` is a tensor of shape [] and dtype float32; expected a floating-point tensor of shape [3], "
            "one number for each pair of the micro-batch. The trainer averages, so leave out mean() or sum().",
        ),
        (Loss(attached(1)), "`Loss.per_pair` is a tensor of shape [1]"),
        (Loss(attached(PAIRS, 1)), "`Loss.per_pair` is a tensor of shape [3, 1]"),
        (Loss(attached(PAIRS, 2)), "`Loss.per_pair` is a tensor of shape [3, 2]"),
        (Loss(attached(PAIRS + 1)), "`Loss.per_pair` is a tensor of shape [4]"),
        (Loss(torch.zeros(PAIRS, dtype=torch.int64)), "and dtype int64; expected a floating-point tensor"),
        (Loss(torch.zeros(PAIRS)), "`Loss.per_pair` has no gradient, so nothing would be trained"),
        (Loss(attached(PAIRS), [1]), "`Loss.terms` is a list; expected a dictionary"),
        (Loss(attached(PAIRS), {"a": attached()}), "`Loss.terms['a']` is a tensor of shape []"),
        (Loss(attached(PAIRS), {"a": 0.1}), "`Loss.terms['a']` is a number"),
        (Loss(attached(PAIRS), {"a": torch.ones(PAIRS) > 0}), "and dtype bool; expected a floating-point tensor"),
        (Loss(attached(PAIRS), {1: attached(PAIRS)}), "`Loss.terms` has the name 1; expected text"),
        (
            Loss(attached(PAIRS), {"margin": attached(PAIRS)}),
            "`Loss.terms` has the name 'margin', which the trainer logs",
        ),
        (Loss(attached(PAIRS), {"loss": attached(PAIRS)}), "`Loss.terms` has the name 'loss', which the trainer logs"),
        (
            Loss(attached(PAIRS), rewards=torch.zeros(PAIRS)),
            "`Loss.rewards` is a tensor of shape [3] and dtype float32",
        ),
        (Loss(attached(PAIRS), micro_batch=attached(PAIRS)), "`Loss.micro_batch` is a tensor of shape [3]"),
        (Loss(attached(PAIRS), micro_batch=0.1), "`Loss.micro_batch` is a number; expected one number, a floating"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(loss, says):
    with pytest.raises(UserError, match=re.escape(says)) as failure:
        check_loss(loss, PAIRS, Method())
    assert str(failure.value).startswith(f"{__file__}: ")
    assert "\n" not in str(failure.value)
