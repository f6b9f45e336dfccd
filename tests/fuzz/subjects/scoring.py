"""Verbs that score and grade: score, evaluate, benchmark."""

from __future__ import annotations

import json
import math
from typing import ClassVar

import pyarrow.parquet as pq

from tests.fuzz.changes import Change, copy_tree, read_values
from tests.fuzz.study import EXAMPLES, text_rows, write_rows
from tests.fuzz.subjects.base import Outcome, Subject, same, without_paths


class Score(Subject):
    """`score` with a changed file of data, or a changed model folder."""

    has_checksums = True
    input_name = "run/model"
    DATA: ClassVar[dict[str, str]] = {"text": "pairs.jsonl", "items": "items.parquet", "prepared": "pairs.parquet"}

    def build(self, folder):
        results = self.seeds / "results" / "fuzz"
        variant = "longest" if "longest" in self.name else "bradley_terry"
        copy_tree(results / "runs" / variant / "seed0", folder / "run")
        if "foreign" in self.name:
            (folder / "run" / "model" / "SHA256SUMS").unlink(missing_ok=True)
        write_rows(text_rows(6), folder / "pairs.jsonl")
        copy_tree(results / "benchmarks" / "heldout.parquet", folder / "items.parquet")
        copy_tree(results / "data" / "pairs.parquet", folder / "pairs.parquet")

    @property
    def _data(self) -> str:
        return self.DATA.get(self.name.split("/")[1], "pairs.jsonl")

    def targets(self, folder):
        model = sorted(path for path in (folder / "run" / "model").iterdir() if path.is_file())
        return model if "model" in self.name else [folder / self._data]

    def arguments(self, folder):
        data = ["--data", folder / self._data, "--out", folder / "out" / "scores.parquet"]
        return ["score", "--model", folder / "run" / "model", *data, "--threads", 1]

    def result(self, folder, outcome):
        return without_paths(pq.read_table(folder / "out" / "scores.parquet").to_pylist(), folder)

    def wrong(self, folder, change, outcome, result):
        if not result:
            return "an empty score table"
        if "model" in self.name:
            return self._wrong_scores(change, outcome, result)
        before = {(row["item_id"], row["response_hash"]): row["score"] for row in self.unchanged}
        scores = {(row["item_id"], row["response_hash"]): row["score"] for row in result}
        other = {item for (item, text), score in scores.items() if not _near(before.get((item, text), score), score)}
        # One may have another prompt now.
        return (
            f"the scores of {len(other)} items are others for equal texts: {sorted(other)[:3]}"
            if len(other) > 1
            else None
        )

    def _wrong_scores(self, change: Change, outcome: Outcome, result: list[dict]) -> str | None:
        if [row["response_hash"] for row in result] != [row["response_hash"] for row in self.unchanged]:
            return "another model scored other responses"
        if all(_near(a["score"], b["score"]) for a, b in zip(self.unchanged, result, strict=True)):
            return None
        if any(not math.isfinite(row["score"]) for row in result) and "finite" not in outcome.text:
            return "scores that are not finite, without a word"
        # Without checksums nobody can tell that weights of the right shape are others.
        damaged = ("missing", "mixed up") if "foreign" in self.name else ("bytes", "missing", "mixed up")
        if change.what.startswith(damaged) and not any(name in outcome.text for name in change.names):
            return "silent: a damaged model gives other scores"
        return None


def _near(first: float, second: float) -> bool:
    return abs(first - second) <= 1e-4 or (math.isnan(first) and math.isnan(second))


