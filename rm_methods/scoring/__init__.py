"""Scoring responses with a reward model, and the score tables that all metrics are computed from."""
