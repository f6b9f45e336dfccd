"""Pools: stored responses of a policy with their gold rewards, as benchmark items that any reward model re-scores.

A pool is written once for a policy; each reward model then only scores it (the ordinary score stage), and Best-of-N is
a pure function of pool and score table.  All reward models see the same responses, so their curves are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import DataError
from rm_methods.overoptimization.gold import Gold, check_finite
from rm_methods.parquet import read_parquet
from rm_methods.policies.sampling import POOL_COLUMNS
from rm_methods.preferences.pair import Message, prompt_group

# The columns of stored samples that a pool needs. Best-of-N cannot use a log-probability that is not finite.
SAMPLE_COLUMNS = {
    name: POOL_COLUMNS[name] for name in ("prompt_id", "sample_index", "response", "n_tokens", "finished")
} | {"log_probability": "finite"}


def pool_from_samples(
    samples: str | Path,
    prompts: Mapping[str, Sequence[Message]],
    gold: Gold,
    *,
    subset: str = "policy",
    plain_sampling: bool = False,
) -> list[BenchmarkItem]:
    """Items of a pool from the stored samples of a policy, one a prompt, in the order of `prompts`.

    The label is the list of gold rewards; `meta` keeps log_probabilities, n_tokens and finished of each response.
    Duplicates and empty responses stay, because the policy gave them (`best_of_n.pool_counts` counts them).

    Args:
        samples: Parquet file with `SAMPLE_COLUMNS`.
        prompts: prompt id -> conversation.
        gold: see `gold.load_gold`; called once with all responses.
        subset: of the items.
        plain_sampling: whether the samples were drawn at temperature 1 without top-p or top-k.  Only then are their
            log-probabilities those of the sampled distribution, so that the KL estimate can use them.

    Raises:
        DataError: missing columns, no rows, a sample that occurs twice, a text or number of the wrong kind, samples of
            an unknown prompt, prompts without samples.
        UserError: a gold reward that is not finite.
    """
    rows = _checked_rows(samples, prompts)
    repeated_prompts, responses = [], []
    for prompt_id, drawn in rows.items():
        repeated_prompts += [prompts[prompt_id]] * len(drawn)
        responses += [row["response"] for row in drawn]
    values = np.asarray(gold(repeated_prompts, responses), dtype=np.float64)
    if values.shape != (len(responses),):
        raise DataError(f"{samples}: the gold reward gave {values.shape} values for {len(responses)} responses.")
    check_finite(values, repeated_prompts, responses, "the gold reward")
    items, position = [], 0
    for prompt_id, drawn in rows.items():
        meta = {
            "plain_sampling": plain_sampling,
            "log_probabilities": [row["log_probability"] for row in drawn],
            "n_tokens": [row["n_tokens"] for row in drawn],
            "finished": [row["finished"] for row in drawn],
        }
        label = values[position : position + len(drawn)].tolist()
        position += len(drawn)
        messages = [dict(message) for message in prompts[prompt_id]]
        items.append(
            BenchmarkItem(
                prompt_id, subset, messages, [row["response"] for row in drawn], label, prompt_group(messages), meta
            )
        )
    return items


def _checked_rows(samples: str | Path, prompts: Mapping[str, Sequence[Message]]) -> dict[str, list[dict]]:
    """Prompt id -> its rows in the order of the sample index."""
    table = read_parquet(samples, SAMPLE_COLUMNS, "a file of stored samples", "sample")
    if table.num_rows == 0:
        raise DataError(f"{samples}: has no samples.")
    by_prompt: dict[str, dict[int, dict]] = {prompt_id: {} for prompt_id in prompts}
    for number, row in enumerate(table.to_pylist(), start=1):
        where = f"{samples}, row {number}"
        if row["prompt_id"] not in by_prompt:
            raise DataError(
                f"{where}: prompt id {row['prompt_id']!r} is not one of the {len(prompts)} prompts. Sample these "
                "prompts again."
            )
        probability = row["log_probability"]
        if probability > 1e-3:
            raise DataError(f"{where}: 'log_probability' is {probability!r}; expected at most 0.")
        drawn = by_prompt[row["prompt_id"]]
        if row["sample_index"] in drawn:
            raise DataError(f"{where}: sample {row['sample_index']} of prompt {row['prompt_id']!r} occurs twice.")
        drawn[row["sample_index"]] = row
    without = [prompt_id for prompt_id, drawn in by_prompt.items() if not drawn]
    if without:
        raise DataError(
            f"{samples}: {len(without)} of {len(prompts)} prompts have no sample, such as {without[0]!r}. Sample them "
            "again."
        )
    return {prompt_id: [drawn[index] for index in sorted(drawn)] for prompt_id, drawn in by_prompt.items()}
