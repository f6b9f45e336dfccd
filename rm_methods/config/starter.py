"""A first configuration for a user's own pairs: read the file, measure it, and write settings that run.

Every number is chosen from the pairs or from what a CPU can do in a short time.  The pairs are split and the
configuration is resolved before it is written, so that `rm-methods check` and `rm-methods prepare` do not refuse it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError

from rm_methods.config.resolve import resolve, runs
from rm_methods.config.starter_backbone import BUDGETS, Backbone, Budget, Lengths, backbone_to_write, measured_lengths
from rm_methods.config.starter_fit import Fit, fit_of
from rm_methods.errors import ConfigError, DataError, UserError
from rm_methods.files import check_outputs, write_text
from rm_methods.methods.registry import load_method_card
from rm_methods.preferences.cards import list_dataset_cards
from rm_methods.preferences.mixture import by_source, split_sources
from rm_methods.preferences.pair import PreferencePair
from rm_methods.preferences.pairing import ALL
from rm_methods.preferences.prepare import describe, prepared_pairs, read_pairs_of
from rm_methods.preferences.readers.judged_rows import RATINGS
from rm_methods.preferences.splits import drop_duplicates, drop_leaks
from rm_methods.yaml_files import parse_yaml

LEAST_PROMPTS = 20  # fewer leave a test split of one or two prompts
_MOST_TEST_PROMPTS = 1000
_MOST_VALIDATION_PROMPTS = 500
_LEAST_PAIRS = 100  # of a training, however long their texts are
_STEPS = 30  # of one epoch at least: with fewer, the warm-up and the schedule have nothing to shape
_SPLIT_SEED = 0  # the default of data.seed
_SKEWED = 0.1  # a share of longer chosen responses this far from one half is worth a method against length


@dataclass(frozen=True)
class Size:
    """The training that the configuration describes.

    Attributes:
        max_length, epochs: settings of that name.
        affordable: pairs of all epochs that the budget allows.
        pairs: training pairs that are read: all, or `max_pairs`.
        fit: of these pairs.
    """

    max_length: int
    epochs: int
    affordable: int
    pairs: int
    fit: Fit


def write_starter(
    data: Sequence[Path],
    out: Path | None,
    *,
    test: Path | None = None,
    backbone: str | None = None,
    options: Mapping[str, Any] | None = None,
    force: bool = False,
) -> str:
    """Write a configuration for files or folders of pairs.

    Args:
        data: files or folders of pairs in a preference format; several make a mixture.
        test: file of test pairs.
        out: file to write, which also names the experiment; None: the names of `data`, in the working directory.
        backbone: `tiny`, `package:<name>`, a folder or a hub id; None: the best that needs no network.
        options: of the reader of all sources.
        force: overwrite `out`.

    Returns:
        what was read and written, for a terminal.

    Raises:
        ConfigError, DataError: the pairs cannot be read, or an option is wrong.
        UserError: `out` exists, the backbone cannot be used, or the pairs are too few.
    """
    # From the file that is written: two configurations with one name would overwrite each other's results.
    name = "_and_".join(map(_experiment_name, data))[:100] if out is None else _experiment_name(out)
    out = Path(f"{name}.yaml") if out is None else out
    inputs = {"--data": list(data)} | ({} if test is None else {"--test": [test]})
    check_outputs({"--out": [out]}, inputs)
    if out.exists() and not force:
        raise UserError(f"--out {out}: the file exists. Name another file, or overwrite it with --force.")
    section = _section(data, test, options or {})
    pairs, _, _ = read_pairs_of(_resolved_data(section))
    section |= _fractions(section, pairs)
    pairs, report = prepared_pairs(_resolved_data(section), ["test"])
    model = backbone_to_write(backbone)
    lengths = measured_lengths(pairs, model)
    size = _size([pair for pair in pairs if pair.split == "train"], model, lengths)
    text = _text(name, section, report, model, lengths, size)
    config = _checked(text, out)
    write_text(out, text)
    return _summary(report, config, model, lengths, size, out)


def _experiment_name(file: Path) -> str:
    """A name that `experiment` allows, from a file's."""
    name = file.resolve().name
    stem = re.sub(r"(\.(jsonl|json|csv|parquet|yaml|yml))?(\.gz)?\Z", "", name, flags=re.IGNORECASE)
    allowed = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-")
    return allowed[:60] or "own_data"


def _as_path(data: Path) -> str:
    """The path as `data.dataset`; one that is also the name of a card gets a folder before it."""
    return f"./{data}" if str(data) in list_dataset_cards() else str(data)


