from dataclasses import replace

import pytest
import torch

from rm_methods.errors import UserError
from rm_methods.files import write_json
from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.policies.joint_world_model import joint_ids
from rm_methods.policies.world_model import WorldModelSettings, train_world_model
from rm_methods.preferences.world.conversations import comparisons, reaction_openings
from rm_methods.reward_models.backbones import WORLD_JOINT, WORLD_MODEL, prepare_backbone
from rm_methods.reward_models.joint_model import load_joint
from rm_methods.reward_models.layouts import lay_out
from tests.conftest import experiment_config

pytestmark = pytest.mark.process

FEW = WorldModelSettings(texts=32, epochs=1)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rm_methods.policies.world_model._HELD_OUT_COMPARISONS", 5)
        train_world_model(FEW, 0, folder / "model", folder / "work", kind="joint")
    return folder / "model"


def made(folder, source="world_scratch", **settings):
    """(method, reader, model, inputs) of an experiment whose backbone has the world's tokenizer."""
    config = experiment_config(folder, backbone={"source": source})
    if not (folder / "backbone").exists():
        prepare_backbone(config["backbone"], [], folder / "backbone")
    method = load_method("joint_bidirectional", load_method_card("joint_bidirectional").defaults() | settings)
    sections = {"backbone": config["backbone"], "training": config["training"]}
    inputs = Inputs(seed=0, work_folder=folder, config=sections, backbone=folder / "backbone")
    reader = method.reader([], inputs)
    return method, reader, method.model([], reader, inputs), inputs


def laid_out(reader, texts):
    items = reader.encode((text.prompt, text.responses) for text in texts)
    return lay_out(items, "plain", reader.pad_id)


@pytest.mark.parametrize("source", ["folder", "world_joint"])
def test_the_first_logit_is_the_difference_of_the_log_odds_that_all_is_well(start, tmp_path, source):
    """At the ends of the two responses, as the language model itself has them when every token sees every other."""
    from transformers import AutoModelForCausalLM

    folder = start if source == "folder" else WORLD_JOINT
    _, reader, model, _ = made(tmp_path, start=str(start) if source == "folder" else source)
    texts = list(comparisons(4, 1))
    with torch.no_grad():
        logits = model.eval()(laid_out(reader, texts)).rewards
    language_model = AutoModelForCausalLM.from_pretrained(folder).eval()
    satisfied, flawed = reaction_openings(reader.tokenizer)
    for text, row in zip(texts, logits, strict=True):
        for responses, logit in zip((text.responses, text.responses[::-1]), row, strict=True):
            (ids,), ((first, second),) = joint_ids(reader.tokenizer, [replace(text, responses=responses)])
            mask = torch.ones(1, 1, 1, len(ids), dtype=torch.bool)
            with torch.no_grad():
                output = language_model(input_ids=torch.tensor([ids]), attention_mask=mask).logits[0]
            log_odds = output[:, satisfied] - output[:, flawed].mean(-1)
            torch.testing.assert_close(logit, log_odds[first] - log_odds[second], atol=1e-4, rtol=1e-4)


def test_without_the_ends_of_the_first_responses_there_is_attention_but_no_logit(start, tmp_path):
    _, reader, model, _ = made(tmp_path, start=str(start))
    batch = laid_out(reader, list(comparisons(2, 1)))
    with torch.no_grad():
        whole = model.eval()(batch, (0,))
        partial = model(replace(batch, first_column=None), (0,))
    assert torch.isfinite(whole.rewards).all()
    assert torch.isnan(partial.rewards).all()
    torch.testing.assert_close(partial.attention[0].query, whole.attention[0].query)


def test_only_a_backbone_is_trained_on_text_first(start, tmp_path):
    method, reader, _, inputs = made(tmp_path, start=str(start), masked_language_epochs=1)
    assert method.adaptation([], reader, inputs) is None
    method, reader, _, inputs = made(tmp_path, masked_language_epochs=1)
    assert method.adaptation([], reader, inputs) is not None


def test_a_saved_model_reads_the_same_rows_and_gives_the_same_logits(start, tmp_path):
    _, reader, model, _ = made(tmp_path, start=str(start))
    texts = list(comparisons(4, 1))
    model.save(tmp_path / "saved")
    reader.tokenizer.save_pretrained(tmp_path / "saved")
    loaded, loaded_reader = load_joint(tmp_path / "saved", max_length=512)
    with torch.no_grad():
        expected = model.eval()(laid_out(reader, texts)).rewards
        actual = loaded(laid_out(loaded_reader, texts)).rewards
    assert torch.equal(actual, expected)


def test_other_folders_and_tokenizers_are_refused(start, prepared, tmp_path):
    with pytest.raises(UserError, match=r"start = '.*world_model': not a joint language model"):
        made(tmp_path, start=str(WORLD_MODEL))
    write_json(tmp_path / "training.json", {"kind": "causal"})
    with pytest.raises(UserError, match="not a joint language model"):
        made(tmp_path, start=str(tmp_path))
    method = load_method(
        "joint_bidirectional", load_method_card("joint_bidirectional").defaults() | {"start": str(start)}
    )
    inputs = Inputs(seed=0, work_folder=tmp_path, config=prepared[2], backbone=prepared[1])
    with pytest.raises(UserError, match=r"joint_bidirectional\.start = .* tokens of this experiment's backbone"):
        method.model([], method.reader([], inputs), inputs)
