"""The limit of sentences: how they are counted, and that no sampled response has more."""

from __future__ import annotations

import random

import pytest
import torch

from rm_methods.policies.log_probabilities import read_responses, token_log_probabilities
from rm_methods.policies.policy import load_policy
from rm_methods.policies.sampling import SamplingSettings, generate
from rm_methods.policies.sentences import completed_sentences, sentence_ends
from rm_methods.preferences.world import generate as world
from rm_methods.preferences.world.mixtures import mixed_response
from rm_methods.reward_models.backbones import WORLD_MODEL

LONG = 80  # tokens


@pytest.fixture(scope="module")
def policy():
    return load_policy(WORLD_MODEL)


@pytest.fixture(scope="module")
def prompts():
    pairs = world(annotator={}, train_pairs=24, validation_pairs=0, test_pairs=0)
    return [pair.prompt for pair in pairs]


@pytest.fixture(scope="module")
def ids(policy, prompts):
    return policy.encode_prompts(prompts, 200)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("I hope", 0),
        ("I hope.", 1),
        ("Really?! Yes... no", 2),
        ("What a great question! It is red.", 2),
        ("**Summary**\n- It is red.\n- I could go on.", 3),
        ("\n\n...!\n- ", 0),
        ("It is red.\n\nIt is blue", 1),
    ],
)
def test_sentences_are_counted_when_they_end(text, expected):
    assert completed_sentences(text) == expected


def test_the_count_is_that_of_the_controlled_world(prompts):
    for budget in (2, 3, 4):
        texts = [mixed_response(random.Random(k), prompt, budget) for k, prompt in enumerate(prompts)]
        counts = {completed_sentences(text + "\n") for text in texts}  # a header alone has no end
        assert counts == {budget - 1, budget}


@pytest.mark.parametrize("most", [1, 2])
def test_a_response_is_the_unlimited_one_up_to_its_last_allowed_sentence(policy, ids, most):
    """One prompt a call: in a batch, other rows that end sooner leave the random numbers of a row as they are."""
    stopped = 0
    for prompt in ids[:8]:
        free = generate(policy, [prompt], SamplingSettings(LONG), seed=1)
        limited = generate(policy, [prompt], SamplingSettings(LONG, max_sentences=most), seed=1)
        tokens = free.response_ids[0][free.mask[0]].tolist()
        kept = limited.response_ids[0][limited.mask[0]].tolist()
        assert tokens[: len(kept)] == kept
        assert limited.finished.all()
        if completed_sentences(policy.decode(tokens)) < most:
            assert kept == tokens
            continue
        stopped += 1
        assert completed_sentences(policy.decode(kept)) == most
        assert completed_sentences(policy.decode(kept[:-1])) < most
        assert kept[-1] not in policy.end_ids
    assert stopped > 2


def test_no_response_of_a_batch_has_more_sentences_and_each_token_was_drawn_from_the_policy(policy, ids):
    drawn = generate(policy, ids, SamplingSettings(LONG, max_sentences=2), seed=0)
    texts = [policy.decode(row[mask].tolist()) for row, mask in zip(drawn.response_ids, drawn.mask, strict=True)]
    counts = [completed_sentences(text) for text in texts]
    assert max(counts) == 2
    assert drawn.finished.all()
    # After its last token, a row is padding only.
    assert (drawn.response_ids[~drawn.mask] == policy.pad_id).all()
    with torch.no_grad():
        logits, _ = read_responses(policy.model, ids, drawn.response_ids, drawn.mask, policy.pad_id)
    assert (token_log_probabilities(logits, drawn.response_ids, drawn.mask)[drawn.mask] > -20).all()


def test_a_response_that_is_cut_by_tokens_first_is_not_finished(policy, ids):
    drawn = generate(policy, ids[:4], SamplingSettings(3, max_sentences=1), seed=0)
    assert not drawn.finished.any()
    assert drawn.mask.all()


def test_tokens_that_can_end_a_sentence(policy):
    texts = {policy.tokenizer.decode([token]) for token in sentence_ends(policy.tokenizer).tolist()}
    assert {".", "!", "?"} <= {text.strip(" *") for text in texts}
    assert not any(text.strip().isalpha() for text in texts)
