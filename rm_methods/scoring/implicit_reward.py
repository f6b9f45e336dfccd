"""The implicit reward of a policy that was trained by DPO, against its reference.

    r(x, y) = sum over the tokens of y of log pi(y_t | x, y_<t) - log pi_ref(y_t | x, y_<t)

Rafailov et al. 2023 (arXiv 2305.18290), section 4, without the factor beta and without the part that depends on the
prompt alone: neither changes a comparison.  As allenai/reward-bench, rewardbench/dpo.py.  Each text is computed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.reward_models.tokenization import ChatTokenizer, TokenizedItem
from rm_methods.scoring.model_source import model_folder
from rm_methods.scoring.scorer import RewardModelScorer, ScoringSettings
from rm_methods.system.cpu import prepare_cpu

NONE = "none"


class ImplicitRewardScorer(RewardModelScorer):
    """Scores with a policy and its reference.

    Args:
        policy, reference: causal language models; reference None counts as 0, so the score is a log-probability.
        about_reference: names the reference, for the report.
    """

    def __init__(
        self, policy, reference, tokenizer: ChatTokenizer, settings: ScoringSettings, about_reference: str = NONE
    ):
        self.policy = policy
        self.reference = reference
        self.tokenizer: ChatTokenizer = tokenizer
        self.settings = settings
        self.about_reference = about_reference

    @classmethod
    def from_folders(
        cls, folder: Path, reference: str, settings: ScoringSettings, chat_template: str | None = None
    ) -> ImplicitRewardScorer:
        """Load both models.

        Args:
            reference: folder or hub id, or "none".
            chat_template: text of a Jinja template, in place of the tokenizer's.

        Raises:
            UserError: a model cannot be read, or the two have different tokens.
        """
        from transformers import AutoModelForCausalLM

        from rm_methods.reward_models.backbones import load_tokenizer
        from rm_methods.reward_models.loading import length_within_positions, pretrained_model, pretrained_tokenizer

        prepare_cpu(settings.threads, settings.precision)
        policy, _ = pretrained_model(AutoModelForCausalLM, folder, attention=settings.attention)
        max_length = length_within_positions(folder, policy.config, settings.max_length)
        tokenizer = load_tokenizer(folder, max_length, chat_template)
        other = None
        if reference != NONE:
            source = model_folder(reference, what="--reference")
            _check_same_tokens(reference, pretrained_tokenizer(source), tokenizer.tokenizer)
            other, _ = pretrained_model(AutoModelForCausalLM, source, attention=settings.attention)
        return cls(_placed(policy), None if other is None else _placed(other), tokenizer, settings, reference)

    @property
    def _layout(self) -> str:
        return "plain"

    @property
    def _tokens_per_batch(self) -> int:
        return 0  # each text gets a separate forward

    def computation(self) -> dict[str, Any]:
        """How scores are computed, for the report."""
        return {
            "reward": "sum of log-probabilities of the response's tokens less those under the reference",
            "reference": self.about_reference,
            "precision": self.settings.precision,
            "layout": self._layout,
            "max_length": self.tokenizer.max_length,
            "template": self.tokenizer.template,
        }

    def _rewards(self, encoded: Sequence[TokenizedItem]) -> list[list[float]]:
        rewards = []
        for item in encoded:
            start = max(item.shared, 1)  # the first token of a text is predicted by nothing
            rewards.append([self._reward(ids, start) for ids in item.sequences])
        return rewards

    def _reward(self, ids, start: int) -> float:
        """The implicit reward of the tokens from `start` on."""
        reward = self._log_probability(self.policy, ids, start)
        if self.reference is not None:
            reward -= self._log_probability(self.reference, ids, start)
        return reward

    def _log_probability(self, model, ids, start: int) -> float:
        """Sum of the log-probabilities of the tokens from `start` on."""
        import torch

        if start >= len(ids):
            return 0.0
        device = next(model.parameters()).device
        ids_1L = torch.from_numpy(ids.astype("int64"))[None].to(device)
        targets_T = ids_1L[0, start:]
        autocast = self.settings.precision == "bf16"
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            logits_TV = model(input_ids=ids_1L, use_cache=False, logits_to_keep=len(targets_T) + 1).logits[0, :-1]
        return -float(torch.nn.functional.cross_entropy(logits_TV.float(), targets_T, reduction="sum"))


def _placed(model):
    import torch

    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _check_same_tokens(reference: str, other, tokenizer) -> None:
    known = other.get_vocab()
    different = [token for token, number in tokenizer.get_vocab().items() if known.get(token) != number]
    if different:
        raise UserError(
            f"--reference {reference}: {len(different)} tokens of the policy have other ids there, such as "
            f"{min(different)!r}. Name the model that the policy's training started from."
        )


def refuse_reward_model(folder: Path) -> None:
    """Raises UserError for a folder whose weights hold a reward head: it needs no reference."""
    from rm_methods.reward_models.published_head import stored_head

    if (head := stored_head(folder)) is not None:
        raise UserError(
            f"{folder}: this is a reward model (its weights hold '{head.name}'), so leave --reference out. A reference "
            "makes an implicit reward of a causal language model."
        )
