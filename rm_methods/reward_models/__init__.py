"""Backbone + scalar head, chat tokenization, sequence layouts, checkpoints."""
