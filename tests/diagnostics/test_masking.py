import numpy as np
import pytest
import torch

from rm_methods.diagnostics.diagnose import masked_scores, measure
from rm_methods.diagnostics.masking import lay_out_visible, visible_item, visible_positions
from rm_methods.diagnostics.pairs import TextTokens, pair_credit, text_tokens
from rm_methods.experiment.diagnosed_runs import MODES, PERCENTS
from rm_methods.reward_models.tokenization import TokenizedItem


def test_which_tokens_are_hidden_by_hand():
    # BOS, role, three words of the prompt, end, role, four words of the response, end.
    is_text = np.array([0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0], dtype=bool)
    is_response = is_text & (np.arange(12) > 6)
    text = TextTokens(is_text, is_response)
    # 50% of seven text tokens is three whole tokens: the prompt.
    assert visible_positions(text, "sequence", 50).tolist() == [0, 1, 5, 6, 7, 8, 9, 10, 11]
    assert visible_positions(text, "response", 50).tolist() == [0, 1, 2, 3, 4, 5, 6, 9, 10, 11]
    assert visible_positions(text, "sequence", 90).tolist() == [0, 1, 5, 6, 10, 11]
    assert visible_positions(text, "response", 0).tolist() == list(range(12))


def test_the_visible_item_shares_what_stands_at_the_start_of_both():
    sequences = (np.array([1, 2, 3, 4, 5, 6]), np.array([1, 2, 3, 4, 7, 8]))
    item = TokenizedItem(sequences, 4, (False, False), (False, False))
    same = visible_item(item, [np.array([0, 2, 3, 5]), np.array([0, 2, 3, 4, 5])])
    assert same.shared == 3
    assert [s.tolist() for s in same.sequences] == [[1, 3, 4, 6], [1, 3, 4, 7, 8]]
    other = visible_item(item, [np.array([0, 2, 3, 5]), np.array([0, 3, 4, 5])])
    assert other.shared == 1
    # Position 4 is visible in both, but holds 5 in one and 7 in the other.
    assert visible_item(item, [np.array([0, 2, 3, 4, 5])] * 2).shared == 3
    batch = lay_out_visible([same], [[np.array([0, 2, 3, 5]), np.array([0, 2, 3, 4, 5])]], 0)
    assert batch.position_ids.tolist() == [[0, 2, 3, 5, 4, 5]]
    assert batch.input_ids.tolist() == [[1, 3, 4, 6, 7, 8]]


def test_text_tokens_leave_the_template_out(tokenizer, encoded, texts, items):
    for item, own, benchmark_item in zip(encoded, texts, items, strict=True):
        for ids, text, response in zip(item.sequences, own, benchmark_item.responses, strict=True):
            assert tokenizer.tokenizer.decode(ids[text.is_response]).strip() == response
            prompt = tokenizer.tokenizer.decode(ids[text.is_text & ~text.is_response]).strip()
            assert prompt == benchmark_item.prompt[0]["content"]
            assert not text.is_text[0]
            assert not text.is_text[-1]


def rewards_with_explicit_masks(eager, encoded, texts, mode, percent):
    """Reference: whole sequences in the plain layout, with a dense mask in which hidden tokens are no keys."""
    rewards = []
    for item, own in zip(encoded, texts, strict=True):
        for ids, text in zip(item.sequences, own, strict=True):
            length = len(ids)
            visible = np.zeros(length, dtype=bool)
            visible[visible_positions(text, mode, percent)] = True
            # A hidden token still sees itself, so that its own row, which nobody reads, is defined.
            allowed_LL = np.tril(np.broadcast_to(visible, (length, length))) | np.eye(length, dtype=bool)
            bias = torch.zeros(1, 1, length, length).masked_fill_(
                ~torch.from_numpy(allowed_LL), torch.finfo(torch.float32).min
            )
            with torch.inference_mode():
                hidden = eager.base_model(
                    torch.from_numpy(ids.astype(np.int64))[None], attention_mask=bias
                ).last_hidden_state
                rewards.append(eager.score(hidden[0, -1]).item())
    return np.array(rewards).reshape(-1, 2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("percent", [10, 50, 90])
def test_leaving_tokens_out_equals_an_explicit_attention_mask(scorer, eager, encoded, texts, mode, percent):
    found = masked_scores(scorer, encoded[:6], texts[:6], mode, percent)
    np.testing.assert_allclose(
        found, rewards_with_explicit_masks(eager, encoded[:6], texts[:6], mode, percent), atol=1e-5, rtol=0
    )
    whole = masked_scores(scorer, encoded[:6], texts[:6], mode, 0)
    assert np.abs(found - whole).max() > 0.01


def test_nothing_hidden_gives_the_normal_scores(scorer, items, encoded, texts):
    normal = np.array([row.score for row in scorer.score(items)]).reshape(-1, 2)
    measured = measure(scorer, encoded, texts, (0, 1))
    assert set(measured.scores) == {(mode, percent) for mode in MODES for percent in PERCENTS}
    for mode in MODES:
        np.testing.assert_allclose(measured.scores[mode, 0], normal, atol=1e-5, rtol=0)
        np.testing.assert_allclose(masked_scores(scorer, encoded, texts, mode, 0), normal, atol=1e-5, rtol=0)
    assert scorer.model.captured_layers == ()


def test_hiding_the_response_equals_hiding_it_in_any_batch(scorer, encoded, texts):
    together = masked_scores(scorer, encoded, texts, "response", 40)
    scorer.settings = type(scorer.settings)(tokens_per_batch=1)
    np.testing.assert_allclose(masked_scores(scorer, encoded, texts, "response", 40), together, atol=1e-5, rtol=0)


def test_responses_with_the_same_end_tie_when_only_the_end_is_visible(scorer, tokenizer):
    encoded = tokenizer.encode(
        [([{"role": "user", "content": "Paint it."}], ["red red red red red", "blue blue red red red"])]
    )
    texts = [text_tokens(tokenizer, encoded[0])]
    assert len(encoded[0].sequences[0]) == len(encoded[0].sequences[1])
    scores = masked_scores(scorer, encoded, texts, "sequence", 90)
    assert pair_credit(scores[:, 0], scores[:, 1]).tolist() == [0.5]


def test_credits_of_pairs():
    better, worse = [1.0, 0.0, 2.0, np.nan, np.inf], [0.0, 1.0, 2.0, np.nan, 0.0]
    assert pair_credit(better, worse).tolist() == [1, 0, 0.5, 0, 0]
    # Ties are decided in float32, as in score tables.
    assert pair_credit([1 + 1e-12], [1.0]).tolist() == [0.5]
