"""Finds the members of a combined run for the stages that grade it without each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rm_methods.benchmarks.members import Members, read_members
from rm_methods.errors import UserError
from rm_methods.methods.contract import CombinedMethod
from rm_methods.methods.registry import load_method
from rm_methods.run_card import RunSummary


def members_of(summary: RunSummary, tables: Mapping[str, Sequence[Path]]) -> Members:
    """The members of a combined run, from their score tables.

    Args:
        summary: of the combined run.
        tables: by benchmark (or pool), one for each member in its order.

    Raises:
        UserError: the run is not combined, or a report is missing.
        DataError: the tables are not those of its members.
    """
    method = load_method(summary["method"], summary.get("settings", {}))
    if not isinstance(method, CombinedMethod):
        raise UserError(f"--member-scores: method '{summary['method']}' is not a CombinedMethod, so it has no members.")
    return read_members(summary, tables, partial(method.left_out_scores, report=summary.get("report", {})))
