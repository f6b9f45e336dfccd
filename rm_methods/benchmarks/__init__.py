"""Preference benchmarks: their items, their metrics, their tie rules."""
