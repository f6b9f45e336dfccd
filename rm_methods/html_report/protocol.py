"""What a reader needs to judge a result and to make it again: data, budget, methods, machine, and commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_methods.errors import DataError, UserError
from rm_methods.experiment.layout import Layout
from rm_methods.files import read_json
from rm_methods.html_report.stored_results import StoredResults
from rm_methods.methods.registry import load_method_card
from rm_methods.preferences.removals import removal_sentences
from rm_methods.run_card import RunSummary, trained_pairs
from rm_methods.stored import read_summary


@dataclass(frozen=True)
class MethodFacts:
    """A variant for readers.

    Attributes:
        variant: name in the configuration; title, citation, cost: of the method's card.
        settings: those that differ from the method's defaults, as ``name = value``.
    """

    variant: str
    title: str
    citation: str
    cost: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Protocol:
    """Facts by topic, each as (name, value), and the methods."""

    data: tuple[tuple[str, str], ...]
    benchmarks: tuple[tuple[str, str], ...]
    budget: tuple[tuple[str, str], ...]
    machine: tuple[tuple[str, str], ...]
    methods: tuple[MethodFacts, ...]
    commands: tuple[str, ...]


def protocol(results: StoredResults) -> Protocol:
    """The protocol of an experiment, as far as its results record it."""
    summaries = _summaries(results)
    return Protocol(
        data=(*_data_facts(results.folder), *_trained_on_facts(summaries)),
        benchmarks=tuple(_benchmark_facts(results)),
        budget=tuple(_budget_facts(results.config)),
        machine=tuple(_machine_facts(summaries)),
        methods=tuple(_method_facts(results.config)),
        commands=tuple(_commands(results.config, summaries)),
    )


def _summaries(results: StoredResults) -> list[RunSummary]:
    layout = Layout(results.folder)
    paths = [layout.summary(run.variant, run.seed) for run in results.runs]
    return [read_summary(path) for path in paths]


def _data_facts(folder: Path) -> Iterable[tuple[str, str]]:
    report = _report(Layout(folder).pairs_report)
    if report is None:
        return
    dataset = report.get("dataset", {})
    yield "Data set", str(dataset.get("title", dataset.get("name", "")))
    if dataset.get("hub_id"):
        yield "Hub", f"{dataset['hub_id']} at {dataset.get('revision') or 'no fixed revision'}"
    yield "License", str(dataset.get("license", "not stated"))
    if dataset.get("citation"):
        yield "Source", str(dataset["citation"])
    read = report.get("read", {})
    refused = sum(entry["count"] for entry in read.get("dropped", {}).values())
    yield "Rows read", f"{read.get('rows', 0):,}; refused {refused:,}"
    for source in report.get("sources", []):
        share = f", {source['share_reached']:.0%} of the training pairs" if "share_reached" in source else ""
        yield f"Source {source['name']}", f"{source['rows']:,} rows, {source.get('used', 0):,} pairs used{share}"
    for split, summary in report.get("splits", {}).items():
        flipped = f", {summary['flipped']:,} labels flipped" if summary.get("flipped") else ""
        longer = summary.get("share_chosen_longer")
        share = "" if longer is None else f", chosen is longer in {longer:.0%}"
        yield f"Pairs in {split}", f"{summary['pairs']:,} from {summary['groups']:,} prompts{share}{flipped}"
    if "steps" in report:
        for sentence in removal_sentences(report):
            yield "Removed", sentence
    for note in report.get("notes", []):
        yield "Note", str(note)


def _trained_on_facts(summaries: Iterable[RunSummary]) -> Iterable[tuple[str, str]]:
    """The pairs that the variants were trained on, of those that each was offered: one line for all, if they agree."""
    texts: dict[str, dict[str, None]] = {}
    for summary in summaries:
        if pairs := trained_pairs(summary):
            texts.setdefault(summary["variant"], {})[str(pairs)] = None
    by_text: dict[str, list[str]] = {}
    for variant, seeds in texts.items():
        by_text.setdefault(" / ".join(seeds), []).append(variant)
    for text, variants in by_text.items():
        yield "Pairs trained on", text if len(by_text) == 1 else f"{', '.join(variants)}: {text}"


def _benchmark_facts(results: StoredResults) -> Iterable[tuple[str, str]]:
    for name in results.config["benchmarks"]:
        report = _report(Layout(results.folder).items_report(name))
        if report is None:
            yield name, "not prepared yet"
            continue
        excluded = sum(entry["count"] for entry in report.get("excluded", {}).values())
        left_out = f", {excluded:,} left out" if excluded else ""
        yield (
            str(report.get("title", name)),
            f"{report.get('n_items', 0):,} items, {report.get('n_responses', 0):,} responses{left_out}; "
            f"ties: {report.get('tie_rule', 'not stated')}; license: {report.get('license', 'not stated')}",
        )


def _budget_facts(config: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    training = config["training"]
    backbone = config["backbone"]
    yield "Backbone", f"{backbone['source']}, at most {backbone['max_length']:,} tokens, {backbone['dtype']}"
    yield "Seeds", ", ".join(map(str, config["seeds"]))
    yield "Epochs", str(training["epochs"])
    yield "Pairs a step", str(training["pairs_per_step"])
    yield "Learning rate", f"{training['learning_rate']:g}, {training['schedule']}"
    yield "Weight decay", f"{training['weight_decay']:g}"
    yield "Precision", str(training["precision"])
    patience = training.get("early_stopping", {}).get("patience")
    if patience is not None:
        yield "Early stopping", f"after {patience} validations without an improvement"
    if training.get("keep", "last") != "last":
        yield "Checkpoint kept", str(training["keep"])
    if training["lora"]:
        yield "LoRA", ", ".join(f"{name} {value}" for name, value in training["lora"].items())


def _machine_facts(summaries: list[RunSummary]) -> Iterable[tuple[str, str]]:
    if not summaries:
        return
    trained = [summary for summary in summaries if summary["cost"].get("device") not in (None, "none")]
    yield "Devices", _distinct(str(summary["cost"]["device"]) for summary in trained) or "no training"
    ranks = _distinct(str(summary["cost"].get("world_size", 1)) for summary in trained)
    yield "Processes a run", ranks or "none"
    seconds = sum(float(summary["cost"].get("wall_seconds") or 0) for summary in trained)
    yield "Training time of all runs", f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
    sources: list[dict[str, Any]] = [dict(summary.get("provenance", {})) for summary in summaries]
    commits = _distinct(
        f"{source['git_commit'][:12]}{' with uncommitted changes' if source.get('git_dirty') else ''}"
        for source in sources
        if source.get("git_commit")
    )
    yield "Commit", commits or "not recorded"
    yield "Package lock (hash)", _distinct(str(source.get("package_lock_hash") or "none") for source in sources)
    pythons = _distinct(f"{source['python']} on {source['machine']}" for source in sources if source.get("python"))
    yield "Python", pythons or "not recorded"
    names = dict.fromkeys(name for source in sources for name in source.get("versions", {}))
    versions = []
    for name in names:
        recorded = [source["versions"][name] for source in sources if source.get("versions", {}).get(name)]
        if recorded:
            versions.append(f"{name} {_distinct(map(str, recorded))}")
    yield "Packages", ", ".join(versions) or "not recorded"


def _method_facts(config: Mapping[str, Any]) -> Iterable[MethodFacts]:
    for variant, entry in config["methods"].items():
        try:
            card = load_method_card(entry["method"])
        except UserError:
            # The results may come from a machine that has a method of its user.
            yield MethodFacts(variant, entry["method"], "", "", ())
            continue
        defaults = card.defaults()
        changed = [
            f"{name} = {value}"
            for name, value in entry["settings"].items()
            if name in defaults and value != defaults[name]
        ]
        if entry.get("learning_rate"):
            changed.append(f"learning_rate = {entry['learning_rate']:g}")
        yield MethodFacts(variant, card.title, card.citation, card.cost, tuple(changed))


def _commands(config: Mapping[str, Any], summaries: list[RunSummary]) -> list[str]:
    commits = {summary.get("provenance", {}).get("git_commit") for summary in summaries} - {None}
    checkout = [f"git checkout {commit}" for commit in sorted(map(str, commits))] if len(commits) == 1 else []
    run = f"snakemake --cores 2 --configfile {resolved_name(config)}"
    return [*checkout, "make setup && source .venv/bin/activate", run]


def resolved_name(config: Mapping[str, Any]) -> str:
    """The name of the file that the page offers: not that of the user's file, which may have been laid over others."""
    return f"{config['experiment']}_resolved.yaml"


def _report(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    report = read_json(path)
    if not isinstance(report, dict):
        raise DataError(f"{path}: is not a report. Run the workflow again.")
    return report


def _distinct(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))
