"""Verbs that read preference pairs and benchmarks: init, prepare, prepare-benchmark, contamination."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.fuzz.changes import copy_tree, read_values
from tests.fuzz.study import EXAMPLES, text_rows, write_rows
from tests.fuzz.subjects.base import Subject, run, texts_of, without_paths


class Prepare(Subject):
    """`prepare` on a preference file."""

    def _file(self, folder: Path) -> Path:
        return folder / f"pairs.{self.name.split('.')[-1]}"

    def build(self, folder):
        file = self.write_data(folder, text_rows(16))
        data = {"dataset": str(file), "validation_fraction": 0.0, "test_fraction": 0.3}
        config = {"experiment": "x", "data": data, "methods": {"longest": {}}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    def write_data(self, folder: Path, rows: list[dict]) -> Path:
        """Write rows in the format that the subject's name says."""
        file = self._file(folder)
        if "conversations" in self.name:
            for row in rows:
                row["prompt"] = [{"role": "user", "content": row["prompt"]}]
                row |= {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        if "implicit" in self.name:
            for row in rows:
                prompt = {"role": "user", "content": row.pop("prompt")}
                row |= {side: [prompt, {"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        if file.suffix == ".csv":
            with file.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        elif file.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        elif file.suffix == ".json":
            file.write_text(json.dumps(rows))
        else:
            write_rows(rows, file)
        return file

    def targets(self, folder):
        return [self._file(folder)]

    def arguments(self, folder):
        written = ["--pairs", folder / "out" / "pairs.parquet", "--report", folder / "out" / "report.json"]
        return ["prepare", "--config", folder / "config.yaml", *written]

    def result(self, folder, outcome):
        pairs = pq.read_table(folder / "out" / "pairs.parquet").to_pylist()
        report = read_values(folder / "out" / "report.json")
        return without_paths({"pairs": pairs, "report": report}, folder)

    def wrong(self, folder, change, outcome, result):
        read, steps = result["report"]["read"], result["report"]["steps"]
        dropped = sum(entry["count"] for entry in read["dropped"].values())
        if read["rows"] != read["pairs"] + dropped:
            return f"{read['rows']} rows, {read['pairs']} pairs and {dropped} dropped"
        if steps[0]["before"] != read["pairs"] or steps[1]["after"] != len(result["pairs"]):
            return f"{read['pairs']} pairs read, {len(result['pairs'])} written, steps {steps}"
        if result == self.unchanged:
            return self._unread(folder)
        return self._invented(folder, result["pairs"]) or self._others_changed(folder, result)

    def _unread(self, folder: Path) -> str | None:
        """A change that is in neither the pairs nor the report."""
        now, before = self._rows(folder), self._rows(self.valid_folder)
        if now is not None and _sorted(now) != _sorted(before):
            return "silent: the rows are not the same, but pairs and report are"
        return None

    def _invented(self, folder: Path, pairs: list[dict]) -> str | None:
        rows = self._rows(folder)
        if rows is None:
            return None
        everything = "\n".join(texts_of(rows))
        for pair in pairs:
            for text in (pair["chosen"], pair["rejected"], *(message["content"] for message in pair["prompt"])):
                if text.strip() not in everything and text.replace("\r", "") not in everything.replace("\r", ""):
                    return f"a text that no row has: {text[:100]!r}"
        return None

    def _others_changed(self, folder: Path, result: Any) -> str | None:
        """Rows that were not touched must give the pairs they gave."""
        now, before = self._rows(folder), self._rows(self.valid_folder)
        if now is None or sum(step["before"] - step["after"] for step in result["report"]["steps"]):
            return None
        untouched = {json.dumps(row, sort_keys=True) for row in now}
        kept = [row for row in before if json.dumps(row, sort_keys=True) in untouched]
        texts = {(pair["chosen"].strip(), pair["rejected"].strip()) for pair in result["pairs"]}
        for row in kept:
            answers = tuple(_answer(row[side]).strip() for side in ("chosen", "rejected"))
            if answers not in texts:
                return f"a row that is as it was gives no pair: {answers}"
        return None

    def _rows(self, folder: Path) -> list | None:
        """The rows as Python reads them; None if it cannot."""
        file = self._file(folder)
        try:
            if file.suffix == ".parquet":
                return pq.read_table(file).to_pylist()
            if file.suffix == ".csv":
                with file.open(newline="", encoding="utf-8-sig") as stream:
                    return list(csv.DictReader(stream))
            value = read_values(file)
        except Exception:
            return None
        return value if isinstance(value, list) and all(isinstance(row, dict) for row in value) else None


def _sorted(rows: list[dict]) -> list[str]:
    """Rows as texts in one order; a column that a row leaves empty is as good as none."""
    filled = [{key: value for key, value in row.items() if value not in (None, "", [], {})} for row in rows]
    return sorted(json.dumps(row, sort_keys=True) for row in filled)


def _answer(value: Any) -> str:
    return value if isinstance(value, str) else value[-1]["content"]


class PrepareBenchmark(Subject):
    """`prepare-benchmark` on the public format of a benchmark, or on prepared pairs."""

    input_name = "no file"  # a missing file is named by the pattern that it would fit

    @property
    def benchmark(self) -> str:
        return self.name.split("/")[1]

    def build(self, folder):
        if self.benchmark == "heldout":
            copy_tree(self.seeds / "results" / "fuzz" / "data" / "pairs.parquet", folder / "root" / "pairs.parquet")
            benchmark = {}
        else:
            copy_tree(EXAMPLES / self.benchmark, folder / "root")
            benchmark = {"root": str(folder / "root")}
        data = {"dataset": str(self.seeds / "pairs.jsonl")}
        config = {
            "experiment": "x",
            "data": data,
            "methods": {"longest": {}},
            "benchmarks": {self.benchmark: benchmark},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    def targets(self, folder):
        return sorted(path for path in (folder / "root").rglob("*") if path.is_file())

    def arguments(self, folder):
        out = folder / "out"
        pairs = ["--pairs", folder / "root" / "pairs.parquet"] if self.benchmark == "heldout" else []
        what = ["--config", folder / "config.yaml", "--benchmark", self.benchmark]
        return ["prepare-benchmark", *what, *pairs, "--items", out / "items.parquet", "--report", out / "report.json"]

    def result(self, folder, outcome):
        items = pq.read_table(folder / "out" / "items.parquet").to_pylist()
        report = read_values(folder / "out" / "report.json")
        report.pop("sources")
        return without_paths({"items": items, "report": report}, folder)

    def wrong(self, folder, change, outcome, result):
        report = result["report"]
        excluded = sum(entry["count"] for entry in report["excluded"].values())
        if report["n_rows"] != len(result["items"]) + excluded or report["n_items"] != len(result["items"]):
            return f"{report['n_rows']} rows, {len(result['items'])} items and {excluded} excluded"
        rows = [text for path in (folder / "root").rglob("*") if path.is_file() for text in self._texts(path)]
        everything = "\n".join(rows)
        for item in result["items"]:
            for text in item["responses"]:
                if text.strip() not in everything and text.replace("\r", "") not in everything.replace("\r", ""):
                    return f"a response that no row has: {text[:100]!r}"
        return None

    def _texts(self, path: Path) -> list[str]:
        try:
            return texts_of(pq.read_table(path).to_pylist() if path.suffix == ".parquet" else read_values(path))
        except Exception:
            return [path.read_text(errors="replace")]


class Init(Prepare):
    """`init` on a preference file. What it writes must pass `check` and `prepare`, and no row is lost on the way."""

    def build(self, folder):
        self.write_data(folder, text_rows(40))

    def arguments(self, folder):
        out = folder / "out" / "mine.yaml"
        return ["init", "--data", self._file(folder), "--backbone", "tiny", "--out", out]

    def result(self, folder, outcome):
        text = (folder / "out" / "mine.yaml").read_text()
        return without_paths(yaml.safe_load(text), folder)

    def wrong(self, folder, change, outcome, result):
        config = folder / "out" / "mine.yaml"
        checked = run(["check", "--config", config])
        if checked.code != 0:
            return f"`check` refuses the configuration: {checked.text[-300:]}"
        written = ["--pairs", folder / "prepared" / "pairs.parquet", "--report", folder / "prepared" / "report.json"]
        prepared = run(["prepare", "--config", config, *written])
        if prepared.code != 0:
            return f"`prepare` refuses the configuration: {prepared.text[-300:]}"
        read = read_values(folder / "prepared" / "report.json")["read"]
        if f"{read['rows']:,} rows" not in outcome.output:
            return f"`prepare` reads {read['rows']} rows, `init` prints {outcome.output[:300]}"
        rows = self._rows(folder)
        if rows is not None and len(rows) != read["rows"]:
            return f"silent: the file has {len(rows)} rows, {read['rows']} were read"
        return None


class Contamination(Subject):
    """`contamination` on prepared pairs and the items of a benchmark made of them."""

    def build(self, folder):
        results = self.seeds / "results" / "fuzz"
        copy_tree(results / "data" / "pairs.parquet", folder / "pairs.parquet")
        table = pq.read_table(results / "benchmarks" / "heldout.parquet")
        rows = table.to_pylist()
        training = [row for row in pq.read_table(folder / "pairs.parquet").to_pylist() if row["split"] == "train"]
        for item, pair in zip(rows[:3], training, strict=False):
            item["prompt"] = pair["prompt"]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / "items.parquet")

    def targets(self, folder):
        return [folder / "pairs.parquet", folder / "items.parquet"]

    def arguments(self, folder):
        files = ["--pairs", folder / "pairs.parquet", "--items", folder / "items.parquet"]
        return ["contamination", "--benchmark", "heldout", *files, "--report", folder / "out" / "report.json"]

    def result(self, folder, outcome):
        report = read_values(folder / "out" / "report.json")
        return {key: value for key, value in report.items() if key not in ("hashes", "checksum")}

    def wrong(self, folder, change, outcome, result):
        items = pq.read_table(folder / "items.parquet").to_pylist()
        pairs = pq.read_table(folder / "pairs.parquet").to_pylist()
        if len(items) != result["items"]:
            return f"{len(items)} items, the report says {result['n_items']}"
        training = {_words(pair["prompt"]) for pair in pairs if pair["split"] == "train"}
        equal = sum(_words(item["prompt"]) in training for item in items)
        if equal != result["counts"]["prompt"]:
            return f"{equal} prompts are training prompts, the report says {result['prompt']}"
        return None


def _words(prompt: list[dict]) -> str:
    """The words of a prompt; a text without words is kept whole."""
    texts = [f"{m['role']}: " + (" ".join(re.findall(r"\w+", m["content"].casefold())) or m["content"]) for m in prompt]
    return "\n".join(texts)
