"""The cost of an experiment before it is submitted."""
