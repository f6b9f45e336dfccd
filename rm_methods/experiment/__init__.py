"""An experiment: its folder, its runs, and the dependencies of each result."""
