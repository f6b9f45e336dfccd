import numpy as np
import pytest
import torch

from rm_methods.diagnostics import attention
from rm_methods.diagnostics.attention import attention_mass, sequence_masses
from rm_methods.reward_models.layouts import lay_out


def masses(reward_model, items, layers=(0, 1)):
    reward_model.capture_attention(layers)
    with torch.inference_mode():
        return sequence_masses(reward_model(lay_out(items, "packed", 0)).attention, items)


@pytest.mark.parametrize("layers", [(0, 1), (1,)])
def test_reward_row_and_received_mass_equal_transformers_eager_maps(reward_model, eager, encoded, layers):
    found = iter(masses(reward_model, encoded[:5], layers))
    for item in encoded[:5]:
        for sequence in item.sequences:
            with torch.inference_mode():
                maps = eager.base_model(
                    torch.from_numpy(sequence.astype(np.int64))[None], output_attentions=True
                ).attentions
            mean_LL = torch.stack([maps[layer][0] for layer in layers]).mean((0, 1)).numpy()
            reward_row, received = next(found)
            assert np.abs(mean_LL[-1] - 1 / len(sequence)).max() > 0.01
            np.testing.assert_allclose(reward_row, mean_LL[-1], atol=1e-5, rtol=0)
            np.testing.assert_allclose(received, mean_LL.mean(0), atol=1e-5, rtol=0)


def test_the_size_of_the_blocks_has_no_influence(reward_model, encoded, monkeypatch):
    whole = masses(reward_model, encoded[:3])
    monkeypatch.setattr(attention, "_BLOCK_ROWS", 7)
    for expected, found in zip(whole, masses(reward_model, encoded[:3]), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_uniform_attention_has_the_known_masses():
    length = 6
    reward_row, received = attention_mass(torch.zeros(2, length, 4), torch.randn(2, length, 4), 0.5)
    np.testing.assert_allclose(reward_row, np.full(length, 1 / length), atol=1e-6)
    harmonic = [sum(1 / (i + 1) for i in range(j, length)) / length for j in range(length)]
    np.testing.assert_allclose(received, harmonic, atol=1e-6)


def test_packed_items_with_a_shared_prompt_equal_single_sequences(reward_model, tokenizer, items):
    together = masses(reward_model, tokenizer.encode((item.prompt, item.responses) for item in items[:6]))
    alone = [
        masses(reward_model, tokenizer.encode([(item.prompt, [r])]))[0] for item in items[:6] for r in item.responses
    ]
    assert len(together) == len(alone) == 12
    for expected, found in zip(alone, together, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_every_mass_is_a_distribution(reward_model, encoded):
    for mass in masses(reward_model, encoded):
        np.testing.assert_allclose(mass.sum(axis=1), [1, 1], atol=1e-5)
        assert (mass >= 0).all()
