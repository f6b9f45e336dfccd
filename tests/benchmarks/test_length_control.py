from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.benchmarks.length_control import length_controlled

PROMPT = [{"role": "user", "content": "?"}]
NAME = "test_length_controlled"


def items_of(lengths: Sequence[tuple[int, int]]) -> list[BenchmarkItem]:
    """Held-out pairs whose chosen and rejected responses have these lengths."""
    return [
        BenchmarkItem(f"i{number}", "test", PROMPT, ["x" * chosen, "x" * rejected], 0)
        for number, (chosen, rejected) in enumerate(lengths)
    ]


def value(lengths: Sequence[tuple[int, int]], takes_first: Callable[[int, int], bool]) -> float | None:
    """The metric of a rule that sees the two lengths and says whether it takes the first response."""
    items = items_of(lengths)
    scores = [np.array([1.0, 0.0] if takes_first(*pair) else [0.0, 1.0], dtype=np.float32) for pair in lengths]
    return metric_values(credit_table(load_benchmark_card("heldout"), items, scores)).get(NAME)


def note(lengths: Sequence[tuple[int, int]]) -> str:
    return length_controlled("controlled", "accuracy", items_of(lengths), ["test"]).note


def random_lengths(n: int, seed: int) -> list[tuple[int, int]]:
    """Pairs in which the longer response is chosen more often, and more so the larger the difference."""
    generator = np.random.default_rng(seed)
    lengths = np.exp(generator.normal(6, 1, size=(n, 2))).astype(int) + 1
    ratio = np.log(lengths.max(axis=1) / lengths.min(axis=1))
    longer_is_chosen = generator.random(n) < 0.3 + 0.65 * np.exp(-((ratio - 1) ** 2))
    return [
        (max(pair), min(pair)) if longer else (min(pair), max(pair))
        for pair, longer in zip(lengths.tolist(), longer_is_chosen, strict=True)
    ]


# Ten pairs of the rarer kind (the chosen response is shorter) make two bins of the ratio: 11/10 and 11.
TWO_CELLS = [(10, 11)] * 5 + [(10, 110)] * 5 + [(11, 10)] * 10 + [(110, 10)] * 20


def test_each_cell_weighs_as_much_as_its_rarer_kind_and_both_kinds_weigh_the_same():
    """min(10, 5) and min(20, 5) pairs can be matched, so each of the four strata weighs a quarter."""
    metric = length_controlled("controlled", "accuracy", items_of(TWO_CELLS), ["test"])
    assert {weight for weight, _ in metric.strata.values()} == {0.25}
    assert len(metric.strata) == 4
    assert value(TWO_CELLS, lambda chosen, rejected: (chosen, rejected) == (11, 10)) == 0.25
    lengths = [(10, 11)] * 5 + [(10, 110)] * 5 + [(11, 10)] * 3 + [(110, 10)] * 20
    # Now three pairs of the first cell can be matched and five of the second, 8 in all.
    assert value(lengths, lambda chosen, rejected: (chosen, rejected) == (11, 10)) == pytest.approx(3 / 16)
    assert value(lengths, lambda chosen, rejected: (chosen, rejected) == (110, 10)) == pytest.approx(5 / 16)


def test_a_rule_that_is_not_monotone_in_length_gets_one_half():
    """It takes the longer response unless that is much longer: 5/12 if all pairs were in one cell."""
    assert value(TWO_CELLS, lambda chosen, rejected: 0 < chosen - rejected < 50 or rejected - chosen > 50) == 0.5


def test_pairs_of_like_ratios_are_matched_on_the_sum_of_lengths():
    """Four cells for 20 rarer pairs: two bins of the ratio, and two of the sum in each of them."""
    both = [(n, n * ratio) for n in (10, 1000) for ratio in (2, 10)]
    lengths = both * 5 + [(longer, shorter) for shorter, longer in both for _ in range(7)]

    def longer_if_both_are_short(chosen, rejected):
        return (chosen > rejected) == (min(chosen, rejected) < 500)

    metric = length_controlled("controlled", "accuracy", items_of(lengths), ["test"])
    assert len(metric.strata) == 8
    assert value(lengths, longer_if_both_are_short) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [7, 60, 2000])
def test_preferring_length_or_brevity_gets_exactly_one_half(n, seed):
    lengths = [(5, 2), (2, 5), *random_lengths(n, seed)]
    assert value(lengths, lambda chosen, rejected: chosen > rejected) == pytest.approx(0.5, abs=1e-12)
    assert value(lengths, lambda chosen, rejected: chosen < rejected) == pytest.approx(0.5, abs=1e-12)


def test_a_rule_of_both_lengths_gains_little():
    """The pairs are chosen so that a medium ratio favors the longer one; one cell for all pairs leaves over 60%."""
    lengths = random_lengths(4000, seed=5)

    def medium_ratio(chosen, rejected):
        ratio = abs(np.log(chosen / rejected))
        return (chosen > rejected) == (0.4 < ratio < 1.7)

    longer = np.array([chosen > rejected for chosen, rejected in lengths])
    right = np.array([medium_ratio(*pair) for pair in lengths])
    assert (right[longer].mean() + right[~longer].mean()) / 2 > 0.6
    assert value(lengths, medium_ratio) == pytest.approx(0.5, abs=0.03)


def test_which_side_is_the_rarer_one_makes_no_difference():
    lengths = random_lengths(999, seed=1)
    swapped = [(rejected, chosen) for chosen, rejected in lengths]
    of_lengths = length_controlled("controlled", "accuracy", items_of(lengths), ["test"])
    of_swapped = length_controlled("controlled", "accuracy", items_of(swapped), ["test"])
    assert sorted(weight for weight, _ in of_lengths.strata.values()) == sorted(
        weight for weight, _ in of_swapped.strata.values()
    )
    assert len(of_lengths.strata) > 40


@pytest.mark.parametrize("lengths", [[(3, 3)] * 4, [(5, 3)], [(3, 5)], [(5, 3)] * 50, [(3, 5)] * 3 + [(3, 3)]])
def test_without_pairs_of_both_kinds_the_metric_is_undefined(lengths):
    assert value(lengths, lambda chosen, rejected: True) is None
    assert note(lengths).startswith("controlled: undefined; it needs pairs whose chosen response is longer and")


def test_what_is_left_out_is_counted():
    """Ratios of 11/10 and 11 make two cells; the second lacks pairs whose chosen response is longer."""
    lengths = [(10, 11)] * 5 + [(10, 110)] * 5 + [(11, 10)] * 12 + [(7, 7)]
    assert note(lengths) == (
        "controlled: 17 of 23 pairs, in 1 cell of like lengths; left out: 1 of equal length, 5 without a counterpart "
        "of like lengths."
    )
    assert value(lengths, lambda chosen, rejected: chosen < rejected) == 0.5
    assert note([*TWO_CELLS, (7, 7), (8, 8)]).startswith("controlled: 40 of 42 pairs, in 2 cells of like lengths; left")


def test_only_the_named_subsets_are_matched():
    items = items_of([(2, 1), (1, 2)])
    other = BenchmarkItem("other", "validation", PROMPT, ["xxx", "x"], 0)
    metric = length_controlled("controlled", "accuracy", [*items, other], ["test"])
    assert metric.part_of(other) == ""
    assert metric.part_of(items[0]) != metric.part_of(items[1])
