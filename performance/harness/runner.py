"""Runs one benchmark: its tests, then the proof of equal results, then the times.

The order is that of flash-linear-attention's `benchmarks/ops/verify.py`: a speedup that comes with a failing test is
never printed.  The comparison of results is what torchtitan's CONTRIBUTING.md calls proof of value.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from performance.harness.benchmark import (
    FOLDER,
    Benchmark,
    Case,
    Measurement,
    Proof,
    Side,
    Work,
    benchmark_files,
    measurement_from,
)
from performance.harness.inputs import missing_data
from performance.harness.machine import ROOT, cores, git
from performance.harness.process import Checkout, PartFailed, run_part
from performance.harness.record import VERSION, case_record, with_ratios
from rm_methods.errors import UserError

# Results of two commits that differ by more than this, relative to the largest of them, are not the same.
SAME = 1e-3


class Refused(Exception):
    """Nothing is timed: tests fail, or results differ."""


@dataclass(frozen=True)
class Settings:
    """What one run of the command asks for.

    Args:
        options: values as text; each benchmark takes those that it has.
        rounds: None takes the benchmark's.
        sides, cases: names; empty takes all.
        base: commit to compare with instead of the benchmark's baseline.
        folder: of the benchmarks' files.
        arguments: of the command, for the record.
    """

    options: Mapping[str, str]
    rounds: int | None = None
    sides: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    threads: int | None = None
    base: str | None = None
    checkout: Checkout = field(default_factory=Checkout)
    folder: Path = FOLDER
    arguments: str = ""


def run_benchmark(
    benchmark: Benchmark, settings: Settings, machine: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Run a benchmark.

    Returns:
        Its record; None if it was skipped, after the reason was printed.

    Raises:
        Refused: its tests fail, or the sides' results differ.
        PartFailed: a process failed.
        UserError: an option, side or case is wrong.
    """
    given = {key: value for key, value in settings.options.items() if key in benchmark.options}
    options = benchmark.settings(given)
    rounds = settings.rounds or benchmark.rounds
    cases = _chosen(benchmark.cases, settings.cases, "case")
    sides = _chosen(benchmark.sides, settings.sides, "side")
    reason = benchmark.missing(options) if benchmark.missing else None
    reason = reason or missing_packages(benchmark.packages, settings.checkout.python)
    if reason:
        say(f"skipped: {reason}")
        return None
    summary = run_tests(benchmark.tests)
    say(f"tests: {summary}")
    records = []
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rm_methods_speed_")))
        base = stack.enter_context(other_checkout(settings, benchmark.name, scratch, say))
        for case in cases:
            reason = missing_data(case.data, settings.checkout.data)
            if reason:
                say(f"{case.title or case.name}: skipped: {reason}")
                records.append({"case": case.name, "title": case.title, "skipped": reason})
                continue
            timing = _CaseTiming(
                benchmark=benchmark,
                case=case,
                declared=sides,
                options=options,
                settings=settings,
                scratch=scratch,
                say=say,
            )
            records.append(timing.against(base, rounds) if base else timing.sides_in_turn(rounds))
    return {
        "version": VERSION,
        "benchmark": benchmark.name,
        "command": f"python -m performance run {benchmark.name} {settings.arguments}".rstrip(),
        "base": settings.base,
        "machine": machine,
        "options": options,
        "rounds": rounds,
        "threads": settings.threads or cores(),
        "tests": {"ids": list(benchmark.tests), "summary": summary},
        "cases": records,
    }


def _chosen(declared: Sequence[Any], names: Sequence[str], kind: str) -> list[Any]:
    unknown = [name for name in names if name not in [item.name for item in declared]]
    if unknown:
        raise UserError(f"--{kind} {unknown[0]}: allowed are {', '.join(item.name for item in declared)}.")
    return [item for item in declared if not names or item.name in names]


def run_tests(tests: Sequence[str], root: Path = ROOT) -> str:
    """Run pytest.

    Args:
        tests: ids, relative to `root`.

    Returns:
        The last line of pytest, for instance "12 passed in 3.4s".

    Raises:
        Refused: a test failed, or none passed.
    """
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    environment = Checkout(root=root).environment(cores())
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    lines = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()
    if done.returncode or " passed" not in lines[-1]:
        raise Refused("its tests do not pass, so nothing is timed:\n" + "\n".join(lines[-30:]))
    return lines[-1].strip("= ")


