"""Scores benchmark items with a reward model folder, several of them, or a content-blind scorer, into a score table.

Items are sorted by length (longest first, so that too little memory shows at once and the ETA is reliable), batched by
launched tokens, and put back into their order.  A prompt with several responses is computed once, or once for each part
if they do not fit into one forward.
"""

from __future__ import annotations

import gc
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.score_table import Preferences, ScoredResponse, response_hash
from rm_methods.errors import DataError, UserError, first_line, nearest_path
from rm_methods.preferences.pair import Message, PreferencePair
from rm_methods.reward_models.model_folder import check_checksums
from rm_methods.reward_models.tokenization import OfficialText, RefusedConversations, TokenizedItem
from rm_methods.scoring.model_options import ModelOptions
from rm_methods.scoring.model_source import check_weights
from rm_methods.stored import read_record
from rm_methods.system.cpu import prepare_cpu, return_freed_memory
from rm_methods.system.memory import is_out_of_memory
from rm_methods.system.progress import Progress

if TYPE_CHECKING:
    from rm_methods.reward_models.encoder_model import EncoderRewardModel, TextPairReader
    from rm_methods.reward_models.joint_model import JointModel
    from rm_methods.reward_models.joint_reader import DecoderReader, EncoderReader
    from rm_methods.reward_models.model import RewardModel
    from rm_methods.reward_models.tokenization import ChatTokenizer

SCORER_FILE = "scorer.json"  # in a model folder, instead of weights


@dataclass(frozen=True)
class ScoringSettings:
    """Settings of a scorer.

    Only `max_length` and `precision` change a score by more than fp32 rounding (docs/using-reward-models.md has
    figures).  In bf16 the rounding depends on the batch, so each text gets a forward by itself: its score is then the
    same whatever else is scored.

    Attributes:
        max_length: longest sequence in tokens; longer ones are cut (prompt first) and marked.
        tokens_per_batch: limit of launched tokens in a forward; only a single response may be longer.
        precision: "fp32" or "bf16" (autocast; the head is always fp32; each text in a forward by itself).
        bf16_in_batches: compute bf16 in batches anyway, as training does.
        layout: "auto", "packed" or "plain".
        attention: attention implementation of transformers; "auto" takes sdpa if the architecture has it, otherwise
            eager.
        threads: CPU threads, 0 for all.
        trained_layers: the last layers of a decoder, whose inputs `state_folder` stores; None stores nothing.
        state_folder: folder of stored states (rm_methods.reward_models.frozen_layers); None stores nothing.
        protocol: what happens to a text longer than `max_length`: "counted" cuts it and counts it, "strict" gives it no
            score.
    """

    max_length: int = 1024
    tokens_per_batch: int = 4096
    precision: str = "fp32"
    bf16_in_batches: bool = False
    layout: str = "auto"
    attention: str = "auto"
    threads: int = 0
    protocol: str = "counted"
    trained_layers: int | None = None
    state_folder: str | None = None

    @property
    def one_text_per_forward(self) -> bool:
        """Whether each text gets a separate forward, so that bf16 rounds it the same way whatever else is scored."""
        return self.precision == "bf16" and not self.bf16_in_batches


def scoring_settings(config: dict[str, Any]) -> ScoringSettings:
    """The settings that a resolved configuration asks for."""
    backbone = config["backbone"]
    return ScoringSettings(
        max_length=backbone["max_length"],
        attention=backbone["attention"],
        trained_layers=config["training"]["trained_layers"],
        state_folder=config["resources"]["state_folder"],
        **config["scoring"],
    )


def settings_of_training(config: Mapping[str, Any]) -> ScoringSettings:
    """The settings that score training pairs as the training reads them.

    Args:
        config: sections `backbone` and `training`.
    """
    training = config["training"]
    backbone = config["backbone"]
    return ScoringSettings(
        max_length=training["max_length"] or backbone["max_length"],
        tokens_per_batch=training["tokens_per_microbatch"],
        precision=training["precision"],
        bf16_in_batches=True,
        layout=training["layout"],
        attention=backbone["attention"],
    )


@dataclass(frozen=True)
class Scoring:
    """The result of a scorer for some items.

    Attributes:
        responses: the scored responses, in the order of the items and their responses.
        changed_texts: number of texts that the chat template changes.
        position_bias: of a joint model: mean probability given to the first response, over both orders, less one half.
        preferences: of a joint model, by item with more than two responses.
    """

    responses: list[ScoredResponse]
    changed_texts: int = 0
    position_bias: float | None = None
    preferences: dict[str, Preferences] = field(default_factory=dict)


