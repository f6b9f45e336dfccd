"""performance/architectures.py: our scores of tiny random models of many types are transformers' own, or the type is
refused by name."""

from __future__ import annotations

import pytest

from tests.performance.test_gpu_script import script

# Full attention, a window, linear attention, a dynamic mask, a convolution over the row, an encoder-decoder, a
# composite model.
FEW = {
    "llama": "packed",
    "mistral": "plain",
    "qwen3_next": "plain",
    "gemma2": "plain",
    "doge": "refused",
    "bert": "plain",
    "convbert": "refused",
    "bart": "plain",
    "gemma3": "plain",
}


@pytest.fixture(scope="module")
def architectures():
    return script("architectures")


@pytest.mark.parametrize("name", FEW)
def test_scores_are_those_of_transformers_or_the_type_is_refused(architectures, name, tmp_path):
    outcome = architectures.try_type(name, tmp_path / "model")
    assert outcome.result == FEW[name], outcome
    if outcome.result == "refused":
        assert "ForSequenceClassification" in outcome.note
    else:
        assert outcome.difference <= 1e-4


def test_the_sweep_notices_a_wrong_score(architectures, tmp_path, monkeypatch):
    own = architectures.scores_of_transformers
    monkeypatch.setattr(architectures, "scores_of_transformers", lambda folder, rows: own(folder, rows)[::-1])
    assert architectures.try_type("llama", tmp_path / "model").result == architectures.WRONG


@pytest.mark.slow
def test_no_type_that_transformers_knows_is_scored_wrongly(architectures, tmp_path):
    outcomes = [architectures.try_type(name, tmp_path / name) for name in architectures.types()]
    bad = [outcome for outcome in outcomes if outcome.result in (architectures.WRONG, architectures.CRASH)]
    assert not bad
    assert sum(outcome.result == architectures.NOT_BUILT for outcome in outcomes) <= 3
    assert sum(outcome.result == architectures.PACKED for outcome in outcomes) >= 25
