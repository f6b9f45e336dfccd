"""docs/using-reward-models.md: its code runs and says what the page says of it."""

from __future__ import annotations

import re
import shlex

import pytest
import torch

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.scoring.scorer import ScoringSettings, load_scorer
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "using-reward-models.md"
FOLDER = "results/quickstart/runs/bradley_terry/seed0/model"


@pytest.fixture(scope="module")
def names(folders):
    """The names that the page's Python blocks leave behind, run one after the other on the trained reward model."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    assert blocks[0].count(FOLDER) == 1
    names: dict = {}
    for block in blocks:
        exec(block.replace(FOLDER, str(folders.reward_model)), names)
    return names


def test_plain_transformers_gives_the_score_of_the_score_stage(names, folders):
    items = [
        BenchmarkItem(str(k), "s", turns[:-1], [turns[-1]["content"]], 0)
        for k, turns in enumerate(names["conversations"])
    ]
    expected = [row.score for row in load_scorer(folders.reward_model, ScoringSettings(max_length=256)).score(items)]
    assert abs(expected[0] - expected[1]) > 1e-3
    torch.testing.assert_close(names["rewards"], torch.tensor(expected), atol=1e-5, rtol=0)


def test_the_pad_token_that_is_saved_ends_no_conversation(names):
    assert names["model"].config.pad_token_id == names["tokenizer"].pad_token_id
    assert all(
        names["tokenizer"](text, add_special_tokens=False).input_ids[-1] != names["tokenizer"].pad_token_id
        for text in names["texts"]
    )


def test_the_check_of_the_bos_token_finds_that_the_tiny_tokenizer_adds_none(names):
    assert names["as_trained"][0] == names["tokenizer"].bos_token_id
    assert names["in_verl"] == names["as_trained"][1:]
    assert names["safe_in_verl"] is False


def test_the_commands_of_the_example_are_accepted(example):
    commands = re.findall(
        r"^    python examples/train_policy_with_trl.py (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert len(commands) == 2
    parsed = [example.parse_arguments(shlex.split(command)) for command in commands]
    assert [options.scorer for options in parsed] == [False, True]
    assert [options.trainer for options in parsed] == ["grpo", "rloo"]
