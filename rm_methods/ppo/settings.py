"""Settings of PPO (docs/ppo.md).  Their defaults and limits are in config.schema.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """Settings of the optimization of a policy against a proxy.

    Attributes:
        updates: batches of responses that are sampled and learned from.
        batch_size: responses of an update, over all ranks.
        rows_per_forward: responses of one forward; sampling depends on it (each such chunk has its own seed), learning
            only by rounding.
        ppo_epochs: passes over the responses of an update.
        minibatches: optimizer steps of a pass.
        max_new_tokens, max_prompt_tokens: longest response (end token included) and prompt in tokens.
        max_sentences: most sentences of a response; None has no limit.
        learning_rate, schedule, adam_betas, weight_decay, max_gradient_norm: AdamW; the rate is constant or falls to 0.
        value_rate_factor: learning rate of the value head in units of learning_rate; the head starts at 0 and must
            learn the mean reward fast.
        kl_coefficient: weight of the KL penalty against the starting policy (its first value, if it is adapted).
        kl_target: mean KL of a response in nats that an adaptive coefficient aims at; None keeps the coefficient.
        kl_horizon: responses over which the coefficient adapts.
        kl_limit: mean KL of a response at which PPO stops as diverged.
        gamma, gae_lambda: discount and trace of the advantage estimates.
        clip_range, value_clip_range, value_coefficient: of the clipped losses.
        missing_end_penalty: subtracted from the reward of an unfinished response; None subtracts nothing.
        transform, clip_width: transform of the proxy's scores (rm_methods.ppo.reward_transforms).
        standardize: center and scale the proxy's scores on stored SFT responses first.
        precision: "fp32" or "bf16" (autocast; weights, losses and the value head stay fp32).
        evaluate_every: updates between evaluations; one always precedes the first update and follows the last.
        checkpoint_every: updates between checkpoints for resuming; None writes none.
        alarm_margin: gold may fall this far below its best before it counts as reward hacking.
    """

    updates: int
    batch_size: int
    rows_per_forward: int
    ppo_epochs: int
    minibatches: int
    max_new_tokens: int
    max_prompt_tokens: int
    max_sentences: int | None
    learning_rate: float
    schedule: str
    max_gradient_norm: float
    value_rate_factor: float
    kl_coefficient: float
    kl_target: float | None
    kl_horizon: float
    kl_limit: float
    gamma: float
    gae_lambda: float
    clip_range: float
    value_clip_range: float
    value_coefficient: float
    missing_end_penalty: float | None
    transform: str
    clip_width: float
    standardize: bool
    precision: str
    evaluate_every: int
    checkpoint_every: int | None
    alarm_margin: float
    # The same in every experiment.
    adam_betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0

    @classmethod
    def of_experiment(cls, config: Mapping[str, Any]) -> PPOSettings:
        """The settings of a resolved configuration."""
        section = config["overoptimization"]
        names = {field.name for field in fields(cls)}
        learning = {name: value for name, value in section["ppo"].items() if name in names}
        limits = {name: section["sampling"][name] for name in ("max_new_tokens", "max_prompt_tokens", "max_sentences")}
        return cls(**learning, **limits)
