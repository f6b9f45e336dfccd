"""`python -m performance`: list, run and publish the benchmarks (performance/README.md)."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from performance.harness.benchmark import FOLDER, Benchmark, benchmark_files, load_benchmark
from performance.harness.machine import QUIET, ROOT, busy_share, describe_machine, machine_line
from performance.harness.page import headlines, stale_files, write_files
from performance.harness.process import Checkout, PartFailed
from performance.harness.runner import Refused, Settings, run_benchmark
from performance.harness.submission import write_submission
from rm_methods.errors import UserError, nearest
from rm_methods.files import write_json

RESULTS = FOLDER / "results"
# Of runs that no page shows.
TRIALS = ROOT / "build" / "performance"


@click.group()
def main() -> None:
    """Benchmarks that test before they time."""


@main.command("list")
def list_benchmarks() -> None:
    """Name every benchmark with its question, sides, cases and options."""
    for name in benchmark_files():
        benchmark = load_benchmark(name)
        click.echo(f"{name}\n    {benchmark.question}")
        sides = [f"{side.name}{' (baseline)' if side.name == benchmark.baseline else ''}" for side in benchmark.sides]
        click.echo(f"    sides: {', '.join(sides)}")
        if len(benchmark.cases) > 1:
            click.echo(f"    cases: {', '.join(case.name for case in benchmark.cases)}")
        for key, option in benchmark.options.items():
            click.echo(f"    --option {key}={option.default}  {option.meaning}")


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--rounds", type=click.IntRange(min=1), help="Times that each side is measured; default: the benchmark's."
)
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Of benchmarks that have it; see `list`.")
@click.option("--side", "sides", multiple=True, help="Only this side. Can be repeated.")
@click.option("--case", "cases", multiple=True, help="Only this case. Can be repeated.")
@click.option("--threads", type=click.IntRange(min=1), help="Of each side; default: all cores.")
@click.option("--data", type=click.Path(file_okay=False, exists=True, path_type=Path), help="Default: RM_METHODS_DATA.")
@click.option("--python", "pythons", multiple=True, metavar="SIDE=PATH", help="Python that runs a side.")
@click.option("--base", metavar="REV", help="Compare with another commit.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the records. Default: performance/results, and build/performance for a run that differs from the "
    "default one (options, sides, cases, threads, rounds, Pythons, base).",
)
def run(
    names: tuple[str, ...],
    rounds: int | None,
    options: tuple[str, ...],
    sides: tuple[str, ...],
    cases: tuple[str, ...],
    threads: int | None,
    data: Path | None,
    pythons: tuple[str, ...],
    base: str | None,
    out: Path | None,
) -> None:
    """Run benchmarks, or `all`: their tests, the proof of equal results, then all sides in turn."""
    is_default = not (rounds or options or sides or cases or threads or pythons or base)
    folder = out or (RESULTS if is_default else TRIALS)
    benchmarks = [load_benchmark(name) for name in (benchmark_files() if names == ("all",) else names)]
    python_of = _assignments("--python", pythons)
    declared = [side.name for benchmark in benchmarks for side in benchmark.sides]
    for side in python_of:
        if side not in declared:
            raise UserError(f"--python {side}: no such side. {nearest(side, declared)}")
    given = _assignments("--option", options)
    for key in given:
        if not any(key in benchmark.options for benchmark in benchmarks):
            benchmarks[0].settings(given)  # names the options that it has
    settings = Settings(
        options=given,
        rounds=rounds,
        sides=sides,
        cases=cases,
        threads=threads,
        base=base,
        checkout=Checkout(data=data, pythons=python_of),
        arguments=_arguments(
            rounds=rounds,
            option=options,
            case=cases,
            side=sides,
            threads=threads,
            python=tuple(f"{side}=PYTHON" for side in python_of),  # other machines lack its path
            base=base,
            out=_in_repository(out),
        ),
    )
    machine = describe_machine() | {"busy_share": busy_share()}
    click.echo(machine_line(machine))
    if machine["busy_share"] > QUIET:
        click.echo(
            f"WARNING: other programs use {machine['busy_share']:.0%} of the cores. They disturb wall times; look at "
            "CPU seconds.",
            err=True,
        )
    failures = [benchmark.name for benchmark in benchmarks if not _run_one(benchmark, settings, machine, folder)]
    if failures:
        raise UserError(f"Not measured: {', '.join(failures)}; the reasons are above.")


def _run_one(benchmark: Benchmark, settings: Settings, machine: dict, folder: Path) -> bool:
    """Run one benchmark and write its record; False if it failed."""
    click.echo(f"\n{benchmark.name}: {benchmark.question}")
    try:
        record = run_benchmark(benchmark, settings, machine, lambda text: click.echo(f"  {text}"))
    except (Refused, PartFailed, UserError) as error:
        click.echo(f"  {error}", err=True)
        return False
    if record is not None:
        for line in headlines(benchmark, record):
            click.echo(f"  {line}")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{benchmark.name}.json", record)
        click.echo(f"  wrote {folder / benchmark.name}.json")
    return True


def _assignments(option: str, words: tuple[str, ...]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    wrong = [key for key, sign, _ in pairs if not sign]
    if wrong:
        raise UserError(f"{option} {wrong[0]}: must be KEY=VALUE.")
    return {key: value for key, _, value in pairs}


def _in_repository(folder: Path | None) -> str | None:
    """A folder of the repository relative to it; None for any other."""
    if folder is None or not folder.resolve().is_relative_to(ROOT):
        return None
    return folder.resolve().relative_to(ROOT).as_posix()


def _arguments(**given: object) -> str:
    """Options as text for the record, without the ones that are None."""
    words: list[str] = []
    for name, value in given.items():
        values = value if isinstance(value, tuple) else (value,)
        for part in values:
            words += [f"--{name}", str(part)] if part is not None else []
    return shlex.join(words)


@main.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if a table or the figure is not that of the records.")
def page(check: bool) -> None:
    """Write the tables of docs/speed.md and docs/images/speed.svg from performance/results."""
    if not check:
        write_files()
        return
    stale = stale_files()
    if stale:
        raise UserError(f"{', '.join(stale)}: not those of performance/results. Run `python -m performance page`.")


@main.command()
@click.option("--who", required=True, help="Your name or group.")
@click.option("--machine", "slug", required=True, help="For the file's name, such as xeon-8480-56.")
@click.option("--notes", default="", help="What else a reader should know.")
@click.option("--results", type=click.Path(file_okay=False, exists=True, path_type=Path), default=RESULTS)
def submit(who: str, slug: str, notes: str, results: Path) -> None:
    """Gather the records of another machine in performance/submissions."""
    click.echo(write_submission(who, slug, notes, results=results))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
