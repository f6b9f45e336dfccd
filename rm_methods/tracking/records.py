"""Converts the files of a finished run to a form that MLflow stores: legal names, short values, finite numbers."""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rm_methods.errors import DataError
from rm_methods.files import check_regular, content_hash, file_hash
from rm_methods.stored import read_metrics, read_record, read_summary

PARAM_LENGTH = 500  # MLflow takes 6,000, but shows such values badly; the full value is in summary.json
NAME_LENGTH = 250
CONFIGURED = "configured_experiment"  # tag: several configured experiments may share an MLflow experiment
KIND = "kind"  # tag: "comparison", "variant", "seed" or "ppo"
SOURCE = "mlflow.source.name"
COMMIT = "mlflow.source.git.commit"
NOTE = "mlflow.note.content"  # tag: the description that MLflow shows as Markdown
TAG_LENGTH = 5000
FORMAT = 2  # of the export; another one makes new runs, and the older ones are superseded
PARAM_SECTIONS = ("settings", "training", "backbone", "data")  # of summary.json
STEP_PREFIX = {"seed": "train", "ppo": "ppo"}  # of the metrics in the log of a kind of run
_RENAMED = {"grad_norm": "gradient_norm"}  # the trainer of transformers names it so; PPO and the settings do not
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class ExportedFiles:
    """The files that are exported of one variant and seed (docs/architecture.md).

    Attributes:
        summary: summary.json of training.
        metrics: metrics.json of evaluation; None for a run that is not evaluated on benchmarks.
        training_log: metrics.jsonl of training, None or empty for a scorer without training.
        model: the folder of the checkpoint; only its path is stored.
        further: JSON file with more final metrics under `metrics`, or None.
        kind: "seed" for the training of a reward model, "ppo" for a policy that was trained against one.
        artifacts: name in MLflow -> file to upload; those that are missing are left out.
    """

    summary: Path
    metrics: Path | None
    training_log: Path | None
    model: Path
    further: Path | None = None
    kind: str = "seed"
    artifacts: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class StepMetric:
    """One logged value; `seconds` since the start of training."""

    name: str
    value: float
    step: int
    seconds: float


@dataclass(frozen=True)
class RunRecord:
    """A run in the form that MLflow stores.

    Attributes:
        kind: "seed", "ppo", "variant" (the parent of the runs of its seeds) or "comparison".
        variant: None for a comparison; seed: None for "variant" and "comparison".
        run_key: "" for "variant" and "comparison".
        name: of the run, for readers.
        params: flattened settings.
        tags: without those that mark the progress of the export.
        steps: metrics by step; the last value if a resumed run logged a step twice.
        finals: final metrics, evaluation and cost.
        training_digest: of the training log: a run that was trained again with the same run key is another run.  Of
            "variant" and "comparison", of the parameters, which MLflow cannot change.
        artifacts: name in MLflow -> file to upload, or its text.
        dataset: name, digest and number of pairs, None if not recorded.
        checkpoint: folder of the model, None without.
        start_ms, end_ms: Unix time; the end is when summary.json was written.
        live_run: id of the run in MLflow that was written during training, None without.
        skipped_not_finite: values left out because they are NaN or infinite.
        skipped_cut_line: whether the last line of the log was cut off and left out.
    """

    kind: str
    variant: str | None
    seed: int | None
    run_key: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    steps: list[StepMetric]
    finals: dict[str, float]
    training_digest: str
    start_ms: int
    end_ms: int
    artifacts: Mapping[str, Path | str] = field(default_factory=dict)
    dataset: tuple[str, str, int | None] | None = None
    checkpoint: str | None = None
    live_run: str | None = None
    skipped_not_finite: int = 0
    skipped_cut_line: bool = False

    @property
    def identity(self) -> tuple[str, str | None, int | None]:
        """Runs of equal identity replace each other."""
        return self.kind, self.variant, self.seed

    @cached_property
    def export_digest(self) -> str:
        """Of everything that is stored: it changes when an export is due."""
        files = {
            name: source if isinstance(source, str) else file_hash(source) for name, source in self.artifacts.items()
        }
        return content_hash([self.params, self.tags, self.finals, files, self.dataset, self.training_digest])


