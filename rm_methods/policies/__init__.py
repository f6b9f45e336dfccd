"""Policies: plain causal-language-model folders, sampled from, fine-tuned and optimized against reward models."""
