"""KL divergence of Best-of-n, by hand for policies of two outcomes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rm_methods.overoptimization.kl import kl_bound, kl_estimate

N = np.array([1, 2, 4, 16, 64, 1024])


def exact_kl(probabilities, numbers):
    """Equation (1) for a policy whose outcomes have these probabilities, from the worst score to the best."""
    upper = np.minimum(np.cumsum(probabilities), 1.0)
    lower = upper - probabilities
    values = []
    for n in numbers:
        mass = upper ** float(n) - lower ** float(n)
        values.append(sum(m * math.log(m / p) for m, p in zip(mass, probabilities, strict=True) if m > 0))
    return np.array(values)


def plain_estimate(scores, numbers, responses=None, log_probabilities=None):
    """`kl_estimate` by loops over the scores and over n."""
    atoms = []
    below = 0
    for score in sorted(set(scores)):
        samples = [i for i, other in enumerate(scores) if other == score]
        probability = len(samples) / len(scores) if len(samples) > 1 else 0.0
        if log_probabilities is not None and len({responses[i] for i in samples}) == 1:
            probability = min(len(samples) / len(scores), math.exp(log_probabilities[samples[0]]))
        below += len(samples)
        if probability > 1e-9:
            atoms.append((below / len(scores), probability))
    values = []
    for n in map(float, numbers):
        bound = math.log(n) - (n - 1) / n
        value = bound
        for upper, probability in atoms:
            lower = 0.0 if upper - probability < 1e-12 else upper - probability
            mass = upper**n - lower**n
            value += mass * math.log(mass / (upper - lower)) if mass > 0 else 0.0
            for sign, u in ((1, upper), (-1, lower)):  # less the integral over the interval
                if u > 0:
                    value -= sign * u**n * (math.log(n) + (n - 1) * math.log(u) - (n - 1) / n)
        values.append(min(max(value, 0.0), bound))
    return values


@pytest.mark.parametrize("with_texts", [False, True])
def test_the_estimate_equals_a_plain_loop(with_texts):
    """Scores that repeat within one text, across texts and not at all; probable, improbable and impossible texts."""
    generator = np.random.default_rng(3)
    sizes = []  # of each score: samples, and different texts among them
    for _ in range(60):
        total = int(generator.integers(1, 40))
        texts = [f"r{k}" for k in generator.integers(0, total, total)]
        # Texts ending in 0 share one score, so that some scores have several texts.
        scores = np.array([0.5 if text.endswith("0") else float(text[1:]) for text in texts], dtype=np.float32)
        of_text = {text: float(generator.choice([0.0, -1.0, -4.0, -25.0, -np.inf])) for text in texts}
        known = [of_text[text] for text in texts]
        for score in set(scores):
            same = [text for text, other in zip(texts, scores, strict=True) if other == score]
            sizes.append((len(same), len(set(same))))
        responses, log_probabilities = (texts, known) if with_texts else (None, None)
        expected = plain_estimate(scores, N, responses, log_probabilities)
        assert kl_estimate(scores, N, responses, log_probabilities) == pytest.approx(expected, abs=1e-11)
    assert sum(samples == 1 for samples, _ in sizes) > 20
    assert sum(samples > 1 and different == 1 for samples, different in sizes) > 20
    assert sum(different > 1 for _, different in sizes) > 20


def test_the_bound_has_the_published_values():
    values = kl_bound([2, 16, 64, 405, 1024, 12500, 60000])
    assert values == pytest.approx([0.193, 1.835, 3.175, 5.006, 5.932, 8.434, 10.002], abs=6e-4)
    assert kl_bound(1) == 0.0


def test_two_outcomes_by_hand():
    """Outcomes worse (0.9) and better (0.1), n = 2: worse with 0.81, better with 0.19."""
    by_hand = 0.81 * math.log(0.81 / 0.9) + 0.19 * math.log(0.19 / 0.1)
    assert exact_kl([0.9, 0.1], [2]) == pytest.approx([by_hand])
    assert exact_kl([0.9, 0.1], [1]) == pytest.approx([0.0], abs=1e-15)


def test_a_fair_coin_never_exceeds_log_two():
    values = exact_kl([0.5, 0.5], N)
    assert values[-1] == pytest.approx(math.log(2))
    assert (values <= math.log(2) + 1e-12).all()
    assert values[2] == pytest.approx((15 / 16) * math.log(15 / 8) + (1 / 16) * math.log(1 / 8))
    assert kl_bound(1024) > 5.9


def test_repeated_responses_give_the_exact_divergence_of_the_two_outcome_policy():
    scores = np.array([0.0] * 90 + [1.0] * 10, dtype=np.float32)
    assert kl_estimate(scores, N) == pytest.approx(exact_kl([0.9, 0.1], N), abs=1e-9)


def test_without_repetitions_the_estimate_is_the_bound():
    scores = np.random.default_rng(0).permutation(1024).astype(np.float32)
    assert kl_estimate(scores, N) == pytest.approx(kl_bound(N), abs=1e-12)


def test_one_known_atom_at_the_top_is_the_estimator_of_beirami_et_al():
    """The best response has probability e = 0.2 by its log-probability; all others are seen once and count as
    continuum."""
    e, texts = 0.2, [f"r{k}" for k in range(80)] + ["best"] * 20
    scores = np.array([*range(80), *[100] * 20], dtype=np.float32)
    log_probabilities = np.array([-50.0] * 80 + [math.log(e)] * 20)
    n = N.astype(float)
    rest = (1 - e) ** n * (np.log(n) + (n - 1) * math.log(1 - e) - (n - 1) / n)
    by_hand = rest + (1 - (1 - e) ** n) * np.log((1 - (1 - e) ** n) / e)
    assert kl_estimate(scores, N, texts, log_probabilities) == pytest.approx(by_hand, abs=1e-9)


def test_a_log_probability_tells_a_single_sample_from_a_continuum():
    scores = np.arange(10, dtype=np.float32)
    texts = [f"r{k}" for k in range(10)]
    atoms = kl_estimate(scores, N, texts, np.full(10, math.log(0.1)))
    assert atoms == pytest.approx(exact_kl([0.1] * 10, N), abs=1e-9)
    assert (atoms[1:] < kl_bound(N)[1:]).all()
    unlikely = kl_estimate(scores, N, texts, np.full(10, -200.0))
    assert unlikely == pytest.approx(kl_bound(N), abs=1e-12)


def test_the_estimate_never_exceeds_the_bound_and_more_repetition_lowers_it():
    generator = np.random.default_rng(1)
    before = kl_bound(N)
    for distinct in (500, 50, 5, 1):
        estimate = kl_estimate(generator.integers(0, distinct, 1024).astype(np.float32), N)
        assert (estimate <= before + 1e-9).all()
        before = estimate
    assert before == pytest.approx(np.zeros(len(N)), abs=1e-12)


def test_the_estimate_is_close_for_a_policy_whose_divergence_is_known():
    """Thirty outcomes of unequal probability, ten thousand samples: within 0.02 nats of the exact divergence at every
    n up to 1,024."""
    generator = np.random.default_rng(2)
    probabilities = generator.dirichlet(np.ones(30))
    scores = generator.choice(30, size=10_000, p=probabilities).astype(np.float32)
    assert kl_estimate(scores, N) == pytest.approx(exact_kl(probabilities, N), abs=0.02)
