"""Sampling from a policy: batches that depend on their seed alone, and pools of stored samples for Best-of-N."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rm_methods.errors import DataError, UserError
from rm_methods.files import content_hash, file_hash
from rm_methods.parquet import read_parquet, table_of_columns, write_parquet
from rm_methods.policies.policy import Policy, Prompt, load_policy
from rm_methods.system.progress import Progress

# The columns of a pool of samples, with their kinds as in `rm_methods.parquet`.
POOL_COLUMNS = {
    "prompt_id": "text",
    "prompt_index": "int32",
    "sample_index": "int32",
    "response": "text",
    "n_tokens": "int32",
    "log_probability": "number",
    "finished": "boolean",
    "truncated": "boolean",
}


class NotFinite(UserError):
    """The policy's logits are not finite, so nothing can be sampled from it."""


@dataclass(frozen=True)
class SamplingSettings:
    """How responses are drawn.  Limits of the values are in config.schema.yaml.

    Attributes:
        max_new_tokens: longest response in tokens, the end token included.
        temperature: 1 samples from the model itself, less is sharper, 0 always takes the likeliest token.
        top_p: only the likeliest tokens that together have this probability (nucleus sampling); 1 takes all.
        max_sentences: a response ends with this many sentences (`completed_sentences`), or before; None has no limit.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    max_sentences: int | None = None

    @classmethod
    def of_experiment(cls, config: Mapping[str, Any]) -> SamplingSettings:
        """The settings of a resolved configuration."""
        sampling = config["overoptimization"]["sampling"]
        names = ("max_new_tokens", "temperature", "top_p", "max_sentences")
        return cls(**{name: sampling[name] for name in names})


@dataclass
class Generated:
    """Sampled responses.

    Attributes:
        response_ids: int64 [B, T], padded on the right.
        mask: bool [B, T], tokens of the response, the end token included.
        finished: bool [B], whether an end token or the last allowed sentence came; the others were cut at
            `max_new_tokens`.
    """

    response_ids: Any
    mask: Any
    finished: Any


def derived_seed(*parts: int | str) -> int:
    """A seed below 2**63 for a named purpose, the same on every machine: derived_seed(seed, "pool", chunk)."""
    return int(content_hash(list(parts)), 16) % 2**63


def generate(
    policy: Policy,
    prompt_ids: Sequence[Sequence[int]],
    settings: SamplingSettings,
    seed: int,
    autocast=None,
    in_step: bool = False,
) -> Generated:
    """Draw one response for each prompt with the `generate` of transformers (key-value cache, prompts padded on the
    left).

    The same seed gives the same responses whatever was drawn before, and torch's random state stays unchanged.
    The model's generation configuration is not used (its missing values default to top_k = 50).

    Args:
        prompt_ids: token ids up to the generation prompt, one list for each response.
        autocast: dtype of matrix products, or None.
        in_step: whether ranks share the model's weights, so that all must continue until the last one is done.

    Raises:
        NotFinite: a logit is NaN (raised at the end, so that ranks keep in step).
    """
    from contextlib import nullcontext

    import torch

    from rm_methods.policies.log_probabilities import left_padded
    from rm_methods.policies.sentences import SentenceLimit

    model = policy.model
    device = next(model.parameters()).device
    input_ids, is_token = left_padded(prompt_ids, policy.pad_id, device)
    model_configuration = model.generation_config
    model.generation_config = generation_configuration(settings, policy.end_ids, policy.pad_id)
    not_a_number = _NotANumber()
    limit = SentenceLimit(policy, settings.max_sentences, input_ids.shape) if settings.max_sentences else None
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(seed)
            with torch.autocast(device.type, dtype=autocast) if autocast else nullcontext():
                sequences = model.generate(
                    input_ids=input_ids,
                    attention_mask=is_token,
                    generation_config=model.generation_config,
                    logits_processor=[not_a_number],
                    stopping_criteria=[limit] if limit else [],
                    synced_gpus=in_step,
                )
    finally:
        model.generation_config = model_configuration
    if not_a_number.seen:
        raise NotFinite(
            "The policy's logits are NaN: its weights are broken. Go back to an earlier policy, or lower the learning "
            "rate."
        )
    response_ids = sequences[:, input_ids.shape[1] :]
    is_end = torch.isin(response_ids, torch.tensor(list(policy.end_ids), device=device))
    # End tokens before each position: 0 up to and including the first end token.
    mask = (is_end.long().cumsum(1) - is_end.long()) == 0
    finished = is_end.any(1)
    if limit:
        mask &= torch.arange(mask.shape[1], device=device) < limit.lengths[:, None]
        finished |= limit.reached
    return Generated(torch.where(mask, response_ids, policy.pad_id), mask, finished)


class _NotANumber:
    """A logits processor that remembers NaN and replaces it by 0: otherwise torch's sampling would fail with an
    assertion on the device."""

    seen = False

    def __call__(self, input_ids, logits):
        broken = logits.isnan()
        if broken.any():
            self.seen = True
            logits = logits.masked_fill(broken, 0.0)
        return logits


def generation_configuration(settings: SamplingSettings, end_ids: Sequence[int], pad_id: int):
    """A `GenerationConfig` of transformers that sets everything that shapes the distribution, so that no default
    applies."""
    from transformers import GenerationConfig

    sampling: dict[str, bool | float] = {"do_sample": False}
    if settings.temperature > 0:
        # Nucleus sampling alone would leave logits that do not sum to 1.
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=list(end_ids),
        pad_token_id=pad_id,
        num_beams=1,
        use_cache=True,
        repetition_penalty=1.0,
        renormalize_logits=True,
        **sampling,
    )


def sample_pool(
    policy_folder: str | Path,
    prompts: Sequence[Prompt],
    samples_per_prompt: int,
    settings: SamplingSettings,
    seed: int,
    out_parquet: str | Path,
    work_folder: str | Path,
    batch_size: int = 64,
    max_prompt_tokens: int = 512,
    threads: int = 0,
    attention: str = "auto",
) -> dict[str, Any]:
    """Store samples of a policy: `samples_per_prompt` rows for each prompt, in the prompts' order.

    Columns: prompt_id, prompt_index, sample_index, response (text), n_tokens (the end token included), log_probability
    (sum over the sampled tokens at temperature 1 and without top-p, whatever the sampling used), finished (an end
    token or the last allowed sentence came), truncated (the prompt was cut).  Empty and repeated responses stay.

    Rows are sampled in chunks of `batch_size`, each with a separate seed.  Finished chunks are kept in `work_folder`:
    a run that was killed continues after its last chunk and gives the same bytes.  The batch size affects the samples.

    Args:
        attention: attention implementation of transformers for the policy.

    Returns:
        samples, prompts, empty, duplicates (equal to an earlier response to the same prompt), unfinished, prompts_cut,
        tokens, sampled_seconds (of this call: less after a resume).

    Raises:
        UserError: no prompts, a prompt id twice, or an unusable policy folder.
    """
    from rm_methods.system.cpu import prepare_cpu

    check_prompts(prompts, "prompts")
    if samples_per_prompt < 1 or batch_size < 1:
        raise UserError(f"samples_per_prompt = {samples_per_prompt} and batch_size = {batch_size} must be at least 1.")
    prepare_cpu(threads)
    policy = load_policy(policy_folder, attention=attention)
    prompt_ids, cut = policy.encode_prompts([prompt.messages for prompt in prompts], max_prompt_tokens)
    policy.check_room(prompt_ids, settings.max_new_tokens)
    named = [prompt.prompt_id for prompt in prompts]
    made_from = [
        policy_hash(policy_folder),
        prompt_ids,
        named,
        samples_per_prompt,
        asdict(settings),
        seed,
        batch_size,
        attention,
    ]
    chunks = _chunks(Path(work_folder) / content_hash(made_from), len(prompts), samples_per_prompt, batch_size)
    started = time.monotonic()
    _sample_missing(chunks, policy, _PoolPrompts(named, prompt_ids, cut), settings, seed)
    table = _join_chunks(chunks, out_parquet)
    return _pool_counts(table) | {"prompts_cut": sum(cut), "sampled_seconds": round(time.monotonic() - started, 2)}


def read_references(pool: str | Path, per_prompt: int | None = None) -> dict[str, list[str]]:
    """Stored responses by prompt id, in the order of their sample index.

    Args:
        pool: file of `sample_pool`.
        per_prompt: number of responses to take of each prompt, the first ones; None takes all.

    Raises:
        DataError: the file is missing or is not a pool of samples.
        UserError: a prompt has fewer.
    """
    columns = {name: POOL_COLUMNS[name] for name in ("prompt_id", "sample_index", "response")}
    table = read_parquet(pool, columns, "a pool of samples", "sampling", unique=("prompt_id", "sample_index"))
    by_prompt: dict[str, list[str]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: row["sample_index"]):
        by_prompt.setdefault(row["prompt_id"], []).append(row["response"])
    for prompt_id, responses in by_prompt.items():
        if per_prompt is not None and len(responses) < per_prompt:
            raise UserError(
                f"{pool}: prompt {prompt_id} has {len(responses)} samples, but {per_prompt} are needed. Sample more."
            )
    return {prompt_id: responses[:per_prompt] for prompt_id, responses in by_prompt.items()}


def check_prompts(prompts: Sequence[Prompt], what: str) -> None:
    """Raises UserError if the list of prompts is empty or two have the same id."""
    if not prompts:
        raise UserError(f"No {what} were given. Give at least one.")
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.prompt_id in seen:
            raise UserError(
                f"{what}: the id {prompt.prompt_id!r} occurs twice; ids must be unique. Leave repeated prompts out."
            )
        seen.add(prompt.prompt_id)


def policy_hash(folder: str | Path) -> str:
    """Hash of a policy's weights, tokenizer and chat template."""
    folder = Path(folder)
    names = sorted(
        [
            *folder.glob("*.safetensors"),
            *folder.glob("tokenizer*.json"),
            *folder.glob("*.jinja"),
            folder / "config.json",
        ]
    )
    return file_hash(*names)


