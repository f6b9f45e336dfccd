"""`rm-methods plan`: jobs, GPU-hours, memory and disk of an experiment, before anyone submits it.

Nothing is downloaded and no weights are made.  What is prepared already (pairs, tokenizer) is measured; everything
else is an assumption, and printed as one.  Operations of a token in training: 6 x parameters (2 forward, 4 backward;
Kaplan et al. 2020, arXiv 2001.08361, section 2.1; without the embedding table), 8 with recomputed activations, 2 less
with LoRA (adapters are not counted); and for causal attention's two products 6 (8) x the width x context of every
layer.  GPU-hours = operations / (peak of the GPU x utilisation).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError, nearest
from rm_methods.experiment.experiment import Experiment
from rm_methods.files import canonical_json
from rm_methods.methods.registry import load_card, load_method
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

# Dense bf16 operations a second and memory, from the vendor's data sheets.
GPUS = {"a100": (312e12, 80e9), "h100": (989e12, 80e9), "h200": (989e12, 141e9), "b200": (2250e12, 180e9)}
_SAMPLE = 500  # prepared pairs that are tokenized to measure lengths


@dataclass(frozen=True)
class Assumptions:
    """What is not known before a run, or chosen by the user.

    Attributes:
        gpu: a key of GPUS.
        utilisation: share of the GPU's peak that training reaches (model FLOPs utilisation).
        prompt_tokens, response_tokens: mean of a pair's prompt and of one response.
        pairs: training pairs.
        responses: scored per benchmark and run.
        shape: of the backbone, instead of the one that its source tells.
        measured: what of the above comes from prepared files.
    """

    gpu: str = "h100"
    utilisation: float = 0.4
    prompt_tokens: float = 150.0
    response_tokens: float = 75.0
    pairs: int = 0
    responses: int = 10_000
    shape: str | None = None
    measured: tuple[str, ...] = ()


@dataclass(frozen=True)
class VariantPlan:
    """One run of a variant (all its runs are alike).

    Attributes:
        runs: how many.
        parameters: of the model that is trained (with LoRA a part of it).
        steps: optimizer steps.
        train_hours, score_hours: GPU-hours of training and of scoring all benchmarks.
        gpu_bytes: of one GPU in training (0: trains nothing); gpu_parts: what they consist of.
        host_bytes: main memory of a node.
        disk_bytes: that stay; work_bytes: checkpoints while it runs.
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
    gpu_parts: dict[str, int]
    host_bytes: int
    disk_bytes: int
    work_bytes: int
    maps_bytes: int


def plan(config: Mapping[str, Any], assumptions: Assumptions) -> list[VariantPlan]:
    """The plan of every variant.

    Raises:
        UserError: an unknown GPU or shape, or a size that cannot be told.
    """
    if assumptions.gpu not in GPUS:
        raise UserError(f"--gpu: unknown '{assumptions.gpu}'. {nearest(assumptions.gpu, GPUS)}")
    if not 0 < assumptions.utilisation <= 1:
        raise UserError(
            f"--utilisation: {assumptions.utilisation} is not above 0 and at most 1; 0.3 to 0.5 is usual for large "
            "models."
        )
    if assumptions.pairs < 1:
        raise UserError(
            "The number of training pairs is not known before they are prepared. Give --pairs, or set "
            "data.max_pairs.train."
        )
    shapes: dict[str, Shape] = {}
    of: dict[str, Shape] = {}
    for variant, entry in config["methods"].items():
        training = _training(config, entry) if load_card(entry["method"]).has_weights else {"lora": None}
        key = canonical_json([_source(config, variant), training["lora"]])
        if key not in shapes:
            shapes[key] = shape_of(_configuration(config, variant, assumptions.shape), training["lora"])
        of[variant] = shapes[key]
    return [_plan_variant(config, variant, of, assumptions) for variant in config["methods"]]


