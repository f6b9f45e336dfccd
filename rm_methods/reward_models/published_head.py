"""Published classifiers: the head may have another name, a bias, or several outputs.

transformers calls the head of a decoder `score` and gives it no bias.  Trainers save it under other names: `v_head`
(TRL's value head has a linear layer `summary` in it), `regression_head` (UltraRM, Eurus), `reward_head`, and others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from rm_methods.errors import UserError, nearest
from rm_methods.reward_models.loading import AUTO, load_errors_explained, pretrained_config, pretrained_model
from rm_methods.reward_models.model_folder import check_model_folder, weight_files

# One linear layer each, in the order in which they are looked for.
NAMES = ("score", "v_head.summary", "v_head", "value_head", "reward_head", "regression_head", "rm_head", "classifier")


@dataclass(frozen=True)
class StoredHead:
    """A linear head in the files of a model.

    Attributes:
        name: of the layer, one of `NAMES`.
        outputs: rows of its weight.
        bias: fp32 [outputs], or None.
    """

    name: str
    outputs: int
    bias: torch.Tensor | None


def stored_head(folder: Path) -> StoredHead | None:
    """The linear head in the weights of a folder; None without one under a name in use."""
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    files: dict[str, Path] = {}
    wanted = {f"{name}.{part}" for name in NAMES for part in ("weight", "bias")}
    for file in weight_files(folder, str(folder)):
        with safe_open(file, "pt") as stream:
            for name in wanted.intersection(stream.keys()):
                shapes[name] = stream.get_slice(name).get_shape()
                files[name] = file
    for name in NAMES:
        shape = shapes.get(f"{name}.weight")
        if shape is None or len(shape) != 2:
            continue
        bias = None
        if f"{name}.bias" in files:
            with safe_open(files[f"{name}.bias"], "pt") as stream:
                bias = stream.get_tensor(f"{name}.bias").float()
        return StoredHead(name, shape[0], bias)
    return None


def published_classifier(folder: Path, *, attention: str = AUTO, label: str | None = None) -> PreTrainedModel:
    """A sequence-classification model with the head that its folder holds, under whatever name.

    A decoder gets a head `score` with one output, that of `label`; an encoder keeps its head, whose output
    `chosen_output` tells.

    Args:
        attention: as for `pretrained_model`.
        label: name or number of the output to read; needed if the head has several.

    Raises:
        UserError: as for `pretrained_model`, or several outputs without a label, or a label that is none of them.
    """
    from transformers import AutoModelForSequenceClassification

    config = pretrained_config(folder)
    check_model_folder(folder)
    with load_errors_explained(folder):  # a damaged configuration may break the model
        has_score = _has_score(config)
    head = stored_head(folder)
    if not has_score or head is None:
        # Without a head in the files, the load says that it is missing.
        outputs = head.outputs if head is not None else 1 if has_score else config.num_labels
        classifier, _ = pretrained_model(
            AutoModelForSequenceClassification, folder, attention=attention, num_labels=outputs
        )
        return classifier
    output = chosen_output(folder, config, head.outputs, label)
    classifier, _ = pretrained_model(
        AutoModelForSequenceClassification,
        folder,
        attention=attention,
        num_labels=head.outputs,
        renames={} if head.name == "score" else {rf"^{re.escape(head.name)}\.": "score."},
        read_elsewhere=() if head.bias is None else ("score.bias", f"{head.name}.bias"),
    )
    classifier.score = _one_output(classifier.score, head.bias, output)
    classifier.config.num_labels = 1
    return classifier


def chosen_output(folder: Path, config, outputs: int, label: str | None) -> int:
    """The number of the output that gives the reward, from 0.

    Args:
        outputs: how many the head has.
        label: name (of `id2label` in config.json) or number of the output.

    Raises:
        UserError: several outputs without a label, or a label that is none of them.
    """
    named = getattr(config, "id2label", None) or {}
    names = [str(named.get(number, f"LABEL_{number}")) for number in range(outputs)]
    if label is None:
        if outputs == 1:
            return 0
        raise UserError(
            f"{folder}: the head has {outputs} outputs: {', '.join(names)}. Say which of them is the reward with "
            "--label NAME, or with its number from 0."
        )
    if label in names:
        return names.index(label)
    if label.isdigit() and int(label) < outputs:
        return int(label)
    raise UserError(f"{folder}: the head has no output '{label}'. {nearest(label, names)}")


def _has_score(config) -> bool:
    """Whether transformers gives this architecture a linear head `score`, which reads one token, as decoders have."""
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    return isinstance(getattr(model, "score", None), nn.Linear)


def _one_output(head: nn.Linear, bias: torch.Tensor | None, output: int) -> nn.Linear:
    weight = head.weight.detach()[output : output + 1].float()
    linear = nn.Linear(weight.shape[1], 1, bias=bias is not None)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias[output : output + 1])
    return linear.eval()
