from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from rm_methods.errors import UserError
from rm_methods.methods.fitted_length import Method, spline_basis
from rm_methods.methods.registry import load_method_card
from rm_methods.preferences.pair import PreferencePair, make_pair

PROMPT = [{"role": "user", "content": "?"}]


def pairs_of(lengths: Sequence[tuple[int, int]]) -> list[PreferencePair]:
    """Training pairs whose chosen and rejected responses have these lengths."""
    return [make_pair(PROMPT, "x" * a, "y" * b, split="train", source="made up") for a, b in lengths]


def fitted(lengths: Sequence[tuple[int, int]], **settings: float) -> Method:
    method = Method(load_method_card("fitted_length").defaults() | settings)
    method.fitted = json.loads(json.dumps(method.fit(pairs_of(lengths))))
    return method


def rewards(method: Method, *lengths: int) -> list[float]:
    return [method.score(PROMPT, "z" * length, 0) for length in lengths]


def test_with_one_ratio_of_lengths_the_margin_is_the_log_odds_of_the_longer_one():
    """Lengths 1 and 3 are log 2 and log 4 apart by log 2. The longer one is chosen in three of four pairs: log 3."""
    method = fitted([(3, 1)] * 3 + [(1, 3)], knots=2, l2=1e-9)
    short, long, longer = rewards(method, 1, 3, 7)
    assert long - short == pytest.approx(np.log(3), rel=1e-4)
    assert longer - long == pytest.approx(np.log(3), rel=1e-4)  # linear in log(1 + length): 4 to 8 is log 2 again
    assert method.fitted["train_accuracy"] == 0.75


def test_the_penalty_is_on_standardized_weights():
    """One weight v on the standardized feature: log 2 apart with spread log(2)/2, so x = 2 or -2.

    The derivative at v is -(3/4) 2 sigmoid(-2v) + (1/4) 2 sigmoid(2v) + l2 v.
    """
    method = fitted([(3, 1)] * 3 + [(1, 3)], knots=2, l2=1.0)
    short, long = rewards(method, 1, 3)
    v = (long - short) / 2
    assert -1.5 / (1 + np.exp(2 * v)) + 0.5 / (1 + np.exp(-2 * v)) + v == pytest.approx(0, abs=1e-6)
    assert 0.2 < v < 0.3


def test_the_basis_is_cubic_between_the_knots_and_linear_beyond_them():
    """Knots 0, 1, 2: the second function is (x^3 - 2 (x-1)^3 + (x-2)^3) / 4, each term from its knot on."""
    basis = spline_basis(np.array([-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 2.0]))
    assert basis.shape == (8, 2)
    assert basis[:, 0].tolist() == [-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]
    # 0, 0, .125, 1, 3.375 - .25, 8 - 2, 27 - 16 + 1, 64 - 54 + 8, all over 4
    assert basis[:, 1] == pytest.approx([0, 0, 0.03125, 0.25, 0.78125, 1.5, 3.0, 4.5])


def test_a_most_liked_length_in_the_middle_is_learned():
    """100 characters are preferred to 10 and to 1,000: no monotone rule gets more than half of these pairs."""
    method = fitted([(100, 10), (100, 1000), (90, 12), (110, 900)] * 20)
    short, middle, long = rewards(method, 10, 100, 1000)
    assert middle > short
    assert middle > long
    assert method.fitted["train_accuracy"] == 1.0


def test_flipped_labels_flip_the_scores_and_the_order_of_pairs_does_not_matter():
    generator = np.random.default_rng(0)
    lengths = [tuple(pair) for pair in generator.integers(1, 500, size=(200, 2)).tolist()]
    there = rewards(fitted(lengths), 5, 50, 400, 4000)
    back = rewards(fitted([(rejected, chosen) for chosen, rejected in lengths]), 5, 50, 400, 4000)
    shuffled = rewards(fitted(lengths[::-1]), 5, 50, 400, 4000)
    assert there == pytest.approx([-value for value in back], abs=1e-6)
    assert there == pytest.approx(shuffled, abs=1e-6)


def test_the_stored_weights_minimize_the_loss():
    """The loss grows whichever weight is moved, whichever way."""
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, 900, size=(150, 2))
    method = fitted([tuple(pair) for pair in lengths.tolist()])
    basis = spline_basis(np.log1p(lengths.ravel().astype(float)), np.array(method.fitted["knots"])).reshape(150, 2, -1)
    spread = basis.std(axis=(0, 1))

    def loss(weights):
        margins = (basis[:, 0] - basis[:, 1]) @ weights
        return np.logaddexp(0, -margins).mean() + 0.001 / 2 * ((weights * spread) ** 2).sum()

    best = np.array(method.fitted["weights"])
    for k in range(len(best)):
        for step in (-0.01, 0.01):
            moved = best.copy()
            moved[k] += step / spread[k]
            assert loss(moved) > loss(best)


@pytest.mark.parametrize("lengths", [[(5, 5)] * 3, [(0, 0)], [(7, 2)], [(0, 4), (4, 0)]])
def test_few_or_equal_lengths_give_finite_scores(lengths):
    method = fitted(lengths)
    assert np.isfinite(rewards(method, 0, 1, 5, 10**6)).all()
    if all(chosen == rejected for chosen, rejected in lengths):
        assert len(set(rewards(method, 0, 5, 100))) == 1


def test_the_text_has_no_influence():
    texts = [make_pair(PROMPT, a, b, split="train", source="s") for a, b in [("good!", "bad"), ("no", "yes?!")]]
    method = Method(load_method_card("fitted_length").defaults())
    assert method.fit(texts) == fitted([(5, 3), (2, 5)]).fitted


def test_a_scorer_without_a_fit_is_an_error():
    with pytest.raises(UserError, match="was not fitted"):
        Method(load_method_card("fitted_length").defaults()).score(PROMPT, "x", 0)
