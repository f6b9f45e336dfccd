"""`rm-methods plan`: jobs, GPU-hours, memory and disk of an experiment before it is submitted.

Nothing is downloaded and no weights are made.  Prepared files (pairs, tokenizer) are measured; everything else is an
assumption.  Operations per token in training:

* of the parameters, without the embedding table: 6 each (2 forward, 4 backward; Kaplan et al. 2020, arXiv 2001.08361,
  section 2.1), 8 with recomputed activations, 2 less with LoRA (adapters are not counted);
* of causal attention's two products: 6 (8) x width x context in every layer.

GPU-hours = operations / (peak of the GPU x utilization).
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_methods.errors import UserError, nearest
from rm_methods.experiment.experiment import Experiment
from rm_methods.files import canonical_json
from rm_methods.methods.registry import MethodCard, load_method, load_method_card
from rm_methods.planning.shapes import configuration_of, published_configuration
from rm_methods.planning.sizes import (
    CHECKPOINTS_ON_DISK,
    WEIGHT,
    Shape,
    activation_bytes,
    checkpoint_bytes,
    model_bytes,
    model_state_bytes,
    shape_of,
)
from rm_methods.system.deepspeed import zero_settings
from rm_methods.system.provenance import REPOSITORY

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from rm_methods.preferences.pair import PreferencePair

# Dense bf16 operations a second and memory, from the vendor's data sheets.
GPUS = {"a100": (312e12, 80e9), "h100": (989e12, 80e9), "h200": (989e12, 141e9), "b200": (2250e12, 180e9)}
_SAMPLE = 500  # prepared pairs that are tokenized to measure lengths
_LENGTHS = ("prompt_tokens", "response_tokens")


@dataclass(frozen=True)
class Assumptions:
    """The values that a plan needs beside the configuration: options of the user, measurements and defaults.

    Attributes:
        gpu: a key of GPUS.
        utilization: share of the GPU's peak that training reaches (model FLOPs utilization).
        prompt_tokens, response_tokens: mean length of a prompt and of a response.
        pairs: training pairs.
        responses: scored per benchmark and run.
        shape: published size of the backbone, a key of SHAPES; None takes the size of its source.
        measured: which of these values were measured on prepared files.
    """

    gpu: str = "h100"
    utilization: float = 0.4
    prompt_tokens: float = 150.0
    response_tokens: float = 75.0
    pairs: int = 0
    responses: int = 10_000
    shape: str | None = None
    measured: tuple[str, ...] = ()


@dataclass(frozen=True)
class VariantPlan:
    """One run of a variant; all runs of a variant cost the same.

    Attributes:
        runs: number of runs.
        parameters: of the model that is trained (with LoRA a part of it); 0 if nothing is trained.
        steps: optimizer steps.
        train_hours, score_hours: GPU-hours of training and of scoring all benchmarks.
        gpu_bytes: memory of one GPU in training; gpu_parts: the same by content.
        host_bytes: main memory of a node.
        disk_bytes: stored when the run is finished; work_bytes: checkpoints while it runs.
        maps_bytes: stored maps of a teacher, for each seed.
    """

    variant: str
    method: str
    runs: int
    parameters: int
    steps: int
    train_hours: float
    score_hours: float
    gpu_bytes: int
    gpu_parts: Mapping[str, int]
    host_bytes: int
    disk_bytes: int
    work_bytes: int
    maps_bytes: int


def plan(config: Mapping[str, Any], assumptions: Assumptions) -> list[VariantPlan]:
    """The plan of every variant.

    Raises:
        UserError: an unknown GPU, shape or size.
    """
    if assumptions.gpu not in GPUS:
        raise UserError(f"--gpu: unknown '{assumptions.gpu}'. {nearest(assumptions.gpu, GPUS)}")
    if not 0 < assumptions.utilization <= 1:
        raise UserError(
            f"--utilization: {assumptions.utilization} is not above 0 and at most 1; 0.3 to 0.5 is usual for large "
            "models."
        )
    if assumptions.pairs < 1:
        raise UserError(
            "The number of training pairs is not known before they are prepared. Give --pairs, or set "
            "data.max_pairs.train."
        )
    shapes = model_shapes(config, assumptions.shape)
    return [_plan_variant(config, variant, shapes, assumptions) for variant in config["methods"]]


def model_shapes(config: Mapping[str, Any], shape_name: str | None) -> dict[str, Shape]:
    """The shape of every variant's model.  Variants with the same source and trained weights share one, because making
    one takes time."""
    by_source: dict[str, Shape] = {}
    by_variant: dict[str, Shape] = {}
    for variant, entry in config["methods"].items():
        training = _training(config, entry) if load_method_card(entry["method"]).has_weights else {}
        lora = training.get("lora")
        trained_layers = training.get("trained_layers")
        key = canonical_json([_source(config, variant), lora, trained_layers])
        if key not in by_source:
            by_source[key] = shape_of(_configuration(config, variant, shape_name), lora, trained_layers)
        by_variant[variant] = by_source[key]
    return by_variant


def make_assumptions(config: Mapping[str, Any], options: Mapping[str, Any]) -> Assumptions:
    """The user's options; for the others, measurements of prepared files, then the configuration and the defaults."""
    values = dict(options)
    measured = []
    experiment = Experiment(config)
    layout = experiment.layout
    if experiment.has_prepared_pairs():
        from rm_methods.preferences.pair import read_pairs

        pairs = read_pairs(layout.pairs, splits=["train"])
        if "pairs" not in values:
            values["pairs"] = len(pairs)
            measured.append("pairs")
        if (layout.backbone / "backbone.json").exists() and not set(_LENGTHS) & set(values):
            values |= _mean_lengths(config, layout.backbone, pairs)
            measured += _LENGTHS
    values.setdefault("pairs", config["data"]["max_pairs"].get("train") or 0)
    return Assumptions(**values, measured=tuple(measured))