class Evaluate(Subject):
    """`evaluate` on items and score tables."""

    def build(self, folder):
        results = self.seeds / "results" / "fuzz"
        copy_tree(results / "benchmarks" / "heldout.parquet", folder / "items.parquet")
        copy_tree(results / "scores" / "bradley_terry" / "seed0" / "heldout.parquet", folder / "scores.parquet")
        copy_tree(results / "runs" / "bradley_terry" / "seed0" / "summary.json", folder / "summary.json")

    def targets(self, folder):
        return [folder / name for name in ("items.parquet", "scores.parquet", "summary.json")]

    def arguments(self, folder):
        files = [
            "--items",
            folder / "items.parquet",
            "--scores",
            folder / "scores.parquet",
            "--summary",
            folder / "summary.json",
        ]
        written = ["--metrics", folder / "out" / "metrics.json", "--credits", folder / "out" / "credits.parquet"]
        return ["evaluate", "--benchmark", "heldout", *files, *written]

    def result(self, folder, outcome):
        credits = pq.read_table(folder / "out" / "credits.parquet").to_pylist()
        metrics = read_values(folder / "out" / "metrics.json")
        for benchmark in metrics["benchmarks"].values():
            benchmark.pop("made_from", None)  # hashes of the files' bytes
        return {"metrics": metrics, "credits": sorted(credits, key=lambda row: json.dumps(row, sort_keys=True))}

    def wrong(self, folder, change, outcome, result):
        summary = read_values(folder / "summary.json")
        for key in ("variant", "method", "seed", "run_key"):
            if not same(summary.get(key), result["metrics"][key]):
                return f"{key} is {result['metrics'][key]!r}, the summary says {summary.get(key)!r}"
        items = pq.read_table(folder / "items.parquet").to_pylist()
        scores = pq.read_table(folder / "scores.parquet").to_pylist()
        table = {(row["item_id"], row["response_index"]): row["score"] for row in scores}
        if len(table) < len(scores) or len({item["item_id"] for item in items}) < len(items):
            return "silent: an item or a score is there twice"
        right = [table[item["item_id"], 0] > table[item["item_id"], 1] for item in items if item["subset"] == "test"]
        value = result["metrics"]["benchmarks"]["heldout"]["metrics"]["test"]
        if value is not None and abs(value - sum(right) / len(right)) > 1e-9:
            return f"accuracy is {value}, by hand it is {sum(right)} of {len(right)}"
        return None


class Benchmark(Subject):
    """`benchmark` on the public files of a benchmark, or with a changed model."""

    has_checksums = True
    input_name = "run/model"

    def build(self, folder):
        copy_tree(self.seeds / "results" / "fuzz" / "runs" / "bradley_terry" / "seed0" / "model", folder / "run/model")
        copy_tree(EXAMPLES / "rm_bench", folder / "root")

    def targets(self, folder):
        parent = folder / ("root" if self.name.endswith("files") else "run")
        return sorted(path for path in parent.rglob("*") if path.is_file())

    def arguments(self, folder):
        what = [
            "--model",
            folder / "run" / "model",
            "--benchmarks",
            "rm_bench",
            "--root",
            f"rm_bench={folder / 'root'}",
        ]
        return ["benchmark", *what, "--out", folder / "out", "--threads", 1]

    def outputs(self, folder):
        return [folder / "out" / "results.json"]

    def result(self, folder, outcome):
        scores = pq.read_table(folder / "out" / "rm_bench" / "scores.parquet").to_pylist()
        (benchmark,) = read_values(folder / "out" / "results.json")["benchmarks"]
        return {"scores": scores, "metrics": benchmark["metrics"]}

    def wrong(self, folder, change, outcome, result):
        items = pq.read_table(folder / "out" / "rm_bench" / "items.parquet").to_pylist()
        report = read_values(folder / "out" / "rm_bench" / "items.json")
        excluded = sum(entry["count"] for entry in report["excluded"].values())
        if report["n_rows"] != len(items) + excluded:
            return f"{report['n_rows']} rows, {len(items)} items and {excluded} excluded"
        if len(result["scores"]) != sum(len(item["responses"]) for item in items):
            return f"{len(result['scores'])} scores for {sum(len(item['responses']) for item in items)} responses"
        if self.name.endswith("model"):
            before, after = (
                [row["score"] for row in scores] for scores in (self.unchanged["scores"], result["scores"])
            )
            if not all(map(_near, before, after)) and not any(name in outcome.text for name in change.names):
                return "silent: a damaged model gives other scores"
        return None
