"""Bundles: the results of an experiment in one archive, from which every table can be computed again."""
