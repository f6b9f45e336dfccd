"""Comparisons made by hand."""

import math

from rm_methods.comparison.result import Column, Comparison, Cost, VariantRow
from rm_methods.statistics.cell import Cell, Difference
from rm_methods.statistics.error_law import ErrorLaw
from rm_methods.statistics.intervals import Estimate


def made_cell(mean, reach=0.012, verdict="", basis="seeds and items", n_seeds=3):
    law = ErrorLaw((reach / 2) ** 2, 10, 0.0, 99)
    estimate = Estimate(mean, mean - reach, mean + reach, law, basis, n_seeds, 100, 100)
    return Cell(estimate, Difference(estimate, 0.01, True, "same seed"), 0.02, verdict, 0.0, 300, 300, 0)


def made_row(variant, cells, **changes):
    settings = {
        "method": variant,
        "title": changes.get("method", variant),
        "role": "trained",
        "seeds": (0, 1, 2),
        "n_models": 3,
        "seed_free": False,
        "scalar_reward": True,
    }
    return VariantRow(
        variant=variant, cells=tuple(cells), cost=Cost(1.25e6, 194.0, 1.4 * 2**30), **(settings | changes)
    )


def made_comparison(rows, n_columns=1, reference=None, notes=("A note.",)):
    columns = tuple(Column(f"bench{i}", "overall", f"Benchmark {i}", 0.5) for i in range(n_columns))
    detectable = (0.041 if reference else math.nan,) * n_columns
    return Comparison(columns, tuple(rows), reference, detectable=detectable, notes=tuple(notes))
