"""How long the report and the export to MLflow take of a large experiment, whose results are made up here.

    python performance/report_and_export.py --variants 30 --seeds 10

Needs the repository, as the results come from its tests.  The address is a new SQLite file, or that of --uri.  On a
busy machine, the processor seconds (user and system) mean more than the wall time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

BENCHMARKS = {
    "rm_bench": ["overall", "easy", "normal", "hard"],
    "rewardbench2": ["overall"],
    "judge_bench": ["overall"],
    "ppe_correctness": ["overall"],
    "helpsteer3": ["overall"],
    "llmbar": ["overall"],
    "hh_rlhf": ["overall"],
    "heldout": ["test"],
}


def make_up(
    folder: Path, variants: int, seeds: int, items: int, steps: int, columns: Mapping[str, list[str]] = BENCHMARKS
) -> Path:
    """Write an experiment with its training logs; returns the folder of its results.

    Args:
        items: of each benchmark.
        steps: lines of each training log.
        columns: metrics by benchmark.
    """
    from tests.comparison.test_folders import stored

    methods = {"bradley_terry": "bradley_terry"} | {f"hinge_{k:02d}": "hinge" for k in range(1, variants)}
    benchmarks = {name: {"metrics": metrics, "items": items, "strata": 1} for name, metrics in columns.items()}
    results = stored(folder, "large", methods, range(seeds), benchmarks=benchmarks)
    names = ("loss", "accuracy", "margin", "reward_mean", "reward_min", "reward_max", "grad_norm", "learning_rate")
    rows = [{"step": step, "time": 0.5 * step} | dict.fromkeys(names, 1 / step) for step in range(1, steps + 1)]
    log = "".join(json.dumps(row) + "\n" for row in rows)
    for run in results.glob("runs/*/*"):
        (run / "metrics.jsonl").write_text(log)
    return results


def compare_runs(results: Path) -> None:
    """Compare the runs of a made-up experiment."""
    from rm_methods.comparison.compare import compare
    from rm_methods.comparison.runs import recorded_columns
    from rm_methods.experiment.evaluated_runs import files_of_runs
    from rm_methods.experiment.experiment import Experiment
    from rm_methods.html_report.stored_results import newest_config

    config = newest_config(results)
    files = files_of_runs(Experiment(config), results)
    compare(files, recorded_columns(config, files), "bradley_terry", results / "comparison")


def timed(what: str, action: Callable[[], object]) -> None:
    """Print the wall time and the processor seconds of an action."""
    wall, processor = time.monotonic(), time.process_time()
    action()
    print(
        f"{what:24} {time.monotonic() - wall:7.1f} s wall {time.process_time() - processor:7.1f} s user+sys", flush=True
    )


@click.command()
@click.option("--variants", default=30, show_default=True)
@click.option("--seeds", default=10, show_default=True)
@click.option("--items", default=500, show_default=True, help="Of each of the 8 benchmarks.")
@click.option("--steps", default=100, show_default=True, help="Lines in each training log, with 8 metrics each.")
@click.option("--uri", default=None, help="Address of MLflow; default: a new SQLite file.")
def main(variants: int, seeds: int, items: int, steps: int, uri: str | None) -> None:
    """Make up the results, then time the report and two exports."""
    from rm_methods.experiment.experiment import Experiment
    from rm_methods.html_report.page import write_report
    from rm_methods.html_report.stored_results import newest_config
    from rm_methods.tracking.export import export_experiment, unchecked_export

    with TemporaryDirectory() as scratch:
        results = make_up(Path(scratch), variants, seeds, items, steps)
        compare_runs(results)
        config = newest_config(results)
        address = uri or f"sqlite:///{scratch}/mlflow.db"

        def export() -> None:
            result = export_experiment(unchecked_export(Experiment(config), results), results / "tracking", address)
            if result.pending:
                sys.exit(f"{len(result.pending)} runs are pending: {result.pending[0]['reason']}")

        print(f"{variants} variants x {seeds} seeds x {len(BENCHMARKS)} benchmarks, {items} items each")
        timed("report", lambda: write_report(config, results, results / "report.html"))
        timed("export, everything new", export)
        timed("export, nothing new", export)


if __name__ == "__main__":
    main()