def read_run(files: ExportedFiles, configured: str) -> RunRecord:
    """Read the files of a run.

    Args:
        configured: name of the experiment in its configuration.

    Raises:
        UserError: a file is missing or not JSON.
        DataError: a file is of another kind, or summary and metrics belong to different runs.
    """
    summary = read_summary(files.summary)
    metrics: Mapping[str, Any] = read_metrics(files.metrics) if files.metrics else {}
    _check(files, summary, metrics)
    further = read_record(files.further, "a file of further metrics", "overoptimization") if files.further else {}
    steps, cut_line, bad_steps = read_training_log(files.training_log, STEP_PREFIX[files.kind])
    finals, bad_finals = _finals(summary, metrics, further, STEP_PREFIX[files.kind])
    cost = summary.get("cost") or {}
    data = summary.get("data") or {}
    provenance = summary.get("provenance") or {}
    end_ms = int(files.summary.stat().st_mtime * 1000)
    log = [files.training_log] if files.training_log is not None and files.training_log.exists() else []
    variant, seed = str(summary["variant"]), int(summary["seed"])
    bad_values = bad_steps + bad_finals
    tags = {
        KIND: files.kind,
        NOTE: _note(files, variant, seed),
        CONFIGURED: configured,
        "variant": variant,
        "method": summary["method"],
        "seed": str(seed),
        SOURCE: "rm-methods",
    }
    if bad_values:
        tags["skipped_not_finite"] = str(bad_values)
    if provenance.get("git_commit"):
        tags[COMMIT] = str(provenance["git_commit"])
    sections = {"ppo": "settings"} if files.kind == "ppo" else {key: key for key in PARAM_SECTIONS}
    return RunRecord(
        kind=files.kind,
        variant=variant,
        seed=seed,
        run_key=str(summary["run_key"]),
        name=f"{variant} {'PPO ' if files.kind == 'ppo' else ''}seed {seed}",
        params=params_of({section: summary.get(key) or {} for section, key in sections.items()}),
        tags={name: value[:TAG_LENGTH] for name, value in tags.items()},
        steps=steps,
        finals=finals,
        training_digest=content_hash([FORMAT, file_hash(*log)]),
        start_ms=end_ms - int(1000 * float(cost.get("wall_seconds") or 0)),
        end_ms=end_ms,
        artifacts={name: path for name, path in files.artifacts.items() if path.is_file()},
        dataset=(str(data["dataset"]), str(data["hash"])[:36], data.get("pairs"))
        if data.get("dataset") and data.get("hash")
        else None,
        checkpoint=str(files.model.resolve()),
        live_run=summary.get("live_run"),
        skipped_not_finite=bad_values,
        skipped_cut_line=cut_line,
    )


def _note(files: ExportedFiles, variant: str, seed: int) -> str:
    """The description of a run."""
    what = "A policy that PPO trained against" if files.kind == "ppo" else "One training of"
    checkpoint = "the policy" if files.kind == "ppo" else "the model"
    return (
        f"{what} `{variant}`, seed {seed}. The parent run has mean, interval and verdict over all seeds. "
        f"Not uploaded: {checkpoint}, `{files.model.resolve()}`."
    )