class Scorer(ABC):
    """Gives every response of every item a score."""

    @abstractmethod
    def compute(self, items: Sequence[BenchmarkItem], label: str = "score") -> Scoring:
        """Score every response of every item; nothing is dropped, and what had to be cut is marked.

        Args:
            label: starts the lines that show progress.

        Raises:
            RefusedItems: the chat template refuses conversations.
        """

    @abstractmethod
    def computation(self) -> dict[str, Any]:
        """How scores are computed, for the report."""

    def follow(self, official: OfficialText | None) -> None:
        """Turn texts into tokens as an official script does; None goes back to our rules.

        Raises:
            UserError: this scorer reads no chat template, so no script of a reward model applies.
        """
        if official is not None:
            raise UserError(
                f"protocol official: {type(self).__name__} reads no chat template, so the scripts for reward models do "
                "not apply. Use the protocol counted or strict."
            )

    def score(self, items: Sequence[BenchmarkItem], label: str = "score") -> list[ScoredResponse]:
        """Only the scored responses; arguments and errors as for `compute`."""
        return self.compute(items, label).responses


class RefusedItems(DataError):
    """The chat template refuses the conversations of some items.

    Attributes:
        reasons: by item id, the template's message.
    """

    def __init__(self, message: str, reasons: dict[str, str]):
        super().__init__(message)
        self.reasons = reasons


def load_scorer(
    folder: str | Path, settings: ScoringSettings, keep_loaded: bool = False, options: ModelOptions | None = None
) -> Scorer:
    """The scorer that a model folder describes.

    Args:
        options: what the folder of a published model does not say.
        keep_loaded: whether an ensemble keeps its members in memory, for callers that score many times.  Otherwise each
            call loads them again, one at a time.  Other scorers have one model, which always stays loaded.

    Raises:
        UserError: the folder is neither a reward model nor a scorer description.
    """
    folder = Path(folder)
    check_checksums(folder)
    if (folder / SCORER_FILE).exists():
        description = read_record(folder / SCORER_FILE, "a description of a scorer", "train")
        if "model" in description:
            for part, recorded in description["weights"].items():
                check_weights(Path(part), recorded)
            return load_scorer(description["model"], settings, keep_loaded, ModelOptions.of(description))
        if "members" not in description:
            return ContentBlindScorer(description)
        description = read_record(folder / SCORER_FILE, "a description of an ensemble", "train")
        return EnsembleScorer(description, folder, settings, keep_loaded)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such model folder. Train it first, or give a folder with config.json or {SCORER_FILE}."
            f"{nearest_path(folder, folders_only=True)}"
        )
    from rm_methods.scoring.published import published_scorer

    return published_scorer(folder, settings, options or ModelOptions())


def pair_items(pairs: Sequence[PreferencePair]) -> list[BenchmarkItem]:
    """Preference pairs as items to score, the chosen response first."""
    return [BenchmarkItem(pair.pair_id, pair.split, pair.prompt, [pair.chosen, pair.rejected], 0) for pair in pairs]


def rewards_of_pairs(responses: Sequence[ScoredResponse]) -> np.ndarray:
    """The rewards of scored `pair_items`, fp64 [pairs, 2], column 0 chosen, column 1 rejected."""
    return np.array([row.score for row in responses], dtype=np.float64).reshape(-1, 2)


def pair_rewards(scorer: Scorer, pairs: Sequence[PreferencePair], label: str = "score") -> np.ndarray:
    """Rewards of preference pairs, fp64 [pairs, 2], column 0 chosen, column 1 rejected."""
    return rewards_of_pairs(scorer.score(pair_items(pairs), label))


def _scored_responses(
    items: Sequence[BenchmarkItem],
    scores: Sequence[Sequence[float]],
    tokens: Sequence[Sequence[int]],
    truncated: Sequence[Sequence[bool]],
) -> list[ScoredResponse]:
    """One row a response, items in order; scores, tokens and truncated by item and response."""
    responses = []
    for position, item in enumerate(items):
        for index, text in enumerate(item.responses):
            responses.append(
                ScoredResponse(
                    item_id=item.item_id,
                    response_index=index,
                    response_hash=response_hash(text),
                    score=scores[position][index],
                    n_tokens=tokens[position][index],
                    truncated=truncated[position][index],
                )
            )
    return responses


