"""Train only the last layers of a decoder; the states below them are computed without gradients, and may be stored.

Frozen layers give a text the same states in every run, whatever the method, the seed and the step.  A folder of stored
states therefore serves all trainings and scorings of an experiment: each then computes the last layers only.  Attention
is causal, so the states of a prompt do not depend on the response.  They are stored once for each prompt.

The definition is the whole forward (`RewardModel.forward` without `frozen`); `check_frozen` compares both on a few
texts.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from rm_methods.errors import UserError, first_line

if TYPE_CHECKING:
    from rm_methods.reward_models.layouts import SequenceBatch
    from rm_methods.reward_models.model import RewardModel

# Keys of a configuration that change no state.
_NOT_OF_STATES = frozenset(
    {"_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "id2label", "label2id", "num_labels"}
    | {"pad_token_id", "problem_type", "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache"}
)


class _Reached(Exception):
    """Ends a forward at the first trained layer."""


def decoder_layers(classifier: PreTrainedModel) -> tuple[nn.Module, str]:
    """The module that holds the list of layers, and the name of the list in it.

    Raises:
        UserError: the backbone has no list of as many layers as its configuration says.
    """
    backbone = classifier.base_model
    count = getattr(classifier.config.get_text_config(), "num_hidden_layers", None)
    for parent in backbone.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return parent, name
    raise UserError(
        f"training.trained_layers: the layers of {type(classifier).__name__} cannot be told apart (no list of {count} "
        "layers). Set it to null, or use training.lora."
    )


def freeze_lower_layers(classifier: PreTrainedModel, trained: int) -> int:
    """Freeze all that comes before the last `trained` layers: the embeddings and the lower layers.

    Returns:
        The number of frozen layers.

    Raises:
        UserError: the model has no more than `trained` layers, or its layers cannot be told apart.
    """
    parent, name = decoder_layers(classifier)
    layers = getattr(parent, name)
    frozen = len(layers) - trained
    if frozen < 1:
        raise UserError(
            f"training.trained_layers: {trained}, but the backbone has {len(layers)} layers. Use at most "
            f"{len(layers) - 1}, or null, which trains all."
        )
    for module_name, module in parent.named_children():
        if module_name == name:
            break
        module.requires_grad_(False)
    classifier.get_input_embeddings().requires_grad_(False)
    for layer in layers[:frozen]:
        layer.requires_grad_(False)
    return frozen


class FrozenLayers:
    """The frozen part of a reward model.

    Args:
        classifier: its sequence-classification model.
        count: number of frozen layers, from the first.
    """

    def __init__(self, classifier: PreTrainedModel, count: int):
        self.count = count
        self._classifier = classifier
        self._parent, self._name = decoder_layers(classifier)
        self._folder: Path | None = None

    def store_in(self, folder: Path, autocast: torch.dtype | None) -> None:
        """Read states from a folder, and add those that are missing; for packed batches on a CPU.

        Args:
            folder: its parts are named by a hash of the frozen weights, so several backbones may share it.
            autocast: dtype of the matrix products, or None for that of the weights.
        """
        self._folder = folder / _fingerprint(self._classifier, self._layers[: self.count], autocast)

    @property
    def _layers(self) -> nn.ModuleList:
        return getattr(self._parent, self._name)

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Within it, the backbone has its trained layers only."""
        layers = self._layers
        setattr(self._parent, self._name, layers[self.count :])
        try:
            yield
        finally:
            setattr(self._parent, self._name, layers)

    def states(self, batch: SequenceBatch) -> torch.Tensor:
        """Input of the first trained layer, [R, L, hidden], without gradients."""
        if self._folder is None or batch.attention_map is None or batch.input_ids.device.type != "cpu":
            return self._computed(batch)
        lengths = (*batch.attention_map.prompt_lengths, *batch.attention_map.response_lengths)
        keys = _segment_keys(batch)
        stored = [_read(self._folder, key, length) for key, length in zip(keys, lengths, strict=True)]
        known = [states_LH for states_LH in stored if states_LH is not None]
        if len(known) == len(stored):
            return torch.from_numpy(np.concatenate(known))[None]
        states_1TH = self._computed(batch)
        parts = states_1TH[0].split(list(lengths))
        for key, states_LH, before in zip(keys, parts, stored, strict=True):
            if before is None:
                _write(self._folder, key, states_LH.numpy())
        return states_1TH

    @torch.no_grad()
    def _computed(self, batch: SequenceBatch) -> torch.Tensor:
        """The states by a forward of the frozen layers, without dropout."""
        reached = []

        def stop(_, positional, named):
            reached.append(positional[0] if positional else named["hidden_states"])
            raise _Reached

        layers = self._layers
        training = [module for layer in layers[: self.count] for module in layer.modules() if module.training]
        for module in training:
            module.training = False
        packed = {} if batch.attention_map is None else {"attention_map": batch.attention_map}
        handle = layers[self.count].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._classifier.base_model(
                input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **packed
            )
        except _Reached:
            pass
        finally:
            handle.remove()
            for module in training:
                module.training = True
        return reached[0]


def check_frozen(model: RewardModel) -> str | None:
    """Why states below the trained layers cannot be used in place of tokens, or None; compares both on a few texts."""
    from rm_methods.reward_models.layout_probe import frozen_difference, tolerance

    limit = tolerance(next(model.classifier.parameters()).dtype)
    try:
        difference = frozen_difference(model)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # A model may raise any error on an input that its authors never tried.
        return first_line(error)
    if difference <= limit:
        return None
    return f"rewards are off by {difference:.1e} of the spread over texts; rounding is at most {limit:.0e}"


def _fingerprint(classifier: PreTrainedModel, layers: nn.ModuleList, autocast: torch.dtype | None) -> str:
    """A hash of all that the states depend on, besides the text."""
    config = classifier.config.get_text_config()
    shape = {key: value for key, value in config.to_dict().items() if key not in _NOT_OF_STATES}
    described = [type(classifier.base_model).__name__, shape, len(layers), str(autocast)]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    embeddings = classifier.get_input_embeddings()
    for module in (embeddings, *layers):
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _segment_keys(batch: SequenceBatch) -> list[str]:
    """A hash of each prompt of a packed batch, then of each response with its prompt, in the order of the tokens."""
    assert batch.attention_map is not None
    lengths = (*batch.attention_map.prompt_lengths, *batch.attention_map.response_lengths)
    ends = np.cumsum(lengths)
    ids = batch.input_ids[0].numpy().astype(np.int32)
    segments = [ids[end - length : end].tobytes() for end, length in zip(ends, lengths, strict=True)]
    prompts = segments[: len(batch.attention_map.prompt_lengths)]
    keys = [hashlib.sha256(prompt).hexdigest()[:32] for prompt in prompts]
    for number, response in enumerate(segments[len(prompts) :]):
        prompt = prompts[number // batch.responses]
        digest = hashlib.sha256(f"{len(prompt)} ".encode() + prompt + response)
        keys.append(digest.hexdigest()[:32])
    return keys


def _path(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.npy"


def _read(folder: Path, key: str, length: int) -> np.ndarray | None:
    """Stored states [length, hidden], or None; a damaged file counts as none and is written again."""
    try:
        states_LH = np.load(_path(folder, key), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return states_LH if len(states_LH) == length else None


def _write(folder: Path, key: str, states_LH: np.ndarray) -> None:
    """Store states; other processes see the whole file or none."""
    path = _path(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            np.save(stream, states_LH, allow_pickle=False)
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
