"""One reward model on benchmarks: prepared, scored in resumable parts, graded beside content-blind rules.

OUT/<benchmark>/items.parquet, items.json    the items, and what was read
OUT/<benchmark>/scores.parquet               the score table
OUT/<benchmark>/every_eval_ever.json         the results in the schema of that name
OUT/results.json                             everything that the tables show
OUT/table.{txt,md,csv,tex}
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from rm_methods.benchmarks.cards import BenchmarkCard, benchmark_module, list_benchmark_cards, load_benchmark_card
from rm_methods.benchmarks.contamination import count_contamination
from rm_methods.benchmarks.evaluation import align_preferences, align_scores, credit_table, prepare_items, tie_rate
from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.benchmarks.score_table import Preferences, ScoredResponse, read_preferences, read_scores, write_scores
from rm_methods.errors import ConfigError, UserError, nearest_path
from rm_methods.files import content_hash, file_hash, read_json, write_json, write_text
from rm_methods.leaderboard.every_eval_ever import every_eval_ever
from rm_methods.leaderboard.tables import CONTENT_BLIND, leaderboard_tables
from rm_methods.leaderboard.training_data import read_training_data
from rm_methods.methods.registry import load_method_card
from rm_methods.reward_models.tokenization import OfficialText
from rm_methods.scoring.adapters import folders_of_weights
from rm_methods.scoring.model_options import ModelOptions
from rm_methods.scoring.model_source import default_length, model_folder
from rm_methods.scoring.report import credit_estimates, scores_by_item
from rm_methods.scoring.scorer import ContentBlindScorer, Scorer, ScoringSettings, load_scorer
from rm_methods.system.progress import Progress

_RESPONSES_AT_ONCE = 512  # scored between two stored parts
_DONE = "scored.json"


@dataclass(frozen=True)
class Target:
    """A benchmark to run.

    Attributes:
        name: of its card.
        root: folder with the public files; None takes the hub.
        options: of the benchmark.
    """

    name: str
    root: Path | None = None
    options: Mapping[str, Any] | None = None


def run_model(
    model: str,
    targets: Sequence[Target],
    out: Path,
    settings: ScoringSettings,
    *,
    revision: str | None = None,
    max_length: int | None = None,
    options: ModelOptions | None = None,
    official: bool = False,
    training_data: Sequence[str] = (),
) -> str:
    """Score and grade a reward model on benchmarks; what an earlier call has finished is not done again.

    Args:
        model: a reward-model folder, or a hub id.
        out: folder for all files.
        settings: of the scorer; its `max_length` counts only where the model does not say how long it can read.
        revision: commit of a hub id.
        max_length: longest sequence in tokens; None is that of the model's experiment, or the model's own limit.
        options: what the folder of a model from elsewhere does not say.
        official: texts become tokens as in each benchmark's official script, whose `max_length` then counts.
        training_data: files of the pairs that the model was trained on; items that occur in them are counted.

    Returns:
        The tables as a text for the terminal.

    Raises:
        ConfigError: with all problems of names, options and benchmarks that cannot be run.
        UserError, DataError: the model, a benchmark or the training data cannot be read.
    """
    _check(targets, official)
    pairs, sources = read_training_data(training_data)
    options = options or ModelOptions()
    folder = model_folder(model, revision, code=options.trust_remote_code)
    settings = replace(settings, max_length=max_length or default_length(folder, settings.max_length)[0])
    scorer = cache(lambda: load_scorer(folder, settings, keep_loaded=True, options=options))
    key = _model_key(folder, settings, options)
    results = []
    for target in targets:
        prepared = _prepare(target, out / target.name)
        items = read_items(out / target.name / "items.parquet")
        rules = official_text(load_benchmark_card(target.name)) if official else None
        done = _score(scorer, items, out / target.name, key, rules)
        result = _grade(target.name, items, prepared, out / target.name, done)
        if training_data:
            result["contamination"] = count_contamination(target.name, items, pairs)
        results.append(result)
    about = {
        "name": model,
        "revision": revision,
        "folder": str(folder.resolve()),
        "settings": asdict(settings) | options.record(),
    }
    record = {"model": about, "training_data": sources, "benchmarks": results}
    write_json(out / "results.json", record)
    for result in results:
        write_json(out / result["benchmark"] / "every_eval_ever.json", every_eval_ever(about, result))
    tables = leaderboard_tables(record)
    for suffix, text in tables.items():
        write_text(out / f"table.{suffix}", text)
    return tables["txt"]


def official_text(card: BenchmarkCard) -> OfficialText:
    """How the official script of a benchmark makes tokens."""
    rules = {name: value for name, value in card.official.items() if name != "source"}
    return OfficialText(**rules)


def _check(targets: Sequence[Target], official: bool) -> None:
    problems = []
    for target in targets:
        try:
            card = load_benchmark_card(target.name)
        except UserError as error:
            problems.append(str(error))
            continue
        if card.module == "prepared_splits":
            problems.append(
                f"benchmark '{target.name}' is made of an experiment's own pairs. Use `rm-methods score --data FILE`."
            )
        elif target.root is not None and not target.root.is_dir():
            problems.append(f"--root {target.name}={target.root}: no such folder.")
        if official and not card.official:
            having = [name for name in list_benchmark_cards() if load_benchmark_card(name).official]
            problems.append(
                f"--protocol official: benchmark '{target.name}' has no official script for reward models. Those that "
                f"have one: {', '.join(having)}."
            )
    names = [target.name for target in targets]
    if not names:
        problems.append("no benchmark is named. `rm-methods list benchmarks` shows them.")
    problems += [f"benchmark '{name}' is named twice." for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems:
        raise ConfigError(problems, "the command")


def _model_key(folder: Path, settings: ScoringSettings, options: ModelOptions) -> str:
    """Hash of what the scores depend on: files by name, size and time of change, and the settings.

    The files are the model's, those of the base of adapters, and those of the reference of a policy.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder.{nearest_path(folder, folders_only=True)}")
    files = []
    for part in folders_of_weights(folder, options):
        for file in sorted(part.rglob("*")):
            if file.is_file():
                state = file.stat()
                files.append([str(file.relative_to(part)), state.st_size, state.st_mtime_ns])
    return content_hash([files, asdict(settings), options.record(), options.template()])