def _check(files: ExportedFiles, summary: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    if files.metrics and summary["run_key"] != metrics["run_key"]:
        raise DataError(
            f"{files.metrics}: run_key is {metrics['run_key']!r}, but {files.summary} says {summary['run_key']!r}. "
            "The evaluation belongs to another run; run score and evaluate again."
        )


def read_training_log(source: Path | None, prefix: str = "train") -> tuple[list[StepMetric], bool, int]:
    """Read metrics.jsonl: metrics named by `step_metric_name`, whether the last line was cut off, and how many values
    were not finite.

    Raises:
        DataError: the file is not UTF-8, or a line before the last is not a JSON object with an integer `step`.
    """
    if source is None or not source.exists():
        return [], False, 0
    check_regular(source)
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 text ({error}). Run the train stage again.") from None
    last, cut_line, not_finite = {}, False, 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step, seconds = row["step"], float(row.get("time") or 0.0)
            if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**63 or not 0 <= seconds < 1e12:
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            if number == len(lines):
                cut_line = True  # a run that was killed while it wrote
                continue
            raise DataError(
                f'{source}, row {number}: expected an object such as {{"step": 10, "loss": 0.6}}, found {line[:80]!r}.'
            ) from None
        for metric in step_metrics(row, step, seconds, prefix):
            last[metric.name, step] = metric
    steps = [metric for metric in last.values() if math.isfinite(metric.value)]
    not_finite = len(last) - len(steps)
    return steps, cut_line, not_finite


def step_metrics(row: Mapping[str, Any], step: int, seconds: float, prefix: str = "train") -> list[StepMetric]:
    """The metrics of a line of metrics.jsonl; values that are no numbers are left out."""
    return [
        StepMetric(step_metric_name(name, prefix), _as_float(value), step, seconds)
        for name, value in row.items()
        if name not in ("step", "time") and _is_number(value)
    ]


def step_metric_name(name: str, prefix: str = "train") -> str:
    """The name in MLflow of a key of metrics.jsonl (docs/tracking.md lists them).

    >>> step_metric_name("accuracy"), step_metric_name("grad_norm"), step_metric_name("validation/test/accuracy")
    ('train/accuracy', 'train/gradient_norm', 'validation/test/accuracy')
    >>> step_metric_name("kl", "ppo")
    'ppo/kl'
    """
    return legal_name(name if name.startswith("validation/") else f"{prefix}/{_RENAMED.get(name, name)}")


def _finals(
    summary: Mapping[str, Any], metrics: Mapping[str, Any], further: Mapping[str, Any], prefix: str
) -> tuple[dict[str, float], int]:
    """Final metrics by legal name, and how many were not finite (or null, which is how JSON holds them)."""
    benchmarks = metrics.get("benchmarks") or {}
    values: dict[str, Any] = {}
    for benchmark, report in benchmarks.items():
        values |= {f"{benchmark}/{name}": value for name, value in (report.get("metrics") or {}).items()}
    values |= dict(further.get("metrics") or {})
    for name, value in (summary.get("metrics") or {}).items():
        if name != "train_loss":  # the last value of train/loss
            values[f"validation/{name.removeprefix('validation_')}"] = value
    for benchmark, report in benchmarks.items():
        counts = {name: report.get(name) for name in ("tie_rate", "n_scored", "n_total", "n_truncated")}
        values |= {f"scoring/{benchmark}/{name}": value for name, value in counts.items() if value is not None}
    values |= {f"{prefix}_cost/{name}": value for name, value in (summary.get("cost") or {}).items()}
    numbers = {
        legal_name(name): math.nan if value is None else _as_float(value)
        for name, value in values.items()
        if value is None or _is_number(value)
    }
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    return finite, len(numbers) - len(finite)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _as_float(value: int | float) -> float:
    """The number; infinity for an integer beyond all floats."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def params_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as MLflow parameters: ``training.learning_rate`` -> text; long values are cut and marked.

    >>> params_of({"training": {"epochs": 1, "betas": [0.9, 0.99]}})
    {'training.epochs': '1', 'training.betas': '[0.9, 0.99]'}
    """
    params: dict[str, str] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), inner)
            return
        text = _plain(value)
        if len(text) > PARAM_LENGTH:
            note = f"... [cut: {len(text)} characters, all in summary.json]"
            text = text[: PARAM_LENGTH - len(note)] + note
        name = legal_name(prefix)
        while name in params:  # two names that differ only in characters MLflow refuses
            name = f"{name[: NAME_LENGTH - 1]}_"
        params[name] = text

    for key, value in settings.items():
        if value != {}:
            add(str(key), value)
    return params


def _plain(value: Any) -> str:
    """Text of a setting that is the same in every process: no memory addresses."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return _ADDRESS.sub("", text)


def legal_name(name: str) -> str:
    """A name that MLflow accepts for metrics and parameters: letters, digits, ``_ - . : /`` and space, as a plain
    relative path.

    >>> legal_name("rm_bench/accuracy@0.5 (hard)")
    'rm_bench/accuracy_0.5 _hard_'
    """
    legal = posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", name)).strip("/")
    if legal.startswith(".."):
        legal = legal.replace("..", "_")
    return (legal if legal != "." else "_")[:NAME_LENGTH]
