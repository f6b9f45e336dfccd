"""RRM, robust reward model by data augmentation: responses to other prompts teach what does not depend on the prompt.

Take example i and two others, j and k.  Under the prompt of i, the four responses of j and k are foreign:

    non-contextual   each of i's two responses beats each foreign response (8 pairs)
    neutral          any two foreign responses are equally good (6 pairs, target 1/2)
    loss             t * -log sigmoid(z) + (1 - t) * -log sigmoid(-z),   z = r_chosen - r_rejected
                     t = 1 for original and non-contextual pairs, 1/2 for neutral pairs

A filter is optional: it keeps only augmented pairs that a trained reward model misjudges, |sigmoid(z) - t| >=
filter_threshold. Liu et al. 2024 (arXiv 2409.13156).  The filter is theirs; the number of pairs drawn per example is
our addition.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_methods.errors import UserError
from rm_methods.files import content_hash, read_json, write_json
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Inputs, Loss, TrainedMethod
from rm_methods.preferences.pair import PreferencePair, make_pair

if TYPE_CHECKING:
    import torch

NON_CONTEXTUAL = "non_contextual"
NEUTRAL = "neutral"
PAIRS_PER_EXAMPLE = {NON_CONTEXTUAL: 8, NEUTRAL: 6}  # at most
TARGET = {NON_CONTEXTUAL: 1.0, NEUTRAL: 0.5}  # probability that chosen is better
UNFILTERED = "none"

# Positions in `Example.responses` of a pair's chosen and rejected response.
Positions = tuple[int, int]


def target_loss(rewards: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the probability that chosen is better, fp32 [pairs].

    Computed as -log sigmoid(z) + (1 - target) z.

    Args:
        rewards: fp32 [pairs, 2], column 0 chosen, column 1 rejected.
        target: fp32 [pairs], 1/2 for neutral pairs, whose loss is lowest at z = 0.
    """
    return bradley_terry_loss(rewards) + (1 - target) * (rewards[:, 0] - rewards[:, 1])


@dataclass(frozen=True)
class Example:
    """An original pair and the augmented pairs that can be made from it.

    Attributes:
        original: example i.
        responses: its chosen and rejected response, then the four foreign ones.
        candidates: by kind, the positions of each possible pair.
    """

    original: PreferencePair
    responses: tuple[str, ...]
    candidates: Mapping[str, tuple[Positions, ...]]


def draw_others(groups: Sequence[str], generator: np.random.Generator) -> list[tuple[int, int]]:
    """Draw two other examples for each, so that all three have different prompt groups and each is drawn exactly twice.

    Examples are laid out group by group in random order.  The layout is then shifted twice, each time by at least the
    size of the largest group.

    Raises:
        UserError: a group holds more than a third of the examples, which also covers fewer than three groups.
    """
    counts = Counter(groups)
    count = len(groups)
    largest_group, largest = counts.most_common(1)[0]
    if count < 3 * largest:
        raise UserError(
            "rrm: takes responses from examples of two other prompts, so it needs at least three prompts, and none may "
            f"have more than a third of the pairs. You have {len(counts)} prompts in {count} training pairs, and "
            f"prompt group {largest_group} has {largest} of the pairs. Use more data, or another method."
        )
    rank = dict(zip(counts, generator.permutation(len(counts)).tolist(), strict=True))
    order = sorted(generator.permutation(count).tolist(), key=lambda i: rank[groups[i]])
    first_shift = int(generator.integers(largest, count - 2 * largest + 1))
    second_shift = int(generator.integers(first_shift + largest, count - largest + 1))
    others: list[tuple[int, int]] = [(0, 0)] * count
    for position, i in enumerate(order):
        others[i] = (order[(position + first_shift) % count], order[(position + second_shift) % count])
    return others


