"""Preference pairs: readers of public formats, the controlled world, label noise, splits."""