def known(config: Mapping[str, Any], given: Mapping[str, Any]) -> Assumptions:
    """Assumptions: those given, else what prepared files tell, else the configuration's and the defaults."""
    values, measured = dict(given), []
    folder = Experiment(config).folder / "data"
    if (folder / "pairs.parquet").exists():
        from rm_methods.preferences.pair import read_pairs

        pairs = read_pairs(folder / "pairs.parquet", splits=["train"])
        if "pairs" not in values:
            values["pairs"] = len(pairs)
            measured.append("pairs")
        if (folder / "backbone" / "backbone.json").exists() and not {"prompt_tokens", "response_tokens"} & set(values):
            from rm_methods.reward_models.backbones import load_tokenizer
            from rm_methods.reward_models.pair_encoding import encode_pairs

            tokenizer = load_tokenizer(
                folder / "backbone", config["training"]["max_length"] or config["backbone"]["max_length"]
            )
            every = max(1, len(pairs) // _SAMPLE)
            _, items = encode_pairs(pairs[::every], tokenizer, config["backbone"]["refused_conversations"])
            values["prompt_tokens"] = sum(i.shared for i in items) / len(items)
            values["response_tokens"] = sum(sum(i.lengths) - 2 * i.shared for i in items) / len(items) / 2
            measured += ["prompt_tokens", "response_tokens"]
    values.setdefault("pairs", config["data"]["max_pairs"].get("train") or 0)
    return Assumptions(**values, measured=tuple(measured))


def job_counts(config_files: Sequence[Path]) -> dict[str, int]:
    """Jobs that Snakemake would run now, by rule, from a dry run of the whole workflow.

    Raises:
        UserError: the dry run failed; with its message.
    """
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        REPOSITORY / "Snakefile",
        "--dry-run",
        "--nolock",
        "--cores",
        "1",
    ]
    done = subprocess.run(
        [str(word) for word in [*command, "--configfile", *config_files]], capture_output=True, text=True
    )
    output = done.stdout + done.stderr
    if done.returncode:
        raise UserError(f"The dry run of the workflow failed:\n{output.strip()[-2000:]}")
    # "total" closes the table, which Snakemake prints twice.
    table = output.split("Job stats:")[1].split("total")[0] if "Job stats:" in output else ""
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}


def warnings(config: Mapping[str, Any], plans: Sequence[VariantPlan], assumptions: Assumptions) -> list[str]:
    """What would go wrong on the way, one sentence each; variants of which the same is true stand together."""
    memory, resources, ranks = GPUS[assumptions.gpu][1], config["resources"], _ranks(config)
    found: dict[str, list[str]] = {}
    for entry in (entry for entry in plans if entry.gpu_bytes):
        if entry.gpu_bytes > memory:
            largest = max(entry.gpu_parts, key=entry.gpu_parts.get)
            text = (
                f"{entry.gpu_bytes / 1e9:.0f} GB a GPU, a {assumptions.gpu} has {memory / 1e9:.0f}; most of it "
                f"{largest} ({entry.gpu_parts[largest] / 1e9:.0f} GB). More ranks, a higher ZeRO stage or a smaller "
                "tokens_per_microbatch help."
            )
            found.setdefault(text, []).append(entry.variant)
        if entry.host_bytes > resources["memory_mb"] * 2**20:
            text = (
                f"{entry.host_bytes / 1e9:.0f} GB of main memory on a node, resources.memory_mb gives "
                f"{resources['memory_mb'] * 2**20 / 1e9:.0f} GB. Raise it."
            )
            found.setdefault(text, []).append(entry.variant)
        minutes = 60 * entry.train_hours / ranks
        if minutes > resources["runtime_minutes"]:
            text = (
                f"about {minutes:.0f} minutes of training on {ranks} GPUs, resources.runtime_minutes is "
                f"{resources['runtime_minutes']}. Raise it; a job that is cut off continues from its last checkpoint."
            )
            found.setdefault(text, []).append(entry.variant)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {text}" for text, names in found.items()
    ]


