import pytest
import torch
from transformers import BertConfig, DebertaV2Config, ModernBertConfig

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import UserError
from rm_methods.methods.contract import Inputs
from rm_methods.methods.joint_encoder import _words
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.reward_models.backbones import load_classifier
from rm_methods.reward_models.joint_model import JointModel, load_joint
from rm_methods.reward_models.joint_reader import DecoderReader, EncoderReader
from rm_methods.reward_models.layouts import lay_out
from rm_methods.reward_models.pairrm import PairRM
from rm_methods.scoring.scorer import JointScorer, ScoringSettings

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_labels": 1}


def encoder(config, words, attention=None):
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = config(vocab_size=len(words), pad_token_id=words.pad_token_id, initializer_range=0.5, **SMALL)
    return JointModel(
        AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).eval(), decoder=False
    )


@pytest.fixture
def words(pairs):
    return _words(pairs, 1000)


@pytest.fixture
def decoder(prepared, tokenizer):
    return JointModel(load_classifier(prepared[1], prepared[2]["backbone"], 0).eval(), decoder=True), DecoderReader(
        tokenizer
    )


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
        second, _ = model.attention_map(batch, layer, (1,))
        torch.testing.assert_close(second[is_token], expected[layer][:, 1][is_token], atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [BertConfig, ModernBertConfig, DebertaV2Config])
def test_logits_of_an_encoder_are_not_rounded_to_16_bits(config, words, pairs):
    model = encoder(config, words)
    model.autocast = torch.bfloat16
    with torch.no_grad():
        rewards = model(laid_out(EncoderReader(words, 128), pairs, 16)).rewards
    assert rewards.dtype == torch.float32
    assert not torch.equal(rewards, rewards.bfloat16().float())


@pytest.mark.parametrize("causal", [False, True])
def test_a_decoder_with_weights_in_16_bits_has_a_head_in_32(prepared, tokenizer, pairs, causal):
    classifier = load_classifier(prepared[1], prepared[2]["backbone"], 0).to(torch.bfloat16)
    model = JointModel(classifier, True, torch.bfloat16, causal=causal).eval()
    with torch.no_grad():
        rewards = model(laid_out(DecoderReader(tokenizer), pairs)).rewards
    assert classifier.score.weight.dtype == torch.float32
    assert torch.isfinite(rewards).all()
    assert not torch.equal(rewards, rewards.bfloat16().float())


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
    scoring, back = scorer.compute(items), scorer.score(swapped)
    rows = scoring.responses
    assert len(rows) == 12
    for k in range(6):
        first, second = rows[2 * k].score, rows[2 * k + 1].score
        assert first == pytest.approx(-second, abs=1e-6) == pytest.approx(back[2 * k + 1].score, abs=1e-5)
    assert max(abs(row.score) for row in rows) > 1e-4
    assert -0.5 <= scoring.position_bias <= 0.5


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
    with pytest.raises(
        UserError, match="causal mask of LlamaForSequenceClassification with attention 'eager' cannot be removed"
    ):
        JointModel(eager, decoder=True)


@pytest.fixture
def pairrm(words, tmp_path):
    """A folder like published PairRM checkpoints: DeBERTa, prefix ids in its configuration, no record of ours."""
    words.add_special_tokens({"additional_special_tokens": ["<|source|>", "<|candidate1|>", "<|candidate2|>"]})
    marks = words.convert_tokens_to_ids(["<|source|>", "<|candidate1|>", "<|candidate2|>"])
    torch.manual_seed(0)
    config = DebertaV2Config(vocab_size=len(words), pad_token_id=words.pad_token_id, initializer_range=0.5, **SMALL)
    config.n_tasks, config.drop_out = 1, 0.05
    config.source_prefix_id, config.cand1_prefix_id, config.cand2_prefix_id = marks
    PairRM(config).save_pretrained(tmp_path / "pairrm")
    words.save_pretrained(tmp_path / "pairrm")
    return tmp_path / "pairrm", marks


def test_a_pairrm_checkpoint_loads_as_a_teacher(pairrm, pairs, tmp_path):
    source, marks = pairrm
    method = load_method(
        "joint_encoder",
        load_method_card("joint_encoder").defaults() | {"source": str(source), "masked_language_epochs": 0},
    )
    inputs = Inputs(0, tmp_path, config={"training": {"precision": "fp32"}})
    reader = method.reader(pairs, inputs)
    with pytest.raises(
        UserError, match=r"52 tensors are missing: deberta\.embeddings.* Or set masked_language_epochs: 0"
    ):
        load_method("joint_encoder", load_method_card("joint_encoder").defaults() | {"source": str(source)}).adaptation(
            pairs, reader, inputs
        )
    model = method.model(pairs, reader, inputs).eval()
    batch = laid_out(reader, pairs)
    first = batch.input_ids[0].tolist()
    cls, sep = reader.tokenizer.cls_token_id, reader.tokenizer.sep_token_id
    assert first[:2] == [cls, marks[0]]
    assert [first[first.index(mark) - 1] for mark in marks] == [cls] * 3
    assert first.count(sep) == 3
    # The head by hand: states at the marks, prompt with first against prompt with second.
    with torch.no_grad():
        is_token = torch.arange(batch.input_ids.shape[1]) <= batch.read_column[:, None]
        states = model.classifier.pretrained_model(batch.input_ids, attention_mask=is_token.long()).last_hidden_state[0]
        source_state, one, two = (states[first.index(mark)] for mark in marks)
        head = model.classifier.head_layer
        expected = head(torch.cat([source_state, one])) - head(torch.cat([source_state, two]))
        torch.testing.assert_close(model(batch).rewards[0, :1], expected, atol=1e-5, rtol=0)
        assert model.attention_map(batch, 2)[0].shape == (8, batch.input_ids.shape[1], batch.input_ids.shape[1])
    method.export(model, tmp_path / "exported")
    reader.tokenizer.save_pretrained(tmp_path / "exported")
    again, reader_again = load_joint(tmp_path / "exported", 256)
    with torch.no_grad():
        assert torch.equal(again(laid_out(reader_again, pairs)).rewards, model(batch).rewards)


def test_the_head_computes_in_fp32_and_keeps_its_parameters(words):
    classifier = encoder(BertConfig, words).classifier
    names = list(classifier.state_dict())
    weight = classifier.classifier.weight
    JointModel(classifier, decoder=False, autocast=torch.bfloat16)
    assert list(classifier.state_dict()) == names
    assert classifier.classifier.weight is weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = torch.randn(2, classifier.config.hidden_size, dtype=torch.bfloat16)
        logits = classifier.classifier(states)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, torch.nn.functional.linear(states.float(), weight, classifier.classifier.bias))
