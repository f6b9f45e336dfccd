"""What a training does when a micro-batch does not fit into memory: smaller ones, for the same optimizer steps.

A step that ran out of memory is thrown away and computed again: its gradients, what it counted, the model's buffers and
the random states are those before it.  So a run that runs out of memory in its first step gives the same bits as one
that was asked for the smaller micro-batches; one that does so later differs from both by rounding.

On a CPU no error comes when the machine is full: the kernel kills a process.  So there the need of the first step is
estimated before it (`needed_bytes`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from rm_methods.errors import UserError
from rm_methods.files import read_json, write_json
from rm_methods.reward_models import packed_attention
from rm_methods.reward_models.activations import kept_bytes_of
from rm_methods.run_card import Reduction
from rm_methods.system.memory import GRADIENT, MOMENTS
from rm_methods.training.loss_check import code_of

if TYPE_CHECKING:
    from rm_methods.methods.contract import TrainedMethod
    from rm_methods.reward_models.layouts import PairBatch

# The smallest value that the configuration allows.
SMALLEST_LIMIT = 32
# Temporary tensors on top of what is kept: performance/scale_memory.py measures 1.19 MB per token for 0.99 MB kept.
_WITH_TEMPORARY = 1.2
_FILE = "micro_batches.json"  # in the work folder


class StateBefore:
    """What a step changes besides gradients, as it was before the step: random states and the model's buffers.

    Args:
        model: its buffers are copied; a method's memory may be among them.
    """

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self.python = random.getstate()
        self.numpy = np.random.get_state()
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self) -> None:
        """Put everything back, and remove the gradients."""
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self.buffers[name])
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        self.model.zero_grad(set_to_none=True)


def smaller_limit(limit: int, tokens: int) -> int:
    """The limit halved until a micro-batch of so many tokens is above it.

    >>> smaller_limit(4096, 3000), smaller_limit(4096, 4096), smaller_limit(4096, 900)
    (2048, 2048, 512)

    It falls below the smallest value of the configuration only for such a small micro-batch.
    """
    while limit >= tokens:
        limit //= 2
    return max(limit, min(SMALLEST_LIMIT, tokens - 1))


def needed_bytes(
    model: torch.nn.Module, tokens: int, *, keys: float, passes: int, bf16: bool, recomputed: bool
) -> int | None:
    """Main memory that a training takes beyond the model's weights; None for a model whose sizes are not known.

    Gradients, Adam's moments, bf16 copies of the weights, and what a micro-batch of so many tokens keeps.

    Args:
        keys: attention weights of our attention that are kept, per token and head.
        passes: forwards of a micro-batch that are kept at the same time.
        bf16: whether the backbone computes in bf16; in fp32 a token counts twice.
    """
    config = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) != packed_attention.NAME:
        keys = 0  # the kernels of transformers keep none
    frozen = getattr(model, "frozen", None)
    kept = None if config is None else kept_bytes_of(config, recomputed, keys, frozen=frozen.count if frozen else 0)
    if kept is None:
        return None
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)
    copies = 2 * matrices if bf16 and not recomputed else 0
    activations = passes * tokens * kept * (1 if bf16 else 2)
    return (GRADIENT + MOMENTS) * trained + copies + round(_WITH_TEMPORARY * activations)


def cannot_reduce(method: TrainedMethod, limit: int, ranks: int, deepspeed: bool) -> str | None:
    """Why micro-batches are not made smaller during a training, as the rest of a sentence, and what to do; or None."""
    remedy = (
        f"Set training.tokens_per_microbatch: {max(SMALLEST_LIMIT, limit // 2)}{{}}, or "
        "training.gradient_checkpointing: true, which changes no result."
    )
    asked = f"training.tokens_per_microbatch: {limit}."
    if method.depends_on_cut:
        return (
            f"{asked} It is not reduced by itself, because the loss of {code_of(method)} depends on which pairs share "
            f"a micro-batch. {remedy.format(' for all runs that are compared')}"
        )
    if ranks > 1 or deepspeed:
        # A rank that fails within an exchange of gradients or shards leaves the others waiting in it.
        return (
            f"{asked} It is not reduced by itself, because other ranks or DeepSpeed are in the middle of the step. "
            f"{remedy.format('')}"
        )
    return None


def does_not_fit(batch: PairBatch, label: str, cause: str) -> UserError:
    """The error of a pair that does not fit into memory by itself."""
    return UserError(
        f"{label}: out of memory with the single pair {batch.pair_ids[0]} in a micro-batch ({batch.launched_tokens:,} "
        f"tokens, the longest sequence has {batch.longest:,}), even with recomputed activations. Lower "
        "training.max_length (training.overlong_pairs says what happens to longer pairs), train adapters "
        f"(training.lora), or use more memory. The cause: {cause}"
    )


def read_reductions(work: Path) -> list[Reduction]:
    """The reductions of the earlier part of a run, from its work folder."""
    file = work / _FILE
    return cast(list[Reduction], read_json(file)) if file.exists() else []


def forget_reductions(work: Path) -> None:
    """Remove them: the run starts from the beginning."""
    (work / _FILE).unlink(missing_ok=True)


def write_reductions(work: Path, reductions: Sequence[Reduction]) -> None:
    """Store them for a resumed run, which then cuts the same steps the same way."""
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / _FILE, cast(Any, list(reductions)))
