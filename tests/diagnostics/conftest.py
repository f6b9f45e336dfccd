"""A scorer with random weights on made-up pairs, and diagnosed runs whose numbers the tests choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.diagnostics.pairs import text_tokens
from rm_methods.diagnostics.records import ATTENTION_COLUMNS, MASKING_COLUMNS
from rm_methods.experiment.diagnosed_runs import MODES, PERCENTS
from rm_methods.experiment.layout import DIAGNOSED_RUN_FILES
from rm_methods.files import write_json
from rm_methods.parquet import write_rows
from rm_methods.scoring.scorer import RewardModelScorer, ScoringSettings


@pytest.fixture
def reward_model(reward_model):
    """Random weights whose attention is far from uniform."""
    import torch

    with torch.no_grad():
        for layer in reward_model.backbone.layers:
            layer.self_attn.q_proj.weight *= 8
            layer.self_attn.k_proj.weight *= 8
            layer.self_attn.v_proj.weight *= 8
        reward_model.classifier.score.weight *= 10
    return reward_model


@pytest.fixture
def scorer(reward_model, tokenizer):
    return RewardModelScorer(reward_model, tokenizer, ScoringSettings(max_length=256, tokens_per_batch=150))


@pytest.fixture
def items(pairs):
    """Pairs of the benchmark `heldout`, with the better response first or second."""
    responses = [[p.chosen, p.rejected] for p in pairs[:16]]
    return [BenchmarkItem(p.pair_id, "test", p.prompt, r, 0) for p, r in zip(pairs[:16], responses, strict=True)]


@pytest.fixture
def encoded(tokenizer, items):
    return tokenizer.encode((item.prompt, item.responses) for item in items)


@pytest.fixture
def texts(tokenizer, encoded):
    return [text_tokens(tokenizer, item) for item in encoded]


@pytest.fixture
def eager(reward_model):
    """The same weights with transformers' own attention, which can return its maps."""
    import copy

    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(reward_model.config)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    model.load_state_dict(reward_model.classifier.state_dict())
    return model


def stages(late: float) -> list[float]:
    """Stage masses of which `late` lies in the last three, evenly."""
    return [(1 - late) / 7] * 7 + [late / 3] * 3


def sequence_row(
    item: int, correct: bool | None, *, late: float, late_text: float | None = None, n_tokens: int = 20, **more
) -> list[dict]:
    """The two rows of a pair in attention.parquet; both measures have the same masses."""
    text = stages(late if late_text is None else late_text)
    masses = {m: stages(late) for m in ("reward_row", "received")} | {
        f"{m}_text": text for m in ("reward_row", "received")
    }
    row = {
        "benchmark": "heldout",
        "subset": "test",
        "item_id": f"i{item}",
        "group": f"g{item}",
        "correct": correct,
        "score": 0.0,
    }
    row |= {"n_tokens": n_tokens, "n_text_tokens": n_tokens - 5, "truncated": False, "layers": [1], **masses}
    row |= {"reward_row_dropped": 0.25, "received_dropped": 0.5, **more}
    return [row | {"response_index": k, "chosen": k == 0} for k in range(2)]


def masking_rows_of(rows: list[dict], credit: float = 1.0) -> list[dict]:
    """Rows of masking.parquet for the pairs of `rows`; everything has the same credit."""
    keys = ("benchmark", "subset", "item_id", "group")
    return [
        {key: row[key] for key in keys}
        | {"mode": mode, "percent": percent, "chosen_score": 1.0, "rejected_score": 0.0, "credit": credit}
        for row in rows
        if row["chosen"]
        for mode in MODES
        for percent in PERCENTS
    ]


def write_run(folder: Path, variant: str, seed: int, rows: list[dict], masking: list[dict] | None = None) -> None:
    """The files of one diagnosed run below an experiment's folder."""
    out = folder / "diagnostics" / variant / f"seed{seed}"
    write_rows(rows, ATTENTION_COLUMNS, out / DIAGNOSED_RUN_FILES[0])
    write_rows(masking_rows_of(rows) if masking is None else masking, MASKING_COLUMNS, out / DIAGNOSED_RUN_FILES[1])
    counts = {"n_items": len(rows), "not_a_pair": 3, "not_drawn": 0, "n_pairs": len(rows) // 2, "n_truncated": 0}
    write_json(
        out / DIAGNOSED_RUN_FILES[2],
        {"variant": variant, "layers": [1], "n_layers": 2, "benchmarks": {"heldout": counts}},
    )


@pytest.fixture
def generator():
    return np.random.default_rng(0)
