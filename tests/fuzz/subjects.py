"""The verbs that are fuzzed: a small valid input for each, and what must be true of an answer to a changed one."""

from __future__ import annotations

import csv
import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import yaml
from click.testing import CliRunner

from rm_methods.cli import main
from tests.conftest import REPOSITORY
from tests.fuzz.changes import Change, copy_tree, read_values
from tests.fuzz.conftest import EXAMPLES, text_rows, write_rows

LONGEST_MESSAGE = 6000  # characters: a message that quotes a whole file is no message


@dataclass(frozen=True)
class Outcome:
    """What a verb answered.

    Attributes:
        code: exit status.
        output: stdout.
        text: stdout and stderr.
        error: the exception that the command line let through, if any.
    """

    code: int
    output: str
    text: str
    error: BaseException | None


def run(arguments: list) -> Outcome:
    """Run a verb in this process."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    error = None if isinstance(result.exception, SystemExit) else result.exception
    return Outcome(result.exit_code, result.stdout, result.output, error)


@dataclass
class Subject(ABC):
    """One verb on one kind of input.

    Attributes:
        name: "<verb>/<kind of input>".
        seeds: the finished experiment that inputs are taken from.
        unchanged: what the verb makes of the valid input.
        input_name: what a message may name instead of the file, as a model's folder is one thing to its user.
        has_checksums: a harmless change of a file may be refused, because its bytes are not those that were written.
    """

    name: str
    seeds: Path
    unchanged: Any = field(default=None, init=False)
    has_checksums: ClassVar[bool] = False
    input_name: ClassVar[str] = ""

    @abstractmethod
    def build(self, folder: Path) -> None:
        """Write a valid input into `folder`."""

    @abstractmethod
    def targets(self, folder: Path) -> list[Path]:
        """The files that may be changed."""

    @abstractmethod
    def arguments(self, folder: Path) -> list:
        """The command line."""

    def outputs(self, folder: Path) -> list[Path]:
        """Files that must not be there after a refusal."""
        return [folder / "out"]

    @abstractmethod
    def result(self, folder: Path, outcome: Outcome) -> Any:
        """What the verb made, so that two runs can be compared; paths of the folder are left out."""

    def wrong(self, folder: Path, change: Change, outcome: Outcome, result: Any) -> str | None:
        """What is wrong with a result that the verb gave for a changed input; None if nothing is."""
        return None

    def judge(self, folder: Path, change: Change, outcome: Outcome) -> str | None:
        """What is wrong with the answer to a changed input."""
        if outcome.error is not None or "Traceback (most recent call last)" in outcome.text:
            return f"traceback: {type(outcome.error).__name__}: {str(outcome.error)[:300]}"
        if outcome.code == 2:
            return self._wrong_refusal(folder, change, outcome)
        if outcome.code != 0:
            return f"exit status {outcome.code}: {outcome.text[-300:]}"
        try:
            result = self.result(folder, outcome)
            if change.harmless and result != self.unchanged:
                return f"a harmless change gives another result: {str(result)[:300]} {str(self.unchanged)[:300]}"
            return self.wrong(folder, change, outcome, result)
        except Exception as error:
            return f"what was accepted cannot be judged: {type(error).__name__}: {str(error)[:300]}"

    def _wrong_refusal(self, folder: Path, change: Change, outcome: Outcome) -> str | None:
        message = outcome.text.replace(str(folder), "")
        if change.harmless and not (self.has_checksums and "SHA256SUMS" in message):
            return f"a harmless change is refused: {message[-300:]}"
        if len(message) > LONGEST_MESSAGE:
            return f"a message of {len(message)} characters: {message[:300]}"
        names = [*change.names, Path(change.names[0]).stem.replace("_", " "), change.folder, self.input_name]
        if not any(name in message for name in names if name):
            return f"the message names none of {change.names}: {message[-600:]}"
        if left := [path.name for path in self.outputs(folder) if path.exists() and any(path.rglob("*"))]:
            return f"refused, but {left} was written"
        return None


def without_paths(value: Any, folder: Path) -> Any:
    """A JSON-like value with the folder's path left out of its texts."""
    return json.loads(json.dumps(value).replace(json.dumps(str(folder))[1:-1], ""))


def values_of(key: str, value: Any) -> list:
    """Every value that stands under a key of this name anywhere in a JSON-like value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    here = [value[key]] if isinstance(value, dict) and key in value else []
    return here + [hit for child in inner for hit in values_of(key, child)]


def texts_of(value: Any) -> list[str]:
    """Every text inside a JSON-like value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for child in inner for text in texts_of(child)]


def same(first: Any, second: Any) -> bool:
    """Whether two JSON-like values are equal, and of one type: True is not 1."""
    return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


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


class Prepare(Subject):
    """`prepare` on a preference file."""

    def _file(self, folder: Path) -> Path:
        return folder / f"pairs.{self.name.split('.')[-1]}"

    def build(self, folder):
        rows, file = text_rows(16), self._file(folder)
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
            import pyarrow as pa

            pq.write_table(pa.Table.from_pylist(rows), file)
        elif file.suffix == ".json":
            file.write_text(json.dumps(rows))
        else:
            write_rows(rows, file)
        data = {"dataset": str(file), "validation_fraction": 0.0, "test_fraction": 0.3}
        config = {"experiment": "x", "data": data, "methods": {"longest": {}}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

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
        now, before = self._rows(folder), self._rows(self.seeds_folder)
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
        now, before = self._rows(folder), self._rows(self.seeds_folder)
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

    @property
    def seeds_folder(self) -> Path:
        """Folder with the valid input."""
        return self.seeds / "valid" / self.name.replace("/", "_")

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


# Not config/smol.yaml: it reads local folders that a plain clone lacks.
CONFIGURATIONS = (
    "quickstart",
    "paper",
    "noise",
    "interaction_distillation",
    "overoptimization",
    "tune_world",
)
FORMATS = (
    "text.jsonl",
    "conversations.jsonl",
    "implicit.jsonl",
    "text.json",
    "text.csv",
    "text.parquet",
    "conversations.parquet",
)
BENCHMARKS = (
    "heldout",
    "rm_bench",
    "judge_bench",
    "hh_rlhf",
    "alpaca_eval_pool",
    "ppe_correctness",
    "llmbar",
    "auto_j",
    "tldr",
    "helpsteer3",
    "ultrafeedback",
    "rewardbench",
    "rewardbench2",
    "rmb",
    "ppe_preference",
)
SUBJECTS: dict[str, type[Subject]] = {
    **{f"check/{name}": Check for name in CONFIGURATIONS},
    **{f"prepare/{name}": Prepare for name in FORMATS},
    **{f"prepare-benchmark/{name}": PrepareBenchmark for name in BENCHMARKS},
    **{f"score/{name}": Score for name in ("text", "items", "prepared", "model", "foreign-model", "longest-model")},
    "evaluate/tables": Evaluate,
    "compare/experiment": Compare,
    "track/experiment": Track,
}
