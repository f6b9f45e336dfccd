"""Writes a model card: front matter for the hub, and Markdown for readers.

The last line holds a hash of the rest, so a card that was edited by hand is recognized and kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_methods.files import content_hash, write_text
from rm_methods.model_card.facts import BaseModel, CardFacts, TrainingPairs, gather_facts, without_folders
from rm_methods.model_card.measured import Measured, MeasuredMetric
from rm_methods.reporting.sentences import interval_text, points
from rm_methods.reporting.tables import Section, markdown_text
from rm_methods.reward_models.model_folder import MODEL_CARD
from rm_methods.run_card import RunSummary, TrainedPairs, trained_pairs

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

PROJECT = "rm-methods"
PLACE = "FOLDER"  # what a card calls the folder that a reader downloads it to
_MARK = "<!-- written by rm-methods, hash "
_NOT_MEASURED = (
    f"Not measured yet. The workflow measures the run; `{PROJECT} model-card` then adds the metrics with intervals."
)
_UNKNOWN_LICENSE = "unknown: look at the base model's page"
_TRANSFORMERS = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "{place}"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

conversations = [
    [{{"role": "user", "content": "Paint it red."}}, {{"role": "assistant", "content": "It is now red."}}],
    [{{"role": "user", "content": "Paint it red."}}, {{"role": "assistant", "content": "No."}}],
]
texts = [tokenizer.apply_chat_template(conversation, tokenize=False) for conversation in conversations]
batch = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
with torch.inference_mode():
    rewards = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, 0]"""
_KINDS = {
    "trained": "A reward model: it gives a response to a prompt one number, higher for a better response.",
    "joint": "A joint model: it reads two responses to a prompt together and says which one is better. A single "
    "response has no score.",
    "combined": "A reward model that combines the runs of one variant: it gives a response to a prompt one number, "
    "higher for a better response.",
    "content_blind": "A content-blind baseline: it scores a response without a model and without reading what it says. "
    "A reward model should beat it; it is not meant for use.",
    "computed": "A scorer of the controlled world that knows how the data was made. It is not meant for use.",
    "external": "A model from elsewhere, scored as a row of an experiment. This folder holds a reference to it, and no "
    "weights.",
}
_COSTS = {
    "pairs_seen": "Pairs seen",
    "tokens": "Tokens",
    "optimizer_steps": "Optimizer steps",
    "wall_seconds": "Wall time, seconds",
    "device": "Device",
    "world_size": "Processes",
}
_SETTINGS = (
    "epochs",
    "pairs_per_step",
    "learning_rate",
    "schedule",
    "warmup_fraction",
    "weight_decay",
    "adam_betas",
    "max_gradient_norm",
    "precision",
    "max_length",
    "overlong_pairs",
    "lora",
    "layout",
)


def write_card(folder: str | Path, summary: RunSummary) -> None:
    """Write the card of a new model folder, with what its training knows. `SHA256SUMS` does not count it.

    Args:
        folder: the complete model folder of the run.
    """
    folder = Path(folder)
    write_text(folder / MODEL_CARD, card_text(gather_facts(folder, summary)))


def card_text(
    facts: CardFacts, measured: Measured | None = None, *, license: str | None = None, repository: str | None = None
) -> str:
    """The card as one text.

    Args:
        measured: of the evaluation; None before it.
        license: id of the hub, such as "apache-2.0"; None: that of the base model, if it is known.
        repository: name on the hub that the card is for.
    """
    from huggingface_hub import ModelCard

    if facts.base and license == facts.base.license.get("license"):
        license = None
    front = _front_matter(facts, measured, license, repository)
    parts = [
        f"# {facts.title}" + (f" on {facts.base.hub_id}" if facts.base and facts.base.hub_id else ""),
        _intention(facts),
        _method(facts),
        _base(facts),
        _data(facts.data, trained_pairs(facts.summary)),
        _training(facts),
        _results(facts, measured),
        _loading(facts, repository),
        _limits(facts, measured),
        _license(facts, front.license if license else None),
        _origin(facts),
    ]
    text = str(ModelCard(f"---\n{front.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"))
    return f"{text.rstrip()}\n\n{_MARK}{content_hash(text.rstrip())} -->\n"