class ContentBlindScorer(Scorer):
    """Scores text without a model (longest, shortest, random, fitted_length)."""

    def __init__(self, description: Mapping[str, Any]):
        from rm_methods.methods.registry import load_method

        self.method = load_method(description["method"], description["settings"])
        self.method.fitted = description.get("fitted", {})
        self.seed = description["seed"]

    def computation(self) -> dict[str, Any]:
        """Empty: a scorer without a model has no settings besides the method's."""
        return {}

    def compute(self, items: Sequence[BenchmarkItem], label: str = "score") -> Scoring:
        """Score every response of every item."""
        scores = [[self.method.score(item.prompt, text, self.seed) for text in item.responses] for item in items]
        tokens = [[0] * len(item.responses) for item in items]
        truncated = [[False] * len(item.responses) for item in items]
        return Scoring(_scored_responses(items, scores, tokens, truncated))


class RewardModelScorer(Scorer):
    """Scores with a `RewardModel`.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: of the model.

    Attributes:
        splits_responses: whether the responses of an item may be computed in several forwards.

    Raises:
        UserError: the model's scores would depend on the batch, or the layout that is asked for is not exact
            (`RewardModel.layout`).
    """

    splits_responses = True
    _fitting_tokens = math.inf  # of a forward; less after one that did not fit into memory

    def __init__(
        self,
        model: RewardModel | JointModel | EncoderRewardModel,
        tokenizer: ChatTokenizer | EncoderReader | DecoderReader | TextPairReader,
        settings: ScoringSettings,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        model.layout(settings.layout)
        self._share_states()

    def _share_states(self) -> None:
        """Read the states below the trained layers from their folder; a model with fewer layers is computed whole."""
        from rm_methods.reward_models.model import RewardModel

        trained = self.settings.trained_layers
        folder = self.settings.state_folder
        if isinstance(self.model, RewardModel) and trained and folder:
            with suppress(UserError):
                self.model.freeze_lower_layers(trained, Path(folder))

    def follow(self, official: OfficialText | None) -> None:
        from rm_methods.reward_models.tokenization import ChatTokenizer

        if not isinstance(self.tokenizer, ChatTokenizer):
            super().follow(official)
            return
        self.tokenizer.official = official

    def compute(self, items: Sequence[BenchmarkItem], label: str = "score") -> Scoring:
        """Score every response of every item; nothing is dropped, and what had to be cut is marked."""
        encoded = self._encode([(item.prompt, item.responses) for item in items], [item.item_id for item in items])
        rewards = self._response_rewards(encoded, label)
        tokens = [tokenized.lengths for tokenized in encoded]
        truncated = [tokenized.truncated for tokenized in encoded]
        responses = _scored_responses(items, rewards, tokens, truncated)
        return Scoring(self._by_protocol(responses), changed_texts=_changed_texts(encoded))

    def _by_protocol(self, responses: list[ScoredResponse]) -> list[ScoredResponse]:
        """Under the protocol strict, a text that was cut has no score."""
        if self.settings.protocol != "strict":
            return responses
        return [replace(row, score=math.nan) if row.truncated else row for row in responses]

    def computation(self) -> dict[str, Any]:
        """How scores are computed, for the report: the settings, what "auto" came to, and the chat template."""
        from rm_methods.reward_models.packed_attention import KERNEL, NAME

        attention = self.model.config._attn_implementation
        probe = self.model.layout_probe
        record = {
            "precision": self.settings.precision,
            "layout": self._layout,
            "layout_probe": probe.record() if probe else None,
            "attention": KERNEL if attention == NAME else attention,
            "max_length": self.settings.max_length,
            "protocol": self.settings.protocol,
        }
        if (official := getattr(self.tokenizer, "official", None)) is not None:
            record |= {"protocol": "official", **asdict(official)}
        template = getattr(self.tokenizer, "template", None)  # an encoder reads text without a chat template
        return record if template is None else record | {"template": template}

    def _encode(
        self, texts: Sequence[tuple[Sequence[Message], Sequence[str]]], item_ids: Sequence[str]
    ) -> list[TokenizedItem]:
        """(prompt, responses) in tokens.

        Args:
            item_ids: id of each item, for the message.

        Raises:
            RefusedItems: the chat template refuses some.
        """
        try:
            return self.tokenizer.encode(texts)
        except RefusedConversations as error:
            names = [f"item {item_id}" for item_id in item_ids]
            remedy = (
                "Leave such items out, name a template that prints them (--chat-template), or put the text of a system "
                "turn into the first user turn (a model trained with backbone.refused_conversations: fold_system does "
                "that itself)."
            )
            reasons = {item_ids[position]: reason for position, reason in error.reasons.items()}
            raise RefusedItems(error.naming(names, remedy), reasons) from None

    @property
    def _layout(self) -> str:
        return "plain" if self.settings.one_text_per_forward else self.model.layout(self.settings.layout)

    @property
    def _tokens_per_batch(self) -> int:
        # Every response has more than 0 tokens, so each gets a separate forward.
        return 0 if self.settings.one_text_per_forward else self.settings.tokens_per_batch

    def _response_rewards(self, encoded: Sequence[TokenizedItem], label: str) -> list[list[float]]:
        """The reward of every response of every item.

        An item with more responses than fit into a forward is computed in several parts.
        """
        from rm_methods.scoring.response_parts import split_responses

        parts: list[TokenizedItem] = []
        item_of_part: list[int] = []
        for position, item in enumerate(encoded):
            parts_of_item = split_responses(item, self._layout, self._tokens_per_batch)
            parts += parts_of_item
            item_of_part += [position] * len(parts_of_item)
        rewards: list[list[float]] = [[] for _ in encoded]
        for position, part_rewards in zip(item_of_part, self._rewards_in_batches(parts, label), strict=True):
            rewards[position] += part_rewards
        return rewards

    def _rewards_in_batches(self, encoded: Sequence[TokenizedItem], label: str) -> list[list[float]]:
        """The rewards of each item in the order of the items, whatever the batches were."""
        from rm_methods.reward_models.layouts import launched_tokens

        batches = self._batches(encoded)
        costs = [launched_tokens([encoded[position] for position in members], self._layout) for members in batches]
        progress = Progress(label, sum(costs), unit="tokens", print_end=False)
        rewards: list[list[float]] = [[] for _ in encoded]
        for members, cost in zip(batches, costs, strict=True):
            batch_rewards = self._rewards_that_fit([encoded[position] for position in members])
            for position, item_rewards in zip(members, batch_rewards, strict=True):
                rewards[position] = item_rewards
            progress.advance(cost)
        return rewards

    def _rewards_that_fit(self, encoded: Sequence[TokenizedItem]) -> list[list[float]]:
        """`_rewards` in one forward, or in smaller ones if it does not fit into memory.

        Raises:
            UserError: a single text does not fit.
        """
        from rm_methods.reward_models.layouts import launched_tokens

        tokens = launched_tokens(encoded, self._layout)
        halves = self._halves(encoded, tokens)
        if tokens <= self._fitting_tokens or not halves:
            try:
                return self._rewards(encoded)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if not halves:
                    raise UserError(
                        f"A text of {max(encoded[0].lengths):,} tokens does not fit into memory by itself. Lower "
                        "backbone.max_length (--max-length), or use more memory. The cause: "
                        f"{first_line(error)}"
                    ) from error
                cause = first_line(error)
            # Outside of the handler: its traceback held the tensors of the forward.
            _free_memory()
            if math.isinf(self._fitting_tokens):
                from rm_methods.system.ranks import print_once

                print_once(
                    f"A forward of {tokens:,} tokens does not fit into memory, so forwards are made smaller; scores "
                    f"stay the same up to rounding. The cause: {cause}"
                )
            self._fitting_tokens = tokens // 2
        rewards = [self._rewards_that_fit(half) for half in halves]
        if len(encoded) > 1:
            return [item_rewards for half in rewards for item_rewards in half]
        return [[reward for (part_rewards,) in rewards for reward in part_rewards]]

    def _halves(self, encoded: Sequence[TokenizedItem], tokens: int) -> list[Sequence[TokenizedItem]]:
        """Items in two halves, or an item in parts with some of its responses; empty if neither is possible."""
        from rm_methods.scoring.response_parts import split_responses

        if len(encoded) > 1:
            half = len(encoded) // 2
            return [encoded[:half], encoded[half:]]
        parts = split_responses(encoded[0], self._layout, tokens // 2) if self.splits_responses else []
        return [[part] for part in parts] if len(parts) > 1 else []

    def _batches(self, encoded: Sequence[TokenizedItem]) -> list[list[int]]:
        """Positions of items with one number of responses and similar lengths, longest first."""
        from rm_methods.reward_models.batching import batches_within
        from rm_methods.reward_models.layouts import launched_tokens

        layout = self._layout
        by_responses: dict[int, list[int]] = {}
        for position in sorted(range(len(encoded)), key=lambda position: -max(encoded[position].lengths)):
            by_responses.setdefault(len(encoded[position].sequences), []).append(position)

        def launched(members: list[int]) -> int:
            return launched_tokens([encoded[position] for position in members], layout)

        batches = []
        for order in by_responses.values():
            batches += batches_within(order, self._tokens_per_batch, launched)
        return sorted(batches, key=lambda members: -max(encoded[members[0]].lengths))

    def _rewards(self, encoded: Sequence[TokenizedItem]) -> list[list[float]]:
        """Rewards of items with one number of responses, in one forward."""
        import torch

        from rm_methods.reward_models.layouts import lay_out

        self._check_ids(encoded)
        # Padding is never read, so any id works; a tokenizer may have no pad token, or one without an embedding.
        batch = lay_out(encoded, self._layout, pad_id=0)
        with torch.inference_mode():
            output = self.model(batch.to(next(self.model.parameters()).device))
        return output.rewards.float().cpu().tolist()

    def _check_ids(self, encoded: Sequence[TokenizedItem]) -> None:
        """Raises UserError for a token that the model has no embedding for."""
        rows = self.model.config.get_text_config().vocab_size
        largest = max(int(sequence.max()) for item in encoded for sequence in item.sequences)
        if largest >= rows:
            tokenizer = self.tokenizer.tokenizer
            raise UserError(
                f"{tokenizer.name_or_path}: a text has the token {tokenizer.convert_ids_to_tokens(largest)!r} (id "
                f"{largest}), but the model has embeddings for {rows} tokens. Use the tokenizer that the model was "
                "trained with."
            )


def _free_memory() -> None:
    """Free what a failed forward held, on the GPU, too."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    return_freed_memory()


def _changed_texts(encoded: Sequence[TokenizedItem]) -> int:
    """Number of texts (prompt and response) that the chat template changes."""
    return sum(
        prompt or response
        for item in encoded
        for prompt, response in zip(item.prompt_changed, item.response_changed, strict=True)
    )


@dataclass(frozen=True)
class _Duel:
    """Two responses of an item, by their positions."""

    item: int
    first: int
    second: int


class JointScorer(RewardModelScorer):
    """Scores with a joint model, which compares two responses.

    A response's score is the mean, over all responses of its item, of the logit that it is better.  For two responses
    the difference of the scores is the logit of the preference, averaged over both orders.  For more it is the
    response's standing among the others (a Borda count of logits), so scores of different items do not compare.
    Benchmarks that compare pair by pair read the preferences instead (`Scoring.preferences`).
    """

    splits_responses = False  # an item's two sequences are the two orders of a pair

    @classmethod
    def from_folder(cls, folder: Path, settings: ScoringSettings) -> JointScorer:
        """Load a saved joint model."""
        from rm_methods.reward_models.joint_model import load_joint

        prepare_cpu(settings.threads, settings.precision)
        model, reader = load_joint(folder, settings.max_length, settings.precision)
        return cls(model, reader, settings)

    def compute(self, items: Sequence[BenchmarkItem], label: str = "score") -> Scoring:
        """Score every response of every item: the model reads each two responses together, in both orders."""
        duels = [
            _Duel(position, first, second)
            for position, item in enumerate(items)
            for first in range(len(item.responses))
            for second in range(first)
        ]
        texts = []
        for duel in duels:
            item = items[duel.item]
            texts.append((item.prompt, (item.responses[duel.first], item.responses[duel.second])))
        encoded = self._encode(texts, [items[duel.item].item_id for duel in duels])
        # For each duel: the logits that the text read first is better, in the duel's order and in the other one.
        logits = self._rewards_in_batches(encoded, label)

        rewards = [[0.0] * len(item.responses) for item in items]
        tokens = [[0] * len(item.responses) for item in items]
        truncated = [[False] * len(item.responses) for item in items]
        preferences: dict[str, Preferences] = {
            item.item_id: [[0.0] * len(item.responses) for _ in item.responses]
            for item in items
            if len(item.responses) > 2
        }
        for duel, (first_in_front, second_in_front), tokenized in zip(duels, logits, encoded, strict=True):
            item = items[duel.item]
            logit = (first_in_front - second_in_front) / 2
            if item.item_id in preferences:
                is_refused = self.settings.protocol == "strict" and any(tokenized.truncated)
                known = math.isfinite(logit) and not is_refused
                preferences[item.item_id][duel.first][duel.second] = logit if known else None
                preferences[item.item_id][duel.second][duel.first] = -logit if known else None
            share = logit / len(item.responses)
            rewards[duel.item][duel.first] += share
            rewards[duel.item][duel.second] -= share
            for response in (duel.first, duel.second):
                tokens[duel.item][response] = max(tokens[duel.item][response], *tokenized.lengths)
                truncated[duel.item][response] |= any(tokenized.truncated)

        responses = _scored_responses(items, rewards, tokens, truncated)
        return Scoring(self._by_protocol(responses), _changed_texts(encoded), position_bias(logits), preferences)


def position_bias(logits: Sequence[Sequence[float]]) -> float | None:
    """Mean probability of the response that is read first, less one half; None without pairs.

    Args:
        logits: of each pair, that the first response is better, in one order and in the other.
    """
    if not logits:
        return None
    return (
        sum((_sigmoid(one_order) + _sigmoid(other_order)) / 2 for one_order, other_order in logits) / len(logits) - 0.5
    )


class EnsembleScorer(Scorer):
    """Scores with every member and combines their rewards of a response.

    Args:
        description: content of `scorer.json`: `method` and `settings`, `members` (their model folders, relative to
            `folder`), and `centers` (what is subtracted from each member's rewards).
        folder: the model folder that holds the description.
        keep_loaded: whether all members stay in memory once they are loaded; otherwise only one is loaded at a time.

    Raises:
        UserError: a member's folder is missing, or not every member has a center.
    """

    def __init__(
        self, description: Mapping[str, Any], folder: Path, settings: ScoringSettings, keep_loaded: bool = False
    ):
        from rm_methods.methods.registry import load_method

        self.method = load_method(description["method"], description["settings"])
        self.method.fitted = description.get("fitted", {})
        self.members = [folder.resolve() / member for member in description["members"]]
        self.centers = description["centers"]
        self.settings = settings
        self.keep_loaded = keep_loaded
        self._loaded: dict[Path, Scorer] = {}
        if len(self.centers) != len(self.members):
            raise UserError(
                f"{folder / SCORER_FILE}: {len(self.members)} members, but {len(self.centers)} centers. Make it again."
            )
        if missing := [member for member in self.members if not member.is_dir()]:
            raise UserError(
                f"{folder / SCORER_FILE}: {len(missing)} of {len(self.members)} members are missing, the first is "
                f"{missing[0].resolve()}. An ensemble holds no weights, so its members must stay in their folders. "
                "Move the experiment's folder only as a whole, or copy the ensemble with `rm-methods copy-model`."
            )

    def compute(self, items: Sequence[BenchmarkItem], label: str = "score") -> Scoring:
        """Score every response of every item; raises UserError if the members read the same text differently."""
        scorings = []
        for number, member in enumerate(self.members, start=1):
            # No variable holds the scorer, so that its memory is free before the next one is loaded.
            scorings.append(self._scorer(member).compute(items, f"{label}, member {number} of {len(self.members)}"))
        tables = [scoring.responses for scoring in scorings]
        for member, rows in zip(self.members[1:], tables[1:], strict=True):
            self._check_same_tokens(member, rows, tables[0])
        rewards_MS = np.array([[row.score for row in rows] for rows in tables], dtype=np.float64)
        combined_S = self.method.aggregate(rewards_MS - np.array(self.centers)[:, None])
        responses = [replace(row, score=float(score)) for row, score in zip(tables[0], combined_S, strict=True)]
        return Scoring(responses, changed_texts=scorings[-1].changed_texts)

    def _check_same_tokens(
        self, member: Path, rows: Sequence[ScoredResponse], first_rows: Sequence[ScoredResponse]
    ) -> None:
        for first, row in zip(first_rows, rows, strict=True):
            if (row.n_tokens, row.truncated) != (first.n_tokens, first.truncated):
                raise UserError(
                    f"{member} reads response {row.response_index} of item {row.item_id} as {row.n_tokens} tokens, but "
                    f"{self.members[0]} as {first.n_tokens}: the members have different tokenizers. Combine runs of "
                    "one backbone."
                )

    def _scorer(self, member: Path) -> Scorer:
        """The scorer of a member; kept in memory with `keep_loaded`."""
        if not self.keep_loaded:
            return load_scorer(member, self.settings)
        if member not in self._loaded:
            self._loaded[member] = load_scorer(member, self.settings, keep_loaded=True)
        return self._loaded[member]

    def computation(self) -> dict[str, Any]:
        """Settings of the scores, for the report: those that every member gets."""
        names = ("precision", "layout", "attention", "max_length", "protocol")
        return {name: getattr(self.settings, name) for name in names}


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
