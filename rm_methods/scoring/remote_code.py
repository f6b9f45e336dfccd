"""Reward models that need the Python code in their folder, run only where the user says so.

The model gets one text at a time, `input_ids` and `attention_mask`, and returns one number: as `logits`, `score`,
`scores`, `reward`, `rewards`, `end_scores`, or as the output itself.  Weights are read from safetensors, as always.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.files import file_hash, read_json
from rm_methods.reward_models.tokenization import ChatTokenizer, TokenizedItem
from rm_methods.scoring.scorer import RewardModelScorer, ScoringSettings
from rm_methods.system.cpu import prepare_cpu

_OUTPUTS = ("logits", "score", "scores", "reward", "rewards", "end_scores")
_CLASSES = ("AutoModelForSequenceClassification", "AutoModel", "AutoModelForCausalLM")


class RemoteCodeScorer(RewardModelScorer):
    """Scores with a model whose code comes with it.

    Args:
        model: called with `input_ids` and `attention_mask`, int64 [1, L].
        code: hash of each Python file of the folder, for the report.
    """

    def __init__(self, model, tokenizer: ChatTokenizer, settings: ScoringSettings, code: dict[str, str]):
        self.model = model
        self.tokenizer: ChatTokenizer = tokenizer
        self.settings = settings
        self.code = code

    @classmethod
    def from_folder(cls, folder: Path, settings: ScoringSettings, chat_template: str | None = None) -> RemoteCodeScorer:
        """Load the model with its code.

        Raises:
            UserError: the folder has no code, or cannot be read.
        """
        import torch

        from rm_methods.reward_models.loading import model_with_code
        from rm_methods.reward_models.model_folder import check_model_folder

        config = read_json(folder / "config.json")
        classes = config.get("auto_map") or {}
        name = next((name for name in _CLASSES if name in classes), None)
        if name is None:
            raise UserError(
                f"{folder}: config.json names no model class with code (auto_map has {', '.join(classes) or 'nothing'}"
                f"; one of {', '.join(_CLASSES)} is needed). Leave --trust-remote-code out."
            )
        check_model_folder(folder)
        prepare_cpu(settings.threads, settings.precision)
        model, tokenizer = model_with_code(folder, name)
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        code = {file.name: file_hash(file, length=64) for file in sorted(folder.glob("*.py"))}
        return cls(model, ChatTokenizer(tokenizer, settings.max_length), settings, code)

    @property
    def _layout(self) -> str:
        return "plain"

    @property
    def _tokens_per_batch(self) -> int:
        return 0  # each text gets a separate forward: nothing is known of how the code treats padding

    def computation(self) -> dict[str, Any]:
        """How scores are computed, for the report."""
        return {
            "remote_code": self.code,
            "class": type(self.model).__name__,
            "precision": self.settings.precision,
            "layout": self._layout,
            "max_length": self.tokenizer.max_length,
            "template": self.tokenizer.template,
        }

    def _rewards(self, encoded: Sequence[TokenizedItem]) -> list[list[float]]:
        return [[self._reward(ids) for ids in item.sequences] for item in encoded]

    def _reward(self, ids) -> float:
        import torch

        device = next(self.model.parameters()).device
        ids_1L = torch.from_numpy(ids.astype("int64"))[None].to(device)
        autocast = self.settings.precision == "bf16"
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            output = self.model(input_ids=ids_1L, attention_mask=torch.ones_like(ids_1L))
        return one_number(output, type(self.model).__name__)


def one_number(output: Any, model_class: str) -> float:
    """The reward in the output of a model for one text.

    Raises:
        UserError: no output of a known name is one number.
    """
    import torch

    candidates = {"its output": output} if isinstance(output, torch.Tensor) else {}
    for name in _OUTPUTS:
        value = output.get(name) if isinstance(output, dict) else getattr(output, name, None)
        if isinstance(value, torch.Tensor):
            candidates[name] = value
    for value in candidates.values():
        if value.numel() == 1:
            return float(value)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in candidates.items())
    raise UserError(
        f"{model_class}: no output is one number for one text ({shapes or 'no tensor of these names'}; looked for "
        f"{', '.join(_OUTPUTS)}). Convert the model to a classifier with one output, or score with its own program and "
        "grade the table with `rm-methods evaluate`."
    )