def missing_packages(packages: Sequence[str], python: str) -> str | None:
    """Which modules a Python lacks, and what to install; None if it has all."""
    if not packages:
        return None
    program = "import importlib.util, sys; print(*[p for p in sys.argv[1:] if importlib.util.find_spec(p) is None])"
    done = subprocess.run([python, "-c", program, *packages], capture_output=True, text=True)
    if done.returncode:
        return f"{python} does not run: {done.stderr.strip()[-200:]}"
    names = done.stdout.split()
    advice = (
        "pip install -r performance/requirements.txt, or --python SIDE=PATH for another Python; make setup: weights"
    )
    return f"{', '.join(names)} not installed ({advice})" if names else None


@contextlib.contextmanager
def other_checkout(
    settings: Settings, name: str, scratch: Path, say: Callable[[str], None]
) -> Iterator[Checkout | None]:
    """A worktree of `settings.base` with this checkout's performance/, so that both commits run the same script."""
    if settings.base is None:
        yield None
        return
    folder = scratch / "base"
    try:
        git("worktree", "add", "--detach", str(folder), settings.base)
    except subprocess.CalledProcessError as error:
        raise UserError(f"--base {settings.base}: {error.stderr.strip()}") from error
    try:
        if name not in benchmark_files(folder / "performance"):
            say(f"{settings.base} lacks the benchmark {name}; its package is measured with this checkout's script")
        shutil.rmtree(folder / "performance", ignore_errors=True)
        shutil.copytree(FOLDER, folder / "performance", ignore=shutil.ignore_patterns("__pycache__"))
        yield replace(settings.checkout, root=folder)
    finally:
        git("worktree", "remove", "--force", str(folder))


