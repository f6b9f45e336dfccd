"""Backbone + scalar head, chat tokenisation, sequence layouts, checkpoints."""
