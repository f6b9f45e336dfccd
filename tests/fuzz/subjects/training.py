"""Verbs that make models and samples: backbones, reward models, policies, and the world's language models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import yaml

from rm_methods.config.resolve import load_config
from rm_methods.experiment.layout import Layout
from rm_methods.files import file_hash
from tests.fuzz.changes import copy_tree, read_values
from tests.fuzz.study import WORLD_MODEL_SETTINGS
from tests.fuzz.subjects.base import Subject, same


class Made(Subject):
    """A verb that makes a model or samples from a configuration, prepared pairs and folders of models.

    The second part of the name says what is changed: `config`, `pairs`, or a folder.
    """

    has_checksums = True
    experiment: ClassVar[str] = "fuzz"

    @property
    def kind(self) -> str:
        return self.name.split("/")[1]

    @property
    def input_name(self) -> str:  # type: ignore[override]
        if self.kind in ("config", "pairs", "references"):
            return ""
        return "run/model" if self.kind == "model" else self.kind

    def layout(self) -> Layout:
        """The finished experiment."""
        return Layout(self.seeds / "results" / self.experiment)

    def build(self, folder):
        copy_tree(self.seeds / "config.yaml", folder / "config.yaml")
        copy_tree(self.layout().pairs, folder / "pairs.parquet")

    def targets(self, folder):
        if self.kind in ("pairs", "references"):
            return [folder / f"{self.kind}.parquet"]
        if self.kind == "config":
            return [folder / "config.yaml"]
        return sorted(path for path in (folder / self.input_name).iterdir() if path.is_file())

    def pairs(self, folder: Path, split: str = "train") -> list[dict[str, Any]]:
        """The prepared pairs of a split."""
        return [row for row in pq.read_table(folder / "pairs.parquet").to_pylist() if row["split"] == split]

    def silent(self, change, outcome, result) -> str | None:
        """A damaged folder of a model that gives another result without a word."""
        if self.input_name and result != self.unchanged and not any(name in outcome.text for name in change.names):
            return f"silent: a damaged folder gives another result: {str(result)[:200]} {str(self.unchanged)[:200]}"
        return None


class PrepareBackbone(Made):
    """`prepare-backbone` of a tiny model, whose tokenizer is trained on the pairs."""

    def arguments(self, folder):
        files = ["--config", folder / "config.yaml", "--pairs", folder / "pairs.parquet"]
        return ["prepare-backbone", *files, "--out", folder / "out"]

    def result(self, folder, outcome):
        record = yaml.safe_load(outcome.output)
        return [record, read_values(folder / "out" / "config.json")]

    def wrong(self, folder, change, outcome, result):
        record, shape = result
        backbone = load_config([folder / "config.yaml"])["backbone"]
        if record != read_values(folder / "out" / "backbone.json"):
            return "what is printed is not what is stored"
        if record["source"] != backbone["source"]:
            return f"source {record['source']!r}, the configuration says {backbone['source']!r}"
        if record["kind"] == "tiny" and shape["hidden_size"] != backbone["tiny"]["hidden_size"]:
            return f"hidden_size {shape['hidden_size']}, the configuration says {backbone['tiny']}"
        return None


class SourceFolder(Made):
    """`prepare-backbone` of a language model in a local folder."""

    study = "policies"
    experiment = "policies"

    def build(self, folder):
        super().build(folder)
        copy_tree(self.seeds / "world_model", folder / "source")
        config = read_values(folder / "config.yaml")
        config["backbone"] = {"source": str(folder / "source"), "max_length": 256}
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def arguments(self, folder):
        files = ["--config", folder / "config.yaml", "--pairs", folder / "pairs.parquet"]
        return ["prepare-backbone", *files, "--out", folder / "out"]

    def result(self, folder, outcome):
        from safetensors.numpy import load_file

        weights = {path.name: load_file(path) for path in (folder / "out").glob("*.safetensors")}
        return [sorted(weights), read_values(folder / "out" / "config.json")]

    def wrong(self, folder, change, outcome, result):
        from safetensors.numpy import load_file

        source = load_file(folder / "source" / "model.safetensors")
        for file in (folder / "out").glob("*.safetensors"):
            for name, values in load_file(file).items():
                if name in source and not (values == source[name]).all():
                    return f"the weights {name} are not those of the source"
        return None


class Train(Made):
    """`train` of a Bradley-Terry model."""

    def build(self, folder):
        super().build(folder)
        copy_tree(self.layout().backbone, folder / "backbone")

    def arguments(self, folder):
        files = ["--config", folder / "config.yaml", "--pairs", folder / "pairs.parquet"]
        what = ["--variant", "bradley_terry", "--seed", 0, "--backbone", folder / "backbone", "--threads", 1]
        return ["train", *files, *what, "--out", folder / "out", "--work", folder / "work"]

    def result(self, folder, outcome):
        summary = read_values(folder / "out" / "summary.json")
        weights = file_hash(folder / "out" / "model" / "model.safetensors")
        return [summary["data"]["pairs"], summary["metrics"], weights]

    def wrong(self, folder, change, outcome, result):
        summary = read_values(folder / "out" / "summary.json")
        dropped = sum(count for name, count in summary.get("truncation", {}).items() if "drop" in name)
        if summary["data"]["pairs"] != len(self.pairs(folder)):
            return f"{len(self.pairs(folder))} training pairs, the summary says {summary['data']['pairs']}"
        seen = summary["cost"]["pairs_seen"]
        epochs = summary["training"]["epochs"]
        if seen != round(epochs * (summary["data"]["pairs"] - dropped)):
            return f"{seen} pairs seen in {epochs} epochs of {summary['data']['pairs']} pairs, {dropped} dropped"
        if any(isinstance(v, float) and not math.isfinite(v) for v in summary["metrics"].values()):
            return f"metrics that are not finite: {summary['metrics']}"
        wanted = load_config([folder / "config.yaml"])["training"]
        for name in set(wanted) & set(summary["training"]):
            if not same(wanted[name], summary["training"][name]):
                return f"training.{name} was {summary['training'][name]!r}, the configuration says {wanted[name]!r}"
        return self.silent(change, outcome, result)


class Policy(Made):
    """A verb of policies on the experiment of the controlled world."""

    study = "policies"
    experiment = "policies"

    def build(self, folder):
        super().build(folder)
        copy_tree(self.layout().fine_tuned / "policy", folder / "policy")
        copy_tree(self.layout().references, folder / "references.parquet")
        copy_tree(self.layout().run("bradley_terry", 0), folder / "run")

    def _options(self, folder: Path) -> list:
        files = ["--config", folder / "config.yaml", "--pairs", folder / "pairs.parquet"]
        return [*files, "--work", folder / "work", "--threads", 1]


class Sft(Policy):
    """`sft` on prepared pairs."""

    def arguments(self, folder):
        return ["sft", *self._options(folder), "--out", folder / "out"]

    def outputs(self, folder):
        return [folder / "out" / "policy"]

    def result(self, folder, outcome):
        summary = read_values(folder / "out" / "summary.json")
        return [summary[name] for name in ("examples", "train_loss", "validation_loss", "validation_examples")]

    def wrong(self, folder, change, outcome, result):
        expected = [len(self.pairs(folder)), len(self.pairs(folder, "validation"))]
        sft = load_config([folder / "config.yaml"])["overoptimization"]["sft"]
        each = 2 if sft["responses"] == "both" else 1
        if sft["responses"] in ("chosen", "both") and [result[0], result[3]] != [each * count for count in expected]:
            return f"{expected} pairs for training and validation, {result} examples"
        return None


class Sample(Policy):
    """`sample-pool` and `sample-references`."""

    def arguments(self, folder):
        verb = self.name.split("/")[0]
        policy = ["--policy", folder / "policy"]
        if verb == "sample-references":
            return [verb, *self._options(folder), *policy, "--out", folder / "out" / "samples.parquet"]
        written = ["--items", folder / "out" / "samples.parquet", "--report", folder / "out" / "report.json"]
        return [verb, *self._options(folder), *policy, *written]

    def result(self, folder, outcome):
        rows = pq.read_table(folder / "out" / "samples.parquet").to_pylist()
        return [[row.get("responses", row.get("response")), row.get("label")] for row in rows]

    def wrong(self, folder, change, outcome, result):
        section = load_config([folder / "config.yaml"])["overoptimization"]
        if self.name.startswith("sample-pool"):
            prompts = len({str(row["prompt"]) for row in self.pairs(folder, section["prompts"])})
            expected = min(prompts, section["best_of_n"]["limit"])
            samples = section["best_of_n"]["samples"]
            if len(result) != expected or any(len(row[0]) != samples for row in result):
                return f"{expected} prompts with {samples} samples are expected: {str(result)[:300]}"
        else:
            prompts = len({str(row["prompt"]) for row in self.pairs(folder)})
            if not result or len(result) % min(prompts, section["ppo"]["train_prompts"]):
                return f"{len(result)} responses to {prompts} prompts"
        return self.silent(change, outcome, result)


class Ppo(Policy):
    """`ppo` of one update."""

    def arguments(self, folder):
        what = [
            "--variant",
            "bradley_terry",
            "--seed",
            0,
            "--model",
            folder / "run" / "model",
            "--policy",
            folder / "policy",
        ]
        files = ["--references", folder / "references.parquet", "--out", folder / "out"]
        return ["ppo", *self._options(folder), *what, *files]

    def outputs(self, folder):
        return [folder / "out" / "policy", folder / "out" / "evaluation.parquet"]

    def result(self, folder, outcome):
        rows = pq.read_table(folder / "out" / "evaluation.parquet").to_pylist()
        return [[row["step"], row["prompt_id"], round(row["proxy"], 5), row["response"]] for row in rows]

    def wrong(self, folder, change, outcome, result):
        summary = read_values(folder / "out" / "summary.json")
        steps = {row[0] for row in result}
        if len(result) != len(steps) * summary["evaluation_prompts"]:
            return f"{len(result)} evaluations of {summary['evaluation_prompts']} prompts at steps {steps}"
        ppo = load_config([folder / "config.yaml"])["overoptimization"]["ppo"]
        if summary["stopped"] is None and max(steps) != ppo["updates"]:
            return f"{ppo['updates']} updates, the last evaluation is at {max(steps)}"
        return self.silent(change, outcome, result)


class TrainWorldModel(Made):
    """`train-world-model` that starts from an earlier training."""

    study = "policies"
    experiment = "policies"

    def build(self, folder):
        copy_tree(self.seeds / "world_model", folder / "start")

    def arguments(self, folder):
        settings = [part for setting in WORLD_MODEL_SETTINGS for part in ("--set", setting)]
        written = ["--out", folder / "out", "--work", folder / "work", "--threads", 1]
        return ["train-world-model", "--seed", 1, *written, *settings, "--start", folder / "start"]

    def result(self, folder, outcome):
        record = read_values(folder / "out" / "training.json")
        return [record[name] for name in ("settings", "loss", "probe", "sha256")]

    def wrong(self, folder, change, outcome, result):
        return self.silent(change, outcome, result)
