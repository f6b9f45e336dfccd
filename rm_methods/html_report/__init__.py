"""The report of an experiment: one HTML page with verdict, tables, figures and protocol, which needs no network."""
