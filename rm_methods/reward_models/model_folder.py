"""Checks the files of a model folder before transformers reads them: names damaged ones and those of another kind.

Checksums show later changes.  `SHA256SUMS` has the format of `sha256sum`, so `sha256sum -c SHA256SUMS` checks a folder
without this package.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError, nearest, nearest_path
from rm_methods.files import content_hash, read_json, write_text
from rm_methods.validation import kind_of

CHECKSUMS = "SHA256SUMS"
MODEL_CARD = "README.md"
JOINT_RECORD = "joint.json"  # marks a model folder as that of a joint model
IMPLICIT_REWARD_RECORD = "implicit_reward.json"  # marks a model folder as that of a policy with its reference
_LFS_POINTER = b"version https://git-lfs"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHA256_DIGITS = 64


def write_checksums(folder: str | Path) -> None:
    """Write `SHA256SUMS`, one line for each other file of the folder, as the last step of an export.

    The model card is left out: it gets its metrics after the evaluation, and no score depends on it.
    """
    folder = Path(folder)
    files = sorted(
        file.name for file in folder.iterdir() if file.is_file() and file.name not in (CHECKSUMS, MODEL_CARD)
    )
    write_text(folder / CHECKSUMS, "".join(f"{_sha256(folder / name)}  {name}\n" for name in files))


def weights_hash(folder: str | Path) -> str | None:
    """One hash of the weight files of an exported folder, from its `SHA256SUMS`; None if it holds no weights.

    Folders of equal weights in equally named files have one hash, whatever else they hold.
    """
    lines = (Path(folder) / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    weights = sorted(line for line in lines if line.endswith(".safetensors"))
    return content_hash(weights) if weights else None


def check_checksums(folder: str | Path) -> None:
    """Compare a model folder with its `SHA256SUMS`; a folder without this file is not checked.

    Raises:
        UserError: a file was changed or removed since the folder was written, or `SHA256SUMS` is damaged.
    """
    folder = Path(folder)
    if not (folder / CHECKSUMS).is_file():
        return
    changed = []
    for number, line in enumerate(
        (folder / CHECKSUMS).read_text(encoding="utf-8", errors="replace").splitlines(), start=1
    ):
        digest, _, name = line.partition("  ")
        if len(digest) != _SHA256_DIGITS or not name or Path(name).name != name:
            raise UserError(
                f"{folder / CHECKSUMS}, line {number}: not a checksum and a file name. Make the model folder again."
            )
        file = folder / name
        if not file.is_file():
            changed.append(f"{name} (missing)")
            continue
        status = file.stat()
        if _sha256_of_version(file, status.st_size, status.st_mtime_ns) != digest:
            changed.append(name)
    if changed:
        raise UserError(
            f"{folder}: {', '.join(changed)} changed since the folder was written ({CHECKSUMS}). Make the model again, "
            f"or copy it again; if the change is meant, remove {CHECKSUMS}."
        )


def check_model_folder(folder: str | Path, setting: str | None = None) -> None:
    """Refuse a local model folder with damaged files or files of another kind; reads headers only, no weights.

    Args:
        setting: key path of the setting that names the folder, for messages.

    Raises:
        UserError: says which file is wrong and what would work.
    """
    folder = Path(folder)
    name = named(folder, setting)
    check_config(folder, setting)
    config = read_json(folder / "config.json")
    if (method := _quantization(config)) is not None:
        raise UserError(
            f"{name}: the weights are quantized ({method}), which is not supported. Use the unquantized model."
        )
    if (folder / "adapter_config.json").is_file():
        raise _adapters(folder, name)
    files = weight_files(folder, name)
    check_checksums(folder)
    for file in files:
        _check_safetensors(file, name)


def check_config(folder: str | Path, setting: str | None = None) -> None:
    """Refuse a folder that does not exist, holds Git LFS pointers, or has no usable config.json.

    Raises:
        UserError: says which file is wrong and what would work.
    """
    folder = Path(folder)
    name = named(folder, setting)
    if not folder.is_dir():
        raise UserError(f"{name}: no such model folder.{nearest_path(folder, folders_only=True)}")
    try:
        pointers = [
            file.name for file in sorted(folder.iterdir()) if file.is_file() and _starts_with(file, _LFS_POINTER)
        ]
    except OSError as error:
        raise UserError(f"{name}: {Path(error.filename or folder).name} cannot be read ({error.strerror}).") from None
    if pointers:
        raise UserError(
            f"{name}: {_some(pointers)} {'is a Git LFS pointer' if len(pointers) == 1 else 'are Git LFS pointers'}, "
            "not the file itself. Run `git lfs pull` where the folder was cloned, or download the model again."
        )
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise _adapters(folder, name)
        raise UserError(
            f"{name}: config.json is missing, so this is no model folder. Name the folder that holds config.json and "
            "weights."
        )
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UserError(
            f"{folder / 'config.json'}: a JSON object is needed, found {kind_of(config)}. Fetch or save the "
            "model again."
        )
    _check_model_type(config, folder / "config.json")


def named(source: str | Path, setting: str | None) -> str:
    """The name of a model in messages: "backbone.source = 'folder'" if a setting names it, otherwise the source."""
    return str(source) if setting is None else f"{setting} = '{source}'"


def _check_model_type(config: dict[str, Any], file: Path) -> None:
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if "auto_map" in config:
        return  # transformers says that such a model needs code, and loading.py what to do
    if model_type is None:
        raise UserError(
            f"{file}: model_type is missing, so the architecture is not known (architectures: "
            f"{config.get('architectures')}). Fetch the model again, or add its model_type."
        )
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UserError(
            f"{file}: model_type {str(model_type)!r} is not known to this version of transformers. "
            f"{_nearest_only(model_type, CONFIG_MAPPING)}Use a model whose architecture is part of transformers."
        )


def _nearest_only(name: object, allowed) -> str:
    """The suggestion of `errors.nearest` without the list, which has hundreds of names here."""
    hint, _, _ = nearest(str(name), allowed).partition("Allowed:")
    return hint


def _quantization(config: dict[str, Any]) -> str | None:
    """The method that weights are quantized with, or None."""
    for section in (config, config.get("text_config")):
        quantization = section.get("quantization_config") if isinstance(section, dict) else None
        if quantization:
            return (
                str(quantization.get("quant_method", "unnamed method"))
                if isinstance(quantization, dict)
                else str(quantization)
            )
    return None


def _adapters(folder: Path, name: str) -> UserError:
    try:
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    except (UserError, AttributeError):
        base = None
    return UserError(
        f"{name}: holds adapters (adapter_config.json) of the base model {base!r}. Merge them into it with PEFT "
        "(AutoPeftModelForSequenceClassification.from_pretrained(...).merge_and_unload().save_pretrained(...)) and "
        "name the merged folder; if the weights beside them are merged already, remove adapter_config.json."
    )


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors files that hold the weights, each checked to be there."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    for file in (folder / _WEIGHTS, folder / _INDEX):
        if file.is_dir() or (file.is_symlink() and not file.exists()):
            raise UserError(
                f"{name}: {file.name} is {'a folder' if file.is_dir() else 'a broken link'}. Fetch the model again."
            )
    if not (folder / _INDEX).is_file():
        raise UserError(f"{name}: {_instead_of_weights(folder)}")
    index = read_json(folder / _INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise UserError(f"{folder / _INDEX}: no 'weight_map' from tensors to files. Fetch or save the model again.")
    shards = sorted(set(shards.values()))
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise UserError(
            f"{name}: {len(missing)} of {len(shards)} files of weights are missing: {_some(missing)}. Fetch them again."
        )
    return [folder / shard for shard in shards]


def _instead_of_weights(folder: Path) -> str:
    """What to do about a folder without safetensors."""
    if pickled := sorted(
        file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern)
    ):
        return (
            f"weights are in pickled files only ({_some(pickled)}), which can run code and are never read. Load the "
            "model with transformers where you trust it, and save it again with save_pretrained, which writes "
            "safetensors."
        )
    if gguf := sorted(file.name for file in folder.glob("*.gguf")):
        return (
            f"weights are in GGUF files only ({_some(gguf)}). A backbone takes one with backbone.gguf_file; other "
            "models need safetensors."
        )
    if other := sorted(file.name for file in folder.glob("*.safetensors")):
        return f"no {_WEIGHTS} or {_INDEX}, only {_some(other)}. Save the model again with save_pretrained."
    return f"no weights ({_WEIGHTS}, or {_INDEX} with its shards). Fetch or save the model again."


def _check_safetensors(file: Path, name: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as stream:
            stream.keys()
    except SafetensorError as error:
        raise UserError(
            f"{name}: {file.name} is cut short or damaged ({error}). Fetch or save the model again."
        ) from None
    except OSError as error:
        raise UserError(f"{name}: {file.name} cannot be read ({error}).") from None


def _starts_with(file: Path, start: bytes) -> bool:
    with open(file, "rb") as stream:
        return stream.read(len(start)) == start


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):  # hashlib.file_digest needs Python 3.11, the package runs on 3.10
            digest.update(block)
    return digest.hexdigest()


@lru_cache(maxsize=1024)
def _sha256_of_version(file: Path, size: int, modified: int) -> str:
    """Hash of a file; an ensemble reads its members many times, so the same version of a file is hashed once."""
    return _sha256(file)