def is_edited(text: str) -> bool:
    """Whether a card is not, or no longer, a text of `card_text`."""
    rest, mark, end = text.rpartition(_MARK)
    return not mark or end.strip() != f"{content_hash(rest.rstrip())} -->"


def _front_matter(
    facts: CardFacts, measured: Measured | None, license: str | None, repository: str | None
) -> ModelCardData:
    from huggingface_hub import EvalResult, ModelCardData

    summary = facts.summary
    base = facts.base
    name = repository.rpartition("/")[2] if repository else f"{summary['variant']}-seed{summary['seed']}"
    results = [
        EvalResult(
            task_type="text-classification",
            task_name="Preference ranking",
            dataset_type=metric.hub_id or metric.benchmark,
            dataset_name=metric.title,
            dataset_revision=metric.revision,
            metric_type=metric.metric,
            metric_name=metric.heading,
            metric_value=round(metric.own.mean, 4),
        )
        for metric in (measured.metrics if measured else ())
        if not math.isnan(metric.own.mean)
    ]
    entries: dict[str, Any] = {"license": license} if license else dict(base.license if base else {})
    return ModelCardData(
        library_name="transformers" if facts.has_plain_weights else PROJECT,
        pipeline_tag="text-classification",
        tags=["reward-model", PROJECT, summary["method"]],
        base_model=base.hub_id if base else None,
        datasets=[facts.data.hub_id] if facts.data.hub_id else None,
        model_name=name if results else None,
        eval_results=results or None,
        **entries,
    )


def _intention(facts: CardFacts) -> str:
    summary = facts.summary
    return (
        f"{_KINDS.get(summary.get('kind', 'trained'), _KINDS['trained'])}\n\n"
        f"It is variant `{summary['variant']}` with seed {summary['seed']} of the experiment "
        f"`{summary.get('experiment', 'not recorded')}`, which compares methods of training reward models under one "
        f"budget (made with {PROJECT})."
    )


def _method(facts: CardFacts) -> str:
    lines = ["## Method", "", f"**{facts.title}** (`{facts.summary['method']}`)."]
    if facts.method:
        lines.append(f"Source: {facts.method.citation.strip().rstrip('.')}.")
    if facts.formula:
        lines += ["", "```text", facts.formula.replace("```", "'''"), "```"]
    if settings := facts.summary.get("settings"):
        lines += ["", "Settings of the method:", "", _settings_list(settings)]
    return "\n".join(lines)


def _base(facts: CardFacts) -> str:
    base = facts.base
    if base is None:
        return ""
    lines = ["## Base model", "", f"* Name: {_hub_link(base.hub_id) if base.hub_id else base.name}"]
    if base.has_weights:
        if base.hub_id:
            lines.append(f"* Revision: {f'`{base.revision}`' if base.revision else 'not pinned'}")
        lines.append(f"* License: {_base_license(base)}")
    if tokenizer := facts.summary.get("backbone", {}).get("prepared", {}).get("tokenizer_hash"):
        lines.append(f"* Hash of the tokenizer: `{tokenizer}`")
    return "\n".join(lines)


def _base_license(base: BaseModel) -> str:
    name = base.license.get("license_name") or base.license.get("license")
    link = base.license.get("license_link")
    return f"{name}{f' ({link})' if link else ''}" if name else _UNKNOWN_LICENSE


def _data(data: TrainingPairs, used: TrainedPairs | None) -> str:
    lines = ["## Training data", "", f"* Data set: {data.name}{f', {_hub_link(data.hub_id)}' if data.hub_id else ''}"]
    if data.hub_id:
        lines.append(f"* Revision: {f'`{data.revision}`' if data.revision else 'not pinned'}")
    if data.url and "://" in data.url:
        lines.append(f"* Page: {data.url}")
    lines.append(f"* License: {data.license or 'not recorded'}")
    lines.append(f"* Training pairs: {'not recorded' if data.pairs is None else f'{data.pairs:,}'}")
    if used is not None:
        lines.append(f"* Pairs trained on: {used}")
    if data.splits:
        lines.append("* Splits: " + ", ".join(f"{name} {count:,}" for name, count in data.splits.items()))
    lines.append(f"* Hash of the prepared pairs: `{data.hash}`")
    noise = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in data.noise.items())
    lines.append(f"* Label noise that was added: {noise or 'none'}")
    if data.citation:
        lines += [
            "",
            "```bibtex" if data.citation.lstrip().startswith("@") else "```text",
            data.citation.strip(),
            "```",
        ]
    return "\n".join(lines)


