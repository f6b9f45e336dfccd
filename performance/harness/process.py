"""One part of a benchmark in a fresh process.

As a program (`python -m performance.harness.process JOB`) it does the job; imported, it starts such programs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from performance.harness.benchmark import Work, as_json, load_module
from performance.harness.machine import ROOT, cores


class PartFailed(Exception):
    """A part of a benchmark ended with an error; the text has the end of its messages."""


@dataclass(frozen=True)
class Checkout:
    """A checkout whose code runs, and the Python that runs it.

    Args:
        root: comes first on the path of modules.
        python: of sides that name no other.
        pythons: other Pythons, by side.
        data: RM_METHODS_DATA; None leaves the variable.
    """

    root: Path = ROOT
    python: str = sys.executable
    pythons: Mapping[str, str] | None = None
    data: Path | None = None

    def python_of(self, side: str | None) -> str:
        """The Python that runs a side."""
        return (self.pythons or {}).get(side or "", self.python)

    def environment(self, threads: int) -> dict[str, str]:
        """Variables of a process that may use so many threads."""
        changes = {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": str(threads)}
        changes |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        if self.data is not None:
            changes["RM_METHODS_DATA"] = str(self.data.resolve())
        return os.environ | changes


def run_part(
    part: str, file: Path, work: Work, *, checkout: Checkout, ranks: int = 1, threads: int | None = None
) -> dict[str, Any]:
    """Do one part of a benchmark (`prepare`, `prove` or `measure`) in a fresh process.

    Args:
        file: of the benchmark.
        ranks: processes that do it together.
        threads: of all ranks; None takes all cores.

    Returns:
        What the part returned, as JSON has it.

    Raises:
        PartFailed: the process failed.
    """
    work.folder.mkdir(parents=True, exist_ok=True)
    answer = work.folder / "answer.json"
    answer.unlink(missing_ok=True)
    job = work.folder / "job.json"
    values = {"case": work.case, "side": work.side, "options": dict(work.options)}
    paths = {"folder": str(work.folder), "shared": str(work.shared)}
    job.write_text(json.dumps({"part": part, "file": str(file), "work": values | paths, "answer": str(answer)}))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [checkout.python_of(work.side), *launcher, "-m", "performance.harness.process", str(job)]
    environment = checkout.environment(max(1, (threads or cores()) // ranks))
    done = subprocess.run(command, cwd=checkout.root, env=environment, capture_output=True, text=True)
    if done.returncode or not answer.exists():
        words = (done.stderr.strip() or done.stdout.strip())[-3000:]
        raise PartFailed(f"{part} of {work.case}, {work.side or 'all sides'} failed:\n{words}")
    return json.loads(answer.read_text())


def do_job(file: Path) -> None:
    """Do the job of a file, and write its answer."""
    job = json.loads(file.read_text())
    values = job["work"]
    work = Work(
        case=values["case"],
        side=values["side"],
        options=values["options"],
        folder=Path(values["folder"]),
        shared=Path(values["shared"]),
    )
    benchmark = load_module(Path(job["file"])).BENCHMARK
    value = getattr(benchmark, job["part"])(work)
    if os.environ.get("RANK", "0") == "0":
        Path(job["answer"]).write_text(json.dumps({} if value is None else as_json(value)))


if __name__ == "__main__":
    do_job(Path(sys.argv[1]))
