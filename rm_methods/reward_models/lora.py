"""LoRA: the backbone's weights are frozen; beside each of its linear layers a product of two thin matrices is trained.

    y = W x + alpha / rank * B A x,    A [rank, in],  B [out, rank],  B = 0 at the start

Hu et al. 2021 (arXiv 2106.09685).  The layers are those of the peft library, which replace linear layers of the
backbone.  Other modules keep their names and classes, so attention capture, packing, DeepSpeed and the methods' modules
work unchanged.  Peft gets only the backbone, so the head and the modules of a method are trained and saved as without
LoRA.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from rm_methods.errors import UserError, nearest

if TYPE_CHECKING:
    from rm_methods.reward_models.joint_model import JointModel
    from rm_methods.reward_models.model import RewardModel

ALL_LINEAR = "all-linear"
ADAPTER = "default"  # peft's name for an unnamed adapter; part of its parameters' names


def target_layers(classifier: PreTrainedModel, target_modules: str | list[str]) -> list[str]:
    """Names, inside the backbone of a sequence-classification model, of the linear layers that get adapters.

    A pooler counts as part of the head: checkpoints of language models have none, so it may be as new as the head.

    Args:
        target_modules: `training.lora.target_modules`: "all-linear", or names such as `q_proj` or `self_attn.q_proj`.

    Raises:
        UserError: a name that fits no linear layer, or a model whose backbone cannot be told from its head.
    """
    from transformers.pytorch_utils import Conv1D

    backbone = classifier.base_model
    kind = type(classifier).__name__
    if backbone is classifier:
        raise UserError(
            f"training.lora: the backbone of {kind} cannot be told from its head (no base_model). Set it to null."
        )
    linear = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not _is_pooler(name)
    ]
    if target_modules == ALL_LINEAR:
        return linear
    fitting = {one: [name for name in linear if f".{name}".endswith(f".{one}")] for one in target_modules}
    if unknown := [one for one, names in fitting.items() if not names]:
        layer_names = {name.rsplit(".", 1)[-1] for name in linear}
        raise UserError(
            f"training.lora.target_modules: the backbone of {kind} has no linear layer '{unknown[0]}'. "
            f"{nearest(unknown[0], layer_names)} '{ALL_LINEAR}' takes them all."
        )
    selected = {name for names in fitting.values() for name in names}
    return [name for name in linear if name in selected]


def add_adapters(model: RewardModel | JointModel, lora: Mapping[str, Any], seed: int) -> None:
    """Freeze the backbone of a reward model or joint model and add fp32 adapters, which do not change its output yet.

    Args:
        model: has the sequence-classification model as `classifier`.
        lora: the resolved `training.lora`.
        seed: draws A, the same on every rank and under every stage of DeepSpeed; no other random number is used up.

    Raises:
        UserError: as `target_layers`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    backbone = model.classifier.base_model
    targets = target_layers(model.classifier, lora["target_modules"])
    config = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(zlib.crc32(f"lora {seed}".encode()))
        inject_adapter_in_model(config, backbone, ADAPTER)
    for name, parameter in backbone.named_parameters():
        if _is_pooler(name):
            parameter.requires_grad_(True)
        elif parameter.requires_grad:
            parameter.data = parameter.data.float()  # peft gives adapters the type of the weights beside them


def merge_adapters(model: nn.Module, state_dict: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Remove the adapters from a model, and add their product to the weights: W + alpha / rank * B A.

    In fp32 on the CPU, whatever the backbone's type and the GPU's way of multiplying: in 16 bits the sum would lose
    most of a small update.

    Args:
        state_dict: whole weights of the model (under ZeRO-3 its tensors are only shards); None takes those of `model`.

    Returns:
        fp32 weights of the whole model, with the names and the order that they have without LoRA.  The tensors of
        `model` itself keep the weights from before LoRA: only its modules are restored.
    """
    from peft.tuners.lora import LoraLayer

    weights = {}
    for name, weight in (model.state_dict() if state_dict is None else state_dict).items():
        weight = weight.detach().cpu()
        weights[name] = weight.float() if weight.is_floating_point() else weight
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, layer in layers.items():
        for frozen in [frozen for frozen in weights if frozen.startswith(f"{name}.base_layer.")]:
            weights[frozen.replace(".base_layer.", ".")] = weights.pop(frozen)
        a = weights.pop(f"{name}.lora_A.{ADAPTER}.weight")
        b = weights.pop(f"{name}.lora_B.{ADAPTER}.weight")
        update = layer.scaling[ADAPTER] * (b @ a)
        is_transposed = getattr(layer, "fan_in_fan_out", False)
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + (update.T if is_transposed else update)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    model.float()  # the type that the exported configuration names is that of the model's own tensors
    return {name: weights[name] for name in model.state_dict()}


def trainable_parameters(classifier: PreTrainedModel, lora: Mapping[str, Any]) -> int:
    """Number of parameters that LoRA would train in a sequence classifier: those of adapters, head and pooler."""
    backbone = classifier.base_model
    adapters = 0
    for name in target_layers(classifier, lora["target_modules"]):
        rows, columns = backbone.get_parameter(f"{name}.weight").shape
        adapters += lora["rank"] * (rows + columns)
    frozen = sum(p.numel() for name, p in backbone.named_parameters() if not _is_pooler(name))
    return adapters + sum(p.numel() for p in classifier.parameters()) - frozen


def _is_pooler(name: str) -> bool:
    return "pooler" in name.split(".")
