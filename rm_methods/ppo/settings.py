"""Settings of PPO, with their defaults and where those come from (docs/ppo.md)."""

from __future__ import annotations

from dataclasses import dataclass

from rm_methods.errors import ConfigError, nearest
from rm_methods.ppo.reward_transforms import NAMES


@dataclass(frozen=True)
class PPOSettings:
    """How a policy is optimized against a proxy.

    Attributes:
        updates: batches of responses that are sampled and learned from.
        batch_size: responses of an update, over all ranks.
        rows_per_forward: responses of one forward; sampling depends on it (each such chunk has its own seed), learning
            only by rounding.
        ppo_epochs: passes over the responses of an update.
        minibatches: optimizer steps of a pass.
        max_new_tokens, max_prompt_tokens: longest response (end token included) and prompt in tokens.
        learning_rate, schedule, adam_betas, weight_decay, max_gradient_norm: AdamW; the rate is constant or falls to 0.
        value_rate_factor: learning rate of the value head in units of learning_rate; it starts at 0 and has to find
            the mean reward fast.
        kl_coefficient: weight of the KL penalty against the starting policy (its first value, if it is adapted).
        kl_target: mean KL of a response in nats that an adaptive coefficient aims at; None keeps the coefficient.
        kl_horizon: responses over which the coefficient adapts.
        kl_limit: mean KL of a response at which PPO stops as diverged.
        gamma, gae_lambda: discount and trace of the advantage estimates.
        clip_range, value_clip_range, value_coefficient: of the clipped losses.
        missing_end_penalty: subtracted from the reward of a response without end token; None subtracts nothing.
        transform, clip_width: what is made of the proxy's scores (rm_methods.ppo.reward_transforms).
        standardise: center and scale the proxy's scores on stored SFT responses first.
        precision: "fp32" or "bf16" (autocast; weights, losses and the value head stay fp32).
        evaluate_every: updates between evaluations (there is always one before the first and after the last update).
        checkpoint_every: updates between checkpoints for resuming; None writes none.
        alarm_margin: gold may fall this far below its best before it counts as reward hacking.
    """

    updates: int = 200
    batch_size: int = 32
    rows_per_forward: int = 32
    ppo_epochs: int = 2
    minibatches: int = 1
    max_new_tokens: int = 64
    max_prompt_tokens: int = 512
    learning_rate: float = 3e-6
    schedule: str = "constant"
    adam_betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    value_rate_factor: float = 10.0
    kl_coefficient: float = 0.05
    kl_target: float | None = None
    kl_horizon: float = 10_000
    kl_limit: float = 200.0
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    value_coefficient: float = 0.1
    missing_end_penalty: float | None = None
    transform: str = "none"
    clip_width: float = 3.0
    standardise: bool = True
    precision: str = "fp32"
    evaluate_every: int = 20
    checkpoint_every: int | None = 20
    alarm_margin: float = 0.0

    def __post_init__(self):
        problems = []
        if self.transform not in NAMES:
            problems.append(f"transform: is {self.transform!r}. {nearest(self.transform, NAMES)}")
        for name, allowed in {"schedule": ("constant", "linear", "cosine"), "precision": ("fp32", "bf16")}.items():
            if getattr(self, name) not in allowed:
                problems.append(f"{name}: is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        for name in (
            "updates",
            "batch_size",
            "rows_per_forward",
            "ppo_epochs",
            "minibatches",
            "max_new_tokens",
            "evaluate_every",
        ):
            if getattr(self, name) < 1:
                problems.append(f"{name}: is {getattr(self, name)}; must be at least 1")
        for name in (
            "learning_rate",
            "value_rate_factor",
            "kl_limit",
            "kl_horizon",
            "clip_range",
            "value_clip_range",
            "clip_width",
            "max_gradient_norm",
        ):
            if not getattr(self, name) > 0:
                problems.append(f"{name}: is {getattr(self, name)}; must be more than 0")
        for name in ("kl_coefficient", "value_coefficient", "alarm_margin", "weight_decay"):
            if not getattr(self, name) >= 0:
                problems.append(f"{name}: is {getattr(self, name)}; must be at least 0")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name}: is {getattr(self, name)}; must be from 0 to 1")
        if self.kl_target is not None and not self.kl_target > 0:
            problems.append(f"kl_target: is {self.kl_target}; must be more than 0, or null")
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            problems.append(f"checkpoint_every: is {self.checkpoint_every}; must be at least 1, or null")
        if self.minibatches > self.batch_size:
            problems.append(f"minibatches: {self.minibatches} are more than the {self.batch_size} responses of a batch")
        if problems:
            raise ConfigError(problems, "the PPO settings")