def make_examples(
    pairs: Sequence[PreferencePair], generator: np.random.Generator, neutral: bool
) -> tuple[list[Example], int]:
    """All candidates of all examples, and how many are missing because texts are equal.

    A response that also answers the example's own prompt, word for word, is not foreign.  Equal foreign responses
    count once.
    """
    texts_by_group: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        texts_by_group[pair.group] |= {pair.chosen, pair.rejected}
    kinds = (NON_CONTEXTUAL, NEUTRAL) if neutral else (NON_CONTEXTUAL,)
    possible = sum(PAIRS_PER_EXAMPLE[kind] for kind in kinds)
    examples = []
    left_out = 0
    for pair, (j, k) in zip(pairs, draw_others([pair.group for pair in pairs], generator), strict=True):
        responses = (pair.chosen, pair.rejected, pairs[j].chosen, pairs[j].rejected, pairs[k].chosen, pairs[k].rejected)
        foreign = foreign_positions(responses, texts_by_group[pair.group])
        candidates = {
            NON_CONTEXTUAL: tuple(itertools.product((0, 1), foreign)),
            NEUTRAL: _randomly_ordered(itertools.combinations(foreign, 2), generator) if neutral else (),
        }
        left_out += possible - sum(map(len, candidates.values()))
        examples.append(Example(pair, responses, candidates))
    return examples, left_out


def foreign_positions(responses: Sequence[str], texts_of_prompt: set[str]) -> list[int]:
    """Positions from 2 on of the responses that are not among the prompt's own texts; of equal responses the first."""
    seen = set(texts_of_prompt)
    positions = []
    for position, response in enumerate(responses[2:], start=2):
        if response not in seen:
            seen.add(response)
            positions.append(position)
    return positions


def _randomly_ordered(pairs: Iterable[Positions], generator: np.random.Generator) -> tuple[Positions, ...]:
    """The pairs, each in a random order of its two members."""
    drawn = list(pairs)
    swaps = generator.integers(2, size=len(drawn))
    return tuple((b, a) if swap else (a, b) for (a, b), swap in zip(drawn, swaps, strict=True))


def quotas(count: int, each: int, share: float) -> list[int]:
    """For each of `count` examples, how many of its `each` pairs are non-contextual, so that `share` holds over all."""
    # The small number keeps a product that is whole by definition from being rounded down.
    totals = [math.floor(i * each * share + 1e-9) for i in range(count + 1)]
    return [after - before for before, after in itertools.pairwise(totals)]


def augmented_pair(example: Example, kind: str, positions: Positions) -> PreferencePair:
    """A pair under the prompt of the example; its id is made from its content, its meta says how it was made."""
    original = example.original
    pair = make_pair(
        original.prompt,
        example.responses[positions[0]],
        example.responses[positions[1]],
        split=original.split,
        source=original.source,
        meta={"augmented": kind, "original": original.pair_id},
    )
    return replace(pair, target=TARGET[kind])


def misjudged(
    rewards: Sequence[float], candidates: Sequence[Positions], target: float, threshold: float
) -> tuple[Positions, ...]:
    """The candidates whose probability sigmoid(reward difference) differs from the target by `threshold` or more."""
    return tuple((a, b) for a, b in candidates if abs(_sigmoid(rewards[a] - rewards[b]) - target) >= threshold)


