"""Policies: plain causal-language-model folders, sampled from, fine-tuned and optimised against reward models."""
