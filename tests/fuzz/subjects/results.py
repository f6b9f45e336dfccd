"""Verbs that read the runs of a finished experiment."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from rm_methods.experiment.layout import Layout
from tests.fuzz.changes import copy_tree, read_values
from tests.fuzz.subjects.base import Subject


class Finished(Subject):
    """A verb that reads all runs of a finished experiment."""

    def build(self, folder):
        for name in ("runs", "evaluation", "data", "benchmarks"):
            copy_tree(self.seeds / "results" / "fuzz" / name, folder / "results" / name)
        copy_tree(self.seeds / "config.yaml", folder / "config.yaml")

    def _files(self, folder: Path, *names: str) -> list[Path]:
        return sorted(path for name in names for path in (folder / "results").rglob(name))


class Compare(Finished):
    """`compare` on the summaries, metrics and credits of a finished experiment."""

    def targets(self, folder):
        return self._files(folder, "summary.json", "metrics.json", "credits.parquet")

    def arguments(self, folder):
        what = ["--config", folder / "config.yaml", "--experiment", folder / "results"]
        return ["compare", *what, "--out", folder / "out"]

    def result(self, folder, outcome):
        with (folder / "out" / "table.csv").open(newline="") as stream:
            return [{key: value for key, value in row.items() if "cost" not in key} for row in csv.DictReader(stream)]

    def wrong(self, folder, change, outcome, result):
        for row in result:
            column, metric = row.get("benchmark"), row.get("metric")
            if (column, metric) != ("heldout", "test"):
                continue
            files = (folder / "results" / "evaluation" / row["variant"]).glob("seed*/metrics.json")
            values = [read_values(file)["benchmarks"]["heldout"]["metrics"]["test"] for file in files]
            if None not in values and abs(float(row["mean"]) - sum(values) / len(values)) > 1e-9:
                return f"{row['variant']}: mean {row['mean']}, the files say {values}"
        return None


class Track(Finished):
    """`track` on the files of a finished experiment, into a database that has its runs."""

    def build(self, folder):
        super().build(folder)
        copy_tree(self.seeds / "mlflow.db", folder / "mlflow.db")
        config = read_values(folder / "config.yaml")
        config["tracking"]["uri"] = f"sqlite:///{folder / 'mlflow.db'}"
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def targets(self, folder):
        return self._files(folder, "summary.json", "metrics.json", "metrics.jsonl")

    def arguments(self, folder):
        what = ["--config", folder / "config.yaml", "--experiment", folder / "results"]
        return ["track", *what, "--out", folder / "out" / "all.json"]

    def result(self, folder, outcome):
        return [
            {key: record.get(key) for key in ("variant", "seed", "status", "skipped_not_finite", "skipped_cut_line")}
            for record in read_values(folder / "out" / "all.json")
        ]

    def wrong(self, folder, change, outcome, result):
        if pending := [record for record in read_values(folder / "out" / "all.json") if record["status"] != "exported"]:
            return f"pending with a store that answers: {pending[0].get('reason')}"
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        for record in read_values(folder / "out" / "all.json"):
            file = folder / "results" / "evaluation" / str(record["variant"]) / f"seed{record['seed']}" / "metrics.json"
            value = read_values(file)["benchmarks"].get("heldout", {}).get("metrics", {}).get("test")
            stored = client.get_run(record["run_id"]).data.metrics.get("heldout/test")
            if (
                isinstance(value, (int, float))
                and not isinstance(value, bool)
                and math.isfinite(value)
                and stored != value
            ):
                return f"the store has {stored} for {record['variant']} seed {record['seed']}, metrics.json has {value}"
        return None


class CompareFolders(Finished):
    """`compare` on the folders of two experiments, the second one changed."""

    def build(self, folder):
        for place in ("first", "second"):
            for name in ("config", "runs", "evaluation", "data", "benchmarks"):
                copy_tree(self.seeds / "results" / "fuzz" / name, folder / place / name)

    def targets(self, folder):
        names = ("summary.json", "metrics.json", "credits.parquet", "fuzz.yaml")
        return sorted(path for name in names for path in (folder / "second").rglob(name))

    def arguments(self, folder):
        return ["compare", folder / "first", folder / "second", "--out", folder / "out"]

    def result(self, folder, outcome):
        return _table(folder / "out" / "table.csv", leave_out="cost")

    def wrong(self, folder, change, outcome, result):
        shown = [float(row["mean"]) for row in result if (row["benchmark"], row["metric"]) == ("heldout", "test")]
        for place in ("first", "second"):
            for variant in (folder / place / "evaluation").iterdir():
                files = variant.glob("seed*/metrics.json")
                values = [read_values(file)["benchmarks"]["heldout"]["metrics"]["test"] for file in files]
                mean = sum(values) / len(values)
                if not any(abs(value - mean) < 1e-9 for value in shown):
                    return f"silent: {place} has a mean of {mean} for {variant.name}, the table shows {shown}"
        return None


class Power(Finished):
    """`power` on a finished pilot of two trained variants with two seeds."""

    def targets(self, folder):
        return self._files(folder, "summary.json", "metrics.json", "credits.parquet")

    def arguments(self, folder):
        what = ["--config", folder / "config.yaml", "--experiment", folder / "results"]
        return ["power", *what, "--out", folder / "out"]

    def result(self, folder, outcome):
        return _table(folder / "out" / "power.csv")

    def wrong(self, folder, change, outcome, result):
        rows = [row for row in result if (row["benchmark"], row["metric"]) == ("heldout", "test")]
        for variant in ("bradley_terry", "label_smoothing"):
            for file in (folder / "results" / "evaluation" / variant).glob("seed*/credits.parquet"):
                credits = pq.read_table(file).to_pylist()
                items = [row for row in credits if row["metric"] == "test"]
                if rows and "n_items" in rows[0] and rows[0]["n_items"] and int(rows[0]["n_items"]) > len(items):
                    return f"{file}: {len(items)} credits, planned with {rows[0]['n_items']} items"
        if any(int(row["pilot_seeds"] or 2) != 2 for row in rows):
            return f"two seeds were trained, the table says {rows[0]['pilot_seeds']}"
        return None


class Tune(Subject):
    """`tune` on the runs of a grid of two learning rates."""

    def build(self, folder):
        for name in ("runs", "data"):
            copy_tree(self.seeds / "results" / "tuning" / name, folder / "results" / name)
        copy_tree(self.seeds / "tune.yaml", folder / "tune.yaml")

    def targets(self, folder):
        return sorted((folder / "results" / "runs").rglob("summary.json"))

    def arguments(self, folder):
        what = ["--config", folder / "tune.yaml", "--experiment", folder / "results"]
        return ["tune", *what, "--out", folder / "out"]

    def result(self, folder, outcome):
        return _table(folder / "out" / "table.csv")

    def wrong(self, folder, change, outcome, result):
        ranks = {}
        for row in result:
            metrics = read_values(Layout(folder / "results").summary(row["variant"], 0))["metrics"]
            if abs(float(row["validation_accuracy"]) - metrics["validation_accuracy"]) > 1e-9:
                return f"{row['variant']}: accuracy {row['validation_accuracy']}, its summary says {metrics}"
            ranks[row["selected"], row["variant"]] = (metrics["validation_accuracy"], -metrics["validation_loss"])
        ((best, _),) = [(rank, name) for (selected, name), rank in ranks.items() if selected == "true"]
        if best != max(ranks.values()):
            return f"selected {best}, the best is {max(ranks.values())}"
        return None


class Diagnose(Subject):
    """`diagnose` and `diagnose-teacher`: items, reward model, teacher or backbone are changed."""

    has_checksums = True

    @property
    def input_name(self) -> str:  # type: ignore[override]
        return {"items": "", "model": "run/model", "teacher": "teacher/model"}[self.name.split("/")[1]]

    def build(self, folder):
        layout = Layout(self.seeds / "results" / "distance")
        copy_tree(self.seeds / "distance.yaml", folder / "config.yaml")
        copy_tree(layout.items("heldout"), folder / "items.parquet")
        copy_tree(layout.run("bradley_terry", 0), folder / "run")
        copy_tree(layout.run("teacher", 0), folder / "teacher")
        copy_tree(layout.backbone, folder / "backbone")

    def targets(self, folder):
        kind = self.name.split("/")[1]
        if kind == "items":
            return [folder / "items.parquet"]
        return sorted(
            path
            for path in (folder / {"model": "run", "teacher": "teacher"}[kind] / "model").iterdir()
            if path.is_file()
        )

    def arguments(self, folder):
        what = ["--config", folder / "config.yaml", "--variant", "bradley_terry", "--model", folder / "run" / "model"]
        what += ["--benchmark", "heldout", "--items", folder / "items.parquet", "--out", folder / "out"]
        what += ["--threads", 1]
        if self.name.startswith("diagnose-teacher"):
            teacher = ["--teacher", f"teacher={folder / 'teacher' / 'model'}"]
            return ["diagnose-teacher", *what, *teacher, "--backbone", folder / "backbone", "--seed", 0]
        return ["diagnose", *what]

    def result(self, folder, outcome):
        file = "teacher.parquet" if self.name.startswith("diagnose-teacher") else "masking.parquet"
        rows = pq.read_table(folder / "out" / file).to_pylist()
        return [[round(value, 6) if isinstance(value, float) else value for value in row.values()] for row in rows]

    def wrong(self, folder, change, outcome, result):
        if any(isinstance(value, float) and not math.isfinite(value) for row in result for value in row):
            return "a value that is not finite"
        if self.name.endswith("items"):
            items = pq.read_table(folder / "items.parquet").num_rows
            report = folder / "out" / "report.json"
            counts = read_values(report)["benchmarks"]["heldout"] if report.exists() else {"n_items": items}
            if counts["n_items"] != items:
                return f"{items} items, the report says {counts}"
            if report.exists() and items != counts["n_pairs"] + counts["not_drawn"] + counts["not_a_pair"]:
                return f"items are lost: {counts}"
        elif result != self.unchanged and not any(name in outcome.text for name in change.names):
            return "silent: a damaged model gives other values"
        return None


class DiagnoseSummary(Subject):
    """`diagnose-summary` on the diagnostics of a run."""

    def build(self, folder):
        for name in ("runs", "diagnostics", "data", "benchmarks"):
            copy_tree(self.seeds / "results" / "distance" / name, folder / "results" / name)
        copy_tree(self.seeds / "distance.yaml", folder / "config.yaml")

    @property
    def _run(self) -> Path:
        return Path("results") / "diagnostics" / "bradley_terry" / "seed0"

    def targets(self, folder):
        names = ("attention.parquet", "masking.parquet", "report.json", "teacher.parquet")
        return [folder / self._run / name for name in names]

    def arguments(self, folder):
        what = ["--config", folder / "config.yaml", "--experiment", folder / "results"]
        return ["diagnose-summary", *what, "--out", folder / "out"]

    def result(self, folder, outcome):
        return [_table(folder / "out" / name) for name in ("table.csv", "teacher_distance.csv")]

    def wrong(self, folder, change, outcome, result):
        masking = pq.read_table(folder / self._run / "masking.parquet").to_pylist()
        for mode in ("sequence", "response"):
            credits = [row["credit"] for row in masking if (row["mode"], row["percent"]) == (mode, 0)]
            (shown,) = [
                float(row["value"])
                for row in result[0]
                if (row["quantity"], row["measure"], row["position"], row["seed"]) == ("accuracy", mode, "0", "0")
            ]
            if abs(shown - sum(credits) / len(credits)) > 1e-9:
                return f"accuracy {shown} with nothing hidden, the credits are {credits}"
        distances = pq.read_table(folder / self._run / "teacher.parquet").to_pylist()
        for row in result[1]:
            values = [entry["after"] for entry in distances if entry["distance"] == row["distance"]]
            if abs(float(row["after"]) - sum(values) / len(values)) > 1e-9:
                return f"{row['distance']} after training is {row['after']}, the file says {values}"
        return None


class Overoptimization(Subject):
    """`overoptimization` on a pool, its scores, and a PPO run."""

    study = "policies"

    def build(self, folder):
        for name in ("runs", "scores", "pools", "ppo", "data"):
            copy_tree(self.seeds / "results" / "policies" / name, folder / "results" / name)
        copy_tree(self.seeds / "config.yaml", folder / "config.yaml")

    def targets(self, folder):
        layout = Layout(folder / "results")
        ppo = layout.ppo_run("bradley_terry", 0)
        scores = [layout.scores(variant, 0, "samples") for variant in ("bradley_terry", "longest")]
        return [layout.items("samples"), *scores, ppo / "evaluation.parquet", ppo / "summary.json"]

    def arguments(self, folder):
        what = ["--config", folder / "config.yaml", "--experiment", folder / "results"]
        return ["overoptimization", *what, "--out", folder / "out"]

    def result(self, folder, outcome):
        return [_table(folder / "out" / name) for name in ("best_of_n.csv", "ppo.csv")]

    def wrong(self, folder, change, outcome, result):
        layout = Layout(folder / "results")
        for row in result[0]:
            if row["n"] != "1":
                continue
            scores = pq.read_table(layout.scores(row["variant"], 0, "samples"))["score"].to_pylist()
            if abs(float(row["proxy"]) - sum(scores) / len(scores)) > 1e-6:
                return f"proxy of {row['variant']} at n = 1 is {row['proxy']}, the scores are {scores}"
        evaluation = pq.read_table(layout.ppo_run("bradley_terry", 0) / "evaluation.parquet").to_pylist()
        for row in result[1]:
            for name in ("gold", "proxy", "kl"):
                values = [entry[name] for entry in evaluation if str(entry["step"]) == row["step"]]
                if abs(float(row[name]) - sum(values) / len(values)) > 1e-6:
                    return f"{name} at step {row['step']} is {row[name]}, the file says {values}"
        if {row["step"] for row in result[1]} != {str(entry["step"]) for entry in evaluation}:
            return "silent: a step of PPO is missing"
        return None


def _table(file: Path, leave_out: str = "\0") -> list[dict[str, Any]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return [{key: value for key, value in row.items() if leave_out not in key} for row in csv.DictReader(stream)]
