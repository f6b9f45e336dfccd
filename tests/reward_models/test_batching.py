import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_methods.reward_models.batching import batches_within, plan_cost, plan_steps
from rm_methods.reward_models.layouts import launched_tokens
from rm_methods.reward_models.tokenization import TokenizedItem

NO = (False, False)


def item(prompt, chosen, rejected):
    sequences = (np.arange(prompt + chosen, dtype=np.int32), np.arange(prompt + rejected, dtype=np.int32))
    return TokenizedItem(sequences, prompt, NO, NO)


ITEMS = st.lists(st.builds(item, st.integers(0, 60), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=40)
OPTIONS = {"seed": 0}


@settings(max_examples=80)
@given(
    items=ITEMS,
    ranks=st.integers(1, 4),
    pairs_per_step=st.integers(1, 12),
    budget=st.integers(32, 400),
    layout=st.sampled_from(["packed", "plain"]),
)
def test_every_pair_once_an_epoch_and_equal_forwards_on_every_rank(items, ranks, pairs_per_step, budget, layout):
    plan = plan_steps(
        items,
        steps=2 * -(-len(items) // pairs_per_step),
        pairs_per_step=pairs_per_step,
        tokens_per_microbatch=budget,
        ranks=ranks,
        layout=layout,
        **OPTIONS,
    )
    steps = -(-len(items) // pairs_per_step)
    assert len(plan) == 2 * steps
    for epoch in (plan[:steps], plan[steps:]):
        assert sorted(i for step in epoch for i in step.indices) == list(range(len(items)))
    for step in plan:
        assert len({len(rank) for rank in step.ranks}) == 1
        for batch in (batch for rank in step.ranks for batch in rank):
            assert launched_tokens([items[i] for i in batch.indices], layout) <= budget or len(batch.indices) == 1


def test_the_pairs_of_a_step_depend_on_the_seed_and_not_on_ranks_or_budget():
    items = [item(10, 5 + k % 7, 9) for k in range(30)]

    def steps(**changes):
        options = {
            "steps": 4,
            "pairs_per_step": 8,
            "tokens_per_microbatch": 100,
            "seed": 3,
            "ranks": 1,
            "layout": "packed",
        }
        return [sorted(step.indices) for step in plan_steps(items, **(options | changes))]

    assert steps() == steps(ranks=2) == steps(tokens_per_microbatch=1000) == steps(layout="plain")
    assert steps() != steps(seed=4)


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 9])
def test_the_number_of_steps_is_the_budget_whatever_the_number_of_items(steps):
    options = {"pairs_per_step": 8, "tokens_per_microbatch": 100, "ranks": 1, "layout": "packed", **OPTIONS}
    long, short = (plan_steps([item(4, 3, 2)] * count, steps=steps, **options) for count in (30, 5))
    assert len(long) == len(short) == steps
    # 30 items make epochs of 4 steps, the last with 6 pairs; 5 items are gone through in every step.
    assert [len(step.indices) for step in long] == [8, 8, 8, 6, 8, 8, 8, 6, 8][:steps]
    assert all(sorted(step.indices) == list(range(5)) for step in short)


def test_epochs_have_different_orders():
    items = [item(1, 1, 1)] * 30
    plan = plan_steps(
        items,
        steps=2 * -(-len(items) // 10),
        pairs_per_step=10,
        tokens_per_microbatch=30,
        ranks=1,
        layout="packed",
        **OPTIONS,
    )
    assert sorted(plan[0].indices) != sorted(plan[3].indices)


def test_cost_by_hand():
    # One pair: prompt 4, chosen 3, rejected 2.  Alone it is 7 + 6 = 13 tokens; packed it is one row of 9.
    plan = plan_steps(
        [item(4, 3, 2)] * 2, steps=3, pairs_per_step=2, tokens_per_microbatch=100, ranks=1, layout="packed", **OPTIONS
    )
    assert plan_cost(plan, [item(4, 3, 2)] * 2, "packed") == {
        "pairs_seen": 6, "tokens": 6 * 13, "launched_tokens": 3 * 2 * 9, "optimizer_steps": 3, "forwards": 3,
    }  # fmt: skip


@pytest.mark.parametrize(("pairs", "ranks"), [(1, 2), (3, 4)])
def test_fewer_pairs_than_ranks_are_filled_up_without_weight(pairs, ranks):
    items = [item(3, 2, 2)] * pairs
    (step,) = plan_steps(
        items, steps=1, pairs_per_step=8, tokens_per_microbatch=100, ranks=ranks, layout="packed", **OPTIONS
    )
    assert sorted(step.indices) == list(range(pairs))
    assert step.micro_batches == pairs
    assert all(len(rank) == 1 for rank in step.ranks)


def test_batches_within_a_limit_by_hand():
    tokens = [9, 5, 4, 1, 1, 1]

    def launched(members):
        return sum(tokens[i] for i in members)

    # The first item alone is above the limit; 5 + 4 would be too.
    assert batches_within(range(6), 8, launched) == [[0], [1], [2, 3, 4, 5]]
    assert batches_within(range(6), 0, launched) == [[0], [1], [2], [3], [4], [5]]
    assert batches_within([2, 0], 13, launched) == [[2, 0]]
    assert batches_within([], 8, launched) == []


@given(items=ITEMS, limit=st.integers(0, 400), layout=st.sampled_from(["packed", "plain"]))
def test_batches_hold_every_item_once_in_order_and_are_as_large_as_the_limit_allows(items, limit, layout):
    def launched(members):
        return launched_tokens([items[i] for i in members], layout)

    batches = batches_within(range(len(items)), limit, launched)
    assert [i for members in batches for i in members] == list(range(len(items)))
    assert all(launched(members) <= limit or len(members) == 1 for members in batches)
    assert all(launched([*members, members[-1] + 1]) > limit for members in batches[:-1])
