"""One reward model on benchmarks, by one command and without an experiment."""
