"""Runs the benchmarks of performance/: tests first, then equal results, then times."""
