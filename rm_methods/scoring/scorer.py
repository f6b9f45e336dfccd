"""Scores benchmark items with a reward model folder, several of them, or a content-blind scorer, into a score table.

Items are sorted by length (longest first: too little memory shows at once, and the ETA is honest), batched by launched tokens,
and put back into their order.  A prompt with several responses is computed once; once for each part, if they do not fit into one forward.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.score_table import ScoredResponse, response_hash
from rm_methods.errors import DataError, UserError
from rm_methods.preferences.pair import PreferencePair
from rm_methods.stored import read_record
from rm_methods.system.cpu import prepare_cpu

SCORER_FILE = "scorer.json"  # stands in a model folder in place of weights
JOINT_RECORD = (
    "joint.json"  # rm_methods.reward_models.joint_model.RECORD, which is not imported here because it imports torch
)


@dataclass(frozen=True)
class ScoringSettings:
    """How to compute scores.

    None of it but `max_length` and `precision` changes a score by more than fp32 rounding (docs/using-reward-models.md has figures).  bf16
    rounds otherwise in every batch, so there each text gets a forward by itself: the score is then the text's, whatever else is scored.

    Attributes:
        max_length: longest sequence in tokens; longer ones are cut (prompt first) and marked.
        tokens_per_batch: limit of launched tokens in a forward; only a single response may be longer.
        precision: "fp32" or "bf16" (autocast; the head is always fp32; each text in a forward by itself).
        bf16_in_batches: compute bf16 in batches all the same, as training does.
        layout: "auto", "packed" or "plain".
        attention: attention implementation of transformers; "auto" takes sdpa where the architecture has it, otherwise eager.
        threads: CPU threads, 0 for all.
    """

    max_length: int = 1024
    tokens_per_batch: int = 4096
    precision: str = "fp32"
    bf16_in_batches: bool = False
    layout: str = "auto"
    attention: str = "auto"
    threads: int = 0


def scoring_settings(config: dict[str, Any]) -> ScoringSettings:
    """The settings that a resolved configuration asks for."""
    backbone = config["backbone"]
    return ScoringSettings(max_length=backbone["max_length"], attention=backbone["attention"], **config["scoring"])


def settings_of_training(config: Mapping[str, Any]) -> ScoringSettings:
    """The settings that score training pairs as training itself reads them.

    Args:
        config: sections `backbone` and `training`.
    """
    training, backbone = config["training"], config["backbone"]
    return ScoringSettings(
        max_length=training["max_length"] or backbone["max_length"],
        tokens_per_batch=training["tokens_per_microbatch"],
        precision=training["precision"],
        bf16_in_batches=True,
        layout=training["layout"],
        attention=backbone["attention"],
    )


class RefusedItems(DataError):
    """The chat template refuses the conversations of some items.

    Attributes:
        reasons: by item id, what the template says.
    """

    def __init__(self, message: str, reasons: dict[str, str]):
        super().__init__(message)
        self.reasons = reasons


def load_scorer(folder: str | Path, settings: ScoringSettings, keep_loaded: bool = False):
    """The scorer that a model folder describes.

    Args:
        keep_loaded: an ensemble keeps its members in memory from one `score` to the next, for callers that score many times; otherwise
            each call loads them again, one at a time.  Other scorers are one model, which stays loaded anyway.

    Returns:
        An object with `score(items) -> list[ScoredResponse]`, rows in the order of items and responses.

    Raises:
        UserError: the folder is neither a reward model nor a scorer description.
    """
    from rm_methods.reward_models.model_folder import check_checksums, check_config

    folder = Path(folder)
    check_checksums(folder)
    if (folder / SCORER_FILE).exists():
        description = read_record(folder / SCORER_FILE, "a description of a scorer", "train")
        if "members" not in description:
            return ContentBlindScorer(description)
        description = read_record(folder / SCORER_FILE, "a description of an ensemble", "train")
        return EnsembleScorer(description, folder, settings, keep_loaded)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such model folder. Train it first, or give a folder with config.json or {SCORER_FILE}."
        )
    check_config(folder)
    if (folder / JOINT_RECORD).exists():
        return JointScorer.from_folder(folder, settings)
    return RewardModelScorer.from_folder(folder, settings)


def pair_rewards(scorer, pairs: Sequence[PreferencePair], label: str = "score") -> np.ndarray:
    """Rewards of preference pairs, fp64 [pairs, 2], column 0 chosen, column 1 rejected."""
    items = [BenchmarkItem(pair.pair_id, pair.split, pair.prompt, [pair.chosen, pair.rejected], 0) for pair in pairs]
    return np.array([row.score for row in scorer.score(items, label)], dtype=np.float64).reshape(-1, 2)


class ContentBlindScorer:
    """Scores text without a model (longest, shortest, random)."""

    changed_texts = 0

    def __init__(self, description: dict[str, Any]):
        from rm_methods.methods.registry import load_method

        self.method = load_method(description["method"], description["settings"])
        self.seed = description["seed"]

    def computation(self) -> dict[str, Any]:
        """How scores are computed, for the report: nothing to say without a model."""
        return {}

    def score(self, items: Sequence[BenchmarkItem], label: str = "score") -> list[ScoredResponse]:
        """Score every response of every item."""
        return [
            ScoredResponse(
                item.item_id, k, response_hash(text), self.method.score(item.prompt, text, self.seed), 0, False
            )
            for item in items
            for k, text in enumerate(item.responses)
        ]


class RewardModelScorer:
    """Scores with a `RewardModel`.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: the `ChatTokenizer` of the model.

    Raises:
        UserError: the model's scores would depend on the batch, or the layout that is asked for is not exact (`RewardModel.layout`).
    """

    def __init__(self, model, tokenizer, settings: ScoringSettings):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.changed_texts = 0  # by the chat template, in the last `score`
        model.layout(settings.layout)

    @classmethod
    def from_folder(cls, folder: Path, settings: ScoringSettings) -> RewardModelScorer:
        """Load a saved sequence-classification folder; raises UserError for a model that needs code of its own."""
        import torch
        from transformers import AutoModelForSequenceClassification

        from rm_methods.reward_models.backbones import load_tokenizer
        from rm_methods.reward_models.loading import length_within_positions, load_errors_explained, pretrained_model
        from rm_methods.reward_models.model import RewardModel

        prepare_cpu(settings.threads)
        classifier, _ = pretrained_model(
            AutoModelForSequenceClassification, folder, attention=settings.attention, num_labels=1
        )
        model = RewardModel(classifier, autocast=torch.bfloat16 if settings.precision == "bf16" else None)
        model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        tokenizer = load_tokenizer(folder, length_within_positions(folder, classifier.config, settings.max_length))
        with load_errors_explained(folder):  # its probe is the first forward, which a damaged configuration may break
            return cls(model, tokenizer, settings)

    def score(self, items: Sequence[BenchmarkItem], label: str = "score") -> list[ScoredResponse]:
        """Score every response of every item; nothing is dropped, what had to be cut is marked."""
        encoded = self._encode([(item.prompt, item.responses) for item in items], [item.item_id for item in items])
        rewards = self._of_responses(encoded, self._rewards, label)
        return [
            ScoredResponse(
                item.item_id, k, response_hash(text), rewards[i][k], encoded[i].lengths[k], encoded[i].truncated[k]
            )
            for i, item in enumerate(items)
            for k, text in enumerate(item.responses)
        ]

    def extra_metrics(self) -> dict[str, float]:
        """What is known besides the scores."""
        return {}

    def _encode(self, read: Sequence[tuple], item_ids: Sequence[str]) -> list:
        """(prompt, responses) in tokens; raises RefusedItems with the ids of items that the chat template refuses."""
        from rm_methods.reward_models.tokenization import RefusedConversations

        try:
            encoded = self.tokenizer.encode(read)
        except RefusedConversations as error:
            names = [f"item {item_id}" for item_id in item_ids]
            remedy = (
                "Leave such items out, or put the text of a system turn into the first user turn (a model trained with "
                "backbone.refused_conversations: fold_system does that itself)."
            )
            reasons = {item_ids[position]: reason for position, reason in error.reasons.items()}
            raise RefusedItems(error.naming(names, remedy), reasons) from None
        self.changed_texts = sum(
            prompt or response
            for item in encoded
            for prompt, response in zip(item.prompt_changed, item.response_changed, strict=True)
        )
        return encoded

    def computation(self) -> dict[str, Any]:
        """How scores are computed, for the report: the settings, what "auto" came to, and the chat template."""
        from rm_methods.reward_models.packed_attention import KERNEL, NAME

        settings, attention = self.settings, self.model.config._attn_implementation
        about = {
            "precision": settings.precision,
            "layout": self._layout,
            "layout_probe": self.model.layout_probe.record(),
            "attention": KERNEL if attention == NAME else attention,
            "max_length": settings.max_length,
        }
        template = getattr(self.tokenizer, "template", None)  # an encoder reads text without a chat template
        return about if template is None else about | {"template": template}

    @property
    def _one_text_a_forward(self) -> bool:
        return self.settings.precision == "bf16" and not self.settings.bf16_in_batches

    @property
    def _layout(self) -> str:
        return "plain" if self._one_text_a_forward else self.model.layout(self.settings.layout)

    @property
    def _tokens_per_batch(self) -> int:
        # Any single response is more than nothing, and gets a forward by itself.
        return 0 if self._one_text_a_forward else self.settings.tokens_per_batch

    def _of_responses(self, encoded, read: Callable[[list], Sequence], label: str) -> list[list]:
        """What `read` gives for every response of every item, computed in forwards of bounded size.

        Args:
            read: from items with one number of responses to a row for each: what stands for each of its responses.
        """
        parts, owner = self._parts(encoded)
        found: list[list] = [[] for _ in encoded]
        for i, row in zip(owner, self._in_batches(parts, read, label), strict=True):
            found[i].extend(row)
        return found

    def _in_batches(self, encoded, read: Callable[[list], Sequence], label: str) -> list[Sequence]:
        """The row that `read` gives for each item, in their order, whatever batches they were read in."""
        rows: list[Sequence] = [()] * len(encoded)
        batches = self._batches(encoded)
        progress = _Progress(label, sum(cost for _, cost in batches))
        for members, cost in batches:
            for index, row in zip(members, read([encoded[k] for k in members]), strict=True):
                rows[index] = row
            progress.advance(cost)
        return rows

    def _forward(self, encoded):
        """The `RewardOutput` of items with one number of responses, without gradients."""
        import torch

        from rm_methods.reward_models.layouts import lay_out

        self._check_ids(encoded)
        # Padding is never read, so every id will do; a tokenizer may have no pad token, or one that has no embedding.
        batch = lay_out(encoded, self._layout, pad_id=0)
        with torch.inference_mode():
            return self.model(batch.to(next(self.model.parameters()).device))

    def _check_ids(self, encoded) -> None:
        """Raises UserError for a token that the model has no embedding for."""
        rows = self.model.config.get_text_config().vocab_size
        largest = max(int(sequence.max()) for item in encoded for sequence in item.sequences)
        if largest >= rows:
            tokenizer = self.tokenizer.tokenizer
            raise UserError(
                f"{tokenizer.name_or_path}: a text has the token {tokenizer.convert_ids_to_tokens(largest)!r} (id {largest}), but "
                f"the model has embeddings for {rows} tokens. Use the tokenizer that the model was trained with."
            )

    def _rewards(self, encoded) -> list[list[float]]:
        return self._forward(encoded).rewards.float().cpu().tolist()

    def _parts(self, encoded) -> tuple[list, list[int]]:
        """The items, each with more responses than fit into a forward in several parts; and for each part, which item it is of."""
        from rm_methods.scoring.response_parts import split_responses

        split = [split_responses(item, self._layout, self._tokens_per_batch) for item in encoded]
        return [part for parts in split for part in parts], [i for i, parts in enumerate(split) for _ in parts]

    def _batches(self, encoded) -> list[tuple[list[int], int]]:
        """(positions of items, launched tokens): items with one number of responses and like lengths, longest first."""
        from rm_methods.reward_models.layouts import launched_tokens

        layout = self._layout
        by_responses: dict[int, list[int]] = {}
        for i in sorted(range(len(encoded)), key=lambda i: -max(encoded[i].lengths)):
            by_responses.setdefault(len(encoded[i].sequences), []).append(i)
        batches = []
        for members in by_responses.values():
            current: list[int] = []
            for i in members:
                if current and launched_tokens([encoded[j] for j in [*current, i]], layout) > self._tokens_per_batch:
                    batches.append(current)
                    current = []
                current.append(i)
            batches.append(current)
        costs = [launched_tokens([encoded[i] for i in members], layout) for members in batches]
        return sorted(zip(batches, costs, strict=True), key=lambda batch: -max(encoded[batch[0][0]].lengths))


class JointScorer(RewardModelScorer):
    """Scores with a joint model: a response's score is the mean, over all responses of its item, of the logit that it is better.

    For two responses the difference of the scores is the logit of the preference, averaged over both orders; for more it is the
    response's standing among the others (a Borda count of logits), so scores of different items do not compare.
    """

    @classmethod
    def from_folder(cls, folder: Path, settings: ScoringSettings) -> JointScorer:
        """Load a saved joint model."""
        from rm_methods.reward_models.joint_model import load_joint

        prepare_cpu(settings.threads)
        return cls(*load_joint(folder, settings.max_length, settings.precision), settings)

    def score(self, items: Sequence[BenchmarkItem], label: str = "score") -> list[ScoredResponse]:
        """Score every response of every item, reading each two of an item together in both orders."""
        duels = [(i, a, b) for i, item in enumerate(items) for a in range(len(item.responses)) for b in range(a)]
        read = [(items[i].prompt, (items[i].responses[a], items[i].responses[b])) for i, a, b in duels]
        encoded = self._encode(read, [items[i].item_id for i, _, _ in duels])
        logits = self._in_batches(encoded, self._rewards, label)
        rewards = [[0.0] * len(item.responses) for item in items]
        tokens = [[0] * len(item.responses) for item in items]
        cut = [[False] * len(item.responses) for item in items]
        for (i, a, b), (a_first, b_first), item in zip(duels, logits, encoded, strict=True):
            preference = (a_first - b_first) / 2
            rewards[i][a] += preference / len(items[i].responses)
            rewards[i][b] -= preference / len(items[i].responses)
            for k in (a, b):
                tokens[i][k] = max(tokens[i][k], *item.lengths)
                cut[i][k] |= any(item.truncated)
        self._first_place = [(_sigmoid(a_first) + _sigmoid(b_first)) / 2 for a_first, b_first in logits]
        return [
            ScoredResponse(item.item_id, k, response_hash(text), rewards[i][k], tokens[i][k], cut[i][k])
            for i, item in enumerate(items)
            for k, text in enumerate(item.responses)
        ]

    def extra_metrics(self) -> dict[str, float]:
        """Position bias of the last `score`: mean probability given to the first response over both orders, less one half."""
        return (
            {"validation_position_bias": sum(self._first_place) / len(self._first_place) - 0.5}
            if self._first_place
            else {}
        )


class EnsembleScorer:
    """Scores with every member and combines what they say of a response.

    Args:
        description: content of `scorer.json`: `method` and `settings`, `members` (their model folders, relative to `folder`), and
            `centres` (what is subtracted from each member's rewards).
        folder: the model folder that the description lies in.
        keep_loaded: members are loaded when they are first needed and stay in memory, all of them; without it only one is ever loaded.

    Raises:
        UserError: a member's folder is not there, or not every member has a centre.
    """

    def __init__(self, description: dict[str, Any], folder: Path, settings: ScoringSettings, keep_loaded: bool = False):
        from rm_methods.methods.registry import load_method

        self.method = load_method(description["method"], description["settings"])
        self.members = [folder.resolve() / member for member in description["members"]]
        self.centres, self.settings = description["centres"], settings
        self.keep_loaded, self._loaded = keep_loaded, {}
        self.changed_texts = 0  # by the chat template of the members, in the last `score`
        if len(self.centres) != len(self.members):
            raise UserError(
                f"{folder / SCORER_FILE}: {len(self.members)} members, but {len(self.centres)} centres. Make it again."
            )
        if missing := [member for member in self.members if not member.is_dir()]:
            raise UserError(
                f"{folder / SCORER_FILE}: {len(missing)} of {len(self.members)} members are not there, the first is "
                f"{missing[0].resolve()}. An ensemble holds no weights: keep the runs that it is made of where they are (and move the "
                "experiment's folder as a whole)."
            )

    def score(self, items: Sequence[BenchmarkItem], label: str = "score") -> list[ScoredResponse]:
        """Score every response of every item; raises UserError if the members read the same text differently."""
        table = []
        for number, member in enumerate(self.members, start=1):
            scorer = self._scorer(member)
            table.append(scorer.score(items, f"{label}, member {number} of {len(self.members)}"))
            self.changed_texts = scorer.changed_texts
            del scorer  # before the next one is loaded
        for member, rows in zip(self.members[1:], table[1:], strict=True):
            for first, row in zip(table[0], rows, strict=True):
                if (row.n_tokens, row.truncated) != (first.n_tokens, first.truncated):
                    raise UserError(
                        f"{member} reads response {row.response_index} of item {row.item_id} as {row.n_tokens} tokens, but "
                        f"{self.members[0]} as {first.n_tokens}: the members have different tokenizers. Combine runs of one backbone."
                    )
        rewards_MS = np.array([[row.score for row in rows] for rows in table], dtype=np.float64)
        combined_S = self.method.aggregate(rewards_MS - np.array(self.centres)[:, None])
        return [replace(row, score=float(score)) for row, score in zip(table[0], combined_S, strict=True)]

    def _scorer(self, member: Path):
        """The scorer of a member; nothing here holds it on, unless it is to stay loaded."""
        if not self.keep_loaded:
            return load_scorer(member, self.settings)
        if member not in self._loaded:
            self._loaded[member] = load_scorer(member, self.settings, keep_loaded=True)
        return self._loaded[member]

    def computation(self) -> dict[str, Any]:
        """How scores are computed, for the report: the settings that every member gets."""
        names = ("precision", "layout", "attention", "max_length")
        return {name: getattr(self.settings, name) for name in names}

    def extra_metrics(self) -> dict[str, float]:
        """What is known besides the scores."""
        return {}


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


class _Progress:
    """A line on stderr every few seconds with an ETA by tokens, not by batches."""

    def __init__(self, label: str, total: int, every: float = 5.0):
        self.label, self.total, self.every = label, total, every
        self.done, self.started, self.last = 0, time.monotonic(), time.monotonic()

    def advance(self, amount: int) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.last < self.every or not self.done:
            return
        self.last = now
        elapsed = now - self.started
        remaining = elapsed / self.done * (self.total - self.done)
        share = 100 * self.done / self.total
        print(
            f"{self.label}: {share:.0f}%  {self.done / elapsed:.0f} tokens/s  ETA {remaining:.0f} s",
            file=sys.stderr,
            flush=True,
        )
