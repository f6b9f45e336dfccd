"""Diagnostics of a trained reward model: attention by position, and accuracy with the start of the text hidden."""
