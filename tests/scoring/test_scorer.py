import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.score_table import response_hash
from rm_methods.errors import UserError
from rm_methods.reward_models.layouts import launched_tokens
from rm_methods.reward_models.model import RewardOutput
from rm_methods.scoring.scorer import RewardModelScorer, ScoringSettings, position_bias


@pytest.fixture
def scorer(reward_model, tokenizer):
    return RewardModelScorer(reward_model, tokenizer, ScoringSettings(max_length=256))


@pytest.fixture
def items(pairs):
    """Items with 1 to 5 responses, of mixed lengths."""
    texts = [p.chosen for p in pairs]
    return [
        BenchmarkItem(f"i{k}", "s", pairs[k].prompt, [t * (1 + k % 3) for t in texts[k : k + 1 + k % 5]], 0)
        for k in range(12)
    ]


def scores(scorer, items, **settings):
    scorer.settings = ScoringSettings(max_length=256, **settings)
    return scorer.score(items)


def test_rows_come_in_the_order_of_items_and_responses_with_nothing_dropped(scorer, items):
    rows = scores(scorer, items)
    assert [(r.item_id, r.response_index) for r in rows] == [
        (i.item_id, k) for i in items for k in range(len(i.responses))
    ]
    assert [r.response_hash for r in rows] == [response_hash(text) for i in items for text in i.responses]
    assert all(np.isfinite(r.score) for r in rows)
    assert all(r.n_tokens > 0 for r in rows)


@pytest.mark.parametrize(
    "settings", [{"tokens_per_batch": 64}, {"tokens_per_batch": 100_000}, {"layout": "plain"}, {"layout": "packed"}]
)
def test_scores_do_not_depend_on_batches_or_layout(scorer, items, settings):
    reference = [r.score for r in scores(scorer, items, tokens_per_batch=32, layout="plain")]
    assert [r.score for r in scores(scorer, items, **settings)] == pytest.approx(reference, abs=1e-5)


def with_memory_for(scorer, tokens, monkeypatch):
    """Let forwards of more tokens run out of memory; returns the tokens of those that fit."""
    right = scorer._rewards
    fitted = []

    def rewards(encoded):
        launched = launched_tokens(encoded, scorer._layout)
        if launched > tokens:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        fitted.append(launched)
        return right(encoded)

    monkeypatch.setattr(scorer, "_rewards", rewards)
    return fitted


@pytest.mark.parametrize("layout", ["packed", "plain"])
def test_scores_stay_the_same_if_forwards_do_not_fit_into_memory(scorer, items, pairs, monkeypatch, capsys, layout):
    """Items are split, and so is an item with many responses."""
    many = [*items, replace(items[4], item_id="many", responses=[pair.chosen * 2 for pair in pairs[:20]])]
    reference = [(r.item_id, r.response_index, r.score) for r in scores(scorer, many, layout=layout)]
    fitted = with_memory_for(scorer, 120, monkeypatch)
    rows = scores(scorer, many, layout=layout)
    assert [(r.item_id, r.response_index) for r in rows] == [row[:2] for row in reference]
    assert [r.score for r in rows] == pytest.approx([row[2] for row in reference], abs=1e-5)
    assert 60 < max(fitted) <= 120
    assert capsys.readouterr().err.count("does not fit into memory, so forwards are made smaller") == 1


def test_a_text_that_does_not_fit_into_memory_is_refused_with_its_length(scorer, items, monkeypatch):
    with_memory_for(scorer, 10, monkeypatch)
    with pytest.raises(UserError, match=r"A text of \d+ tokens does not fit .* Lower backbone\.max_length"):
        scores(scorer, items)


