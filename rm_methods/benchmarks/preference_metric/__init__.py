"""The benchmarks' metrics for the `evaluate` library: `evaluate.load(<this folder>, <benchmark>)`."""