@dataclass(frozen=True)
class _PoolPrompts:
    """The id of each prompt of a pool, its token ids, and whether it was cut."""

    named: Sequence[str]
    ids: Sequence[Sequence[int]]
    cut: Sequence[bool]


@dataclass(frozen=True)
class _Chunk:
    """Rows that are sampled together.

    Attributes:
        places: (position of the prompt, number of the sample) of each row.
    """

    number: int
    file: Path
    places: Sequence[tuple[int, int]]


def _chunks(folder: Path, prompts: int, samples_per_prompt: int, batch_size: int) -> list[_Chunk]:
    """A pool's rows in chunks of `batch_size`, and the file of each chunk until all are sampled."""
    places = [(prompt, sample) for prompt in range(prompts) for sample in range(samples_per_prompt)]
    starts = range(0, len(places), batch_size)
    return [
        _Chunk(number, folder / f"chunk_{number:06d}.parquet", places[start : start + batch_size])
        for number, start in enumerate(starts)
    ]


def _sample_missing(
    chunks: Sequence[_Chunk], policy: Policy, prompts: _PoolPrompts, settings: SamplingSettings, seed: int
) -> None:
    """Sample and write the chunks that are missing or damaged."""
    missing = [chunk for chunk in chunks if not _is_whole(chunk)]
    kept = len(chunks) - len(missing)
    if kept:
        print(f"sampling: {kept} of {len(chunks)} chunks were sampled before", file=sys.stderr, flush=True)
    progress = Progress("sampling", len(chunks), kept)
    for chunk in missing:
        rows = _sample_chunk(
            policy, [prompts.ids[p] for p, _ in chunk.places], settings, derived_seed(seed, "pool", chunk.number)
        )
        rows |= {
            "prompt_id": [prompts.named[p] for p, _ in chunk.places],
            "prompt_index": [p for p, _ in chunk.places],
            "sample_index": [sample for _, sample in chunk.places],
            "truncated": [prompts.cut[p] for p, _ in chunk.places],
        }
        write_parquet(table_of_columns(rows, POOL_COLUMNS), chunk.file)
        progress.advance(1)


