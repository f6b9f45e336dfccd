"""Folders that hold only adapters of PEFT: the base model is loaded, and the adapters are merged into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.files import read_json
from rm_methods.reward_models.model_folder import check_checksums
from rm_methods.scoring.model_options import ModelOptions
from rm_methods.scoring.model_source import model_folder

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def holds_only_adapters(folder: Path) -> bool:
    """Whether a folder has adapters and no whole model."""
    return (folder / CONFIG).is_file() and not any(folder.glob("model*.safetensors"))


def base_folder(folder: Path) -> Path:
    """The folder of the base model that the adapters name; a hub id is fetched.

    Raises:
        UserError: they name none, or it cannot be fetched.
    """
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{folder / CONFIG}: base_model_name_or_path is missing. Write the base model's folder there.")
    beside = folder / base
    return beside if beside.is_dir() else model_folder(base, what=f"{folder}: base model")


def folders_of_weights(folder: Path, options: ModelOptions) -> list[Path]:
    """The folders that a model's scores depend on: its own, that of the base of adapters, and that of the reference.

    Raises:
        UserError: the base or the reference cannot be fetched.
    """
    folders = [folder]
    if holds_only_adapters(folder):
        folders.append(base_folder(folder))
    if options.reference not in (None, "none"):
        folders.append(model_folder(str(options.reference), what="--reference"))
    return folders


def merged_classifier(folder: Path, *, attention: str = "auto"):
    """A sequence-classification model with one output: the base model with the adapters merged into it.

    Raises:
        UserError: files are missing, the adapters fit another model, or nothing holds the head.
    """
    import peft
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    from rm_methods.reward_models.loading import adapter_settings, load_errors_explained, pretrained_model

    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder}: {WEIGHTS} is missing. Pickled adapters (adapter_model.bin) can run code and are never read: "
            "load them where you trust them, and save them again."
        )
    check_checksums(folder)
    base = base_folder(folder)
    classifier, head_is_new = pretrained_model(
        AutoModelForSequenceClassification, base, attention=attention, new_head=True, num_labels=1
    )
    with load_errors_explained(folder):
        adapted = peft.get_peft_model(classifier, adapter_settings(folder))
        tensors = load_file(folder / WEIGHTS)
        report: Any = peft.set_peft_model_state_dict(adapted, tensors)
    lost = [name for name in report.missing_keys if ".lora_" in name or ".modules_to_save." in name]
    if report.unexpected_keys or lost:
        what = [f"{len(report.unexpected_keys)} tensors are not used"] if report.unexpected_keys else []
        what += [f"{len(lost)} are missing"] if lost else []
        first = (list(report.unexpected_keys) or lost)[0]
        raise UserError(
            f"{folder}: the adapters do not fit {base}: {' and '.join(what)}, the first is {first}. Name the base "
            f"model that they were trained on in {CONFIG}."
        )
    if head_is_new and not any(".score." in name for name in tensors):
        raise UserError(
            f"{folder}: neither the adapters nor {base} hold the reward head (score.weight). Save the adapters again "
            "with task_type SEQ_CLS, or with modules_to_save: [score]."
        )
    merged = adapted.merge_and_unload()
    merged.score = getattr(merged.score, "modules_to_save", {}).get("default", merged.score)
    return merged.eval()