def _mean_lengths(config: Mapping[str, Any], backbone: Path, pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """Mean tokens of a prompt and of a response, over evenly spaced pairs."""
    from rm_methods.reward_models.backbones import load_tokenizer
    from rm_methods.reward_models.pair_encoding import encode_pairs

    max_length = config["training"]["max_length"] or config["backbone"]["max_length"]
    spacing = max(1, len(pairs) // _SAMPLE)
    tokenizer = load_tokenizer(backbone, max_length)
    _, items = encode_pairs(pairs[::spacing], tokenizer, config["backbone"]["refused_conversations"])
    prompt_tokens = sum(item.shared for item in items)
    response_tokens = sum(sum(item.lengths) - 2 * item.shared for item in items)
    return {"prompt_tokens": prompt_tokens / len(items), "response_tokens": response_tokens / len(items) / 2}


def job_counts(config_files: Sequence[Path]) -> dict[str, int]:
    """Jobs that Snakemake would run now, by rule, from a dry run of the whole workflow.

    Raises:
        UserError: the dry run failed; gives its message.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    command += ["--dry-run", "--nolock", "--cores", "1", "--configfile", *map(str, config_files)]
    done = subprocess.run(command, capture_output=True, text=True)
    output = done.stdout + done.stderr
    if done.returncode:
        raise UserError(f"The dry run of the workflow failed:\n{output.strip()[-2000:]}")
    # "total" closes the table, which Snakemake prints twice.
    table = output.split("Job stats:")[1].split("total")[0] if "Job stats:" in output else ""
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}


def warnings(config: Mapping[str, Any], plans: Sequence[VariantPlan], assumptions: Assumptions) -> list[str]:
    """Expected problems, one sentence each; variants with the same problem share a sentence."""
    variants: dict[str, list[str]] = {}
    for entry in plans:
        if entry.gpu_bytes:
            for problem in _shortages(config, entry, assumptions):
                variants.setdefault(problem, []).append(entry.variant)
    texts = []
    for problem, names in variants.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        texts.append(f"{names[0]}{others}: {problem}")
    return texts


def _shortages(config: Mapping[str, Any], entry: VariantPlan, assumptions: Assumptions) -> list[str]:
    """Too little memory or time for training a variant."""
    resources = config["resources"]
    gpu_memory = GPUS[assumptions.gpu][1]
    host_memory = resources["memory_mb"] * 2**20
    minutes = 60 * entry.train_hours / ranks_of_run(config)
    problems = []
    if entry.gpu_bytes > gpu_memory:
        part, part_bytes = max(entry.gpu_parts.items(), key=lambda item: item[1])
        problems.append(
            f"{entry.gpu_bytes / 1e9:.0f} GB a GPU, a {assumptions.gpu} has {gpu_memory / 1e9:.0f}; most of it {part} "
            f"({part_bytes / 1e9:.0f} GB). More ranks, a higher ZeRO stage or a smaller tokens_per_microbatch help."
        )
    if entry.host_bytes > host_memory:
        problems.append(
            f"{entry.host_bytes / 1e9:.0f} GB of main memory on a node, resources.memory_mb gives "
            f"{host_memory / 1e9:.0f} GB. Raise it."
        )
    if minutes > resources["runtime_minutes"]:
        problems.append(
            f"about {minutes:.0f} minutes of training on {ranks_of_run(config)} GPUs, resources.runtime_minutes is "
            f"{resources['runtime_minutes']}. Raise it; a job that is cut off continues from its last checkpoint."
        )
    return problems


def _plan_variant(
    config: Mapping[str, Any], variant: str, shapes: Mapping[str, Shape], assumptions: Assumptions
) -> VariantPlan:
    entry = config["methods"][variant]
    card = load_method_card(entry["method"])
    shape = shapes[variant]
    runs = sum(name == variant for name, _ in Experiment(config).runs())
    score_hours = _gpu_hours(_scoring_operations(config, variant, shape, assumptions), assumptions)
    if not card.has_weights:
        return VariantPlan(
            variant=variant,
            method=entry["method"],
            runs=runs,
            parameters=0,
            steps=0,
            train_hours=0.0,
            score_hours=score_hours,
            gpu_bytes=0,
            gpu_parts={},
            host_bytes=0,
            disk_bytes=model_bytes(shape.parameters) if entry["method"] == "warm" else 0,
            work_bytes=0,
            maps_bytes=0,
        )
    training = _training(config, entry)
    maps_bytes = _maps_bytes(card, entry["settings"], assumptions)
    operations = training_operations(config, variant, shapes, assumptions)
    parts, host_bytes = _training_memory(config, variant, shape)
    zero = zero_settings(training["deepspeed"]) if training["deepspeed"] else None
    checkpoint = checkpoint_bytes(shape.parameters, zero, shape.trainable)
    return VariantPlan(
        variant=variant,
        method=entry["method"],
        runs=runs,
        parameters=shape.parameters,
        steps=training["epochs"] * math.ceil(assumptions.pairs / training["pairs_per_step"]),
        train_hours=_gpu_hours(operations, assumptions),
        score_hours=score_hours,
        gpu_bytes=sum(parts.values()),
        gpu_parts=parts,
        host_bytes=host_bytes,
        disk_bytes=model_bytes(shape.parameters),
        work_bytes=CHECKPOINTS_ON_DISK * checkpoint if training["checkpoint_every_steps"] else 0,
        maps_bytes=maps_bytes,
    )


def training_operations(
    config: Mapping[str, Any], variant: str, shapes: Mapping[str, Shape], assumptions: Assumptions
) -> float:
    """Operations of training one run, with those of its teacher; 0 if nothing is trained."""
    entry = config["methods"][variant]
    card = load_method_card(entry["method"])
    if not card.has_weights:
        return 0.0
    operations = _own_training_operations(config, variant, shapes[variant], assumptions)
    if teacher := card.required_variants(entry["settings"]).get("teacher"):
        # The teacher reads all pairs in both orders: once for the stored maps of a seed, or in every epoch (online).
        length = _pair_tokens(assumptions)
        stores_maps = _maps_bytes(card, entry["settings"], assumptions) > 0
        readings = 1 if stores_maps else _training(config, entry)["epochs"]
        operations += readings * assumptions.pairs * 2 * length * operations_per_token(shapes[teacher], length, 2)
    return operations


def _own_training_operations(config: Mapping[str, Any], variant: str, shape: Shape, assumptions: Assumptions) -> float:
    """Operations of training one run, without those of a teacher."""
    entry = config["methods"][variant]
    training = _training(config, entry)
    passes = training["epochs"] * load_method(entry["method"], entry["settings"]).passes
    if load_method_card(entry["method"]).kind == "joint":
        # A joint model reads the whole pair in both orders, and may first train on text.
        # A model that starts from a joint language model does not train on text again.
        starts_from_backbone = entry["settings"].get("start", "backbone") == "backbone"
        passes += entry["settings"].get("masked_language_epochs", 0) if starts_from_backbone else 0
        context = _pair_tokens(assumptions)
        tokens = 2 * context
    else:
        # The packed layout reads the prompt of a pair once, the plain one twice.
        packed = training["layout"] != "plain" and config["backbone"]["attention"] in ("auto", "sdpa")
        context = assumptions.prompt_tokens + assumptions.response_tokens
        tokens = _pair_tokens(assumptions) if packed else 2 * context
    factor = 8 if training["gradient_checkpointing"] else 6
    per_token = operations_per_token(shape, context, factor, frozen=bool(training["lora"]))
    if shape.frozen_layers:
        # Stored states are computed once for all runs, which is not counted.
        forward = 0.0 if config["resources"]["state_folder"] else operations_per_token(shape, context, 2)
        frozen = shape.frozen_layers / shape.layers
        per_token = (1 - frozen) * per_token + frozen * forward
    return passes * assumptions.pairs * tokens * per_token


def _training_memory(config: Mapping[str, Any], variant: str, shape: Shape) -> tuple[dict[str, int], int]:
    """Memory of training one run: bytes of a GPU by content, and bytes of a node's main memory."""
    entry = config["methods"][variant]
    training = _training(config, entry)
    zero = zero_settings(training["deepspeed"]) if training["deepspeed"] else None
    ranks = ranks_of_run(config)
    nodes = config["resources"]["nodes"]
    states, host_bytes = model_state_bytes(
        shape.parameters, shape.largest_layer, zero, ranks, nodes=nodes, trainable=shape.trainable
    )
    # Each rank makes the whole model; under ZeRO-3 only one rank does, when it gathers the model to save it.
    made_whole = load_method(entry["method"], entry["settings"]).model_is_made_whole
    copies = config["training"]["processes"] if made_whole or zero is None or zero["stage"] < 3 else 1
    is_joint = load_method_card(entry["method"]).kind == "joint"
    if is_joint and entry["settings"].get("masked_language_epochs"):
        # Training on text trains all weights even with LoRA, and holds a language model beside the reward model.
        on_text, _ = model_state_bytes(shape.parameters, shape.largest_layer, zero, ranks, nodes=nodes)
        states = max(states, on_text)
        copies *= 2
    activations = activation_bytes(shape, training["tokens_per_microbatch"], training["gradient_checkpointing"])
    parts = {"weights, gradients and optimizer": states, "activations": activations}
    return parts, host_bytes + copies * WEIGHT * shape.parameters


def _training(config: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """The `training` section as the method of a variant changes it."""
    return load_method(entry["method"], entry["settings"]).training(config["training"] | {"lora": entry["lora"]}, 0)


def _pair_tokens(assumptions: Assumptions) -> float:
    """Tokens of a prompt and both responses."""
    return assumptions.prompt_tokens + 2 * assumptions.response_tokens


def _gpu_hours(operations: float, assumptions: Assumptions) -> float:
    return operations / (GPUS[assumptions.gpu][0] * assumptions.utilization) / 3600


def operations_per_token(shape: Shape, context: float, factor: int, frozen: bool = False) -> float:
    """Operations for one token.

    Args:
        context: mean number of tokens of its text.
        factor: 2 forward, 6 with backward, 8 with recomputed activations.
        frozen: the weights get no gradient, which saves 2.
    """
    per_parameter = factor - 2 if frozen else factor
    return per_parameter * (shape.parameters - shape.embedding) + factor * shape.layers * shape.attention * context


def _scoring_operations(config: Mapping[str, Any], variant: str, shape: Shape, assumptions: Assumptions) -> float:
    """Operations of scoring all benchmarks with one run."""
    return len(config["benchmarks"]) * assumptions.responses * response_operations(config, variant, shape, assumptions)


def response_operations(config: Mapping[str, Any], variant: str, shape: Shape, assumptions: Assumptions) -> float:
    """Operations of scoring one response with one run.

    An ensemble computes all its members, a joint model every pair in both orders.
    """
    entry = config["methods"][variant]
    card = load_method_card(entry["method"])
    if card.without_model:
        return 0.0
    length = assumptions.prompt_tokens + (2 if card.kind == "joint" else 1) * assumptions.response_tokens
    forwards = len(config["seeds"]) if entry["method"] == "ensemble" else 1
    computed = 1 - shape.frozen_layers / shape.layers if config["resources"]["state_folder"] else 1.0
    return forwards * length * computed * operations_per_token(shape, length, 2)


def _maps_bytes(card: MethodCard, settings: Mapping[str, Any], assumptions: Assumptions) -> int:
    """Bytes of the fp16 maps over the tokens of each pair that a student stores for its teacher.

    It takes the square of the mean length, which is a lower bound of the mean square.
    """
    stores_maps = (
        "teacher" in card.requires
        and bool(card.required_variants(dict(settings)))
        and not settings["online"]
        and settings["objective"] != "relations"
    )
    if not stores_maps:
        return 0
    return round(2 * assumptions.pairs * _pair_tokens(assumptions) ** 2) * len(settings["teacher_layers"])


def ranks_of_run(config: Mapping[str, Any]) -> int:
    """The number of processes, and so of GPUs, that train one run."""
    return config["training"]["processes"] * config["resources"]["nodes"]


def _source(config: Mapping[str, Any], variant: str) -> str:
    """The source of a variant's first weights: an encoder's source, or the backbone."""
    settings = config["methods"][variant]["settings"] or {}
    source = settings.get("source") or _external_model(config, variant)
    return f"tiny encoder {variant}" if source == "tiny" else source or "backbone"


def _external_model(config: Mapping[str, Any], variant: str) -> str | None:
    """The model of an external row; None for other methods, and if none is named."""
    entry = config["methods"][variant]
    if load_method_card(entry["method"]).kind != "external":
        return None
    return (entry["settings"] or {}).get("model") or None


def _configuration(config: Mapping[str, Any], variant: str, shape_name: str | None) -> PretrainedConfig:
    """The transformers configuration of the model that a variant trains or combines."""
    from transformers import ModernBertConfig

    settings = config["methods"][variant]["settings"] or {}
    if settings.get("source") == "tiny":
        return ModernBertConfig(pad_token_id=0, **_tiny_sizes(settings["tiny"]))
    if settings.get("source"):
        return configuration_of(settings["source"])
    if model := _external_model(config, variant):
        return configuration_of(model)
    return backbone_configuration(config, shape_name)


def backbone_configuration(config: Mapping[str, Any], shape_name: str | None) -> PretrainedConfig:
    """The transformers configuration of the backbone."""
    from transformers import LlamaConfig

    backbone = config["backbone"]
    if shape_name:
        return published_configuration(shape_name)
    if backbone["source"] == "tiny":
        return LlamaConfig(**_tiny_sizes(backbone["tiny"]))
    return configuration_of(backbone["source"], Experiment(config).layout.backbone)


def _tiny_sizes(tiny: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a tiny model with the names that transformers uses."""
    names = {
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "key_value_heads": "num_key_value_heads",
        "vocabulary_size": "vocab_size",
        "positions": "max_position_embeddings",
    }
    return {names.get(key, key): value for key, value in tiny.items()}
