import pytest
import torch
import torch.nn.functional as F

from rm_methods.errors import UserError
from rm_methods.methods.masked_language import MaskedLanguageModel, MaskedLanguageModeling
from rm_methods.reward_models.backbones import load_language_model
from rm_methods.reward_models.joint_model import NAME
from rm_methods.reward_models.joint_reader import DecoderReader
from rm_methods.reward_models.layouts import PairBatch, lay_out

MASK, SPECIAL = 5, (0, 1, 2)


@pytest.fixture
def batch(tokenizer, pairs):
    items = DecoderReader(tokenizer).encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:8])
    return PairBatch(**vars(lay_out(items, "plain", 0)), pair_ids=tuple(p.pair_id for p in pairs[:8]), progress=0.25)


def test_masking_is_seeded_and_leaves_special_tokens_and_padding_alone(batch):
    loss = MaskedLanguageModeling(MASK, SPECIAL, vocabulary=400, seed=0, probability=0.3)
    masked, places = loss.mask(batch)
    again = loss.mask(batch)
    assert torch.equal(masked, again[0])
    assert torch.equal(places, again[1])
    assert not torch.equal(
        places, MaskedLanguageModeling(MASK, SPECIAL, vocabulary=400, seed=1, probability=0.3).mask(batch)[1]
    )
    batch.progress = 0.5
    assert not torch.equal(places, loss.mask(batch)[1])
    is_token = torch.arange(masked.shape[1]) <= batch.read_column[:, None]
    assert not places[~is_token].any()
    assert not places[torch.isin(batch.input_ids, torch.tensor(SPECIAL))].any()
    assert torch.equal(masked[~places], batch.input_ids[~places])
    assert 0.2 < places.sum() / is_token.sum() < 0.35
    shares = [(masked[places] == MASK).float().mean(), (masked[places] == batch.input_ids[places]).float().mean()]
    assert shares[0] == pytest.approx(0.8, abs=0.05)
    assert shares[1] == pytest.approx(0.1, abs=0.05)


def test_what_is_masked_in_a_pair_does_not_depend_on_its_micro_batch(batch, tokenizer, pairs):
    loss = MaskedLanguageModeling(MASK, SPECIAL, vocabulary=100, seed=0, probability=0.3)
    masked, places = loss.mask(batch)
    items = DecoderReader(tokenizer).encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[3:4])
    alone = PairBatch(**vars(lay_out(items, "plain", 0)), pair_ids=(pairs[3].pair_id,), progress=0.25)
    own_masked, own_places = loss.mask(alone)
    width = own_masked.shape[1]
    assert torch.equal(own_places, places[6:8, :width])
    assert torch.equal(own_masked, masked[6:8, :width])


def test_a_decoder_predicts_a_masked_token_from_the_place_before_it(batch, prepared):
    language_model = load_language_model(prepared[1], prepared[2]["backbone"], 0).eval()
    language_model.set_attn_implementation(NAME)
    model, loss = (
        MaskedLanguageModel(language_model, decoder=True),
        MaskedLanguageModeling(MASK, SPECIAL, vocabulary=100, seed=0),
    )
    masked, places = loss.mask(batch)
    actual = loss.loss(model, batch).per_pair
    expected = []
    for row in range(len(masked)):
        length = int(batch.read_column[row]) + 1
        mask = torch.ones(1, 1, length, length, dtype=torch.bool)
        logits = language_model(masked[row : row + 1, :length], attention_mask=mask).logits[0]
        expected.append(
            [F.cross_entropy(logits[k - 1], batch.input_ids[row, k]) for k in places[row].nonzero().flatten().tolist()]
        )
    for pair in range(len(actual)):
        both = [*expected[2 * pair], *expected[2 * pair + 1]]
        torch.testing.assert_close(actual[pair], torch.stack(both).mean(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("setting", [{"logits_scaling": 8.0}, {"final_logit_softcapping": 30.0}])
def test_a_backbone_that_changes_its_logits_is_refused(prepared, setting):
    language_model = load_language_model(prepared[1], prepared[2]["backbone"], 0)
    language_model.config.update(setting)
    with pytest.raises(UserError, match=r"changes its logits .*masked_language_epochs: 0"):
        MaskedLanguageModel(language_model, decoder=True)


def test_rows_longer_than_the_positions_are_refused(batch, prepared):
    language_model = load_language_model(prepared[1], prepared[2]["backbone"], 0)
    language_model.config.update({"max_position_embeddings": 8, "rope_parameters": None})
    model = MaskedLanguageModel(language_model, decoder=True)
    with pytest.raises(UserError, match="the model has 8 positions"):
        MaskedLanguageModeling(MASK, SPECIAL, vocabulary=100, seed=0).loss(model, batch)


def test_shared_weights_are_kept_once_and_come_back(prepared):
    language_model = load_language_model(prepared[1], prepared[2]["backbone"], 0)
    language_model.lm_head.weight = language_model.get_input_embeddings().weight
    model = MaskedLanguageModel(language_model, decoder=True)
    state = model.state_dict()
    assert "language_model.model.embed_tokens.weight" in state
    assert "language_model.lm_head.weight" not in state
    changed = {name: weight + 1 for name, weight in state.items()}
    model.load_state_dict(changed)
    assert torch.equal(language_model.lm_head.weight, changed["language_model.model.embed_tokens.weight"])