def _plan_variant(
    config: Mapping[str, Any], variant: str, shapes: Mapping[str, Shape], assumed: Assumptions
) -> VariantPlan:
    experiment, entry, shape = Experiment(config), config["methods"][variant], shapes[variant]
    card = load_card(entry["method"])
    runs = sum(name == variant for name, _ in experiment.runs())
    nothing = {
        "parameters": 0,
        "steps": 0,
        "train_hours": 0.0,
        "gpu_bytes": 0,
        "gpu_parts": {},
        "host_bytes": 0,
        "work_bytes": 0,
    }
    scoring = _score_hours(config, variant, shape, assumed)
    if not card.has_weights:
        folder = model_bytes(shape.parameters) if entry["method"] == "warm" else 0
        return VariantPlan(
            variant, entry["method"], runs, **nothing, score_hours=scoring, disk_bytes=folder, maps_bytes=0
        )

    method = load_method(entry["method"], entry["settings"])
    training = _training(config, entry)
    steps = training["epochs"] * -(-assumed.pairs // training["pairs_per_step"])
    single = assumed.prompt_tokens + 2 * assumed.response_tokens
    # A joint model reads a whole pair in both orders; the packed layout reads its prompt once, the plain one twice.
    joint = card.kind == "joint"
    packed = training["layout"] != "plain" and config["backbone"]["attention"] in ("auto", "sdpa")
    read = 2 * single if joint else single + (0 if packed else assumed.prompt_tokens)
    context = single if joint else assumed.prompt_tokens + assumed.response_tokens
    backward = 8 if training["gradient_checkpointing"] else 6
    passes = training["epochs"] * method.passes + (entry["settings"].get("masked_language_epochs", 0) if joint else 0)
    operations = passes * assumed.pairs * read * _operations(shape, context, backward, bool(training["lora"]))
    maps = _maps_bytes(card, entry["settings"], assumed, single)
    if teacher := card.required_variants(entry["settings"]).get("teacher"):
        # Its maps of all pairs, both orders: computed by the first student of a seed, or in every step (online).
        operations += (
            assumed.pairs * 2 * single * _operations(shapes[teacher], single, 2) * (1 if maps else training["epochs"])
        )

    zero = zero_settings(training["deepspeed"]) if training["deepspeed"] else None
    ranks, nodes = _ranks(config), config["resources"]["nodes"]
    states, host = model_state_bytes(shape.parameters, shape.largest_layer, zero, ranks, nodes, shape.trainable)
    on_text = joint and entry["settings"].get("masked_language_epochs")
    if on_text:
        # All weights are trained then.
        states = max(states, model_state_bytes(shape.parameters, shape.largest_layer, zero, ranks, nodes)[0])
    activations = activation_bytes(shape, training["tokens_per_microbatch"], training["gradient_checkpointing"])
    # Each rank makes the whole model, and a language model beside it to train on text; or (ZeRO-3) one rank gathers it
    # to save it.
    whole = config["training"]["processes"] if method.model_is_made_whole or zero is None or zero["stage"] < 3 else 1
    whole *= 2 if on_text else 1
    checkpoint = checkpoint_bytes(shape.parameters, zero, shape.trainable)
    peak = GPUS[assumed.gpu][0] * assumed.utilisation
    return VariantPlan(
        variant=variant,
        method=entry["method"],
        runs=runs,
        parameters=shape.parameters,
        steps=steps,
        train_hours=operations / peak / 3600,
        score_hours=scoring,
        gpu_bytes=states + activations,
        gpu_parts={"weights, gradients and optimizer": states, "activations": activations},
        host_bytes=host + whole * WEIGHT * shape.parameters,
        disk_bytes=model_bytes(shape.parameters),
        work_bytes=CHECKPOINTS_ON_DISK * checkpoint if training["checkpoint_every_steps"] else 0,
        maps_bytes=maps,
    )


def _training(config: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """The `training` section that a variant goes by."""
    return load_method(entry["method"], entry["settings"]).training(config["training"] | {"lora": entry["lora"]}, 0)


def _operations(shape: Shape, context: float, factor: int, frozen: bool = False) -> float:
    """Of one token: `factor` 2 forward, 6 with backward, 8 with recomputation.  Weights that are frozen get no
    gradient, which saves 2."""
    products = factor - 2 if frozen else factor
    return products * (shape.parameters - shape.embedding) + factor * shape.layers * shape.attention * context


def _score_hours(config: Mapping[str, Any], variant: str, shape: Shape, assumed: Assumptions) -> float:
    """All benchmarks of one run, forward only; an ensemble computes all its members, a joint model every pair in both
    orders."""
    entry = config["methods"][variant]
    card = load_card(entry["method"])
    if card.kind == "content_blind":
        return 0.0
    length = assumed.prompt_tokens + (2 if card.kind == "joint" else 1) * assumed.response_tokens
    forwards = len(config["seeds"]) if entry["method"] == "ensemble" else 1
    operations = forwards * len(config["benchmarks"]) * assumed.responses * length * _operations(shape, length, 2)
    return operations / (GPUS[assumed.gpu][0] * assumed.utilisation) / 3600


def _maps_bytes(card, settings: Mapping[str, Any], assumed: Assumptions, tokens: float) -> int:
    """fp16 maps over the tokens of each pair that a student stores for its teacher (mean length squared: a lower
    bound)."""
    if (
        "teacher" not in card.requires
        or not card.required_variants(settings)
        or settings["online"]
        or settings["objective"] == "relations"
    ):
        return 0
    return round(2 * assumed.pairs * tokens**2) * len(settings["teacher_layers"])


def _ranks(config: Mapping[str, Any]) -> int:
    return config["training"]["processes"] * config["resources"]["nodes"]


def _source(config: Mapping[str, Any], variant: str) -> str:
    """Where the weights of a variant begin: an encoder's own source, else "backbone"."""
    source = (config["methods"][variant]["settings"] or {}).get("source")
    return f"tiny encoder {variant}" if source == "tiny" else source or "backbone"


def _configuration(config: Mapping[str, Any], variant: str, named: str | None):
    """The transformers configuration of what a variant trains (or is made of)."""
    from transformers import LlamaConfig, ModernBertConfig

    names = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "key_value_heads": "num_key_value_heads"}
    names |= {"vocabulary_size": "vocab_size", "positions": "max_position_embeddings"}
    settings, backbone = config["methods"][variant]["settings"] or {}, config["backbone"]
    if settings.get("source"):
        if settings["source"] != "tiny":
            return configuration_of(settings["source"])
        return ModernBertConfig(
            pad_token_id=0, **{names.get(key, key): value for key, value in settings["tiny"].items()}
        )
    if named:
        return published_configuration(named)
    if backbone["source"] == "tiny":
        return LlamaConfig(**{names.get(key, key): value for key, value in backbone["tiny"].items()})
    return configuration_of(backbone["source"], Experiment(config).folder / "data" / "backbone")


def describe(
    config: Mapping[str, Any], plans: Sequence[VariantPlan], assumptions: Assumptions, jobs: Mapping[str, int]
) -> str:
    """The plan as text for the terminal."""
    counts = f"{len(plans)} variants, {len(config['seeds'])} seeds, {len(config['benchmarks'])} benchmarks"
    header = ("variant", "runs", "1e9 parameters", "steps", "train GPU-h", "score GPU-h")
    header += ("GB/GPU", "GB/node", "model GB", "scratch GB")
    found = warnings(config, plans, assumptions)
    return "\n".join(
        [
            f"Plan of experiment {config['experiment']}: {counts}",
            *(
                "",
                "Assumptions (options change them; * measured on prepared files):",
                *_assumption_lines(config, assumptions),
            ),
            *("", "Jobs still to run: " + (", ".join(f"{name} {count}" for name, count in jobs.items()) or "none")),
            *("", "Of one run of each variant:", *aligned([header, *map(_row, plans)])),
            *("", *_totals(config, plans, assumptions)),
            *(["Not in these numbers: sampling, Best-of-N and PPO."] if _optimizes(jobs) else []),
            *(["", "Look at these:", *(f"  - {text}" for text in found)] if found else []),
        ]
    )


def _row(p: VariantPlan) -> tuple[str, ...]:
    sizes = (p.gpu_bytes, p.host_bytes, p.disk_bytes, p.work_bytes)
    hours = f"{p.train_hours:.3g}", f"{p.score_hours:.2g}"
    return (p.variant, str(p.runs), f"{p.parameters / 1e9:.3g}", str(p.steps), *hours, *map(_gb, sizes))


def _assumption_lines(config: Mapping[str, Any], assumptions: Assumptions) -> list[str]:
    peak, memory = GPUS[assumptions.gpu]
    lines = [
        f"  {assumptions.gpu}: {peak / 1e12:.0f} TFLOP/s dense bf16, {memory / 1e9:.0f} GB; {_ranks(config)} of them "
        "train one run"
    ]
    for key, value in asdict(assumptions).items():
        if key not in ("gpu", "measured") and value is not None:
            lines.append(
                f"  {key}{'*' if key in assumptions.measured else ''}: {value:,.6g}"
                if key != "shape"
                else f"  shape: {value}"
            )
    return lines


def _totals(config: Mapping[str, Any], plans: Sequence[VariantPlan], assumptions: Assumptions) -> list[str]:
    train, score = (sum(p.runs * getattr(p, f"{what}_hours") for p in plans) for what in ("train", "score"))
    teachers = {config["methods"][p.variant]["settings"]["teacher"]: p.maps_bytes for p in plans if p.maps_bytes}
    maps = len(config["seeds"]) * sum(teachers.values())
    tokens = assumptions.pairs * (assumptions.prompt_tokens + 2 * assumptions.response_tokens)
    lines = [f"One epoch: {assumptions.pairs:,} pairs, {tokens:,.0f} tokens (each prompt once)"]
    for p in (p for p in plans if p.method == "bradley_terry" and p.train_hours):
        rate = tokens * config["training"]["epochs"] / p.train_hours
        lines.append(f"{p.variant}: {rate / 1e6:,.3g} million tokens a GPU-hour at this utilisation")
    return [
        *lines,
        f"GPU-hours: {train + score:,.3g} = {train:,.3g} training + {score:,.3g} scoring",
        f"Disk that stays: {_gb(sum(p.runs * p.disk_bytes for p in plans))} GB of models, {_gb(maps)} GB of teachers' "
        "maps",
        f"Scratch of a training job while it runs: up to {_gb(max(p.work_bytes for p in plans))} GB "
        f"({CHECKPOINTS_ON_DISK} checkpoints)",
    ]


def _optimizes(jobs: Mapping[str, int]) -> bool:
    return bool(jobs.keys() & {"sft", "sample_pool", "ppo", "overoptimization"})


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, numbers to the right; names are never cut."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size < 1e11 else f"{size / 1e9:,.0f}"
