"""Our numbers beside published ones: rules that read only lengths, and published results computed again.

Usage (a CPU, half a minute; name what is at hand, the rest of the table then says "data not at hand"):
    python performance/published_numbers.py --root hh_rlhf=FOLDER --root judge_bench=FOLDER --root llmbar=FOLDER \
        --root rewardbench=FOLDER --root rewardbench2=FOLDER --root alpaca_eval_pool=FOLDER \
        --subset-accuracies FILE --win-rates FILE

`--root` is as in `rm-methods benchmark`: a folder with the public files of a benchmark. `--subset-accuracies` is JSON,
{model: {subset of RewardBench: accuracy}}, from the files of allenai/reward-bench-results. `--win-rates` is JSON,
{model: {"published_win_rate": percent}}, from the leaderboard of AlpacaEval 2; it is compared with the files
`pairs_{train,validation,test}.jsonl.gz` below the root of alpaca_eval_pool.

Items come from the benchmark's reader, scores from the content-blind scorer, figures from the benchmark's grading.
Figures counted from the raw lines use neither: `raw_*` below read the files with the standard library only.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.benchmarks import rewardbench, rewardbench2
from rm_methods.benchmarks.cards import BenchmarkCard, benchmark_module, load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values, prepare_items
from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.benchmarks.rm_bench import levels
from rm_methods.methods.registry import load_method_card
from rm_methods.scoring.report import scores_by_item
from rm_methods.scoring.scorer import ContentBlindScorer

NOT_AT_HAND = "data not at hand"
REWARDBENCH_ISSUE = "allenai/reward-bench issue 267"
REWARDBENCH2_ISSUE = "allenai/reward-bench issue 268"
RAW = "raw lines, counted without the reader"


@dataclass(frozen=True)
class Reference:
    """A figure of a content-blind rule.

    Attributes:
        benchmark: with `options`, as in a configuration.
        rule: longest or shortest.
        figure: a metric of the benchmark, or a name for the mean of `credit` over the items of `subsets`.
        value: percent; None if it is counted from the raw lines.
        source: of the value.
        ties: what equal lengths earn in the value: "wrong", "left out" (the items are), or a rule in words.
        subsets: of the mean; empty for a metric of the benchmark.
        credit: that is averaged over the subsets; `TOP` is the share of right answers among the highest scores.
    """

    benchmark: str
    rule: str
    figure: str
    value: float | None
    source: str
    ties: str = "wrong"
    subsets: tuple[str, ...] = ()
    credit: str = "accuracy"
    options: Mapping[str, Any] = field(default_factory=dict)


def _rewardbench(figure: str, value: float, subsets: Sequence[str]) -> Reference:
    return Reference("rewardbench", "longest", figure, value, REWARDBENCH_ISSUE, "left out", tuple(subsets))


def _rewardbench2(rule: str, subset: str, value: float) -> Reference:
    subsets = tuple(rewardbench2.SUBSETS.values()) if subset == "all items" else (subset,)
    return Reference("rewardbench2", rule, subset, value, REWARDBENCH2_ISSUE, "not stated", subsets, TOP)


TOP = "right at the top"
CLAUDE = {"response_model": "claude"}
REFERENCES = (
    _rewardbench("all pairs", 42.6, tuple(rewardbench.WEIGHTS)),
    _rewardbench("pairs of chat", 80.6, rewardbench.SECTIONS["chat"]),
    _rewardbench("pairs of chat_hard", 29.3, rewardbench.SECTIONS["chat_hard"]),
    _rewardbench("pairs of safety", 41.9, rewardbench.SECTIONS["safety"]),
    _rewardbench("pairs of reasoning", 36.2, rewardbench.SECTIONS["reasoning"]),
    _rewardbench("alpacaeval-easy", 100.0, ["alpacaeval-easy"]),
    _rewardbench("alpacaeval-hard", 100.0, ["alpacaeval-hard"]),
    _rewardbench("alpacaeval-length", 64.2, ["alpacaeval-length"]),
    _rewardbench("llmbar-adver-neighbor", 11.9, ["llmbar-adver-neighbor"]),
    _rewardbench("math-prm", 7.8, ["math-prm"]),
    _rewardbench2("longest", "all items", 21.3),
    _rewardbench2("longest", "focus", 12.5),
    _rewardbench2("shortest", "focus", 52.7),
    _rewardbench2("longest", "math", 22.4),
    _rewardbench2("shortest", "math", 37.7),
    _rewardbench2("longest", "safety", 24.7),
    _rewardbench2("shortest", "safety", 31.1),
    _rewardbench2("longest", "factuality", 28.9),
    _rewardbench2("shortest", "factuality", 28.3),
    _rewardbench2("longest", "precise_if", 28.1),
    _rewardbench2("longest", "ties", 0.0),
    _rewardbench2("shortest", "ties", 27.0),
    Reference("llmbar", "longest", "neighbor", 11.9, f"{REWARDBENCH_ISSUE}, as llmbar-adver-neighbor", "left out"),
    Reference("hh_rlhf", "longest", "harmless-base", None, RAW),
    Reference("judge_bench", "longest", "overall", None, RAW, options=CLAUDE),
    Reference(
        "judge_bench",
        "longest",
        "overall_single_game",
        None,
        RAW,
        'decided as "B>A" (official single game)',
        options=CLAUDE,
    ),
    Reference("alpaca_eval_pool", "longest", "best_of_all", None, RAW, "lowest gold at the top"),
    Reference("alpaca_eval_pool", "shortest", "best_of_all", None, RAW, "lowest gold at the top"),
)

# Section means and their mean as on the leaderboard of RewardBench, percent.
SECTION_MEANS = {
    "Skywork-Reward-Llama-3.1-8B": (95.8, 87.3, 90.8, 96.2, 92.5),
    "Skywork-Reward-Llama-3.1-8B-v0.2": (94.7, 88.4, 92.7, 96.7, 93.1),
    "Skywork-Reward-Gemma-2-27B": (95.8, 91.4, 91.9, 96.1, 93.8),
}
# FsfairX-LLaMA3-RM-v0.1 on chat, M[chosen style][rejected style], percent (RM-Bench, arXiv:2410.16184).
RM_BENCH_MATRIX = ((83.61, 3.83, 2.19), (99.45, 66.12, 49.73), (100.0, 80.33, 66.67))


# Our figures


@dataclass(frozen=True)
class Figure:
    """A figure of ours.

    Attributes:
        value: percent.
        items: that it is a mean over.
        tied: of all items of the figure, those with equal scores in a comparison.
    """

    value: float
    items: int
    tied: int


def figure(card: BenchmarkCard, items: Sequence[BenchmarkItem], reference: Reference) -> Figure:
    """The rule's figure on items, with items of equal scores left out where the reference leaves them out."""
    settings = load_method_card(reference.rule).defaults()
    scorer = ContentBlindScorer({"method": reference.rule, "settings": settings, "seed": 0})
    scores = scores_by_item(items, [response.score for response in scorer.score(items)])
    names = reference.subsets or _subsets_of_metric(card, items, reference.figure)
    rows = [(item, values) for item, values in zip(items, scores, strict=True) if item.subset in names]
    tied = [_has_a_tie(card, item, values) for item, values in rows]
    if reference.ties == "left out":
        rows = [row for row, is_tied in zip(rows, tied, strict=True) if not is_tied]
    kept = [item for item, _ in rows]
    kept_scores = [values for _, values in rows]
    if reference.subsets:
        grade = benchmark_module(card).grade
        credits = [
            right_at_the_top(item, values) if reference.credit == TOP else grade(item.label, values)[reference.credit]
            for item, values in rows
        ]
        value = float(np.mean(credits))
    else:
        value = metric_values(credit_table(card, kept, kept_scores))[reference.figure]
    return Figure(100 * value, len(kept), sum(tied))


