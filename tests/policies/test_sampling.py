"""Sampling: seeds, masks, the distribution that is sampled from, stored pools."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rm_methods.errors import DataError, UserError
from rm_methods.policies import sampling
from rm_methods.policies.log_probabilities import read_responses, token_entropies, token_log_probabilities
from rm_methods.policies.policy import Prompt, load_policy, policy_from_backbone, save_policy
from rm_methods.policies.sampling import (
    NotFinite,
    SamplingSettings,
    generate,
    generation_configuration,
    read_references,
    sample_pool,
)

SHORT = SamplingSettings(max_new_tokens=12)
PROMPTS = [
    Prompt(f"p{k}", [{"role": "user", "content": f"paint it {color}"}])
    for k, color in enumerate(("red", "blue and green", "black"))
]


@pytest.fixture(scope="module")
def folder(prepared, tmp_path_factory):
    policy = policy_from_backbone(prepared[1], prepared[2]["backbone"], seed=0)
    with torch.no_grad():
        # A likely end token: about one in ten tokens.
        policy.model.lm_head.weight.mul_(20)
        policy.model.lm_head.weight[policy.end_ids[0]] *= 3
    path = tmp_path_factory.mktemp("sampling") / "policy"
    save_policy(policy, path)
    return path


@pytest.fixture(scope="module")
def policy(folder):
    return load_policy(folder)


@pytest.fixture(scope="module")
def ids(policy):
    return policy.encode_prompts([prompt.messages for prompt in PROMPTS] * 4, 100)[0]


def draw(policy, ids, settings=SHORT, seed=0):
    return generate(policy, ids, settings, seed)


def test_a_seed_gives_the_same_samples_whatever_was_drawn_before(policy, ids):
    first = draw(policy, ids)
    torch.rand(7)
    draw(policy, ids, seed=3)
    assert torch.equal(draw(policy, ids).response_ids, first.response_ids)
    assert not torch.equal(draw(policy, ids, seed=1).response_ids[:, :6], first.response_ids[:, :6])


def test_sampling_leaves_the_random_state_as_it_was(policy, ids):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draw(policy, ids)
    assert torch.equal(torch.rand(3), expected)


def test_the_mask_ends_with_the_first_end_token(policy, ids):
    drawn = draw(policy, ids)
    end = policy.end_ids[0]
    assert 0 < int(drawn.finished.sum()) < len(ids)
    for row, mask, finished in zip(
        drawn.response_ids.tolist(), drawn.mask.tolist(), drawn.finished.tolist(), strict=True
    ):
        length = row.index(end) + 1 if end in row else len(row)
        assert finished == (end in row)
        assert mask == [k < length for k in range(len(row))]
        assert set(row[length:]) <= {policy.pad_id}


def test_no_default_of_the_library_or_the_model_shapes_the_distribution(policy, ids):
    """A model whose configuration asks for top_k = 1 is still sampled from as a whole."""
    plain = draw(policy, ids)
    own = policy.model.generation_config
    policy.model.generation_config.top_k = 1
    policy.model.generation_config.repetition_penalty = 5.0
    assert torch.equal(draw(policy, ids).response_ids, plain.response_ids)
    assert policy.model.generation_config is own
    own.top_k, own.repetition_penalty = 0, None


def test_sampled_tokens_have_the_frequencies_that_the_model_says(policy, ids):
    one = [ids[0]] * 4000
    drawn = draw(policy, one, SamplingSettings(max_new_tokens=1))
    with torch.no_grad():
        logits, _ = read_responses(policy.model, one[:1], drawn.response_ids[:1], drawn.mask[:1], policy.pad_id)
    expected = logits[0, 0].softmax(-1).numpy()
    seen = np.bincount(drawn.response_ids[:, 0].numpy(), minlength=len(expected)) / len(one)
    # Beyond the 50 likeliest tokens too, which a default top_k would cut off.
    rare = np.argsort(-expected)[50:]
    assert seen[rare].sum() == pytest.approx(expected[rare].sum(), abs=0.04)
    assert expected[rare].sum() > 0.1
    assert np.abs(seen - expected).max() < 0.04


def test_log_probabilities_of_generation_and_of_a_plain_forward_agree(policy, ids):
    settings = generation_configuration(SHORT, policy.end_ids, policy.pad_id)
    from rm_methods.policies.log_probabilities import left_padded

    input_ids, is_token = left_padded(ids, policy.pad_id, "cpu")
    torch.manual_seed(0)
    output = policy.model.generate(
        input_ids=input_ids,
        attention_mask=is_token,
        generation_config=settings,
        output_logits=True,
        return_dict_in_generate=True,
    )
    response_ids = output.sequences[:, input_ids.shape[1] :]
    generated = torch.stack(output.logits, 1).log_softmax(-1).gather(-1, response_ids[..., None])[..., 0]
    drawn = draw(policy, ids)
    assert torch.equal(drawn.response_ids[drawn.mask], response_ids[drawn.mask])
    with torch.no_grad():
        logits, _ = read_responses(policy.model, ids, drawn.response_ids, drawn.mask, policy.pad_id)
        read = token_log_probabilities(logits, drawn.response_ids, drawn.mask)
    assert float((read - generated)[drawn.mask].abs().max()) < 1e-4
    assert float(read[~drawn.mask].abs().max()) == 0


def test_padding_changes_no_log_probability(policy, ids):
    drawn = draw(policy, ids)
    with torch.no_grad():
        logits, hidden = read_responses(policy.model, ids, drawn.response_ids, drawn.mask, policy.pad_id)
        together = token_log_probabilities(logits, drawn.response_ids, drawn.mask)
        for row in range(3):
            length = int(drawn.mask[row].sum())
            alone, mask = drawn.response_ids[row : row + 1, :length], drawn.mask[row : row + 1, :length]
            logits, one_hidden = read_responses(policy.model, [ids[row]], alone, mask, policy.pad_id)
            assert torch.allclose(token_log_probabilities(logits, alone, mask)[0], together[row, :length], atol=1e-5)
            assert torch.allclose(one_hidden[0], hidden[row, :length], atol=1e-4)


def test_padding_changes_nothing_for_absolute_positions_either(policy, ids):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(policy.tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5
    )
    model = GPT2LMHeadModel(config).eval()
    drawn = generate(replace(policy, model=model), ids[:3], SamplingSettings(4), 0)
    with torch.no_grad():
        logits, _ = read_responses(model, ids[:3], drawn.response_ids, drawn.mask, policy.pad_id)
        for row in range(3):
            one = slice(row, row + 1)
            alone, _ = read_responses(model, [ids[row]], drawn.response_ids[one], drawn.mask[one], policy.pad_id)
            length = int(drawn.mask[row].sum())
            assert torch.allclose(alone[0, :length], logits[row, :length], atol=1e-4)
    assert len({len(row) for row in ids[:3]}) > 1


def test_entropy_of_two_equal_outcomes_is_log_two():
    logits = torch.tensor([[[0.0, 0.0, -1e9], [3.0, 3.0, 3.0]]])
    entropies = token_entropies(logits, torch.tensor([[True, False]]))
    assert entropies.tolist() == [[pytest.approx(np.log(2)), 0.0]]


def test_temperature_zero_takes_the_likeliest_token(policy, ids):
    greedy = SamplingSettings(max_new_tokens=4, temperature=0)
    assert torch.equal(draw(policy, ids, greedy, seed=0).response_ids, draw(policy, ids, greedy, seed=1).response_ids)


def test_broken_weights_are_named_and_not_sampled_from(folder, ids):
    policy = load_policy(folder)
    with torch.no_grad():
        policy.model.lm_head.weight[0] = float("nan")
    with pytest.raises(NotFinite, match="weights are broken"):
        draw(policy, ids)


def pool(folder, path, **changes):
    arguments = {"samples_per_prompt": 5, "settings": SHORT, "seed": 0, "batch_size": 4, "threads": 1} | changes
    return sample_pool(folder, PROMPTS, out_parquet=path / "pool.parquet", work_folder=path / "work", **arguments)


def test_a_pool_has_a_row_for_every_sample_and_counts_what_is_odd(folder, policy, tmp_path):
    counts = pool(folder, tmp_path)
    rows = pq.read_table(tmp_path / "pool.parquet").to_pylist()
    assert [(row["prompt_id"], row["sample_index"]) for row in rows] == [
        (f"p{p}", s) for p in range(3) for s in range(5)
    ]
    assert counts["samples"] == len(rows) == 15
    assert counts["unfinished"] == sum(not row["finished"] for row in rows)
    assert counts["tokens"] == sum(row["n_tokens"] for row in rows)
    assert not any(row["truncated"] for row in rows)
    # The log-probability is that of the tokens at temperature 1, in whatever way they were drawn.
    sharp_folder = tmp_path / "sharp"
    pool(folder, sharp_folder, settings=SamplingSettings(12, temperature=0.7, top_p=0.9))
    row = pq.read_table(sharp_folder / "pool.parquet").to_pylist()[0]
    ids = policy.encode_prompts([PROMPTS[0].messages], 100)[0] * 4
    drawn = draw(policy, ids, SamplingSettings(12, temperature=0.7, top_p=0.9), sampling.derived_seed(0, "pool", 0))
    with torch.no_grad():
        logits, _ = read_responses(policy.model, ids, drawn.response_ids, drawn.mask, policy.pad_id)
    expected = token_log_probabilities(logits, drawn.response_ids, drawn.mask)[0].sum()
    assert row["log_probability"] == pytest.approx(float(expected), abs=1e-4)
    assert row["n_tokens"] == int(drawn.mask[0].sum())


def test_each_chunk_and_each_seed_of_a_pool_draws_other_samples(folder, tmp_path):
    """Both chunks ask the same prompt four times; about nine tokens a response, so that four equal ones are no
    accident."""
    sample_pool(folder, PROMPTS[:1], 8, SHORT, 0, tmp_path / "pool.parquet", tmp_path / "work", batch_size=4, threads=1)
    responses = pq.read_table(tmp_path / "pool.parquet")["response"].to_pylist()
    assert responses[:4] != responses[4:]
    sample_pool(
        folder, PROMPTS[:1], 8, SHORT, 1, tmp_path / "other.parquet", tmp_path / "work", batch_size=4, threads=1
    )
    assert pq.read_table(tmp_path / "other.parquet")["response"].to_pylist()[:4] not in (responses[:4], responses[4:])


def test_empty_and_repeated_responses_stay_and_are_counted(folder, tmp_path):
    policy = load_policy(folder)
    with torch.no_grad():
        policy.model.lm_head.weight[policy.end_ids[0]] *= 100
    save_policy(policy, tmp_path / "policy")
    counts = pool(tmp_path / "policy", tmp_path, settings=SamplingSettings(1, temperature=0))
    rows = pq.read_table(tmp_path / "pool.parquet").to_pylist()
    assert counts["samples"] == 15
    assert counts["empty"] == sum(not row["response"].strip() for row in rows)
    assert counts["duplicates"] == 12  # of five equal responses to each prompt, four repeat the first


def test_a_killed_pool_goes_on_and_gives_the_same_bytes(folder, tmp_path, monkeypatch):
    pool(folder, tmp_path / "whole")
    chunks = []
    original = sampling._sample_chunk

    def killed(*args):
        chunks.append(args)
        if len(chunks) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(sampling, "_sample_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        pool(folder, tmp_path / "killed")
    assert not (tmp_path / "killed" / "pool.parquet").exists()
    pool(folder, tmp_path / "killed")
    assert len(chunks) == 3 + 2  # of four chunks, two were kept
    assert (tmp_path / "killed" / "pool.parquet").read_bytes() == (tmp_path / "whole" / "pool.parquet").read_bytes()


def test_chunks_of_other_settings_are_not_taken(folder, tmp_path, monkeypatch):
    original, seen_chunks = sampling._sample_chunk, []

    def killed(*args):
        seen_chunks.append(args)
        if len(seen_chunks) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(sampling, "_sample_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        pool(folder, tmp_path, seed=1)
    monkeypatch.setattr(sampling, "_sample_chunk", original)
    pool(folder, tmp_path, seed=0)
    pool(folder, tmp_path / "fresh", seed=0)
    assert (tmp_path / "pool.parquet").read_bytes() == (tmp_path / "fresh" / "pool.parquet").read_bytes()


def test_prompts_without_or_with_the_same_id_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="'p0' occurs twice"):
        sample_pool(folder, [PROMPTS[0], PROMPTS[0]], 1, SHORT, 0, tmp_path / "pool.parquet", tmp_path / "work")
    with pytest.raises(UserError, match="No prompts were given"):
        sample_pool(folder, [], 1, SHORT, 0, tmp_path / "pool.parquet", tmp_path / "work")


def test_references_are_the_first_samples_of_each_prompt(folder, tmp_path):
    pool(folder, tmp_path)
    rows = pq.read_table(tmp_path / "pool.parquet").to_pylist()
    references = read_references(tmp_path / "pool.parquet", 2)
    assert references["p1"] == [row["response"] for row in rows if row["prompt_id"] == "p1"][:2]
    with pytest.raises(UserError, match="has 5 samples, but 6 are needed"):
        read_references(tmp_path / "pool.parquet", 6)
    with pytest.raises(DataError, match="no such file"):
        read_references(tmp_path / "other.parquet")
