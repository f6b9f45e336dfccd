"""A training on several processes of this machine, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from rm_methods.contract_test.small_experiment import small_config
from rm_methods.contract_test.workbench import Workbench
from rm_methods.errors import UserError
from rm_methods.yaml_files import yaml_text

_TIMEOUT = 600  # seconds
_SHOWN = 1500  # characters of what a failed process printed


def losses_on_ranks(bench: Workbench, name: str, processes: int) -> list[float]:
    """The loss of every step of a training on this many processes.

    Raises:
        UserError: the training failed.
    """
    folder = bench.new_folder(name)
    config = small_config(bench.folder, training={"processes": processes}, **bench.sections(name))
    (folder / "config.yaml").write_text(yaml_text(config), encoding="utf-8")
    data = bench.data(name)
    command = [sys.executable, "-m", "rm_methods.cli", "train", "--config", folder / "config.yaml"]
    command += ["--variant", name, "--seed", "0", "--pairs", data.file, "--backbone", data.backbone]
    command += ["--out", folder, "--work", folder / "work"]
    for setting, models in bench.required(name).items():
        for model in models:
            command += ["--required", f"{setting}={model}"]
    done = subprocess.run(
        list(map(str, command)),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
    )
    if done.returncode:
        raise UserError(f"The training on {processes} processes failed: {done.stderr[-_SHOWN:].strip()}")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]