def _prepare(target: Target, folder: Path) -> dict[str, Any]:
    """The report of the items, prepared anew; equal items keep their scores."""
    config = {"root": target.root, "options": dict(target.options or {})}
    return prepare_items(target.name, config, None, folder / "items.parquet", folder / "items.json")


def _score(
    scorer: Callable[[], Scorer],
    items: Sequence[BenchmarkItem],
    folder: Path,
    key: str,
    official: OfficialText | None,
) -> dict[str, Any]:
    """Write the score table, from the parts that an earlier call stored and the others.

    Returns:
        "seconds" of scoring, over all calls, and "computation", how it was done.
    """
    key = content_hash([key, file_hash(folder / "items.parquet"), official and asdict(official)])
    done_file = folder / _DONE
    table = folder / "scores.parquet"
    if done_file.exists():
        done = read_json(done_file)
        if done["key"] == key and table.exists() and done["scores"] == file_hash(table):
            return done
    parts = folder / "parts" / key
    progress = Progress(folder.name, sum(len(item.responses) for item in items), unit="responses")
    responses: list[ScoredResponse] = []
    preferences: dict[str, Preferences] = {}
    seconds = 0.0
    chunks = _chunks(items)
    for number, chunk in enumerate(chunks):
        part = parts / f"{number:05}.parquet"
        count = sum(len(item.responses) for item in chunk)
        if part.exists():
            preferences |= read_preferences(part) or {}
            rows = read_scores(part).to_dict("records")
            responses += [ScoredResponse(**{str(column): value for column, value in row.items()}) for row in rows]
            seconds += read_json(part.with_suffix(".json"))["seconds"]
            progress.done_before += count
        else:
            loaded = scorer()
            loaded.follow(official)
            started = time.monotonic()
            scored = loaded.compute(chunk, f"{folder.name}, part {number + 1} of {len(chunks)}")
            elapsed = time.monotonic() - started
            write_json(part.with_suffix(".json"), {"seconds": elapsed})
            write_scores(scored.responses, part, scored.preferences)
            preferences |= scored.preferences
            responses += scored.responses
            seconds += elapsed
        progress.advance(count)
    write_scores(responses, table, preferences)
    loaded = scorer()
    loaded.follow(official)
    done = {"key": key, "scores": file_hash(table), "seconds": seconds, "computation": loaded.computation()}
    write_json(done_file, done)
    shutil.rmtree(folder / "parts", ignore_errors=True)
    return done


def _chunks(items: Sequence[BenchmarkItem]) -> list[list[BenchmarkItem]]:
    chunks: list[list[BenchmarkItem]] = [[]]
    responses = 0
    for item in items:
        if responses >= _RESPONSES_AT_ONCE:
            chunks.append([])
            responses = 0
        chunks[-1].append(item)
        responses += len(item.responses)
    return chunks


def _grade(
    name: str, items: Sequence[BenchmarkItem], prepared: Mapping[str, Any], folder: Path, done: Mapping[str, Any]
) -> dict[str, Any]:
    """Metrics of the model and of the content-blind rules on one benchmark."""
    card = load_benchmark_card(name)
    scores, n_truncated = align_scores(items, folder / "scores.parquet")
    metrics = benchmark_module(card).metrics(items)
    preferences = align_preferences(items, folder / "scores.parquet")
    rows = {"model": credit_estimates(credit_table(card, items, scores, preferences))}
    for rule in CONTENT_BLIND:
        rows[rule] = credit_estimates(credit_table(card, items, _blind_scores(rule, items)))
    return {
        "benchmark": name,
        "title": card.title,
        "main": list(card.columns),
        "chance": card.chance,
        "limits": {metric.name: list(metric.limits) for metric in metrics},
        "metrics": {metric.name: {rule: row.get(metric.name) for rule, row in rows.items()} for metric in metrics},
        "items": len(items),
        "responses": sum(len(item.responses) for item in items),
        "tie_rate": tie_rate(card, items, scores, preferences),
        "tie_rule": prepared["tie_rule"],
        "truncated": n_truncated,
        "not_scored": sum(bool((item_scores != item_scores).any()) for item_scores in scores),
        "excluded": prepared["excluded"],
        "sources": prepared["sources"],
        "url": card.url,
        "license": card.license,
        "notes": [*prepared["notes"], *(metric.note for metric in metrics if metric.note)],
        "seconds": round(done["seconds"], 2),
        "computation": done["computation"],
        "official_source": card.official.get("source"),
    }


def _blind_scores(rule: str, items: Sequence[BenchmarkItem]):
    settings = load_method_card(rule).defaults()
    scorer = ContentBlindScorer({"method": rule, "settings": settings, "seed": 0})
    return scores_by_item(items, [response.score for response in scorer.score(items)])
