"""Wall time of an experiment on CPUs.

Every stage is counted in operations (`rm_methods.planning.plan`) and divided by the speed of one core of this machine,
which a few passes of the backbone's own layers measure.  Jobs that do no model's work take a fixed time.  The wall time
is that of all cores, always busy.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_methods.errors import DataError, UserError
from rm_methods.experiment.experiment import Experiment
from rm_methods.planning.plan import (
    Assumptions,
    model_shapes,
    operations_per_token,
    response_operations,
    training_operations,
)
from rm_methods.planning.sizes import Shape, shape_of
from rm_methods.preferences.data_sources import data_sources

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from rm_methods.preferences.pair import PreferencePair
    from rm_methods.reward_models.tokenization import ChatTokenizer, TokenizedItem

# CPU seconds of a job without its model's work: start, reading, writing, statistics (docs/speed.md).
FIXED_SECONDS = {"diagnose": 3.0, "diagnose_teacher": 4.0, "compare": 6.0, "overoptimization": 6.0, "export": 6.0}
OTHER_FIXED_SECONDS = 0.5
# Additional CPU seconds of a job that imports torch and transformers itself (docs/scaling.md, "The start of jobs").
COLD_START_SECONDS = 3.3
# CPU seconds of a server from which jobs are forked instead; each number of threads has one.
SERVER_SECONDS = 4.7
JOBS_FOR_WARM_START = 4  # as in workflow/rules/common.smk
START = "start of processes"
# A training takes this many times the passes through its model: optimizer, clipping, loss, validation (docs/speed.md).
TRAINING_OVERHEAD = 1.4
_MEASURED_LAYERS = 2
_MEASURED_TOKENS = 2048
_MEASURED_SECONDS = 0.5
_SAMPLED_ROWS, _SAMPLED_TOKENS = 64, 32
_TOKENIZED_PAIRS = 200
_COUNTED_PAIRS = 2000
# Without a tokenizer: characters of English text per token, and what a chat template adds to a turn
# ("<|im_start|>user\n", "<|im_end|>\n").
_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_TURN = 5


@dataclass(frozen=True)
class CpuSpeed:
    """Operations a second of one core: in training (forward and backward), in scoring (forward), and while text is
    sampled token by token."""

    training: float
    scoring: float
    sampling: float


@dataclass(frozen=True)
class Texts:
    """The experiment's own pairs.

    Attributes:
        pairs: by split.
        prompt_tokens, response_tokens: mean lengths.
        left_out: training pairs that `training.overlong_pairs` leaves out; None if no tokenizer is on this machine.
    """

    pairs: Mapping[str, int]
    prompt_tokens: float
    response_tokens: float
    left_out: int | None = None


@dataclass(frozen=True)
class Stage:
    """Jobs of one rule: their number, and CPU seconds of all."""

    rule: str
    jobs: int
    seconds: float


def texts_of(config: Mapping[str, Any]) -> Texts | None:
    """The pairs, prepared or read from their sources; None if a source is not on this machine."""
    experiment = Experiment(config)
    try:
        if experiment.has_prepared_pairs():
            from rm_methods.preferences.pair import read_pairs

            pairs = read_pairs(experiment.layout.pairs)
        else:
            from rm_methods.preferences.cards import card_of
            from rm_methods.preferences.prepare import prepared_pairs

            cards = [card_of(source) for source in data_sources(config["data"])]
            if any(card.hub_id is not None and root is None for card, root in cards):
                return None
            pairs, _ = prepared_pairs(config["data"])
    except UserError:
        return None
    train = [pair for pair in pairs if pair.split == "train"] or pairs
    reader = _reader(config, train)
    sample = train[:: max(1, len(train) // _TOKENIZED_PAIRS)]
    prompt_tokens, response_tokens = _mean_tokens(sample, reader, config["backbone"]["max_length"])
    left_out = _left_out(config, [pair for pair in train if pair.split == "train"], reader)
    return Texts(Counter(pair.split for pair in pairs), prompt_tokens, response_tokens, left_out)


def _left_out(config: Mapping[str, Any], train: Sequence[PreferencePair], reader: ChatTokenizer | None) -> int | None:
    """Training pairs that are left out because a response does not fit; of many pairs, a part is counted."""
    from rm_methods.reward_models.pair_encoding import reason_to_drop
    from rm_methods.reward_models.tokenization import ChatTokenizer

    if reader is None or not train:
        return None
    if config["training"]["max_length"]:
        reader = ChatTokenizer(reader.tokenizer, config["training"]["max_length"])
    sample = train[:: max(1, len(train) // _COUNTED_PAIRS)]
    items = _readable_items(sample, reader)
    if not items:
        return None
    policy = config["training"]["overlong_pairs"]
    count = sum(reason_to_drop(item, policy) in ("dropped_response_cut", "dropped_equal") for item in items)
    return round(count * len(train) / len(sample))


def _readable_items(pairs: Sequence[PreferencePair], reader: ChatTokenizer) -> list[TokenizedItem]:
    """The pairs in tokens, without those that the chat template refuses."""
    from rm_methods.reward_models.pair_encoding import encode_pairs

    try:
        return encode_pairs(pairs, reader, "drop")[1]
    except DataError:  # all are refused
        return []


def _reader(config: Mapping[str, Any], train: Sequence[PreferencePair]) -> ChatTokenizer | None:
    """The tokenizer of the backbone; None if it is not on this machine.

    Before the backbone is prepared, a tiny backbone's tokenizer is trained on a part of the training pairs, and a GGUF
    file's tokenizer is read from that file.

    Raises:
        UserError: the tokenizer or its chat template cannot be used.
    """
    from rm_methods.reward_models.backbones import load_tokenizer, prepare_backbone, source_folder
    from rm_methods.reward_models.loading import pretrained_tokenizer
    from rm_methods.reward_models.tokenization import ChatTokenizer
    from rm_methods.scoring.model_options import ModelOptions

    backbone = config["backbone"]
    prepared = Experiment(config).layout.backbone
    if _has_tokenizer(prepared):
        return load_tokenizer(prepared, backbone["max_length"])
    if backbone["source"] == "tiny":
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "backbone"
            prepare_backbone(backbone, train[:: max(1, len(train) // _COUNTED_PAIRS)], folder)
            return load_tokenizer(folder, backbone["max_length"])
    source = Path(source_folder(backbone["source"]))
    if backbone["gguf_file"] and (source / backbone["gguf_file"]).is_file():
        tokenizer = pretrained_tokenizer(str(source), setting="backbone.source", gguf_file=backbone["gguf_file"])
        if tokenizer.chat_template:
            return ChatTokenizer(tokenizer, backbone["max_length"])
    if not _has_tokenizer(source):
        return None
    return load_tokenizer(source, backbone["max_length"], ModelOptions.of(backbone).template())


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file()


def _mean_tokens(pairs: Sequence[PreferencePair], reader: ChatTokenizer | None, max_length: int) -> tuple[float, float]:
    """Mean tokens of a prompt and of a response, estimated from characters if no pair can be tokenized."""
    items = [] if reader is None else _readable_items(pairs, reader)
    if items:
        prompts = sum(item.shared for item in items) / len(items)
        both = sum(sum(item.lengths) - 2 * item.shared for item in items) / len(items)
        return prompts, both / 2
    prompt = sum(min(_guessed_tokens([turn["content"] for turn in pair.prompt]), max_length) for pair in pairs)
    responses = sum(min(_guessed_tokens([text]), max_length) for pair in pairs for text in (pair.chosen, pair.rejected))
    return prompt / len(pairs), responses / len(pairs) / 2


def _guessed_tokens(turns: Sequence[str]) -> float:
    return sum(len(text) / _CHARACTERS_PER_TOKEN + _TOKENS_PER_TURN for text in turns)


def measured_speed(configuration: PretrainedConfig, prompt: int, response: int, precision: str) -> CpuSpeed:
    """The speed of one core of this machine with the first layers of a model of this configuration, random weights.

    The time is that of the processor, so that other programs change it little.

    Args:
        prompt, response: their mean tokens.
        precision: `training.precision`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    configuration = type(configuration)(**{**configuration.to_dict(), "num_hidden_layers": _layers(configuration)})
    configuration.num_labels = 1
    configuration.pad_token_id = 0
    configuration.use_cache = True
    shape = shape_of(configuration)
    context = max(1, prompt) + max(1, response)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        scorer = AutoModelForSequenceClassification.from_config(configuration)
        rows = max(1, _MEASURED_TOKENS // context)
        ids = torch.randint(1, configuration.vocab_size, (rows, context))
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

        def train() -> None:
            with autocast:
                loss = scorer(input_ids=ids).logits.float().mean()
            loss.backward()

        def score() -> None:
            with torch.inference_mode(), autocast:
                scorer(input_ids=ids)

        tokens = ids.numel()
        training = tokens * operations_per_token(shape, context, 6) / _seconds_of(train)
        scoring = tokens * operations_per_token(shape, context, 2) / _seconds_of(score)
        sampling = scoring
        if configuration.model_type == "llama":
            policy = AutoModelForCausalLM.from_config(configuration)
            prompts = torch.randint(1, configuration.vocab_size, (_SAMPLED_ROWS, max(1, prompt)))
            settings = {"max_new_tokens": _SAMPLED_TOKENS, "min_new_tokens": _SAMPLED_TOKENS, "do_sample": True}

            def sample() -> None:
                with torch.inference_mode():
                    policy.generate(prompts, attention_mask=torch.ones_like(prompts), pad_token_id=0, **settings)

            sampling = _SAMPLED_ROWS * _SAMPLED_TOKENS * _with_head(shape, context) / _seconds_of(sample)
    finally:
        torch.set_num_threads(threads)
    return CpuSpeed(training, scoring, sampling)


def _layers(configuration: PretrainedConfig) -> int:
    return min(_MEASURED_LAYERS, configuration.num_hidden_layers)


def _seconds_of(work: Callable[[], None]) -> float:
    """Mean CPU seconds of a piece of work, after a first one that warms up."""
    work()
    begun = time.process_time()
    count = 0
    while count == 0 or time.process_time() - begun < _MEASURED_SECONDS:
        work()
        count += 1
    return (time.process_time() - begun) / count


def _with_head(shape: Shape, context: float) -> float:
    """Operations of a policy for one token: those of the layers, and the product with the vocabulary."""
    return operations_per_token(shape, context, 2) + 2 * shape.embedding


def cpu_stages(
    config: Mapping[str, Any],
    assumptions: Assumptions,
    pairs: Mapping[str, int],
    speed: CpuSpeed,
    jobs: Mapping[str, int],
) -> list[Stage]:
    """CPU seconds of the jobs that are still to run, by rule.

    A rule with fewer jobs left than it has in all counts in proportion.

    Args:
        pairs: number by split.
        jobs: number of jobs left, by rule.
    """
    experiment = Experiment(config)
    runs = Counter(variant for variant, _ in experiment.runs())
    shapes = model_shapes(config, assumptions.shape)
    training = sum(runs[name] * training_operations(config, name, shapes, assumptions) for name in runs)
    work = {
        "train": TRAINING_OVERHEAD * training / speed.training,
        "score": _scoring_operations(config, assumptions, shapes, pairs) / speed.scoring,
        **_optimization_seconds(config, assumptions, shapes, pairs, speed),
    }
    in_all = {
        "train": runs.total(),
        "score": runs.total() * len(config["benchmarks"]) + len(experiment.optimized_runs()) * len(experiment.pools()),
        "ppo": len(experiment.ppo_runs()),
    }
    stages = []
    for rule, count in jobs.items():
        if rule != "all":
            share = min(1.0, count / max(1, in_all.get(rule, count)))
            fixed = count * FIXED_SECONDS.get(rule, OTHER_FIXED_SECONDS)
            stages.append(Stage(rule, count, share * work.get(rule, 0.0) + fixed))
    return stages


def start_stage(config: Mapping[str, Any], jobs: Mapping[str, int]) -> Stage | None:
    """CPU seconds to start the processes of all jobs, which `cpu_stages` does not count; None without jobs.

    Args:
        jobs: number of jobs left, by rule.
    """
    count = sum(number for rule, number in jobs.items() if rule != "all")
    if not count:
        return None
    if config["resources"]["warm_start"] and count >= JOBS_FOR_WARM_START:
        servers = len({1, config["resources"]["threads"]})
        return Stage(START, servers, servers * SERVER_SECONDS)
    return Stage(START, count, count * COLD_START_SECONDS)


def wall_seconds(stages: Sequence[Stage], cores: int, threads: int) -> float:
    """Wall time on some cores: all work divided by the cores, but at least one job of each rule after the other.

    Args:
        threads: of a job.
    """
    chain = sum(stage.seconds / stage.jobs for stage in stages) / min(threads, cores)
    return max(sum(stage.seconds for stage in stages) / cores, chain)


def responses_of(config: Mapping[str, Any], benchmark: str, pairs: Mapping[str, int]) -> int | None:
    """Responses that a run scores on a benchmark: of its prepared items, or of the pairs it is made of; None if they
    are not known.

    Args:
        pairs: number by split; empty if not known.
    """
    experiment = Experiment(config)
    items = experiment.layout.items(benchmark)
    if items.exists():
        from rm_methods.benchmarks.item import read_items

        return sum(len(item.responses) for item in read_items(items))
    if pairs and experiment.made_of_pairs(benchmark):
        return 2 * sum(pairs.get(split, 0) for split in config["benchmarks"][benchmark]["options"]["splits"])
    return None


def _scoring_operations(
    config: Mapping[str, Any], assumptions: Assumptions, shapes: Mapping[str, Shape], pairs: Mapping[str, int]
) -> float:
    """Operations of scoring all benchmarks, and the candidates of Best-of-N, with all runs."""
    experiment = Experiment(config)
    best_of_n = config["overoptimization"]["best_of_n"]
    candidates = (best_of_n["limit"] or 0) * best_of_n["samples"] if "samples" in best_of_n["pools"] else 0
    known = [responses_of(config, name, pairs) for name in config["benchmarks"]]
    responses = sum(assumptions.responses if count is None else count for count in known)
    optimized = set(experiment.optimized_runs())
    operations = 0.0
    for variant, seed in experiment.runs():
        count = responses + (candidates if (variant, seed) in optimized else 0)
        operations += count * response_operations(config, variant, shapes[variant], assumptions)
    return operations


def _is_on_backbone(entry: Mapping[str, Any]) -> bool:
    settings = entry["settings"] or {}
    return not settings.get("source") and not settings.get("model")


def _optimization_seconds(
    config: Mapping[str, Any],
    assumptions: Assumptions,
    shapes: Mapping[str, Shape],
    pairs: Mapping[str, int],
    speed: CpuSpeed,
) -> dict[str, float]:
    """CPU seconds of fine-tuning, sampling, and PPO (all runs), by rule."""
    experiment = Experiment(config)
    if not experiment.is_optimized():
        return {}
    settings = config["overoptimization"]
    # The policy has the backbone's size, as the first method on the backbone has.
    shape = next(shapes[name] for name, entry in config["methods"].items() if _is_on_backbone(entry))
    length = assumptions.prompt_tokens + assumptions.response_tokens
    forward = _with_head(shape, length)
    new_tokens = min(settings["sampling"]["max_new_tokens"], assumptions.response_tokens)
    sampled = new_tokens * forward / speed.sampling  # of one response
    read = length * forward / speed.scoring
    learned = TRAINING_OVERHEAD * 3 * length * forward / speed.training
    sft, ppo, best_of_n = settings["sft"], settings["ppo"], settings["best_of_n"]
    examples = pairs.get("train", assumptions.pairs) * (2 if sft["responses"] == "both" else 1)
    seconds = {
        "sft": sft["epochs"] * examples * learned,
        "sample_pool": (best_of_n["limit"] or 0) * best_of_n["samples"] * sampled if best_of_n["pools"] else 0.0,
    }
    if ppo["enabled"]:
        evaluations = (1 + ppo["updates"] // ppo["evaluate_every"]) * ppo["evaluation_prompts"]
        rollouts = ppo["updates"] * ppo["batch_size"]
        # A rollout is sampled, then read by the policy, its reference, the values and the reward model.
        one_run = (rollouts + evaluations) * (sampled + 4 * read) + rollouts * ppo["ppo_epochs"] * learned
        seconds["ppo"] = len(experiment.ppo_runs()) * one_run
        prompts = ppo["train_prompts"] + ppo["evaluation_prompts"]
        seconds["sample_references"] = prompts * ppo["references_per_prompt"] * sampled
    return seconds
