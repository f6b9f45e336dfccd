"""Configuration: reading, resolving and checking it."""