@dataclass(frozen=True)
class _CaseTiming:
    """One case of a benchmark: inputs, proof, and rounds of all sides.

    Args:
        declared: sides that were asked for; `_skipped` names those that cannot run.
        scratch: folder of the run.
        say: prints a line.
    """

    benchmark: Benchmark
    case: Case
    declared: Sequence[Side]
    options: Mapping[str, Any]
    settings: Settings
    scratch: Path
    say: Callable[[str], None]

    def sides_in_turn(self, rounds: int) -> dict[str, Any]:
        """Prepare, compare results, and measure all sides in turn."""
        checkout = self.settings.checkout
        skipped = self._skipped(checkout)
        sides = [side for side in self.declared if side.name not in skipped]
        if not sides:
            return {"case": self.case.name, "title": self.case.title, "skipped": "; ".join(skipped.values())}
        self._prepare(checkout, "here")
        proof = self._prove(checkout, "here")
        measured: dict[str, list[Measurement]] = {side.name: [] for side in sides}
        for number in range(1, rounds + 1):
            for side in sides:
                measurement = self._measure(side, checkout, "here")
                measured[side.name].append(measurement)
                self._say_round(number, side.title, measurement)
        return self._record(proof, measured, skipped, self.benchmark.baseline)

    def against(self, base: Checkout, rounds: int) -> dict[str, Any]:
        """Measure our sides here and in another checkout, in turn; their results must agree in every round."""
        here = self.settings.checkout
        skipped = self._skipped(here)
        sides = [side for side in self.declared if not side.external and side.name not in skipped]
        if not sides:
            return {"case": self.case.name, "title": self.case.title, "skipped": "no side runs our code"}
        self._prepare(here, "here")
        proof = self._prove(here, "here")
        measured: dict[str, list[Measurement]] = {}
        for side in sides:
            measured[side.name] = []
            measured[f"{side.name}@base"] = []
        for number in range(1, rounds + 1):
            for side in sides:
                ours = self._measure(side, here, "here")
                is_first = number == 1 and side is sides[0]
                theirs = self._measured_at_base(side, base, is_first=is_first, has_result=bool(ours.result))
                self._check_same(side, ours, theirs)
                measured[side.name].append(ours)
                measured[f"{side.name}@base"].append(theirs)
                self._say_round(number, side.title, ours)
                self._say_round(number, f"{side.title}, {self.settings.base}", theirs)
        record = self._record(proof, measured, skipped, None)
        for side in sides:
            pair = {name: record["sides"][name] for name in (side.name, f"{side.name}@base")}
            record["sides"] |= with_ratios(self.benchmark, pair, f"{side.name}@base")
        return record

    def _measured_at_base(self, side: Side, base: Checkout, is_first: bool, has_result: bool) -> Measurement:
        """Measure a side in the other checkout.  Without a result to compare, its proof must hold there, too."""
        try:
            if is_first:
                self._prepare(base, "base")
                if not has_result:
                    self._prove(base, "base")
            return self._measure(side, base, "base")
        except PartFailed as error:
            raise Refused(f"{self.settings.base} cannot run this checkout's script:\n{error}") from error

    def _check_same(self, side: Side, ours: Measurement, theirs: Measurement) -> None:
        difference = result_difference(ours.result, theirs.result)
        if not difference <= SAME:  # also if it is not a number
            raise Refused(
                f"{side.title}: {self.settings.base} behaves differently (results differ by {difference:.1e} of the "
                f"largest; at most {SAME:.0e} is allowed), so times would not compare the same work."
            )

    def _skipped(self, checkout: Checkout) -> dict[str, str]:
        reasons = {}
        for side in self.declared:
            reason = missing_packages(side.packages, checkout.python_of(side.name))
            if reason is None and self.benchmark.side_missing is not None:
                reason = self.benchmark.side_missing(self.options, side.name)
            if reason:
                self.say(f"{side.title}: skipped: {reason}")
                reasons[side.name] = reason
        return reasons

    def _work(self, side: str | None, where: str) -> Work:
        shared = self.scratch / "inputs" / where
        folder = shared / "cases" / self.case.name
        return Work(case=self.case.name, side=side, options=self.options, folder=folder, shared=shared)

    def _file(self, checkout: Checkout) -> Path:
        folder = checkout.root / "performance" if self.settings.folder == FOLDER else self.settings.folder
        return folder / f"{self.benchmark.name}.py"

    def _prepare(self, checkout: Checkout, where: str) -> None:
        if self.benchmark.prepare is not None:
            work = self._work(None, where)
            run_part("prepare", self._file(checkout), work, checkout=checkout, threads=self.settings.threads)

    def _prove(self, checkout: Checkout, where: str) -> Proof:
        work = self._work(None, where)
        values = run_part("prove", self._file(checkout), work, checkout=checkout, threads=self.settings.threads)
        proof = Proof(**values)
        numbers = f"difference {proof.difference:.1e}, at most {proof.tolerance:.1e} is allowed"
        # Not `difference > tolerance`: a difference that is not a number must be refused, too.
        if not proof.difference <= proof.tolerance:
            raise Refused(f"{self.case.title or self.case.name}: results differ, so nothing is timed: {numbers}.")
        self.say(f"{self.case.title or self.case.name}: {proof.statement}: {numbers}")
        return proof

    def _measure(self, side: Side, checkout: Checkout, where: str) -> Measurement:
        values = run_part(
            "measure",
            self._file(checkout),
            self._work(side.name, where),
            checkout=checkout,
            ranks=side.ranks,
            threads=self.settings.threads,
        )
        return measurement_from(values)

    def _record(
        self,
        proof: Proof,
        measured: Mapping[str, Sequence[Measurement]],
        skipped: Mapping[str, str],
        baseline: str | None,
    ) -> dict[str, Any]:
        title = (self.case.name, self.case.title)
        return case_record(self.benchmark, title, proof, measured=measured, skipped=skipped, baseline=baseline)

    def _say_round(self, number: int, side: str, measurement: Measurement) -> None:
        amount = measurement.amount
        rate = f"  {amount / measurement.seconds:.2f} {self.benchmark.unit}/s" if amount is not None else ""
        self.say(
            f"{self.case.title or self.case.name}, round {number}: {side}: {measurement.seconds:.2f} s, "
            f"{measurement.cpu_seconds:.2f} CPU s, {measurement.peak_memory_bytes / 2**30:.2f} GiB{rate}"
        )


def result_difference(here: Sequence[float], base: Sequence[float]) -> float:
    """Largest difference of two results, relative to the largest number; infinite if they have other lengths."""
    if len(here) != len(base):
        return float("inf")
    if not here:
        return 0.0
    largest = max(abs(value) for value in (*here, *base)) or 1.0
    return max(abs(first - second) for first, second in zip(here, base, strict=True)) / largest