def right_at_the_top(item: BenchmarkItem, scores: np.ndarray) -> float:
    """Share of right answers among those with the highest score, for an item of RewardBench 2.

    On the Ties subset the issue counts a picked right answer; the official metric asks for more.
    """
    top = scores == scores.max()
    return float(top[: item.label["correct"]].sum() / top.sum())


def _subsets_of_metric(card: BenchmarkCard, items: Sequence[BenchmarkItem], name: str) -> tuple[str, ...]:
    (metric,) = [metric for metric in benchmark_module(card).metrics(items) if metric.name == name]
    return tuple(part for _, parts in metric.strata.values() for part in parts)


def _has_a_tie(card: BenchmarkCard, item: BenchmarkItem, scores: np.ndarray) -> bool:
    pairs = benchmark_module(card).comparisons(item.label, len(item.responses))
    return any(bool(scores[better] == scores[worse]) for better, worse in pairs)


def items_of(benchmark: str, root: Path, options: Mapping[str, Any]) -> list[BenchmarkItem]:
    """The items of a benchmark from the public files below `root`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "items.parquet"
        prepare_items(benchmark, {"root": root, "options": dict(options)}, None, out, Path(folder) / "report.json")
        return read_items(out)


# The same figures from the raw lines


def raw_lines(root: Path, pattern: str) -> Iterator[dict[str, Any]]:
    """The rows of the files below `root` that fit the pattern, in the order of their names."""
    for file in sorted(root.glob(pattern)):
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        for line in content.decode("utf-8").split("\n"):
            if line.strip():
                yield json.loads(line)


def raw_hh_rlhf(root: Path, reference: Reference) -> Figure:
    """Rows whose chosen transcript has the longer text after its last "Assistant:"."""
    right = 0
    tied = 0
    total = 0
    for row in raw_lines(root, "harmless-base/test.jsonl*"):
        chosen, rejected = (row[side].rpartition("\n\nAssistant:")[2].strip() for side in ("chosen", "rejected"))
        right += len(chosen) > len(rejected)
        tied += len(chosen) == len(rejected)
        total += 1
    return Figure(100 * right / total, total, tied)


def raw_judge_bench(root: Path, reference: Reference) -> Figure:
    """Rows whose longer answer is the better one; in the single game an equal length decides for B."""
    right = 0
    tied = 0
    total = 0
    for row in raw_lines(root, "*claude-3-5-sonnet*.jsonl*"):
        length_a = len(row["response_A"])
        length_b = len(row["response_B"])
        decision = "A>B" if length_a > length_b else "B>A"
        is_tied = length_a == length_b
        right += decision == row["label"] and (not is_tied or reference.figure.endswith("single_game"))
        tied += is_tied
        total += 1
    return Figure(100 * right / total, total, tied)


def raw_alpaca_eval_pool(root: Path, reference: Reference) -> Figure:
    """The mean preference less 1 of the longest or shortest candidate, the lowest one among equals.

    Rows whose candidates all have one preference are no items.
    """
    gold = []
    tied = 0
    pick = max if reference.rule == "longest" else min
    for row in raw_lines(root, "bon_pool_*.jsonl*"):
        if len({candidate["preference"] for candidate in row["candidates"]}) == 1:
            continue
        length = pick(len(candidate["output"]) for candidate in row["candidates"])
        top = [one["preference"] - 1 for one in row["candidates"] if len(one["output"]) == length]
        gold.append(min(top))
        tied += _any_tie_of_unequal_gold(row["candidates"])
    return Figure(100 * sum(gold) / len(gold), len(gold), tied)


def _any_tie_of_unequal_gold(candidates: Sequence[dict[str, Any]]) -> bool:
    gold_by_length = defaultdict(set)
    for candidate in candidates:
        gold_by_length[len(candidate["output"])].add(candidate["preference"])
    return any(len(values) > 1 for values in gold_by_length.values())


RAW_FIGURES: dict[str, Callable[[Path, Reference], Figure]] = {
    "hh_rlhf": raw_hh_rlhf,
    "judge_bench": raw_judge_bench,
    "alpaca_eval_pool": raw_alpaca_eval_pool,
}


# Published results, computed again


def section_means(accuracies: Mapping[str, float]) -> list[float]:
    """The four sections of RewardBench and their mean, percent, from the accuracies of the subsets in [0, 1]."""
    means = []
    for section in rewardbench.SECTIONS:
        strata = rewardbench.section_strata(section, set(rewardbench.WEIGHTS), 1.0)
        means.append(100 * sum(weight * accuracies[subset] for subset, (weight, _) in strata.items()))
    return [*means, sum(means) / len(means)]


def win_rates_text(root: Path, published: Mapping[str, Mapping[str, Any]]) -> str:
    """AlpacaEval 2 win rates, 100 x (mean preference - 1), against the published ones, in words."""
    preferences = defaultdict(list)
    for row in raw_lines(root, "pairs_*.jsonl*"):
        preferences[row["generator_2"]].append(row["preference"])
    differences = {
        model: abs(100 * (sum(values) / len(values) - 1) - published[model]["published_win_rate"])
        for model, values in preferences.items()
        if model in published
    }
    if not differences:
        return NOT_AT_HAND
    counts = [len(preferences[model]) for model in differences]
    largest = max(differences.values())
    text = f"{len(counts)} models, {min(counts)} to {max(counts)} judged answers: at most {largest:.0e} points apart"
    without = sorted(set(preferences) - set(differences))
    return text + (f"; no published figure for {', '.join(without)}" if without else "")


# The tables


def rule_rows(roots: Mapping[str, Path]) -> list[list[str]]:
    """A row for each reference of a content-blind rule."""
    rows = []
    prepared: dict[str, list[BenchmarkItem]] = {}
    for reference in REFERENCES:
        ours = NOT_AT_HAND
        value = "" if reference.value is None else f"{reference.value:.1f}"
        counts = ""
        if reference.benchmark in roots:
            root = roots[reference.benchmark]
            key = json.dumps([reference.benchmark, dict(reference.options)])
            if key not in prepared:
                prepared[key] = items_of(reference.benchmark, root, reference.options)
            result = figure(load_benchmark_card(reference.benchmark), prepared[key], reference)
            ours = f"{result.value:.2f}"
            counts = f"{result.items:,} ({result.tied:,})"
            if reference.value is None:
                raw = RAW_FIGURES[reference.benchmark](root, reference)
                value = f"{raw.value:.2f}"
                counts += "" if (raw.items, raw.tied) == (result.items, result.tied) else f", raw: {raw}"
        name = f"{reference.benchmark} {reference.options.get('response_model', '')}".strip()
        rows.append([name, reference.rule, reference.figure, ours, value, counts, reference.ties, reference.source])
    return rows


def published_rows(accuracies: Mapping[str, Any] | None, win_rates: Mapping[str, Any] | None, root: Path | None):
    """A row for each published result that is computed again."""
    rows = []
    for model, published in SECTION_MEANS.items():
        ours = NOT_AT_HAND
        if accuracies is not None:
            ours = " / ".join(f"{value:.2f}" for value in section_means(accuracies[model]))
        rows.append([f"rewardbench, {model}", ours, " / ".join(map(str, published)), "RewardBench leaderboard"])
    found = levels(np.array(RM_BENCH_MATRIX))
    ours = " / ".join(f"{found[level]:.2f}" for level in ("hard", "normal", "easy"))
    cells = "means of the printed cells: 18.58 / 72.13 / 93.26"
    rows.append(["rm_bench, FsfairX-LLaMA3-RM-v0.1, chat", ours, cells, "arXiv:2410.16184"])
    ours = NOT_AT_HAND
    if win_rates is not None and root is not None:
        ours = win_rates_text(root, win_rates)
    rows.append(["AlpacaEval 2 win rates", ours, "leaderboard CSV", "tatsu-lab/alpaca_eval @ cd543a1"])
    return rows


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", action="append", default=[], metavar="BENCHMARK=FOLDER")
    parser.add_argument("--subset-accuracies", type=Path)
    parser.add_argument("--win-rates", type=Path)
    given = parser.parse_args(arguments)
    roots = {}
    for entry in given.root:
        name, separator, folder = entry.partition("=")
        if not separator or name not in {reference.benchmark for reference in REFERENCES}:
            parser.error(f"--root {entry}: expected BENCHMARK=FOLDER with a benchmark of the table.")
        roots[name] = Path(folder)
    header = ["benchmark", "rule", "figure", "ours, %", "reference, %", "items (tied)", "equal lengths", "source"]
    print(markdown(header, rule_rows(roots)))
    files = [json.loads(path.read_text()) if path else None for path in (given.subset_accuracies, given.win_rates)]
    rows = published_rows(files[0], files[1], roots.get("alpaca_eval_pool"))
    print()
    print(markdown(["result", "ours", "published", "source"], rows))


if __name__ == "__main__":
    main()
