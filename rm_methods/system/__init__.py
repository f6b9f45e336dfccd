"""The machine and its processes: cluster, locks, ranks, provenance."""