def test_bf16_scores_are_those_of_each_text_whatever_else_is_scored(scorer, items):
    scorer.model.autocast = torch.bfloat16
    reference = [r.score for r in scores(scorer, items, precision="bf16")]
    for settings in ({"tokens_per_batch": 64}, {"tokens_per_batch": 100_000}, {"layout": "packed"}):
        assert [r.score for r in scores(scorer, items, precision="bf16", **settings)] == reference
    alone = [
        scores(scorer, [replace(item, responses=[text])], precision="bf16")[0].score
        for item in items
        for text in item.responses
    ]
    assert alone == reference
    # Batches may round in other ways; and bf16 it is.
    together = [
        r.score for r in scores(scorer, items, precision="bf16", bf16_in_batches=True, tokens_per_batch=100_000)
    ]
    assert together == pytest.approx(reference, abs=0.05)
    scorer.model.autocast = None
    exact = [r.score for r in scores(scorer, items)]
    assert reference == pytest.approx(exact, abs=0.05)
    assert reference != pytest.approx(exact, abs=1e-5)


def test_scores_do_not_depend_on_the_order_of_items(scorer, items):
    forward = {(r.item_id, r.response_index): r.score for r in scores(scorer, items)}
    backward = {(r.item_id, r.response_index): r.score for r in scores(scorer, items[::-1])}
    assert backward == pytest.approx(forward, abs=1e-5)


@pytest.mark.parametrize("layout", ["packed", "plain"])
def test_many_responses_of_one_prompt_are_scored_in_forwards_of_bounded_size(scorer, pairs, layout, monkeypatch):
    texts = [text for p in pairs for text in (p.chosen, p.rejected * 2)]
    responses = [[*texts, "", "long " * 2000], ["Red."]]
    items = [BenchmarkItem(str(k), "s", pairs[k].prompt, some, 0) for k, some in enumerate(responses)]
    whole = scores(scorer, items, layout=layout, tokens_per_batch=1_000_000)
    launched, forward = [], scorer.model.forward

    def counted(batch):
        launched.append(batch.launched_tokens)
        return forward(batch)

    monkeypatch.setattr(scorer.model, "forward", counted)
    split = scores(scorer, items, layout=layout, tokens_per_batch=300)
    assert max(launched) <= 300
    assert len(launched) > 3
    assert [replace(row, score=0.0) for row in split] == [replace(row, score=0.0) for row in whole]
    assert [row.score for row in split] == pytest.approx([row.score for row in whole], abs=1e-5)


def test_a_reward_that_is_not_a_number_stays_at_its_response(scorer, pairs, monkeypatch):
    def lengths(batch):
        columns = batch.read_column if batch.attention_map is None else batch.position_ids[0, batch.read_column]
        values = torch.where(columns % 2 == 0, torch.nan, columns.float())
        return RewardOutput(values.view(-1, batch.responses), None, None)

    monkeypatch.setattr(scorer.model, "forward", lengths)
    rows = scores(
        scorer, [BenchmarkItem("a", "s", pairs[0].prompt, [p.chosen for p in pairs], 0)], tokens_per_batch=100
    )
    assert {row.n_tokens % 2 for row in rows} == {0, 1}
    np.testing.assert_array_equal(
        [row.score for row in rows], [np.nan if row.n_tokens % 2 else row.n_tokens - 1 for row in rows]
    )


def test_an_empty_response_is_scored(scorer, pairs):
    (row,) = scores(scorer, [BenchmarkItem("a", "s", pairs[0].prompt, [""], 0)])
    assert np.isfinite(row.score)


def test_too_long_text_is_scored_and_marked(scorer, pairs):
    item = BenchmarkItem("a", "s", pairs[0].prompt, ["short", "long " * 2000], 0)
    short, long = scores(scorer, [item])
    assert (short.truncated, long.truncated) == (False, True)
    assert long.n_tokens <= 256
    assert np.isfinite(long.score)


def test_position_bias_by_hand():
    # The logits are those of the response that is read first: ln 3 is a probability of 3/4.
    three_quarters = math.log(3)
    assert position_bias([]) is None
    assert position_bias([(three_quarters, -three_quarters)]) == pytest.approx(0)
    assert position_bias([(three_quarters, three_quarters)]) == pytest.approx(0.25)
    assert position_bias([(three_quarters, three_quarters), (-1000, -1000)]) == pytest.approx(-0.125)
