"""performance/attention_speed.py: both sides give the same numbers, and are timed."""

from __future__ import annotations

import pytest

from performance import attention_speed
from performance.harness.benchmark import Work
from rm_methods.errors import UserError


def work_of(tmp_path, side=None, **options):
    settings = attention_speed.BENCHMARK.settings({key: str(value) for key, value in options.items()})
    return Work(case="24x150+20", side=side, options=settings, folder=tmp_path, shared=tmp_path)


def test_both_sides_agree_and_are_timed(tmp_path):
    proof = attention_speed.prove(work_of(tmp_path, precision="fp32"))
    assert proof.difference <= proof.tolerance
    results = []
    for side in ("blocks", "fused"):
        measured = attention_speed.measure(work_of(tmp_path, side, precision="fp32", passes=2))
        assert measured.amount == 2
        assert measured.details["milliseconds"] == pytest.approx(500 * measured.seconds)
        results.append(measured.result)
    assert results[0] == pytest.approx(results[1], rel=1e-3, abs=0.05)


def test_a_kernel_with_another_result_is_refused(tmp_path, monkeypatch):
    from rm_methods.reward_models import packed_attention

    original = packed_attention.block_products
    monkeypatch.setattr(packed_attention, "block_products", lambda *arguments: 1.01 * original(*arguments))
    proof = attention_speed.prove(work_of(tmp_path, precision="fp32"))
    assert proof.difference > proof.tolerance


def test_unknown_precisions_are_refused(tmp_path):
    with pytest.raises(UserError, match="allowed are bf16, fp32"):
        attention_speed.prove(work_of(tmp_path, precision="fp16"))
