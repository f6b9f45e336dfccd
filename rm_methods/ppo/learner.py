"""The weights that PPO learns and their optimizer: whole on every rank, or sharded by DeepSpeed's ZeRO.

ZeRO 1 and 2 shard the optimizer (and its gradients); policy and reference stay whole on every rank.  ZeRO-3 shards
them, too, and gathers each layer for its use, so all ranks must run the same forwards (`Learner.in_step`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model

from rm_methods.policies.log_probabilities import read_responses
from rm_methods.policies.policy import Policy, load_policy
from rm_methods.ppo.ranks import Ranks
from rm_methods.ppo.settings import PPOSettings
from rm_methods.system.deepspeed import check_installed, configuration_file
from rm_methods.system.memory import check_offload
from rm_methods.training.resume import fitted_to, restore_settings


class PolicyWithValues(torch.nn.Module):
    """The policy's language model, and a value head that reads its last hidden states (fp32, zero at the start)."""

    def __init__(self, policy: Policy, autocast: torch.dtype | None):
        super().__init__()
        self.language_model = policy.model
        self.pad_id = policy.pad_id
        self.autocast = autocast
        self.value_head = torch.nn.Linear(policy.model.get_output_embeddings().in_features, 1).to(policy.model.device)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)

    def forward(
        self, prompt_ids: Sequence[Sequence[int]], response_ids: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits fp32 [B, T, V] that the response's tokens int64 [B, T] were drawn from, and values fp32 [B, T] at
        the same positions."""
        logits, hidden = read_responses(self.language_model, prompt_ids, response_ids, mask, self.pad_id, self.autocast)
        return logits, self.value_head(hidden)[..., 0]


class Learner:
    """Policy and value head, whole on every rank; gradients are summed before each step.

    Attributes:
        policy: the sampled policy; it shares its weights with `module`.
        reference: a frozen copy of the policy at the start.
        module: the trained weights: policy and value head.
        forward: called for every forward that a `backward` follows.
        in_step: whether all ranks must run the same forwards.
    """

    in_step = False
    forward: Any  # the module, or DeepSpeed's engine around it
    optimizer: Any  # AdamW, or DeepSpeed's optimizer around it

    def __init__(self, folder: str | Path, attention: str, settings: PPOSettings, ranks: Ranks):
        self.settings = settings
        self.ranks = ranks
        with self._loading():
            self.policy = load_policy(folder, attention=attention)
            reference = load_policy(folder, attention=attention)
        self.reference = reference.model.requires_grad_(False)
        self.module = PolicyWithValues(self.policy, self.autocast)
        # The learning rates of policy and value head in units of the setting.
        self.factors = (1.0, settings.value_rate_factor)

    @property
    def autocast(self) -> torch.dtype | None:
        """Type of matrix products, or None."""
        return torch.bfloat16 if self.settings.precision == "bf16" else None

    def start(self, checkpoint: Path | None) -> None:
        """Make the optimizer and load what `save` wrote, if a checkpoint is given.  Called once, on all ranks."""
        self.forward = self.module
        self.optimizer = self._adamw()
        if checkpoint:
            load_model(self.policy.model, str(checkpoint / "policy.safetensors"))
            load_model(self.module.value_head, str(checkpoint / "value_head.safetensors"))
            self.optimizer.load_state_dict(
                torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
            )

    def save(self, folder: Path) -> None:
        """Write weights and optimizer into an existing folder.  Called on all ranks."""
        if self.ranks.first:
            save_model(self.policy.model, str(folder / "policy.safetensors"))
            save_model(self.module.value_head, str(folder / "value_head.safetensors"))
            torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")

    def set_rates(self, share: float) -> None:
        """Learning rates as a share of their first value."""
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = self.settings.learning_rate * factor * share

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the gradients of a loss; the gradients of all ranks and calls are summed.

        Args:
            last: whether this is the rank's last call before a step.
        """
        loss.backward()

    def step(self) -> float:
        """One optimizer step with clipped gradients, which are then cleared; returns their norm before clipping."""
        parameters = [*self.module.parameters()]
        self.ranks.sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def policy_weights(self) -> dict[str, torch.Tensor] | None:
        """A copy of the policy's whole weights in main memory; None on ranks other than the first.  Called on all
        ranks."""
        if not self.ranks.first:
            return None
        return {name: weight.detach().cpu().clone() for name, weight in self.policy.model.state_dict().items()}

    def _loading(self):
        return nullcontext()

    def _adamw(self) -> torch.optim.AdamW:
        settings = self.settings
        groups = [{"params": [*part.parameters()]} for part in (self.policy.model, self.module.value_head)]
        return torch.optim.AdamW(
            groups, settings.learning_rate, settings.adam_betas, weight_decay=settings.weight_decay, fused=True
        )


class ZeroLearner(Learner):
    """Policy and value head under ZeRO.

    Args:
        deepspeed: a shipped configuration's name, or a file.
    """

    def __init__(self, folder: str | Path, attention: str, settings: PPOSettings, ranks: Ranks, *, deepspeed: str):
        check_installed("overoptimization.ppo.deepspeed", deepspeed)
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from deepspeed import init_distributed

        init_distributed(dist_backend=None if torch.cuda.is_available() else "gloo", verbose=False)
        self.config = filled_configuration(deepspeed, settings, ranks.size, folder)
        self.in_step = self.config["zero_optimization"]["stage"] == 3
        super().__init__(folder, attention, settings, ranks)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """With ZeRO-3, transformers shards models that it loads inside this context."""
        from transformers.integrations import HfDeepSpeedConfig
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        kept = HfDeepSpeedConfig(self.config)  # transformers holds only a weak reference
        yield
        unset_hf_deepspeed_config()
        del kept

    def start(self, checkpoint: Path | None) -> None:
        from deepspeed import initialize

        zero = self.config["zero_optimization"]
        nodes = self.ranks.size // int(os.environ.get("LOCAL_WORLD_SIZE", self.ranks.size))
        check_offload(sum(getattr(p, "ds_numel", p.numel()) for p in self.module.parameters()), zero, nodes)
        if self.in_step:
            forwards_only = {key: value for key, value in zero.items() if key != "offload_optimizer"}
            self.reference = initialize(
                model=self.reference, config=self.config | {"zero_optimization": forwards_only}
            )[0].module.eval()
        universal = self.ranks.gathered(
            [checkpoint and fitted_to(checkpoint, self.ranks.size)] if self.ranks.first else []
        )[0]
        config = self.config | ({"checkpoint": {"load_universal": True}} if universal else {})
        self.forward, self.optimizer, _, _ = initialize(model=self.module, optimizer=self._adamw(), config=config)
        self.module.eval()  # `initialize` turns on training mode, and so dropout
        if checkpoint:
            self.forward.load_checkpoint(str(checkpoint))
        if universal:
            restore_settings(self.optimizer.optimizer, [self.settings.weight_decay] * 2)

    def save(self, folder: Path) -> None:
        self.forward.save_checkpoint(str(folder))

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self.forward.set_gradient_accumulation_boundary(last)
        self.forward.backward(loss * self.ranks.size)  # DeepSpeed takes the mean over ranks

    def step(self) -> float:
        self.forward.step()
        return float(self.forward.get_global_grad_norm())

    def policy_weights(self) -> dict[str, torch.Tensor] | None:
        import deepspeed

        weights = {}
        for name, weight in self.policy.model.state_dict(keep_vars=True).items():
            with deepspeed.zero.GatheredParameters([weight], enabled=hasattr(weight, "ds_id")):
                if self.ranks.first:
                    weights[name] = weight.detach().cpu().clone()
        return weights if self.ranks.first else None


def filled_configuration(deepspeed: str, settings: PPOSettings, ranks: int, policy: str | Path) -> dict[str, Any]:
    """A DeepSpeed configuration whose "auto" values are filled in from PPO's settings; buffers as the Trainer of
    transformers sizes them.

    Args:
        deepspeed: a shipped configuration's name, or a file.
        policy: folder of the policy, for its width.
    """
    from rm_methods.reward_models.loading import pretrained_config

    width = pretrained_config(policy).get_text_config().hidden_size
    values = {
        "train_batch_size": ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_gradient_norm,
        "reduce_bucket_size": width * width,
        "stage3_prefetch_bucket_size": int(0.9 * width * width),
        "stage3_param_persistence_threshold": 10 * width,
    }

    def filled(content: dict[str, Any]) -> dict[str, Any]:
        inner = {key: filled(value) if isinstance(value, dict) else value for key, value in content.items()}
        return {key: values.get(key, value) if value == "auto" else value for key, value in inner.items()}

    file = configuration_file(deepspeed)
    assert file is not None, "a configuration that is named has a file, or configuration_file raises"
    return filled(json.loads(Path(file).read_text(encoding="utf-8")))