def _section(data: Sequence[Path], test: Path | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The section `data`, as short as it can be written."""
    sources: list[dict[str, Any]] = [{"dataset": _as_path(path)} for path in data]
    if options:
        sources = [source | {"options": dict(options)} for source in sources]
    if len(sources) == 1:
        section = sources[0]
    else:
        cards = [path.resolve().name.split(".")[0] for path in data]
        names = [_experiment_name(path) for path in data]
        for source, path, card, name in zip(sources, data, cards, names, strict=True):
            if names.count(name) > 1:
                # Two files of one name are told apart by their folders.
                source["name"] = f"{_experiment_name(path.resolve().parent)}_{name}"[-50:].lstrip("._-")
            elif cards.count(card) > 1:
                source["name"] = name[:50]
        section = {"sources": sources}
    return section if test is None else section | {"test": str(test)}


def _resolved_data(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section `data` with all defaults, and without the splits that it does not ask for."""
    data = {"validation_fraction": 0.0, **section}
    return resolve({"experiment": "x", "data": data, "methods": {"bradley_terry": {}}}, "the pairs")["data"]


def _named(section: Mapping[str, Any]) -> str:
    """The files of the section `data`, for messages."""
    return ", ".join(source["dataset"] for source in section.get("sources", [section]))


def _fractions(section: Mapping[str, Any], pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """The fractions that give every split at least one prompt.

    Raises:
        UserError: the pairs have too few prompts.
    """
    prompts = len({pair.group for pair in pairs if pair.split == "train"})
    wanted = {}
    # Of a mixture, every source without the split gives a share of its prompts.
    if without := _prompts_without("validation", pairs):
        wanted["validation_fraction"] = min(0.1, _MOST_VALIDATION_PROMPTS / without)
    if "test" not in section and (without := _prompts_without("test", pairs)):
        wanted["test_fraction"] = min(0.2, _MOST_TEST_PROMPTS / without)
    if prompts < LEAST_PROMPTS:
        in_train = sum(pair.split == "train" for pair in pairs)
        raise DataError(
            f"{_named(section)}: {in_train} training pairs with {prompts} different prompts were read; at least "
            f"{LEAST_PROMPTS} prompts are needed, because a prompt is never in two splits. Add pairs."
        )
    # Written although it is 0: the default is another one.
    fractions = {"validation_fraction": 0.0, "test_fraction": 0.0} | wanted
    unique, _ = drop_duplicates(pairs)
    # The splits are drawn by a hash, so a small share of few prompts may be empty.
    for factor in (1.0, 1.5, 2.0, 3.0):
        fractions |= {key: round(share * factor, 4) for key, share in wanted.items()}
        split, _ = drop_leaks(
            split_sources(unique, fractions["validation_fraction"], fractions["test_fraction"], _SPLIT_SEED)
        )
        if {"train", "validation", "test"} <= {pair.split for pair in split}:
            break
    if "test_fraction" not in wanted:
        del fractions["test_fraction"]
    return fractions


def _prompts_without(split: str, pairs: Sequence[PreferencePair]) -> int:
    """Training prompts of the sources that lack a split."""
    lacking = [members for members in by_source(pairs).values() if all(pair.split != split for pair in members)]
    return len({pair.group for members in lacking for pair in members if pair.split == "train"})


def _size(train: Sequence[PreferencePair], model: Backbone, lengths: Lengths) -> Size:
    """The training that the budget of the backbone allows.

    Args:
        train: training pairs in their order.
    """
    budget = BUDGETS[model.budget]
    limit = min(budget.longest, lengths.limit or budget.longest)
    # A tenth more, because a tokenizer trained on other splits cuts the same text into more tokens.
    max_length = min(limit, 64 * math.ceil(1.1 * lengths.longest / 64))
    pair_tokens = min(lengths.pair, 2 * max_length)
    affordable = len(train) * budget.epochs
    if budget.tokens is not None:
        affordable = max(_LEAST_PAIRS, int(budget.tokens / pair_tokens))
    pairs = len(train) if len(train) <= affordable else affordable // 10 * 10
    epochs = max(1, min(budget.epochs, affordable // pairs))
    # `max_pairs` takes the first ones. A tokenizer of `tiny` is trained on the training pairs that are left.
    fit = fit_of(train[:pairs], lengths.tokenizer, max_length, is_estimate=model.budget == "tiny")
    return Size(max_length, epochs, affordable, pairs, fit)


def _text(
    name: str,
    section: Mapping[str, Any],
    report: Mapping[str, Any],
    model: Backbone,
    lengths: Lengths,
    size: Size,
) -> str:
    """The configuration, with the reasons as comments."""
    budget = BUDGETS[model.budget]
    splits = report["splits"]
    used = size.fit.used
    pairs_per_step = next((count for count in (64, 32, 16, 8, 4, 2) if used * size.epochs >= _STEPS * count), 1)
    steps = -(-used // pairs_per_step) * size.epochs
    longer_share = splits["train"]["share_chosen_longer"]
    lines = [
        f"# Written by `rm-methods init`: {report['read']['pairs']:,} pairs were read. Change what you like;",
        "# docs/own-data.md and config/README.md say how, and `rm-methods check --config FILE` finds mistakes.",
        f"experiment: {_scalar(name)}",
        "seeds: [0, 1, 2]  # one training for each method and seed; more seeds give narrower intervals",
        "data:",
        *_source_lines(section),
    ]
    if "test" in section:
        lines.append(f"  test: {_scalar(section['test'])}  # its prompts are removed from the training pairs")
    if "sources" not in section:
        lines += _option_lines(section.get("options", {}), report["read"])
    lines.append(f"  validation_fraction: {section['validation_fraction']}")
    if "test_fraction" in section:
        lines.append(f"  test_fraction: {section['test_fraction']}  # of the prompts; no prompt is in two splits")
    lines += _limit_lines(splits, size.pairs, size.affordable, budget)
    lines += ["backbone:"]
    lines += [f"  # {remark}" for remark in model.remarks]
    lines.append(f"  source: {_scalar(model.source)}")
    if model.gguf_file:
        lines.append(f"  gguf_file: {_scalar(model.gguf_file)}")
    lines += [
        f"  # Tokens of a prompt with a response: median {lengths.median:,}, 95% up to {lengths.common:,}, longest "
        f"{lengths.longest:,}",
        f"  # ({lengths.basis}). Prompts that do not fit are cut at their start, and counted.",
        *(f"  # {remark}" for remark in size.fit.remarks(size.max_length)),
        f"  max_length: {size.max_length}",
        "training:",
        *_overlong_lines(size),
        f"  epochs: {size.epochs}",
        f"  pairs_per_step: {pairs_per_step}  # {'about ' if size.fit.is_estimate else ''}{steps:,} optimizer steps",
        f"  learning_rate: {budget.learning_rate}  # {budget.why}",
        f"  precision: {budget.precision}",
        "methods:",
        "  bradley_terry: {}  # the reference",
        "  rrm: {}  # adds responses to other prompts, so that a response must fit its prompt",
        *_second_rival(longer_share),
        "  # Rules that do not read the text. A method that is not above them has learned nothing else.",
        "  longest: {}",
        "  fitted_length: {}",
        "  random: {}",
        "benchmarks:",
        "  heldout: {}  # the test pairs; `rm-methods list benchmarks` shows public benchmarks to add",
        "resources:",
        "  threads: 1  # of one job, so that `snakemake --cores 2` runs two at once",
        f"  memory_mb: {budget.memory_mb}",
    ]
    return "\n".join(lines) + "\n"


def _overlong_lines(size: Size) -> list[str]:
    """`overlong_pairs` where it is not the default."""
    if size.fit.policy == "drop":
        return []
    return [
        "  # The default, drop, would leave out the pairs whose response does not fit. A larger max_length keeps more",
        "  # of the responses, and takes more time.",
        f"  overlong_pairs: {size.fit.policy}",
    ]


def _source_lines(section: Mapping[str, Any]) -> list[str]:
    """The name of a single data set, or the sources of a mixture."""
    if "sources" not in section:
        return [f"  dataset: {_scalar(section['dataset'])}"]
    lines = [
        "  # All pairs are used. With `weight: 2` in one source and `weight: 1` in the other, twice as many training",
        "  # pairs are drawn from the first; no pair is drawn twice, so the source that runs out first sets the total.",
        "  sources:",
    ]
    for source in section["sources"]:
        first, *others = _settings_of_source(source)
        lines += [f"    - {first}", *(f"      {line}" for line in others)]
    return lines


def _settings_of_source(source: Mapping[str, Any]) -> list[str]:
    lines = [f"dataset: {_scalar(source['dataset'])}"]
    if "name" in source:
        lines.append(f"name: {_scalar(source['name'])}")
    if source.get("options"):
        lines.append("options:")
        lines += [f"  {key}: {_scalar(value)}" for key, value in source["options"].items()]
    return lines


def _option_lines(given: Mapping[str, Any], read: Mapping[str, Any]) -> list[str]:
    """The reader's options: those given, and for rows that are not pairs how they become pairs."""
    values = dict(given)
    remarks: dict[str, str] = {}
    counts = read["pairing"]
    if counts is not None:
        forms = set(read["forms"].values())
        if len(forms) == 1:
            values.setdefault("form", forms.pop())
            remarks["form"] = "the columns tell; docs/datasets.md has the other forms"
        if forms != {RATINGS} and values.get("form") != RATINGS:
            values.setdefault("pairing", ALL)
            remarks["pairing"] = f"makes {counts['made']:,} of {counts['possible']:,} possible pairs; docs/datasets.md"
        values.setdefault("ties", "drop")
        ties = f"{counts['ties']:,} left out" if counts["ties"] else "none in this file"
        remarks["ties"] = f"two responses judged equal ({ties}); error: refuse the file instead"
    lines = [f"    {key}: {_scalar(value)}" for key, value in values.items()]
    lines = [f"{line}  # {remarks[key]}" if key in remarks else line for key, line in zip(values, lines, strict=True)]
    return ["  options:", *lines] if lines else []


def _limit_lines(splits: Mapping[str, Mapping[str, Any]], trained: int, affordable: int, budget: Budget) -> list[str]:
    """`max_pairs` where a split is larger than the budget."""
    if budget.tokens is None:
        return []
    limits = {"train": trained, "validation": 200, "test": max(500, affordable)}
    limits = {split: most for split, most in limits.items() if split in splits and splits[split]["pairs"] > most}
    if not limits:
        return []
    inside = ", ".join(f"{split}: {most}" for split, most in limits.items())
    return [
        "  # As many as a CPU does in a short time; remove this line to use all pairs.",
        f"  max_pairs: {{{inside}}}",
    ]


def _second_rival(longer_share: float) -> list[str]:
    if abs(longer_share - 0.5) >= _SKEWED:
        remark = f"a second model absorbs length: the longer response is chosen in {longer_share:.0%} of the pairs"
        return [f"  product_of_experts: {{}}  # {remark}"]
    return ["  label_smoothing: {}  # assumes that a tenth of the labels are wrong"]


def _scalar(value: Any) -> str:
    """A value on one line of YAML."""
    if isinstance(value, str) and re.fullmatch(r"[\w./-]+(?::\w+)?", value, re.ASCII):
        try:
            content, problems = parse_yaml(value)
        except YAMLError:
            content, problems = None, []
        if content == value and not problems:
            return value
    return json.dumps(value, ensure_ascii=False)


def _checked(text: str, out: Path) -> dict[str, Any]:
    """The resolved configuration; what `rm-methods check` refuses is not written."""
    content, problems = parse_yaml(text, f" of {out}")
    if problems:
        raise ConfigError(problems, str(out))
    return resolve(content, str(out), before_workflow=True)


def _summary(
    report: Mapping[str, Any],
    config: Mapping[str, Any],
    model: Backbone,
    lengths: Lengths,
    size: Size,
    out: Path,
) -> str:
    """What was read and written, for a terminal."""
    lines = [describe(dict(report))]
    repeated = {reason: entry for reason, entry in report["read"]["dropped"].items() if entry["count"] > 1}
    if repeated:
        lines += ["", "Rows that are refused for the same reason"]
    for reason, entry in repeated.items():
        lines.append(f"  {reason}")
        lines += [f"    {example}" for example in entry["examples"]]
        more = entry["count"] - len(entry["examples"])
        lines += [f"    and {more:,} more"] if more else []
    max_length = config["backbone"]["max_length"]
    lines += [
        "",
        f"Tokens of a prompt with a response ({lengths.basis})",
        f"  median {lengths.median:,}, 95% up to {lengths.common:,}, longest {lengths.longest:,}; "
        f"backbone.max_length: {max_length:,}",
        *(f"  {remark}" for remark in size.fit.remarks(max_length)),
    ]
    share = report["splits"]["train"]["share_chosen_longer"]
    lines += ["", f"The longer response is chosen in {share:.1%} of the training pairs."]
    test = min(report["splits"]["test"]["pairs"], config["data"]["max_pairs"].get("test") or 10**12)
    shared = test > report["splits"]["test"]["groups"]
    lines.append(
        f"With {test:,} test pairs, an accuracy is known to about ±{98 / test**0.5:.1f} points "
        f"(95%, without the variance between seeds{', and less well because pairs share prompts' if shared else ''})."
    )
    trainings = sum(load_method_card(config["methods"][name]["method"]).has_weights for name, _ in runs(config))
    train = report["splits"]["train"]["pairs"]
    epochs = config["training"]["epochs"]
    about = "about " if size.fit.is_estimate and size.fit.used < size.pairs else ""
    lines += [
        f"Backbone {model.source}: {trainings} trainings ({len(config['seeds'])} seeds of each method) on "
        f"{about}{size.fit.used:,} of {train:,} training pairs, {epochs} {'epoch' if epochs == 1 else 'epochs'}.",
        "",
        f"Written to {out}. Next:",
        f"  rm-methods check --config {out}",
        f"  rm-methods plan --config {out}        how long it takes on this machine",
        f"  snakemake --cores 2 --configfile {out}",
        f"The table and the verdict: {config['results']}/{config['experiment']}/comparison/table.txt",
    ]
    return "\n".join(lines)
