"""Rollouts: responses sampled from the policy, with everything that PPO learns from and reports."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from rm_methods.policies.log_probabilities import read_responses, token_entropies, token_log_probabilities
from rm_methods.policies.policy import Prompt
from rm_methods.policies.sampling import Generated, NotFinite, SamplingSettings, derived_seed, generate
from rm_methods.ppo.learner import Learner
from rm_methods.ppo.rewards import Reward, rewards_of


@dataclass
class Rollouts:
    """A batch of B responses of up to T tokens, on the CPU.

    Attributes:
        prompts, prompt_ids, responses: prompts, their token ids, and the responses' texts.
        response_ids: int64 [B, T], padded on the right; `mask` bool [B, T] marks the tokens, the end token included.
        finished: bool [B], whether an end token or the last allowed sentence came.
        log_probabilities, reference_log_probabilities, values, entropies: fp32 [B, T], 0 outside of `mask`.
        proxy, gold: float64 [B].
    """

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    responses: list[str]
    response_ids: torch.Tensor
    mask: torch.Tensor
    finished: torch.Tensor
    log_probabilities: torch.Tensor
    reference_log_probabilities: torch.Tensor
    values: torch.Tensor
    entropies: torch.Tensor
    proxy: np.ndarray
    gold: np.ndarray

    @property
    def log_ratio(self) -> torch.Tensor:
        """log pi - log pi_ref of each token, fp32 [B, T]."""
        return self.log_probabilities - self.reference_log_probabilities

    @property
    def kl(self) -> np.ndarray:
        """Estimate of the KL divergence from the reference by each response, in nats: the sum of its tokens' log
        ratios, float64 [B]."""
        return self.log_ratio.double().sum(1).numpy()

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each response, the end token included."""
        return self.mask.sum(1).numpy()

    def token_lists(self) -> list[list[int]]:
        """Each response's token ids without padding."""
        return [ids[:length] for ids, length in zip(self.response_ids.tolist(), self.lengths, strict=True)]


@dataclass
class Actors:
    """The models that make rollouts: policy, reference and value head (in the learner), proxy and gold."""

    learner: Learner
    reward: Reward
    gold: Reward
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the wall time of a phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] += time.monotonic() - started


def collect(actors: Actors, prompts: Sequence[Prompt], prompt_ids: Sequence[list[int]], seed: int) -> Rollouts:
    """Sample one response to each prompt and score it.

    Each chunk of `rows_per_forward` prompts has a separate seed and is assigned to a rank, so the samples do not depend
    on the number of ranks.  If ranks must keep in step, those with one chunk less sample the first one again and drop
    the result.

    Raises:
        NotFinite: on every rank, if the policy's logits on any of them are not finite.
        UserError: a reward is not finite.
    """
    learner = actors.learner
    ranks = learner.ranks
    rows = learner.settings.rows_per_forward
    number_of_chunks = math.ceil(len(prompts) / rows)
    chunks: list[tuple[int, Rollouts]] = []
    problems: list[str] = []
    for number in range(ranks.rank, _up_to_full_round(number_of_chunks, learner), ranks.size):
        spare = number >= number_of_chunks
        start = 0 if spare else number * rows
        members = slice(start, start + rows)
        try:
            chunk = _sample_chunk(actors, prompts[members], prompt_ids[members], derived_seed(seed, number))
        except NotFinite as error:
            problems.append(str(error))
            continue
        if not spare:
            chunks.append((number, chunk))
    # Every rank gathers both lists, even after a failure, because the other ranks wait for it.
    problems = ranks.gathered(problems)
    numbered_chunks = ranks.gathered(chunks)
    if problems:
        raise NotFinite(problems[0])
    in_order = sorted(numbered_chunks, key=lambda pair: pair[0])
    return _merged([chunk for _, chunk in in_order], learner.policy.pad_id)


def _up_to_full_round(chunks: int, learner: Learner) -> int:
    """Number of chunks that all ranks sample together; a multiple of the ranks if they must keep in step."""
    return -(-chunks // learner.ranks.size) * learner.ranks.size if learner.in_step else chunks


def _sample_chunk(actors: Actors, prompts: Sequence[Prompt], prompt_ids: Sequence[list[int]], seed: int) -> Rollouts:
    learner, policy = actors.learner, actors.learner.policy
    with actors.timed("generate"):
        drawn = _generated(learner, prompt_ids, seed)
    ids = drawn.response_ids
    mask = drawn.mask
    with actors.timed("read"), torch.no_grad():
        logits, values = learner.module(prompt_ids, ids, mask)
        log_probabilities = token_log_probabilities(logits, ids, mask)
        entropies = token_entropies(logits, mask)
        values = torch.where(mask, values, 0.0)
        logits, _ = read_responses(learner.reference, prompt_ids, ids, mask, policy.pad_id, learner.autocast)
        reference_log_probabilities = token_log_probabilities(logits, ids, mask)
    responses = [policy.decode(row) for row in ids.tolist()]
    with actors.timed("proxy"):
        proxy = rewards_of(actors.reward, "proxy reward", prompts, responses)
    with actors.timed("gold"):
        gold = rewards_of(actors.gold, "gold reward", prompts, responses)
    return Rollouts(
        prompts=list(prompts),
        prompt_ids=list(prompt_ids),
        responses=responses,
        response_ids=ids.cpu(),
        mask=mask.cpu(),
        finished=drawn.finished.cpu(),
        log_probabilities=log_probabilities.cpu(),
        reference_log_probabilities=reference_log_probabilities.cpu(),
        values=values.cpu(),
        entropies=entropies.cpu(),
        proxy=proxy,
        gold=gold,
    )


def _generated(learner: Learner, prompt_ids: Sequence[list[int]], seed: int) -> Generated:
    """Sampled responses; if ranks must keep in step, all of them or none raise NotFinite."""
    settings = learner.settings
    sampling = SamplingSettings(settings.max_new_tokens, max_sentences=settings.max_sentences)
    drawn: Generated | None = None
    broken: str | None = None
    try:
        drawn = generate(learner.policy, prompt_ids, sampling, seed, learner.autocast, learner.in_step)
    except NotFinite as error:
        broken = str(error)
    if learner.in_step:
        broken = next(filter(None, learner.ranks.gathered([broken])), None)
    if drawn is None or broken:
        raise NotFinite(broken or "The policy's logits are not finite.")
    return drawn


def _merged(chunks: Sequence[Rollouts], pad_id: int) -> Rollouts:
    """One batch, as wide as its longest response."""
    longest = max(chunk.mask.shape[1] for chunk in chunks)

    def rows(name: str, filling: float = 0) -> torch.Tensor:
        parts = [getattr(chunk, name) for chunk in chunks]
        return torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=filling) for part in parts])

    def lists(name: str) -> list:
        return [value for chunk in chunks for value in getattr(chunk, name)]

    return Rollouts(
        prompts=lists("prompts"),
        prompt_ids=lists("prompt_ids"),
        responses=lists("responses"),
        response_ids=rows("response_ids", pad_id),
        mask=rows("mask", False),
        finished=torch.cat([chunk.finished for chunk in chunks]),
        log_probabilities=rows("log_probabilities"),
        reference_log_probabilities=rows("reference_log_probabilities"),
        values=rows("values"),
        entropies=rows("entropies"),
        proxy=np.concatenate([chunk.proxy for chunk in chunks]),
        gold=np.concatenate([chunk.gold for chunk in chunks]),
    )