def _training(facts: CardFacts) -> str:
    summary = facts.summary
    kind = summary.get("kind")
    if kind in ("content_blind", "computed", "external"):
        return ""
    lines = ["## Training", ""]
    if kind == "combined":
        lines += ["This model was not trained: it combines trained runs.", "", _runs_table(facts.required)]
        return "\n".join(lines)
    cost: Mapping[str, Any] = summary.get("cost", {})
    rows = [(heading, _cost_text(cost[key])) for key, heading in _COSTS.items() if key in cost]
    lines.append(_table(("Budget", ""), [*rows, ("Seed", str(summary["seed"]))]))
    training = summary.get("training", {})
    max_length = training.get("max_length") or summary.get("backbone", {}).get("max_length")
    settings = {name: training[name] for name in _SETTINGS if name in training} | {"max_length": max_length}
    lines += ["", "Settings of the training:", "", _settings_list(settings)]
    if cut := {name: count for name, count in summary.get("truncation", {}).items() if count}:
        lines += [
            "",
            "Pairs that did not fit: " + ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in cut.items()) + ".",
        ]
    if facts.required:
        lines += ["", "Runs that were needed first (teachers, starting points):", "", _runs_table(facts.required)]
    return "\n".join(lines)


def _runs_table(runs: Sequence[RunSummary]) -> str:
    if not runs:
        return "The runs that it needed are not at hand."
    rows = [
        (
            run["variant"],
            str(run["seed"]),
            f"{run.get('cost', {}).get('pairs_seen', 0):,}",
            run["run_key"],
            run.get("weights_hash", ""),
        )
        for run in runs
    ]
    return _table(("Variant", "Seed", "Pairs seen", "Run key", "Hash of the weights"), rows)


def _results(facts: CardFacts, measured: Measured | None) -> str:
    lines = ["## Results", ""]
    metrics = facts.summary.get("metrics", {})
    if "validation_accuracy" in metrics:
        lines += [
            f"Accuracy on {metrics.get('validation_pairs', 0):,} validation pairs, without an interval: "
            f"{_percent(metrics['validation_accuracy'])}%.",
            "",
        ]
    if measured is None or not measured.metrics:
        return "\n".join([*lines, _NOT_MEASURED])
    compared = any(metric.method for metric in measured.metrics)
    headings = ["Benchmark", "Metric", "This run", "Items"]
    if compared:
        headings += [
            "Method, all seeds",
            f"Difference from {measured.reference or 'a reference'}",
            "Best content-blind",
        ]
    rows = [_metric_row(metric, compared) for metric in measured.metrics]
    lines += [
        _reading(facts, compared),
        "",
        _table(headings, rows, words=2),
    ]
    return "\n".join(lines)


def _reading(facts: CardFacts, compared: bool) -> str:
    """How to read the table of results."""
    sentences = ["Percent, with 95% intervals."]
    if facts.summary.get("kind") == "combined":
        sentences.append("The intervals count members and items.")
    else:
        sentences.append("The interval of one run counts items only: another seed would change the value by more.")
        if compared:
            sentences.append("That of the method counts seeds, too.")
    if compared:
        sentences.append("`*` marks a difference that is significant after correction.")
    return " ".join(sentences)


def _metric_row(metric: MeasuredMetric, compared: bool) -> list[str]:
    row = [metric.title, metric.heading, interval_text(metric.own, _percent), str(metric.own.n_items)]
    if not compared:
        return row
    if metric.method is None:
        return [*row, "", "", ""]
    estimate = metric.method.estimate
    seeds = f" ({estimate.n_seeds} seeds)" if estimate.n_seeds > 1 else ""
    difference = metric.method.difference
    stars = "*" if metric.method.verdict == "significant" else ""
    return [
        *row,
        interval_text(estimate, _percent) + seeds,
        interval_text(difference.estimate, points) + stars if difference else "",
        f"{metric.content_blind[0]}: {_percent(metric.content_blind[1])}" if metric.content_blind else "not measured",
    ]


