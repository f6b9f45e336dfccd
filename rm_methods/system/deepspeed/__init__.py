"""The shipped DeepSpeed configurations (zero0 to zero3, zero3_offload), and checks of a user's configuration.

"auto" values are filled in from the training settings.  DeepSpeed is an optional dependency: `check_installed` comes
before every import of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError, nearest
from rm_methods.files import file_hash

FOLDER = Path(__file__).parent


def configuration_file(name: str | None) -> str | None:
    """The JSON file of `training.deepspeed`: a shipped name or a path; None for none.

    Raises:
        UserError: neither a shipped configuration nor a file, or options that do not go together.
    """
    if not name:
        return None
    shipped = FOLDER / f"{name}.json"
    path = shipped if os.path.isfile(shipped) else Path(name)
    if not os.path.isfile(path):
        raise UserError(
            f"'{name}' is neither a shipped configuration nor a JSON file. "
            f"{nearest(name, [p.stem for p in FOLDER.glob('*.json')])}"
        )
    if problems := configuration_problems(_read(path)):
        raise UserError(f"{path}: {'; '.join(problems)}")
    return str(path)


def check_installed(setting: str, name: str | None) -> None:
    """Refuse a configuration of DeepSpeed where the package is missing.

    Args:
        setting: key path of the setting, for the message.
        name: value of the setting; None needs no DeepSpeed.

    Raises:
        UserError: DeepSpeed is not installed.
    """
    if name and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            f"{setting}: '{name}' needs the package deepspeed, which is not installed. Install it with "
            "`pip install 'rm-methods[deepspeed]'` (in a checkout: `make setup`), or set it to null."
        )


def custom_file_hash(name: str | None) -> str | None:
    """Hash of a user's configuration file; None for none and for shipped ones, which count as code."""
    file = configuration_file(name)
    return None if file is None or Path(file).parent == FOLDER else file_hash(Path(file))


def zero_settings(name: str | None) -> dict[str, Any]:
    """The `zero_optimization` section of `training.deepspeed`; stage 0 without DeepSpeed."""
    file = configuration_file(name)
    return {"stage": 0} | (_read(Path(file)).get("zero_optimization", {}) if file else {})


def configuration_problems(content: dict[str, Any]) -> list[str]:
    """The problems of a DeepSpeed configuration for this trainer, one sentence each."""
    zero = content.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        return [f"zero_optimization.stage: {stage!r} is not 0, 1, 2 or 3"]
    problems = []
    optimizer = (zero.get("offload_optimizer") or {}).get("device", "none")
    parameters = (zero.get("offload_param") or {}).get("device", "none")
    if optimizer != "none" and stage == 0:
        problems.append(f"zero_optimization.offload_optimizer: {optimizer!r} needs stage 1, 2 or 3, the stage is 0")
    if parameters != "none" and stage < 3:
        problems.append(f"zero_optimization.offload_param: {parameters!r} needs stage 3, the stage is {stage}")
    if "nvme" in (optimizer, parameters) and stage < 3:
        problems.append(
            f"zero_optimization: offload to nvme needs stage 3, the stage is {stage}; offload to cpu, or take stage 3"
        )
    if stage == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        problems.append(
            "zero_optimization.stage3_gather_16bit_weights_on_model_save: must be true, or the model could not be saved"
        )
    if "optimizer" in content:
        problems.append(
            "optimizer: must be left out; the settings define it, and DeepSpeed's would also decay norms and biases"
        )
    for key in ("fp16", "bf16"):
        if (content.get(key) or {}).get("enabled"):
            problems.append(
                f"{key}.enabled: must be off; training.precision casts the backbone and leaves weights and head in fp32"
            )
    for key in ("gradient_accumulation_steps", "train_micro_batch_size_per_gpu"):
        if content.get(key, "auto") not in ("auto", 1):
            problems.append(
                f"{key}: must be 'auto', not {content[key]!r}; training.tokens_per_microbatch cuts the steps"
            )
    return problems


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error}).") from None
    if not isinstance(content, dict) or not isinstance(content.get("zero_optimization", {}), dict):
        raise UserError(
            f"{path}: not a DeepSpeed configuration: an object with an object zero_optimization is expected."
        )
    return content
