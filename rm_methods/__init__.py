"""A benchmark harness for methods of training reward models."""

__version__ = "0.1.0"