def _is_whole(chunk: _Chunk) -> bool:
    """Whether a chunk was sampled and its file can be read."""
    if not chunk.file.exists():
        return False
    try:
        return read_parquet(chunk.file, POOL_COLUMNS, "a chunk of samples", "sampling").num_rows == len(chunk.places)
    except DataError as error:
        print(f"sampling: {error} Samples this chunk again.", file=sys.stderr, flush=True)
        return False


def _join_chunks(chunks: Sequence[_Chunk], out_parquet: str | Path):
    """Write the pool and remove its chunks; returns the table."""
    import pyarrow as pa

    tables = [read_parquet(chunk.file, POOL_COLUMNS, "a chunk of samples", "sampling") for chunk in chunks]
    table = pa.concat_tables(tables).combine_chunks()
    write_parquet(table, out_parquet)
    for chunk in chunks:
        chunk.file.unlink()
    chunks[0].file.parent.rmdir()
    return table


def _sample_chunk(
    policy: Policy, prompt_ids: Sequence[Sequence[int]], settings: SamplingSettings, seed: int
) -> dict[str, list]:
    import torch

    from rm_methods.policies.log_probabilities import read_responses, token_log_probabilities

    drawn = generate(policy, prompt_ids, settings, seed)
    with torch.no_grad():
        logits, _ = read_responses(policy.model, prompt_ids, drawn.response_ids, drawn.mask, policy.pad_id)
        log_probabilities = token_log_probabilities(logits, drawn.response_ids, drawn.mask).double().sum(1)
    lengths = drawn.mask.sum(1).tolist()
    return {
        "response": [
            policy.decode(ids[:length]) for ids, length in zip(drawn.response_ids.tolist(), lengths, strict=True)
        ],
        "n_tokens": lengths,
        "log_probability": log_probabilities.tolist(),
        "finished": drawn.finished.tolist(),
    }


def _pool_counts(table) -> dict[str, int]:
    rows = table.to_pylist()
    return {
        "samples": len(rows),
        "prompts": len({row["prompt_id"] for row in rows}),
        "empty": sum(not row["response"].strip() for row in rows),
        "duplicates": len(rows) - len({(row["prompt_id"], row["response"]) for row in rows}),
        "unfinished": sum(not row["finished"] for row in rows),
        "tokens": sum(row["n_tokens"] for row in rows),
    }
