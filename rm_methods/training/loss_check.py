"""Checks what a method's `loss` returns where the trainer receives it.

Without it, a loss of a wrong shape would be broadcast: `Loss(x.mean())` would train to the end and mean something else.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from rm_methods.errors import UserError
from rm_methods.methods.contract import Loss
from rm_methods.training.pair_statistics import PAIR_METRICS
from rm_methods.validation import kind_of

LOGGED_BY_TRAINER = frozenset({"step", "time", "epoch", "loss", "grad_norm", "learning_rate", *PAIR_METRICS})


def check_loss(loss: Any, n_pairs: int, method: Any) -> None:
    """Refuse a loss that does not fulfill the contract of `rm_methods.methods.contract.Loss`.

    Looks at types, shapes and the graph only, so it does not wait for a GPU; the trainer looks at the values.

    Args:
        loss: what the method returned for a micro-batch.
        n_pairs: pairs of the micro-batch.
        method: the method, whose file the message names.

    Raises:
        UserError: in one sentence, with the file of the method and what is expected.
    """
    if problem := _problem(loss, n_pairs):
        raise UserError(f"{code_of(method)}: {problem}")


def code_of(method: Any) -> str:
    """The file of a method's class, for messages."""
    module = sys.modules.get(type(method).__module__)
    return getattr(module, "__file__", None) or type(method).__module__


def _problem(loss: Any, n_pairs: int) -> str | None:
    if not isinstance(loss, Loss):
        return f"`loss` returned {_described(loss)}; expected `Loss(per_pair)` with one loss for each pair."
    if problem := _tensor_problem("per_pair", loss.per_pair, n_pairs):
        return problem
    micro_batch = loss.micro_batch
    if micro_batch is not None and not (
        isinstance(micro_batch, torch.Tensor) and micro_batch.numel() == 1 and micro_batch.is_floating_point()
    ):
        return f"`Loss.micro_batch` is {_described(micro_batch)}; expected one number, a floating-point tensor."
    if not loss.per_pair.requires_grad and not (micro_batch is not None and micro_batch.requires_grad):
        return (
            "`Loss.per_pair` has no gradient, so nothing would be trained; compute it from `model(batch).rewards` "
            "without detach(), item() or torch.no_grad()."
        )
    if not isinstance(loss.terms, dict):
        return f"`Loss.terms` is {_described(loss.terms)}; expected a dictionary of names to tensors."
    rewards = loss.rewards
    if rewards is not None and not (isinstance(rewards, torch.Tensor) and rewards.shape == (n_pairs, 2)):
        return (
            f"`Loss.rewards` is {_described(rewards)}; expected a tensor of shape [{n_pairs}, 2]: for each pair "
            "of the micro-batch, the rewards of chosen and rejected."
        )
    for name, values in loss.terms.items():
        if not isinstance(name, str):
            return f"`Loss.terms` has the name {name!r}; expected text."
        if name in LOGGED_BY_TRAINER:
            return f"`Loss.terms` has the name {name!r}, which the trainer logs itself; choose another name."
        if problem := _tensor_problem(f"terms[{name!r}]", values, n_pairs):
            return problem
    return None


def _tensor_problem(name: str, values: Any, n_pairs: int) -> str | None:
    """What is wrong with one number for each pair."""
    expected = f"expected a floating-point tensor of shape [{n_pairs}], one number for each pair of the micro-batch"
    if not isinstance(values, torch.Tensor):
        return f"`Loss.{name}` is {_described(values)}; {expected}."
    if values.shape != (n_pairs,):
        reduced = " The trainer averages, so leave out mean() or sum()." if values.ndim == 0 else ""
        return f"`Loss.{name}` is {_described(values)}; {expected}.{reduced}"
    if not values.is_floating_point():
        return f"`Loss.{name}` is {_described(values)}; {expected}: convert it with float()."
    return None


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)} and dtype {str(value.dtype).removeprefix('torch.')}"
    return "None" if value is None else kind_of(value)
