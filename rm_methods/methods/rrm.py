"""RRM, robust reward model by data augmentation: answers to other prompts teach what does not depend on the prompt.

For example i and two others j and k, under the prompt of i, with the four foreign responses (chosen and rejected of j and k):

    non-contextual   each of i's two responses beats each foreign one (8 pairs)
    neutral          each two foreign responses are as good as each other (6 pairs, target 1/2)
    loss             t * -log sigmoid(z) + (1 - t) * -log sigmoid(-z),   z = r_chosen - r_rejected,   t = 1, or 1/2 for neutral pairs

Optionally only augmented pairs are kept that a trained reward model gets wrong by enough, |sigmoid(z) - t| >= filter_threshold.
Liu et al. 2024 (arXiv 2409.13156); the filter is theirs, the number of pairs drawn for each example is ours.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rm_methods.errors import UserError
from rm_methods.files import content_hash, is_intact, read_json, write_json, written_with_checksum
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Inputs, Loss, TrainedMethod
from rm_methods.preferences.pair import PreferencePair, make_pair

NON_CONTEXTUAL, NEUTRAL = "non_contextual", "neutral"
MOST = {NON_CONTEXTUAL: 8, NEUTRAL: 6}  # of an example
TARGET = {NON_CONTEXTUAL: 1.0, NEUTRAL: 0.5}  # probability that chosen is better
UNFILTERED = "none"


def target_loss(rewards, target):
    """Cross-entropy with the probability that chosen is better, fp32 [pairs]; written as -log sigmoid(z) + (1 - target) z.

    Args:
        rewards: fp32 [pairs, 2], column 0 chosen, column 1 rejected.
        target: fp32 [pairs], 1/2 for neutral pairs, whose loss is lowest at z = 0.
    """
    return bradley_terry_loss(rewards) + (1 - target) * (rewards[:, 0] - rewards[:, 1])


@dataclass(frozen=True)
class Example:
    """An original pair and what may be made of it.

    Attributes:
        original: example i.
        responses: own chosen and rejected, then the four foreign ones.
        candidates: by kind, places in `responses` of chosen and rejected.
    """

    original: PreferencePair
    responses: tuple[str, ...]
    candidates: Mapping[str, tuple[tuple[int, int], ...]]


def draw_others(groups: Sequence[str], generator: np.random.Generator) -> list[tuple[int, int]]:
    """For each example two others, so that all three have different prompt groups and each example is drawn exactly twice.

    Examples are laid out group by group, in random order, and shifted by at least the size of the largest group, twice.

    Raises:
        UserError: a group holds more than a third of the examples; no such drawing exists then (nor with fewer than three groups).
    """
    counts = Counter(groups)
    (largest_group, largest), count = counts.most_common(1)[0], len(groups)
    if count < 3 * largest:
        raise UserError(
            f"rrm: takes responses from examples of two other prompts, but there are {len(counts)} prompts in {count} training pairs, and "
            f"prompt group {largest_group} has {largest} of them. Three prompts at least are needed, and none may have more than a third "
            "of the pairs. Use more data, or another method."
        )
    rank = dict(zip(counts, generator.permutation(len(counts)).tolist(), strict=True))
    order = sorted(generator.permutation(count).tolist(), key=lambda i: rank[groups[i]])
    first = int(generator.integers(largest, count - 2 * largest + 1))
    second = int(generator.integers(first + largest, count - largest + 1))
    others: list[tuple[int, int]] = [(0, 0)] * count
    for position, i in enumerate(order):
        others[i] = (order[(position + first) % count], order[(position + second) % count])
    return others


def make_examples(
    pairs: Sequence[PreferencePair], generator: np.random.Generator, neutral: bool
) -> tuple[list[Example], int]:
    """All candidates of all examples, and how many were left out because two texts in them are equal.

    A foreign response that is a response to the own prompt too, word for word, is not foreign, and of equal foreign ones one counts.
    """
    own_texts: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        own_texts[pair.group] |= {pair.chosen, pair.rejected}
    examples, left_out = [], 0
    for pair, (j, k) in zip(pairs, draw_others([pair.group for pair in pairs], generator), strict=True):
        responses = (pair.chosen, pair.rejected, pairs[j].chosen, pairs[j].rejected, pairs[k].chosen, pairs[k].rejected)
        taken = {*own_texts[pair.group]}
        foreign = [place for place in range(2, 6) if not (responses[place] in taken or taken.add(responses[place]))]
        ties = list(itertools.combinations(foreign, 2)) if neutral else []
        flips = generator.integers(2, size=len(ties))
        candidates = {
            NON_CONTEXTUAL: tuple(itertools.product((0, 1), foreign)),
            NEUTRAL: tuple((b, a) if flip else (a, b) for (a, b), flip in zip(ties, flips, strict=True)),
        }
        left_out += sum(
            MOST[kind] - len(candidates[kind]) for kind in (NON_CONTEXTUAL, *([NEUTRAL] if neutral else []))
        )
        examples.append(Example(pair, responses, candidates))
    return examples, left_out


def quotas(count: int, each: int, share: float) -> list[int]:
    """How many of `each` pairs of an example are non-contextual, so that the share holds over all examples."""
    return [math.floor((i + 1) * each * share + 1e-9) - math.floor(i * each * share + 1e-9) for i in range(count)]


def augmented_pair(example: Example, kind: str, places: tuple[int, int]) -> PreferencePair:
    """A pair under the prompt of the example; its id is made of its content, its meta says what it is."""
    original = example.original
    chosen, rejected = (example.responses[place] for place in places)
    meta = {"augmented": kind, "original": original.pair_id}
    pair = make_pair(original.prompt, chosen, rejected, split=original.split, source=original.source, meta=meta)
    return replace(pair, target=TARGET[kind])


def misjudged(
    rewards: Sequence[float], places: Sequence[tuple[int, int]], target: float, threshold: float
) -> tuple[tuple[int, int], ...]:
    """The places (chosen, rejected) whose probability, sigmoid of the reward difference, is off the target by `threshold` or more."""
    return tuple((a, b) for a, b in places if abs(_sigmoid(rewards[a] - rewards[b]) - target) >= threshold)


class Method(TrainedMethod):
    def transform_pairs(self, pairs, inputs):
        each, neutral = self.settings["augmented_per_pair"], self.settings["neutral"]
        if not neutral and each > MOST[NON_CONTEXTUAL]:
            raise UserError(
                f"rrm.augmented_per_pair: {each} are asked for, but without neutral pairs an example has {MOST[NON_CONTEXTUAL]}. "
                f"Allowed: 1 to {MOST[NON_CONTEXTUAL]}; or set rrm.neutral to true."
            )
        generator = np.random.default_rng([inputs.seed, 2409])  # a stream of its own
        examples, left_out = make_examples(pairs, generator, neutral)
        candidates = sum(len(found) for example in examples for found in example.candidates.values())
        examples = self._filtered(examples, inputs)
        kept = sum(len(found) for example in examples for found in example.candidates.values())
        drawn, repeated = self._drawn(examples, generator)
        kinds = Counter(pair.meta["augmented"] for pair in drawn)
        self.counts = {
            "original_pairs": len(pairs),
            "candidate_pairs": candidates,
            "candidates_left_out_equal_texts": left_out,
            "candidates_filtered_out": candidates - kept,
            "non_contextual_pairs": kinds[NON_CONTEXTUAL],
            "neutral_pairs": kinds[NEUTRAL],
            "repeated_pairs_left_out": repeated,
            "share_of_originals": round(len(pairs) / (len(pairs) + len(drawn)), 4),
        }
        return [*pairs, *drawn]

    def _drawn(self, examples: Sequence[Example], generator: np.random.Generator) -> tuple[list[PreferencePair], int]:
        """`augmented_per_pair` pairs of each example, both kinds in proportion; fewer where there are no more."""
        each, total = self.settings["augmented_per_pair"], sum(MOST.values())
        share = MOST[NON_CONTEXTUAL] / total if self.settings["neutral"] else 1.0
        numbers = np.array(quotas(len(examples), each, share))[generator.permutation(len(examples))]
        drawn: list[PreferencePair] = []
        seen, repeated = set(), 0
        for example, number in zip(examples, numbers.tolist(), strict=True):
            for kind, wanted in ((NON_CONTEXTUAL, number), (NEUTRAL, each - number)):
                candidates = example.candidates[kind]
                for place in generator.permutation(len(candidates))[:wanted]:
                    pair = augmented_pair(example, kind, candidates[place])
                    # Two examples of one prompt may draw responses with equal texts; in either order it is the same pair.
                    key = (pair.group, frozenset((pair.chosen, pair.rejected)))
                    repeated += key in seen
                    if key not in seen:
                        drawn.append(pair)
                    seen.add(key)
        return drawn, repeated

    def _filtered(self, examples: list[Example], inputs: Inputs) -> list[Example]:
        """The examples with the candidates whose label the filtering model misses by `filter_threshold` or more."""
        if self.settings["filter"] == UNFILTERED:
            return examples
        threshold, kept = self.settings["filter_threshold"], []
        for example, rewards in zip(examples, filter_rewards(examples, inputs), strict=True):
            candidates = {
                kind: misjudged(rewards, places, TARGET[kind], threshold) for kind, places in example.candidates.items()
            }
            kept.append(replace(example, candidates=candidates))
        return kept

    def loss(self, model, batch):
        rewards = model(batch).rewards
        return Loss(target_loss(rewards, batch.target), {"neutral_share": (batch.target == 0.5).float()})

    def report(self):
        """What was made of the training pairs."""
        return self.counts


def filter_rewards(examples: Sequence[Example], inputs: Inputs) -> list[list[float]]:
    """Rewards that the filtering model gives to the six responses of each example.

    They are kept in the run's work folder: a resumed run must train on the same pairs, also where a second computation would round
    otherwise.
    """
    from rm_methods.benchmarks.item import BenchmarkItem
    from rm_methods.scoring.scorer import load_scorer, settings_of_training

    folder = inputs.required["filter"][0]
    asked = content_hash([str(folder), *([example.original.prompt, example.responses] for example in examples)])
    file = inputs.work_folder / f"filter_rewards_{asked}.json"
    if is_intact(file):
        return read_json(file)
    items = [
        BenchmarkItem(str(i), "", example.original.prompt, example.responses, 0) for i, example in enumerate(examples)
    ]
    rows = load_scorer(folder, settings_of_training(inputs.config)).score(items, f"{inputs.label}: filter")
    rewards = np.array([row.score for row in rows]).reshape(len(examples), -1).tolist()
    with written_with_checksum(file) as path:
        write_json(path, rewards)
    return rewards


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))
