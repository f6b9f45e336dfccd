"""PPO for language policies against a proxy reward; records the gold reward, too.

An update samples a batch of responses from the policy, scores them, and takes a few clipped policy-gradient steps.  A
KL penalty at each token holds the policy near its start.  All randomness comes from (seed, purpose, update), so a
resumed run needs no random states, and the number of ranks does not change the samples.  docs/ppo.md has the objective
and every setting.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from rm_methods.errors import UserError
from rm_methods.files import content_hash, damage, read_json, seal, write_json, written_atomically
from rm_methods.policies.log_probabilities import token_log_probabilities
from rm_methods.policies.policy import Prompt, save_policy
from rm_methods.policies.sampling import NotFinite, check_prompts, derived_seed, policy_hash
from rm_methods.ppo import losses as ppo_math
from rm_methods.ppo.learner import Learner, ZeroLearner
from rm_methods.ppo.ranks import Ranks
from rm_methods.ppo.records import Records, evaluation_means, measures, reward_hacking
from rm_methods.ppo.reward_transforms import RewardTransform, needs_references
from rm_methods.ppo.rewards import Reward, rewards_of
from rm_methods.ppo.rollouts import Actors, Rollouts, collect
from rm_methods.ppo.settings import PPOSettings
from rm_methods.system.cpu import prepare_cpu
from rm_methods.system.progress import Progress


def train_ppo(
    settings: PPOSettings,
    *,
    policy_folder: str | Path,
    reward: Reward,
    gold: Reward,
    prompts: Sequence[Prompt],
    evaluation_prompts: Sequence[Prompt],
    seed: int,
    out_folder: str | Path,
    work_folder: str | Path,
    references: Mapping[str, Sequence[str]] | None = None,
    threads: int = 0,
    attention: str = "auto",
    deepspeed: str | None = None,
) -> dict[str, Any]:
    """Optimize a policy against a proxy reward.

    Args:
        policy_folder: the policy to start from (usually after supervised fine-tuning); it is also the reference of the
            KL penalty.
        reward: the proxy, (prompts, responses) -> float64 [B].
        gold: the gold reward, in the same form; it is only reported.
        prompts: for learning.  With standardized or reference-based rewards, each needs stored responses.
        evaluation_prompts: for evaluation, with the same random numbers each time.
        seed: of sampling and of the order of prompts.
        out_folder: gets `policy/` (a plain causal-language-model folder), `evaluation.parquet`, `metrics.jsonl`,
            `summary.json`.
        work_folder: for unfinished files and checkpoints; a run that was killed continues from the last one.  Removed
            at the end.
        references: prompt id -> stored responses of the starting policy
            (`rm_methods.policies.sampling.read_references`).
        attention: implementation of transformers, of the policy and its reference.
        deepspeed: a shipped configuration's name or a file with stage 1, 2 or 3, to shard policy and optimizer over the
            ranks that torchrun started; None keeps them whole on each rank.

    Returns:
        The summary that was written; an empty dictionary on ranks other than the first.  A run that diverged ends
        early with the policy of its last good evaluation and says so under `stopped`.

    Raises:
        UserError: unusable prompts, policy or references, a reward that is not finite, or a work folder of another run.
    """
    prepare_cpu(threads)
    run = PPO(
        settings,
        policy_folder=policy_folder,
        reward=reward,
        gold=gold,
        prompts=prompts,
        evaluation_prompts=evaluation_prompts,
        seed=seed,
        work=Path(work_folder),
        references=references,
        attention=attention,
        deepspeed=deepspeed,
    )
    run.train()
    return run.finish(Path(out_folder))


class PPO:
    """One run; see `train_ppo`."""

    def __init__(
        self,
        settings: PPOSettings,
        *,
        policy_folder: str | Path,
        reward: Reward,
        gold: Reward,
        prompts: Sequence[Prompt],
        evaluation_prompts: Sequence[Prompt],
        seed: int,
        work: Path,
        references: Mapping[str, Sequence[str]] | None,
        attention: str,
        deepspeed: str | None,
    ):
        self.started = time.monotonic()
        self.settings = settings
        self.seed = seed
        self.work = work
        self.ranks = Ranks()
        self.prompts = list(prompts)
        self.evaluation_prompts = list(evaluation_prompts)
        check_prompts(self.prompts, "prompts")
        check_prompts(self.evaluation_prompts, "evaluation prompts")
        self.learner: Learner
        zero: dict[str, Any] | None = None
        if deepspeed:
            zero_learner = ZeroLearner(policy_folder, attention, settings, self.ranks, deepspeed=deepspeed)
            zero = zero_learner.config["zero_optimization"]
            self.learner = zero_learner
        else:
            self.learner = Learner(policy_folder, attention, settings, self.ranks)
        policy = self.learner.policy
        self.ids, cut = policy.encode_prompts([p.messages for p in self.prompts], settings.max_prompt_tokens)
        self.evaluation_ids, evaluation_cut = policy.encode_prompts(
            [p.messages for p in self.evaluation_prompts], settings.max_prompt_tokens
        )
        policy.check_room([*self.ids, *self.evaluation_ids], settings.max_new_tokens)
        self.cut = sum(cut) + sum(evaluation_cut)
        self.actors = Actors(self.learner, reward, gold)
        self.transform = self._transform(references)
        self.kl_coefficient = settings.kl_coefficient
        self.stopped: dict[str, Any] | None = None
        # The policy of the last good evaluation; its weights are held by the first rank only.
        self.good_step = 0
        self.good_weights: dict[str, torch.Tensor] | None = None
        self.resumed = False
        # Only the first rank writes, so only it has records.
        self.records: Records | None = None
        prompt_ids = [[prompt.prompt_id for prompt in group] for group in (self.prompts, self.evaluation_prompts)]
        inputs = [policy_hash(policy_folder), prompt_ids, self.ids, self.evaluation_ids]
        self.fingerprint = content_hash([asdict(settings), seed, *inputs, zero])

    def _transform(self, references: Mapping[str, Sequence[str]] | None) -> RewardTransform:
        """The reward transform, with the proxy's scores of the stored responses to the prompts."""
        scores: dict[str, Any] = {}
        if needs_references(self.settings.transform, self.settings.standardize) and references:
            rows = [(prompt, text) for prompt in self.prompts for text in references.get(prompt.prompt_id, ())]
            with self.actors.timed("references"):
                proxy = rewards_of(
                    self.actors.reward, "proxy reward", [prompt for prompt, _ in rows], [text for _, text in rows]
                )
            scores = {prompt.prompt_id: [] for prompt in self.prompts}
            for (prompt, _), score in zip(rows, proxy, strict=True):
                scores[prompt.prompt_id].append(score)
        return RewardTransform(self.settings.transform, scores, self.settings.standardize, self.settings.clip_width)

    def train(self) -> None:
        """All remaining updates, with evaluations and checkpoints between them."""
        settings = self.settings
        first = self._resume()
        if self.ranks.first:
            self.records = Records(self.work, first if self.resumed else None)
        progress = Progress(f"PPO seed {self.seed}", settings.updates, first)
        for step in range(first, settings.updates + 1):
            is_evaluated = step % settings.evaluate_every == 0 or step == settings.updates
            # A resumed run was evaluated before its checkpoint was written.
            if is_evaluated and not (self.resumed and step == first):
                self._evaluate(step)
            if self.stopped or step == settings.updates:
                break
            if settings.checkpoint_every and step % settings.checkpoint_every == 0 and step > first:
                self._save_checkpoint(step)
            line = self._update(step)
            if self.records is not None:
                elapsed = self.records.before + time.monotonic() - self.started
                self.records.add_update({"step": step + 1, "time": round(elapsed, 3), **line})
            if self.stopped:
                break
            if self.ranks.first:
                progress.advance(1, "  ".join(f"{name} {line[name]:.3f}" for name in ("proxy", "gold", "kl")))
        if self.stopped and self.ranks.first:
            print(
                f"PPO stopped: {self.stopped['reason']} The policy of step {self.good_step} is kept.",
                file=sys.stderr,
                flush=True,
            )

    def _evaluate(self, step: int) -> None:
        """Sample the evaluation prompts.  A run that diverges later falls back to the policy of a good evaluation."""
        # Phases inside an evaluation count as evaluation.
        actors = replace(self.actors, seconds=defaultdict(float))
        try:
            with self.actors.timed("evaluation"):
                rollouts = collect(
                    actors, self.evaluation_prompts, self.evaluation_ids, derived_seed(self.seed, "evaluation")
                )
        except NotFinite as error:
            if step == 0:
                raise
            self._stop(step, str(error))
            return
        if self.records is not None and np.isfinite(rollouts.kl).all():
            self.records.add_evaluation(step, rollouts)
        if self._checked(step, rollouts):
            self.good_step = step
            self.good_weights = self.learner.policy_weights()

    def _update(self, step: int) -> dict[str, float]:
        """Sample, score and learn; returns the line of `metrics.jsonl`, measured on the responses before learning."""
        settings = self.settings
        members = batch_members(len(self.prompts), settings.batch_size, step, self.seed)
        batch = [self.prompts[k] for k in members]
        ids = [self.ids[k] for k in members]
        try:
            rollouts = collect(self.actors, batch, ids, derived_seed(self.seed, "rollout", step))
        except NotFinite as error:
            self._stop(step, str(error))
            return {"kl_coefficient": self.kl_coefficient}
        line = measures(rollouts) | {"kl_coefficient": self.kl_coefficient}
        if not self._checked(step, rollouts):
            return line
        rewards_B = self.transform(rollouts.proxy, [prompt.prompt_id for prompt in rollouts.prompts])
        if settings.missing_end_penalty is not None:
            rewards_B = rewards_B - settings.missing_end_penalty * ~rollouts.finished.numpy()
        line["reward"] = float(rewards_B.mean())
        with self.actors.timed("learn"):
            line |= self._learn(step, rollouts, torch.tensor(rewards_B, dtype=torch.float32))
        if settings.kl_target is not None:
            self.kl_coefficient = ppo_math.adapted_kl_coefficient(
                self.kl_coefficient, line["kl"], settings.kl_target, len(members), settings.kl_horizon
            )
        return line

    def _checked(self, step: int, rollouts: Rollouts) -> bool:
        """Whether KL is finite and within the limit; otherwise the run stops."""
        kl = float(rollouts.kl.mean())
        if math.isfinite(kl) and kl <= self.settings.kl_limit:
            return True
        self._stop(
            step, f"the KL divergence from the starting policy is {kl:.4g} nats, kl_limit is {self.settings.kl_limit}."
        )
        return False

    def _stop(self, step: int, reason: str) -> None:
        self.stopped = {"step": step, "reason": reason + " Lower learning_rate, or raise kl_coefficient."}

    def _learn(self, step: int, rollouts: Rollouts, scores: torch.Tensor) -> dict[str, float]:
        """All optimizer steps of an update; returns means over them."""
        settings = self.settings
        rewards = ppo_math.token_rewards(scores, rollouts.log_ratio, rollouts.mask, self.kl_coefficient)
        advantages, returns = ppo_math.advantages_and_returns(
            rewards, rollouts.values, rollouts.mask, settings.gamma, settings.gae_lambda
        )
        advantages = ppo_math.whitened(advantages, rollouts.mask)
        self.learner.set_rates(rate_factor(settings.schedule, step / settings.updates))
        totals: dict[str, list[float]] = {}
        for epoch in range(settings.ppo_epochs):
            order = np.random.default_rng(derived_seed(self.seed, "minibatch", step, epoch)).permutation(len(scores))
            for rows in np.array_split(order, settings.minibatches):
                stats = self._minibatch(rows, rollouts, advantages, returns)
                for name, value in stats.items():
                    totals.setdefault(name, []).append(value)
                if not all(map(math.isfinite, stats.values())):
                    self._stop(step, "a loss or gradient is not finite.")
                    return {name: float("nan") for name in stats}
        return {name: float(np.mean(values)) for name, values in totals.items()}

    def _minibatch(
        self, rows: np.ndarray, rollouts: Rollouts, advantages: torch.Tensor, returns: torch.Tensor
    ) -> dict[str, float]:
        """One optimizer step on the mean over the tokens of the minibatch on all ranks."""
        rank_rows = rows[self.ranks.rank :: self.ranks.size]
        at_once = self.settings.rows_per_forward
        tokens = int(rollouts.mask[rows].sum())
        sums = np.zeros(3)
        starts = range(0, math.ceil(len(rows) / self.ranks.size), at_once)
        for start in starts:
            chunk = rank_rows[start : start + at_once]
            weight = 1.0
            if not len(chunk):
                # DeepSpeed needs the same number of backwards on each rank; a rank without rows has weight 0.
                chunk = rows[:1]
                weight = 0.0
            sums += weight * self._backward(
                chunk, rollouts, advantages, returns, factor=weight / tokens, last=start == starts[-1]
            )
        policy_loss, value_loss, clipped = np.sum(self.ranks.gathered([sums]), axis=0) / tokens
        norm = self.learner.step()
        return {"policy_loss": policy_loss, "value_loss": value_loss, "clip_fraction": clipped, "gradient_norm": norm}

    def _backward(
        self,
        rows: np.ndarray,
        rollouts: Rollouts,
        advantages: torch.Tensor,
        returns: torch.Tensor,
        *,
        factor: float,
        last: bool,
    ) -> np.ndarray:
        """Forward and backward of some responses; returns policy loss, value loss and clipped tokens, summed over
        tokens.

        Args:
            factor: of the summed losses.
            last: whether this is the rank's last call before a step.
        """
        settings = self.settings
        learner = self.learner
        width = int(rollouts.mask[rows].sum(1).max())

        def on_device(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[rows, :width].to(learner.policy.model.device)

        ids = on_device(rollouts.response_ids)
        mask = on_device(rollouts.mask)
        old = on_device(rollouts.log_probabilities)
        old_values = on_device(rollouts.values)
        advantages = on_device(advantages)
        returns = on_device(returns)
        logits, values = learner.forward([rollouts.prompt_ids[row] for row in rows], ids, mask)
        log_probabilities = token_log_probabilities(logits, ids, mask)
        policy_loss, clipped = ppo_math.policy_loss(log_probabilities, old, advantages, mask, settings.clip_range)
        value_loss = ppo_math.value_loss(values, old_values, returns, mask, settings.value_clip_range)
        learner.backward((policy_loss + settings.value_coefficient * value_loss) * factor, last)
        return np.array([policy_loss.item(), value_loss.item(), int(clipped)])

    def _save_checkpoint(self, step: int) -> None:
        first = self.ranks.first
        with written_atomically(self.work / f"checkpoint-{step}") if first else nullcontext() as folder:
            folder = self.ranks.gathered([folder] if first else [])[0]
            if first:
                folder.mkdir()
            self.ranks.wait()
            self.learner.save(folder)
            if first:
                save_file(self.good_weights or {}, folder / "good.safetensors")
                state = {
                    "fingerprint": self.fingerprint,
                    "kl_coefficient": self.kl_coefficient,
                    "good_step": self.good_step,
                }
                write_json(
                    folder / "state.json",
                    state | {"transform": self.transform.state(), "seconds": dict(self.actors.seconds)},
                )
            self.ranks.wait()
            if first:
                seal(folder)
        for older in _checkpoints(self.work)[:-2] if first else []:
            shutil.rmtree(older)

    def _resume(self) -> int:
        """Load the last checkpoint, if one exists; returns the number of updates done."""
        folders = self.ranks.gathered([_whole_checkpoints(self.work)] if self.ranks.first else [[]])[0]
        self.resumed = bool(folders)
        if not folders:
            self.learner.start(None)
            return 0
        folder = folders[-1]
        state = read_json(folder / "state.json")
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                f"{folder} is a checkpoint of another run (settings, seed, policy or prompts differ). Remove "
                f"{self.work}."
            )
        self.learner.start(folder)
        self.good_step = state["good_step"]
        self.good_weights = load_file(folder / "good.safetensors") if self.ranks.first else None
        self.kl_coefficient = state["kl_coefficient"]
        self.transform.load_state(state["transform"])
        self.actors.seconds.update(state["seconds"])
        if self.ranks.first:
            print(f"PPO: resumes from {folder}", file=sys.stderr, flush=True)
        return int(folder.name.rsplit("-", 1)[1])

    def finish(self, out: Path) -> dict[str, Any]:
        """Write the last good policy and the summary; returns the summary (empty on other ranks than the first)."""
        self.ranks.wait()
        if self.records is None:
            return {}
        save_policy(self.learner.policy, out / "policy", self.good_weights)
        evaluations = evaluation_means(self.records.rows)
        summary = {
            "settings": asdict(self.settings),
            "seed": self.seed,
            "policy_step": self.good_step,
            "stopped": self.stopped,
            "prompts": len(self.prompts),
            "evaluation_prompts": len(self.evaluation_prompts),
            "prompts_cut": self.cut,
            "proxy_center": self.transform.center,
            "proxy_scale": self.transform.scale,
            "kl_coefficient": self.kl_coefficient,
            "evaluation": {
                "first": evaluations[0] if evaluations else None,
                "best_gold": max(evaluations, key=lambda row: row["gold"], default=None),
                "last": evaluations[-1] if evaluations else None,
            },
            "reward_hacking": reward_hacking(self.records.rows, self.settings.alarm_margin),
            "wall_seconds": round(self.records.before + time.monotonic() - self.started, 2),
            "seconds": {phase: round(seconds, 2) for phase, seconds in self.actors.seconds.items()},
            "world_size": self.ranks.size,
            "device": str(self.learner.policy.model.device),
        }
        for source in (self.records.metrics, self.records.evaluation):
            with written_atomically(out / source.name) as path:
                shutil.copyfile(source, path)
        write_json(out / "summary.json", summary)
        shutil.rmtree(self.work, ignore_errors=True)
        return summary


def batch_members(prompts: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Positions of the prompts of an update: every pass takes all prompts once, in a new random order."""
    members: list[int] = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        number, within = divmod(position, prompts)
        if not members or within == 0:
            order = np.random.default_rng(derived_seed(seed, "prompts", number)).permutation(prompts)
        members.append(int(order[within]))
    return members


def rate_factor(schedule: str, progress: float) -> float:
    """Learning rate as a share of its first value, at a progress from 0 to 1."""
    return {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[schedule]


def _whole_checkpoints(work: Path) -> list[Path]:
    """Undamaged checkpoints, oldest first; damaged ones are named and removed."""
    whole = []
    for folder in _checkpoints(work):
        fault = damage(folder)
        if fault is None:
            whole.append(folder)
            continue
        print(
            f"PPO: {folder} {fault}; it is removed, and an older one is used if one exists.",
            file=sys.stderr,
            flush=True,
        )
        shutil.rmtree(folder, ignore_errors=True)
    return whole


def _checkpoints(work: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(work.glob("checkpoint-*"), key=lambda folder: int(folder.name.rsplit("-", 1)[1]))