def _loading(facts: CardFacts, repository: str | None) -> str:
    lines = ["## Use", ""]
    if repository:
        lines += [f"    hf download {repository} --local-dir {PLACE}", ""]
    if facts.has_plain_weights:
        place = repository or PLACE
        lines += [
            "In transformers, without other code:",
            "",
            f"```python\n{_TRANSFORMERS.format(place=place)}\n```",
            "",
            f"With {PROJECT}, which also shortens long texts and reports the accuracy on your pairs:",
        ]
    else:
        lines.append(f"transformers cannot load this folder as one model. With {PROJECT}:")
    lines += ["", f"    {PROJECT} score --model {PLACE} --data pairs.jsonl --out scores.csv"]
    return "\n".join(lines)


def _limits(facts: CardFacts, measured: Measured | None) -> str:
    kind = facts.summary.get("kind")
    limits = []
    if kind in ("trained", "combined"):
        limits += [
            "The reward has no zero point and no unit. Compare only responses to the same prompt, and only rewards of "
            "this model.",
            "A policy that is optimized against the reward exploits its mistakes: the reward can rise while the "
            "quality falls.",
        ]
    if kind == "joint":
        limits.append("The model compares two responses; it cannot rank a single one, and the order may matter.")
    if kind in ("trained", "joint", "combined"):
        limits += [
            "It was trained to compare methods with equal budgets, not to be the best model for any use. It repeats "
            "the preferences and the biases of its training labels.",
            "Part of an accuracy may come from length or style alone. Read it beside a content-blind baseline: "
            + _content_blind(measured),
        ]
    if facts.base and not facts.base.has_weights:
        limits.append("Its tokenizer may hold words of the training texts, because it was trained on them.")
    limits += list(measured.notes) if measured else ["Overlap of the training pairs with benchmarks: not counted here."]
    return "\n".join(["## Limits", "", *(f"* {limit}" for limit in limits)])


def _content_blind(measured: Measured | None) -> str:
    best = [metric for metric in (measured.metrics if measured else ()) if metric.content_blind]
    return "the table above has the best one." if best else "none was measured beside this model."


def _license(facts: CardFacts, stated: str | None) -> str:
    lines = ["## License", ""]
    inherited = facts.base is not None and bool(facts.base.license)
    if stated:
        lines.append(f"The model is licensed under {stated}.")
    elif inherited and facts.base:
        lines.append(f"The license above is that of the base model ({_base_license(facts.base)}).")
    else:
        lines.append(f"No license is stated. `{PROJECT} push --license ID` states one.")
    if facts.base and facts.base.has_weights and not inherited:
        lines.append(f"License of the base model: {_UNKNOWN_LICENSE}.")
    if facts.data.is_non_commercial:
        lines.append(
            f"**The training data does not allow commercial use** ({facts.data.license}). This folder holds none of "
            "its texts. Whether its terms extend to a model trained on it is not settled: do not use the model "
            "commercially unless you have cleared that."
        )
    elif facts.data.license:
        lines.append(f"License of the training data: {facts.data.license}.")
    return "\n".join(lines)


def _origin(facts: CardFacts) -> str:
    summary = facts.summary
    provenance = summary.get("provenance", {})
    versions = {name: version for name, version in provenance.get("versions", {}).items() if version}
    entries = {
        "Run key": summary["run_key"],
        "Hash of the weights": summary.get("weights_hash"),
        "Commit": provenance.get("git_commit"),
        "Uncommitted changes": _yes_or_no(provenance.get("git_dirty")),
        "Hash of the code": provenance.get("code_hash"),
        "Python": provenance.get("python"),
    }
    rows = [(name, str(value)) for name, value in (entries | versions).items() if value is not None]
    return "## Provenance\n\n" + _table(("What", "Value"), rows)


def _settings_list(settings: Mapping[str, Any]) -> str:
    return "\n".join(f"* `{name}`: {_value_text(value)}" for name, value in without_folders(settings).items())


def _value_text(value: Any) -> str:
    return f"`{str(value).replace('`', chr(39))}`"


def _cost_text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def _yes_or_no(value: bool | None) -> str | None:
    if value is None:
        return None
    return "yes" if value else "no"


def _hub_link(hub_id: str) -> str:
    return f"[{hub_id}](https://huggingface.co/{hub_id})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    section = Section("", tuple(headings), tuple(tuple(row) for row in rows), left_aligned=words)
    return markdown_text([section], []).rstrip()
