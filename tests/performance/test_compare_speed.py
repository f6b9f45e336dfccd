"""performance/compare_speed.py: a small table end to end, and that its methods have names of their own."""

from __future__ import annotations

from performance.compare_speed import BENCHMARK, measure, prepare, prove, trained_variants
from performance.harness.benchmark import Work


def test_the_benchmark_compares_made_up_runs(tmp_path):
    options = BENCHMARK.settings({"variants": "3", "seeds": "3", "benchmarks": "1", "metrics": "2"})
    work = Work(case="all", side="compare", options=options, folder=tmp_path, shared=tmp_path)
    prepare(work)
    proof = prove(work)
    # Three methods, an ensemble and a rule, on two columns.
    assert proof.statement.startswith("all 10 means")
    assert proof.difference <= proof.tolerance
    measured = measure(work)
    assert measured.amount == 11
    assert len(measured.result) == 10
    assert (tmp_path / "comparison" / "comparison.png").exists()


def test_the_variants_have_different_names_and_begin_with_the_reference():
    variants = trained_variants(60)
    assert len({name for name, _ in variants}) == 60
    assert variants[0] == ("bradley_terry", "bradley_terry")