class Method(TrainedMethod):
    """Bradley-Terry on the original and the augmented pairs.

    Attributes:
        counts: how many pairs were made, filtered and drawn, for the run's summary.
    """

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.counts: dict[str, Any] = {}

    def transform_pairs(self, pairs, inputs):
        each = self.settings["augmented_per_pair"]
        neutral = self.settings["neutral"]
        if not neutral and each > PAIRS_PER_EXAMPLE[NON_CONTEXTUAL]:
            most = PAIRS_PER_EXAMPLE[NON_CONTEXTUAL]
            raise UserError(
                f"rrm.augmented_per_pair: {each} is too large, because without neutral pairs an example has {most}. "
                f"Allowed: 1 to {most}; or set rrm.neutral to true."
            )
        # The second number keeps these draws apart from other draws by the same seed.
        generator = np.random.default_rng([inputs.seed, 2409])
        examples, left_out = make_examples(pairs, generator, neutral)
        candidate_count = _count_candidates(examples)
        examples = self._filtered(examples, inputs)
        drawn, repeated = self._drawn(examples, generator)
        kinds = Counter(pair.meta["augmented"] for pair in drawn)
        self.counts = {
            "original_pairs": len(pairs),
            "candidate_pairs": candidate_count,
            "candidates_left_out_equal_texts": left_out,
            "candidates_filtered_out": candidate_count - _count_candidates(examples),
            "non_contextual_pairs": kinds[NON_CONTEXTUAL],
            "neutral_pairs": kinds[NEUTRAL],
            "repeated_pairs_left_out": repeated,
            "share_of_originals": round(len(pairs) / (len(pairs) + len(drawn)), 4),
        }
        return [*pairs, *drawn]

    def _drawn(self, examples: Sequence[Example], generator: np.random.Generator) -> tuple[list[PreferencePair], int]:
        """`augmented_per_pair` pairs of each example, both kinds in proportion; and the number of repeats."""
        each = self.settings["augmented_per_pair"]
        share = 1.0
        if self.settings["neutral"]:
            share = PAIRS_PER_EXAMPLE[NON_CONTEXTUAL] / sum(PAIRS_PER_EXAMPLE.values())
        numbers = np.array(quotas(len(examples), each, share))[generator.permutation(len(examples))]
        drawn: dict[tuple[str, frozenset[str]], PreferencePair] = {}
        repeated = 0
        for example, number in zip(examples, numbers.tolist(), strict=True):
            for kind, quota in ((NON_CONTEXTUAL, number), (NEUTRAL, each - number)):
                candidates = example.candidates[kind]
                for index in generator.permutation(len(candidates))[:quota]:
                    pair = augmented_pair(example, kind, candidates[index])
                    # Two examples of one prompt may draw equal texts; in either order it is the same pair.
                    key = (pair.group, frozenset((pair.chosen, pair.rejected)))
                    if key in drawn:
                        repeated += 1
                    else:
                        drawn[key] = pair
        return list(drawn.values()), repeated

    def _filtered(self, examples: list[Example], inputs: Inputs) -> list[Example]:
        """The examples with the candidates that the filtering model misjudges by `filter_threshold` or more."""
        if self.settings["filter"] == UNFILTERED:
            return examples
        threshold = self.settings["filter_threshold"]
        kept = []
        for example, rewards in zip(examples, filter_rewards(examples, inputs), strict=True):
            candidates = {
                kind: misjudged(rewards, positions, TARGET[kind], threshold)
                for kind, positions in example.candidates.items()
            }
            kept.append(replace(example, candidates=candidates))
        return kept

    def loss(self, model, batch):
        rewards = model(batch).rewards
        return Loss(target_loss(rewards, batch.target), {"neutral_share": (batch.target == 0.5).float()})

    def report(self):
        """Counts of the augmentation."""
        return self.counts


def filter_rewards(examples: Sequence[Example], inputs: Inputs) -> list[list[float]]:
    """Rewards that the filtering model gives to the six responses of each example.

    They are stored in the run's work folder: a resumed run must train on the same pairs, even where computing them
    again would round differently.
    """
    from rm_methods.benchmarks.item import BenchmarkItem
    from rm_methods.scoring.scorer import load_scorer, settings_of_training

    folder = inputs.required["filter"][0]
    request = content_hash([str(folder), *([example.original.prompt, example.responses] for example in examples)])
    file = inputs.work_folder / f"filter_rewards_{request}.json"
    if file.exists():
        return read_json(file)
    items = [
        BenchmarkItem(str(i), "", example.original.prompt, example.responses, 0) for i, example in enumerate(examples)
    ]
    rows = load_scorer(folder, settings_of_training(inputs.config)).score(items, f"{inputs.label}: filter")
    rewards = np.array([row.score for row in rows]).reshape(len(examples), -1).tolist()
    write_json(file, rewards)
    return rewards


def _count_candidates(examples: Sequence[Example]) -> int:
    return sum(len(candidates) for example in examples for candidates in example.candidates.values())


def _sigmoid(z: float) -> float:
    # The form is chosen by sign, so that exp never overflows.
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))
