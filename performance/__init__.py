"""Measured speed and measured statistics; `python -m performance list` names the benchmarks (performance/README.md)."""
