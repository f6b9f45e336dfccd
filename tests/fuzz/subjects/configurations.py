"""Verbs that read a configuration, or only words: list, show, check, plan, and Snakemake's dry run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import yaml

from rm_methods.config.resolve import load_config
from rm_methods.errors import UserError
from rm_methods.experiment.experiment import Experiment
from rm_methods.files import special_kind
from tests.conftest import REPOSITORY
from tests.fuzz.changes import ODD_WORDS, Change, copy_tree
from tests.fuzz.study import configuration
from tests.fuzz.subjects.base import Outcome, Subject, run, same, texts_of, values_of, written
from tests.workflow.checkouts import planned


class Words(Subject):
    """`list` and `show`, which read no file of the user: their argument is changed."""

    odd_folders = 0.0
    VALID: ClassVar[dict[str, str]] = {"list": "methods", "show": "bradley_terry"}

    @property
    def verb(self) -> str:
        return self.name.split("/")[0]

    def build(self, folder):
        (folder / "word.txt").write_text(self.VALID[self.verb])

    def targets(self, folder):
        return [folder / "word.txt"]

    def arguments(self, folder):
        return [self.verb, "--", (folder / "word.txt").read_text(errors="surrogateescape")]

    def change(self, rng: Random, folder: Path) -> Change:
        valid = self.VALID[self.verb]
        words = [*ODD_WORDS, valid[:-1], f"{valid} ", valid.upper(), f"{valid}/../{valid}", f"{valid}\n"]
        word = rng.choice(words)
        (folder / "word.txt").write_text(word, errors="surrogateescape", newline="")
        return Change(f"the argument {word!r}", tuple(written(word) or ["''"]))

    def result(self, folder, outcome):
        return outcome.output

    def wrong(self, folder, change, outcome, result):
        return f"an unknown name is accepted: {result[:200]}"


class Check(Subject):
    """`check` on one of the configurations of the repository."""

    def build(self, folder):
        copy_tree(REPOSITORY / "config" / f"{self.name.split('/')[1]}.yaml", folder / "config.yaml")

    def targets(self, folder):
        return [folder / "config.yaml"]

    def arguments(self, folder):
        return ["check", "--full", "--config", folder / "config.yaml"]

    def result(self, folder, outcome):
        return yaml.safe_load(outcome.output)

    def wrong(self, folder, change, outcome, result):
        if [x for x in texts_of(outcome.output.split()) if x in (".nan", ".inf", "-.inf")]:
            return "a number that is not finite passes"
        (folder / "again.yaml").write_text(outcome.output)
        again = run(["check", "--full", "--config", folder / "again.yaml"])
        if again.code != 0 or not same(yaml.safe_load(again.output), result):
            return f"what is printed is not what it says: {again.text[-300:]}"
        return self._lost(yaml.safe_load((folder / "config.yaml").read_text()), result)

    def _lost(self, given: Any, result: Any) -> str | None:
        for section, value in given.items():
            if not isinstance(value, dict):
                if section not in ("results", "noise_levels") and not same(value, result[section]):
                    return f"{section}: {value!r} became {result[section]!r}"
                continue
            for key, leaf in value.items():
                if isinstance(leaf, (int, float, bool, str)) and not any(
                    same(leaf, x) for x in _shown(key, result[section])
                ):
                    return f"{section}.{key}: {leaf!r} is not in the resolved configuration"
        return None


def _shown(key: str, section: Any) -> list:
    return [
        x
        for hit in values_of(key, section)
        for x in (hit, hit.get("source") if isinstance(hit, dict) else None, _named(hit))
    ]


def _named(value: Any) -> Any:
    return value["method"] if isinstance(value, dict) and "method" in value else None


class Plan(Subject):
    """`plan` on the configuration of a small experiment."""

    is_slow = True

    def build(self, folder):
        config = configuration(folder)
        copy_tree(self.seeds / "pairs.jsonl", folder / "pairs.jsonl")
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def targets(self, folder):
        return [folder / "config.yaml"]

    def arguments(self, folder):
        return ["plan", "--config", folder / "config.yaml", "--pairs", 1000]

    def outputs(self, folder):
        return []

    def run(self, folder):
        return run(self.arguments(folder), folder)  # the dry run makes .snakemake/ where it starts

    def result(self, folder, outcome):
        # Words in any order: methods are listed in the order of their keys.
        return sorted(outcome.text.replace(str(folder), "").split())

    def wrong(self, folder, change, outcome, result):
        experiment = Experiment(load_config([folder / "config.yaml"]))
        lines = [line.split() for line in outcome.output.splitlines()]
        for rule, expected in _expected_jobs(experiment).items():
            counts = {word for line in lines if rule in line for word in line}
            if expected and not any(word.replace(",", "").rstrip(".x") == str(expected) for word in counts):
                return f"{expected} jobs of {rule} are expected, the plan says {sorted(counts)}"
        return None


class DryRun(Plan):
    """`snakemake -n` on the same configuration, in a process.

    Snakemake reads the file itself before our code starts. If that fails, its message is not ours; then `check` must
    refuse the file. It waits for a pipe and reads a device for ever, so the file is neither.
    """

    weight = 3.0

    def change(self, rng: Random, folder: Path) -> Change:
        change = super().change(rng, folder)
        while special_kind(folder / "config.yaml"):
            (folder / "config.yaml").unlink()
            self.build(folder)
            change = super().change(rng, folder)
        return change

    def judge(self, folder, change, outcome):
        text = outcome.text
        if outcome.code != 0 and any(place in text for place in ("configfile.py", "Config file is not valid JSON")):
            return super().judge(folder, change, run(["check", "--config", folder / "config.yaml"]))
        return super().judge(folder, change, outcome)

    def command(self, folder):
        return f"snakemake -n --configfile {shlex.quote(str(folder / 'config.yaml'))}"

    def run(self, folder):
        command = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile", "-n", "--cores", "1"]
        command += ["--configfile", folder / "config.yaml"]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "MLFLOW_DISABLE_TELEMETRY": "true"}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", timeout=300
            )
        except subprocess.TimeoutExpired as error:
            return Outcome(-1, "", "", error)
        return Outcome(2 * bool(done.returncode), done.stdout, done.stdout + done.stderr, None)

    def result(self, folder, outcome):
        return planned(outcome.text)

    def wrong(self, folder, change, outcome, result):
        try:
            experiment = Experiment(load_config([folder / "config.yaml"]))
        except UserError as error:
            return f"`check` refuses what Snakemake accepts: {error}"
        for rule, expected in _expected_jobs(experiment).items():
            if result.get(rule, 0) != expected:
                return f"{expected} jobs of {rule} are expected, Snakemake plans {result}"
        return None


def _expected_jobs(experiment: Experiment) -> dict[str, int]:
    """Jobs of the main rules by hand: a run for each variant and seed, a score for each run and benchmark."""
    config = experiment.config
    if config["tuning"]["enabled"]:
        return {}
    return {"train": len(experiment.runs()), "evaluate": len(experiment.runs()) if config["benchmarks"] else 0}
