import math

import pytest
import torch

from rm_methods.methods.joint_method import joint_loss


def test_both_orders_ask_for_the_chosen_response():
    # Chosen first with logit 2, rejected first with logit -1: -log sigmoid(2) and -log sigmoid(1).
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    assert joint_loss(torch.tensor([[2.0, -1.0]])).item() == pytest.approx(expected, abs=1e-6)


def test_a_preference_for_the_first_response_whatever_it_is_gains_nothing():
    logits = torch.tensor([[0.0, 0.0]], requires_grad=True)
    loss = joint_loss(logits)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.tensor([[-0.25, 0.25]]))
    assert joint_loss(torch.tensor([[3.0, 3.0]])).item() > math.log(2)
