"""Time of attention on a CPU: products of blocks of queries against torch's fused kernel, forward and backward.

    python -m performance run attention_speed

Shapes are those of SmolLM2-135M: 9 heads of 64, 3 key heads.  Each group is a response of some tokens after a prompt of
some tokens, as in the packed layout; the fused kernel gets the mask that the packed layout needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from performance.harness.benchmark import Benchmark, Case, Measurement, Option, Proof, Side, Work
from performance.harness.stopwatch import Stopwatch
from rm_methods.errors import UserError

if TYPE_CHECKING:
    import torch

HEADS = 9
KEY_HEADS = 3
SIZE = 64
# Groups, tokens before the queries, queries.
SHAPES = {
    "24x150+20": (24, 150, 20),
    "24x150+60": (24, 150, 60),
    "16x60+200": (16, 60, 200),
    "20x0+200": (20, 0, 200),
    "6x60+400": (6, 60, 400),
    "6x150+600": (6, 150, 600),
    "2x300+1000": (2, 300, 1000),
    "1x0+2000": (1, 0, 2000),
}
TOLERANCES = {"bf16": 0.05, "fp32": 1e-4}


def dtype_of(work: Work) -> torch.dtype:
    """The type of query, key and value.

    Raises:
        UserError: option `precision` has another value than bf16 or fp32.
    """
    import torch

    precision = work.options["precision"]
    if precision not in TOLERANCES:
        raise UserError(f"--option precision={precision}: allowed are {', '.join(TOLERANCES)}.")
    return torch.bfloat16 if precision == "bf16" else torch.float32


def inputs(work: Work) -> list[torch.Tensor]:
    """Query [G, 9, Q, 64], key and value [G, 3, K, 64], with gradients."""
    import torch

    groups, before, queries = SHAPES[work.case]
    dtype = dtype_of(work)
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for heads, length in ((HEADS, queries), (KEY_HEADS, before + queries), (KEY_HEADS, before + queries)):
        x = torch.randn(groups, length, heads, SIZE, generator=generator).to(dtype).transpose(1, 2)
        tensors.append(x.requires_grad_())
    return tensors


def attention(work: Work, side: str) -> Callable[..., torch.Tensor]:
    """The function of a side: query, key and value to the output [G, Q, h, d]."""
    import torch
    from torch.nn import functional as F

    from rm_methods.reward_models.packed_attention import block_products

    if side == "blocks":
        return lambda query, key, value: block_products(query, key, value, None, None)
    _, before, queries = SHAPES[work.case]
    dtype = dtype_of(work)
    is_visible = torch.ones(queries, before + queries, dtype=torch.bool).tril(before)
    # Made once: a model makes it once for all its layers.
    bias = torch.zeros(is_visible.shape, dtype=dtype).masked_fill_(~is_visible, torch.finfo(dtype).min)

    def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, enable_gqa=True).transpose(1, 2)

    return fused


def passes(function: Callable[..., torch.Tensor], tensors: list[torch.Tensor], count: int) -> list[torch.Tensor]:
    """The output and the gradients after so many forward and backward passes."""
    import torch

    query, key, value = tensors
    for _ in range(count):
        for x in tensors:
            x.grad = None
        output = function(query, key, value)
        output.backward(torch.ones_like(output))
    return [output.detach(), *(x.grad for x in tensors if x.grad is not None)]


def prove(work: Work) -> Proof:
    """Outputs and gradients are equal up to rounding."""
    ours, theirs = (passes(attention(work, side), inputs(work), count=1) for side in ("blocks", "fused"))
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))
    return Proof(
        statement="outputs and gradients differ by rounding, relative to the largest value",
        difference=difference,
        tolerance=TOLERANCES[work.options["precision"]],
    )


def measure(work: Work) -> Measurement:
    """Passes after one that is not counted."""
    from rm_methods.system.cpu import prepare_cpu

    assert work.side is not None
    prepare_cpu(0)
    function = attention(work, work.side)
    tensors = inputs(work)
    passes(function, tensors, count=1)
    count = work.options["passes"]
    with Stopwatch() as watch:
        result = passes(function, tensors, count)
    milliseconds = 1000 * watch.seconds / count
    sums = tuple(float(tensor.double().sum()) for tensor in result)
    return watch.measurement(amount=count, result=sums, details={"milliseconds": milliseconds})


def _title(shape: tuple[int, int, int]) -> str:
    groups, before, queries = shape
    return f"{groups} x {queries:,} queries after {before} tokens" if before else f"{groups} x {queries:,} tokens"


OPTIONS: dict[str, Any] = {
    "precision": Option("bf16", "bf16 or fp32"),
    "passes": Option(10, "forward and backward passes that are counted"),
}
BENCHMARK = Benchmark(
    name="attention_speed",
    title="Attention on a CPU",
    question="Are products of blocks of queries faster than torch's fused kernel?",
    sides=(Side("blocks", "products of blocks"), Side("fused", "fused kernel", external=True)),
    baseline="fused",
    cases=tuple(Case(name, _title(shape)) for name, shape in SHAPES.items()),
    tests=("tests/reward_models/test_packed_attention.py",),
    options=OPTIONS,
    prove=prove,
    measure=measure,
    unit="passes",
    detail_columns={"milliseconds": "ms a pass"},
    rounds=2,
)
