"""What `snakemake` prints: progress, the reasons of failures, and mistakes in one line."""
