import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, MistralConfig

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import UserError
from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.reward_models.joint_model import JointModel, load_joint
from rm_methods.reward_models.layouts import lay_out
from rm_methods.scoring.scorer import JointScorer, ScoringSettings
from rm_methods.validation import schema_problems


@pytest.fixture
def joint(prepared, pairs, tmp_path):
    """(model, reader) as a run makes them, in evaluation mode."""
    method = load_method("joint_decoder", load_method_card("joint_decoder").defaults())
    inputs = Inputs(
        0,
        tmp_path,
        config={"backbone": prepared[2]["backbone"], "training": prepared[2]["training"]},
        backbone=prepared[1],
    )
    reader = method.reader(pairs, inputs)
    return method.model(pairs, reader, inputs).eval(), reader


def laid_out(reader, pairs):
    return lay_out(reader.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs), "plain", reader.pad_id)


def test_what_comes_later_is_not_seen(joint, pairs):
    model, reader = joint
    batch = laid_out(reader, pairs[:1])
    last = int(batch.read_column[0])
    changed = batch.input_ids.clone()
    changed[0, last] = (changed[0, last] + 1) % 50 + 6
    with torch.no_grad():
        before, after = (
            model.classifier.base_model(input_ids=ids, position_ids=batch.position_ids).last_hidden_state[0]
            for ids in (batch.input_ids, changed)
        )
        map_RLL, _ = model.attention_map(batch, 1)
        early = replace(batch, read_column=torch.full_like(batch.read_column, last - 1))
        assert torch.equal(model(early).rewards[0], model(replace(early, input_ids=changed)).rewards[0])
        assert not torch.equal(model(batch).rewards[0, 0], model(replace(batch, input_ids=changed)).rewards[0, 0])
    assert torch.equal(before[:last], after[:last])
    assert map_RLL[0].triu(1).abs().max() == 0


def test_padding_changes_nothing_and_the_score_is_read_at_the_last_token(joint, pairs):
    model, reader = joint
    batch = laid_out(reader, pairs[:5])
    assert len(set(batch.read_column.tolist())) > 2
    with torch.no_grad():
        together = model(batch).rewards
        alone = torch.cat([model(laid_out(reader, [pair])).rewards for pair in pairs[:5]])
        # As transformers computes it for a row on its own, whose last token is its last.
        item = reader.encode([(pairs[3].prompt, (pairs[3].chosen, pairs[3].rejected))])[0]
        rows = [torch.from_numpy(sequence).long()[None] for sequence in item.sequences]
        expected = torch.cat(
            [model.classifier.score(model.classifier.base_model(row).last_hidden_state[:, -1]) for row in rows]
        )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together[3], expected[:, 0], atol=1e-5, rtol=0)


def test_attention_maps_are_those_of_eager_attention(joint, pairs):
    model, reader = joint
    batch = laid_out(reader, pairs[:4])
    eager = AutoModelForSequenceClassification.from_config(deepcopy(model.config), attn_implementation="eager").eval()
    eager.load_state_dict(model.classifier.state_dict())
    is_token = torch.arange(batch.input_ids.shape[1]) <= batch.read_column[:, None]
    with torch.no_grad():
        expected = eager.base_model(batch.input_ids, attention_mask=is_token.long(), output_attentions=True).attentions[
            1
        ]
        actual, _ = model.attention_map(batch, 1)
    torch.testing.assert_close(actual[is_token], expected.mean(1)[is_token], atol=1e-5, rtol=0)


def test_preferences_are_antisymmetric_and_equal_responses_are_even(joint, pairs):
    model, reader = joint
    scorer = JointScorer(model, reader, ScoringSettings(threads=1))
    items = [BenchmarkItem(p.pair_id, "s", p.prompt, [p.chosen, p.rejected], 0) for p in pairs[:6]]
    swapped = [BenchmarkItem(p.pair_id, "s", p.prompt, [p.rejected, p.chosen], 1) for p in pairs[:6]]
    rows, back = scorer.score(items), scorer.score(swapped)
    for k in range(6):
        assert rows[2 * k].score == pytest.approx(-rows[2 * k + 1].score, abs=1e-6)
        assert rows[2 * k].score == pytest.approx(back[2 * k + 1].score, abs=1e-6)
    assert max(abs(row.score) for row in rows) > 1e-5
    even = scorer.score([BenchmarkItem("i", "s", pairs[0].prompt, ["red", "red"], 0)])
    assert [row.score for row in even] == pytest.approx([0, 0], abs=1e-6)


def test_the_saved_folder_says_that_it_is_causal(joint, pairs, tmp_path):
    model, reader = joint
    model.save(tmp_path / "joint")
    reader.tokenizer.save_pretrained(tmp_path / "joint")
    assert json.loads((tmp_path / "joint" / "joint.json").read_text()) == {
        "decoder": True,
        "causal": True,
        "reads_responses": False,
    }
    again, reader_again = load_joint(tmp_path / "joint", 256)
    unmasked = JointModel(model.classifier, decoder=True)
    with torch.no_grad():
        assert torch.equal(again(laid_out(reader_again, pairs)).rewards, model(laid_out(reader, pairs)).rewards)
        assert not torch.allclose(
            unmasked(laid_out(reader, pairs)).rewards, model(laid_out(reader, pairs)).rewards, atol=1e-4
        )


def test_attention_need_not_be_ours_and_maps_of_windows_are_refused(prepared, pairs, joint):
    config = MistralConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=500,
        num_labels=1,
    )
    config.sliding_window = 8
    model = JointModel(
        AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval(), True, causal=True
    )
    batch = laid_out(joint[1], pairs[:2])
    assert torch.isfinite(model(batch).rewards).all()
    with pytest.raises(UserError, match="sees a window only"):
        model.attention_map(batch, 0)


def test_it_is_marked_as_no_scalar_reward_and_trains_by_its_own_budget(prepared):
    card = load_method_card("joint_decoder")
    assert card.kind == "joint"
    assert not card.scalar_reward
    method = load_method("joint_decoder", card.defaults() | {"epochs": 7, "learning_rate": 0.5})
    training = method.training(prepared[2]["training"], 0)
    assert (training["epochs"], training["learning_rate"], training["layout"]) == (7, 0.5, "plain")
    assert method.adaptation([], None, None) is None
    (problem,) = schema_problems({"learning_rate": 0}, card.settings_schema)
    assert "must be more than 0" in problem
