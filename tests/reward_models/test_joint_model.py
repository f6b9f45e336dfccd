import pytest
import torch
from transformers import BertConfig, DebertaV2Config, ModernBertConfig

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import UserError
from rm_methods.methods.joint_encoder import _words
from rm_methods.reward_models.backbones import load_classifier
from rm_methods.reward_models.joint_model import JointModel, load_joint
from rm_methods.reward_models.joint_reader import DecoderReader, EncoderReader
from rm_methods.reward_models.layouts import lay_out
from rm_methods.scoring.scorer import JointScorer, ScoringSettings

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_labels": 1}


def encoder(config, words, attention=None):
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = config(vocab_size=len(words), pad_token_id=words.pad_token_id, initializer_range=0.5, **SMALL)
    return JointModel(AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).eval(), decoder=False)


@pytest.fixture
def words(pairs):
    return _words(pairs, 1000)


@pytest.fixture
def decoder(prepared, tokenizer):
    return JointModel(load_classifier(prepared[1], prepared[2]["backbone"], 0).eval(), decoder=True), DecoderReader(tokenizer)


def laid_out(reader, pairs, count=4):
    return lay_out(reader.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:count]), "plain", reader.pad_id)


@pytest.mark.parametrize("config", [BertConfig, ModernBertConfig, DebertaV2Config])
def test_attention_maps_are_those_of_eager_attention(config, words, pairs):
    model = encoder(config, words)
    eager = encoder(config, words, "eager")
    eager.load_state_dict(model.state_dict())
    batch = laid_out(EncoderReader(words, 128), pairs)
    is_token = torch.arange(batch.input_ids.shape[1]) <= batch.read_column[:, None]
    with torch.no_grad():
        expected = eager.classifier(batch.input_ids, attention_mask=is_token.long(), output_attentions=True).attentions
    for layer in (0, 2):
        found, _ = model.attention_map(batch, layer)
        torch.testing.assert_close(found[is_token], expected[layer].mean(1)[is_token], atol=1e-5, rtol=0)
        torch.testing.assert_close(found.sum(-1)[is_token], torch.ones(int(is_token.sum())), atol=1e-5, rtol=0)


def test_a_decoder_without_mask_sees_what_comes_later_but_no_padding(decoder, pairs):
    model, reader = decoder
    batch = laid_out(reader, pairs)
    with torch.no_grad():
        together = model(batch).rewards
        alone = torch.cat([model(laid_out(reader, [pair])).rewards for pair in pairs[:4]])
        map_RLL, _ = model.attention_map(batch, 0)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    last = int(batch.read_column[0])
    assert map_RLL[0, 0, last] > 1e-4
    assert map_RLL[0, 0, last + 1 :].abs().max() == 0 or last + 1 == map_RLL.shape[2]


def test_preferences_are_antisymmetric_and_position_bias_is_reported(words, pairs):
    scorer = JointScorer(encoder(BertConfig, words), EncoderReader(words, 128), ScoringSettings(threads=1))
    items = [BenchmarkItem(p.pair_id, "s", p.prompt, [p.chosen, p.rejected], 0) for p in pairs[:6]]
    swapped = [BenchmarkItem(p.pair_id, "s", p.prompt, [p.rejected, p.chosen], 1) for p in pairs[:6]]
    rows, back = scorer.score(items), scorer.score(swapped)
    assert len(rows) == 12
    for k in range(6):
        first, second = rows[2 * k].score, rows[2 * k + 1].score
        assert first == pytest.approx(-second, abs=1e-6) == pytest.approx(back[2 * k + 1].score, abs=1e-5)
    assert max(abs(row.score) for row in rows) > 1e-4
    assert -0.5 <= scorer.extra_metrics()["validation_position_bias"] <= 0.5


def test_equal_responses_get_equal_scores_and_more_than_two_are_ranked(words, pairs):
    scorer = JointScorer(encoder(BertConfig, words), EncoderReader(words, 128), ScoringSettings(threads=1))
    a, b, c, d = scorer.score([BenchmarkItem("i", "s", pairs[0].prompt, ["red", "red", "green now", "is blue"], 0)])
    assert a.score == pytest.approx(b.score, abs=1e-5)
    assert a.score + b.score + c.score + d.score == pytest.approx(0, abs=1e-5)
    assert len({round(x.score, 5) for x in (a, c, d)}) == 3


def test_a_saved_joint_model_loads_and_other_folders_are_refused(decoder, pairs, prepared, tmp_path):
    model, reader = decoder
    model.save(tmp_path / "joint")
    reader.tokenizer.save_pretrained(tmp_path / "joint")
    again, reader_again = load_joint(tmp_path / "joint", 256)
    with torch.no_grad():
        assert torch.equal(again(laid_out(reader_again, pairs)).rewards, model(laid_out(reader, pairs)).rewards)
    with pytest.raises(UserError, match="not a joint model"):
        load_joint(prepared[1], 256)


def test_attention_that_cannot_be_read_is_refused(words, pairs, prepared):
    from transformers import AutoModelForSequenceClassification

    model = encoder(BertConfig, words)
    batch = laid_out(EncoderReader(words, 128), pairs)
    model.classifier.config.attn_logit_softcapping = 30.0
    with pytest.raises(UserError, match="caps its attention scores"):
        model.attention_map(batch, 0)
    # A kernel that is neither ours nor gives weights, as flash attention.
    blind = encoder(BertConfig, words)
    blind.classifier.set_attn_implementation("sdpa")
    with pytest.raises(UserError, match="gives none"):
        blind.attention_map(batch, 0)
    config = load_classifier(prepared[1], prepared[2]["backbone"], 0).config
    eager = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    with pytest.raises(UserError, match="causal mask of LlamaForSequenceClassification with attention 'eager' cannot be taken away"):
        JointModel(eager, decoder=True)
