"""A finished experiment that is read from its folder alone: the configuration that made it is stored there.

The results may come from another machine or another release.  So they are compared with the stored configuration, but
not with the code of this release, and the data that they were made of need not be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_methods.config.method_folders import stored_method_folders
from rm_methods.config.resolve import read_resolved, reference_variant, runs
from rm_methods.errors import DataError, UserError, nearest_path
from rm_methods.experiment.evaluated_runs import EvaluatedFiles, evaluated_files, files_of_runs
from rm_methods.experiment.experiment import Experiment
from rm_methods.experiment.layout import RECORDS, Layout
from rm_methods.experiment.made_with import differences, read_made
from rm_methods.methods.registry import load_method_card
from rm_methods.methods.sources import use_folders_of_stored
from rm_methods.stored import read_summary
from rm_methods.system.provenance import key_of
from rm_methods.training.run_key import CHOICE
from rm_methods.yaml_files import load_yaml

_SHOWN = 6  # differences that a message names
_SECTIONS = ("method", "backbone", "training")  # of a run's dependencies: those that a configuration holds


@dataclass(frozen=True)
class StoredExperiment:
    """The results in a folder.

    Attributes:
        folder: of the experiment's results.
        config: the resolved configuration that they were made with.
        config_file: where it is stored.
        runs: the files of every run.
    """

    folder: Path
    config: Mapping[str, Any]
    config_file: Path
    runs: tuple[EvaluatedFiles, ...]

    @property
    def name(self) -> str:
        """The name of the experiment."""
        return str(self.config["experiment"])

    def code(self, stage: str) -> set[str]:
        """Hashes of the code that made the results of trained variants in the stage "score" or "evaluate", as far as
        they are recorded.  Other variants add the code of their methods."""
        codes = set()
        for variant, seed in runs(self.config):
            if load_method_card(self.config["methods"][variant]["method"]).kind not in ("trained", "joint"):
                continue
            for benchmark in self.config["benchmarks"]:
                record = RECORDS[stage].format(variant=variant, seed=seed, benchmark=benchmark)
                if (made := read_made(self.folder / record)) is not None:
                    codes.add(str(made["code"]))
        return codes


def stored_experiment(folder: Path) -> StoredExperiment:
    """Read which runs a folder of results holds, and check that they belong to the configuration stored there.

    Of several stored configurations, the one of the comparison table counts; without a table, the newest one whose
    results are there.

    Raises:
        UserError: no configuration is stored, or a run is not finished.
        ConfigError: a stored configuration was damaged.
        DataError: results that differ from every stored configuration, or that were changed since.
    """
    files = sorted((folder / "config").glob("*.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    if not files:
        hint = "" if folder.exists() else nearest_path(folder, folders_only=True)
        raise UserError(
            f"{folder}: holds no finished experiment ({folder}/config/*.yaml is missing). Name the folder of an "
            f"experiment's results, results/<experiment>.{hint}"
        )
    # A folder of methods may have been moved since one of the configurations was used.
    for path in reversed(files):
        use_folders_of_stored(stored_method_folders(load_yaml(path)))
    configs = {path: read_resolved(path) for path in files}
    made = read_made(folder / RECORDS["compare"])
    if made is not None:
        of_table = {path: config for path, config in configs.items() if _made_the_table(config, made["settings"])}
        configs = of_table or configs
    problems: dict[Path, list[str]] = {}
    for path, config in configs.items():
        problems[path] = _problems(config, folder)
        if not problems[path]:
            experiment = Experiment(config)
            files_of_all = files_of_runs(experiment, folder)
            experiment.check_sources(folder)
            return StoredExperiment(folder, config, path, tuple(files_of_all))
    path, listed = next(iter(problems.items()))
    more = f"\n  - and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    lines = "".join(f"\n  - {problem}" for problem in listed[:_SHOWN])
    raise DataError(
        f"{folder}: results are not those of the stored configuration {path}:{lines}{more}\n"
        f"Run snakemake --configfile {path} to finish them."
    )


def _made_the_table(config: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a comparison table with these settings was made with a configuration."""
    made = [list(run) for run in runs(config)]
    return settings.get("runs") == made and settings.get("reference") == reference_variant(config)


def _problems(config: Mapping[str, Any], folder: Path) -> list[str]:
    """What is missing of the results of a configuration, or differs from it."""
    layout = Layout(folder)
    problems = []
    for variant, seed in runs(config):
        if missing := evaluated_files(layout, variant, seed).missing:
            problems.append(f"{missing[0]}: is missing")
        else:
            problems += run_problems(config, folder, variant, seed)
    return problems


def run_problems(config: Mapping[str, Any], folder: Path, variant: str, seed: int) -> list[str]:
    """How a finished run below `folder` differs from a configuration; one text each.

    Raises:
        DataError: a file of the run is damaged.
    """
    problems = []
    path = Layout(folder).summary(variant, seed)
    summary = read_summary(path)
    made = summary.get("depends_on", {})
    if made and key_of(made) != summary["run_key"]:
        problems.append(f"{path}: was edited: run_key is not that of depends_on")
    training = {key: value for key, value in config["training"].items() if key not in CHOICE}
    wanted = {"method": config["methods"][variant], "backbone": config["backbone"], "training": training}
    for section in _SECTIONS:
        if section in made:
            # How a checkpoint was chosen is recorded in another form.
            stored = {key: value for key, value in made[section].items() if key != "choice"}
            problems += [f"{path}: {text}" for text in differences(stored, wanted[section], section)]
    for benchmark in config["benchmarks"]:
        record = folder / RECORDS["score"].format(variant=variant, seed=seed, benchmark=benchmark)
        scored = read_made(record)
        if scored is not None:
            scoring = scored["settings"].get("scoring")
            problems += [f"{record}: {text}" for text in differences(scoring, config["scoring"], "scoring")]
    return problems
