import pytest
import torch

from rm_methods.errors import UserError
from rm_methods.files import write_json
from rm_methods.methods.contract import Inputs
from rm_methods.methods.masked_language import mask_token
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.policies.world_model import WorldModelSettings, token_ids, train_world_model
from rm_methods.preferences.world.conversations import VERDICTS, comparisons
from rm_methods.reward_models.backbones import WORLD_MODEL, prepare_backbone
from rm_methods.reward_models.joint_model import load_joint
from rm_methods.reward_models.layouts import lay_out
from tests.conftest import experiment_config

pytestmark = pytest.mark.process

TOY = WorldModelSettings(texts=32, epochs=1, hidden_size=16, intermediate_size=24, layers=2, heads=2)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rm_methods.policies.world_model._NAMED_TEXTS", 5)
        train_world_model(TOY, 0, folder / "model", folder / "work", kind="joint")
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


def test_the_first_logit_is_that_of_the_mask_after_both_responses(start, tmp_path):
    """First against second, as the language model itself has it when every token sees every other."""
    from transformers import AutoModelForCausalLM

    _, reader, model, _ = made(tmp_path, start=str(start))
    texts = list(comparisons(4, 1))
    pairs = [(text[:-3], (text[-3]["content"], text[-2]["content"])) for text in texts]
    with torch.no_grad():
        logits = model.eval()(lay_out(reader.encode(pairs), "plain", reader.pad_id)).rewards
    language_model = AutoModelForCausalLM.from_pretrained(start).eval()
    first, second = (reader.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in VERDICTS)
    for text, row in zip(texts, logits, strict=True):
        for order, logit in zip((text[:-1], [*text[:-3], text[-2], text[-3]]), row, strict=True):
            ids = torch.tensor([[*token_ids(reader.tokenizer, [order])[0], mask_token(reader.tokenizer)]])
            mask = torch.ones(1, 1, 1, ids.shape[1], dtype=torch.bool)
            with torch.no_grad():
                expected = language_model(input_ids=ids, attention_mask=mask).logits[0, -1]
            torch.testing.assert_close(logit, expected[first] - expected[second], atol=1e-4, rtol=1e-4)


def test_only_a_backbone_is_trained_on_text_first(start, tmp_path):
    method, reader, _, inputs = made(tmp_path, start=str(start), masked_language_epochs=1)
    assert method.adaptation([], reader, inputs) is None
    method, reader, _, inputs = made(tmp_path, masked_language_epochs=1)
    assert method.adaptation([], reader, inputs) is not None


def test_a_saved_model_reads_the_same_rows_and_gives_the_same_logits(start, tmp_path):
    _, reader, model, _ = made(tmp_path, start=str(start))
    texts = list(comparisons(4, 1))
    pairs = [(text[:-3], (text[-3]["content"], text[-2]["content"])) for text in texts]
    model.save(tmp_path / "saved")
    reader.tokenizer.save_pretrained(tmp_path / "saved")
    loaded, loaded_reader = load_joint(tmp_path / "saved", max_length=512)
    with torch.no_grad():
        expected = model.eval()(lay_out(reader.encode(pairs), "plain", reader.pad_id)).rewards
        actual = loaded(lay_out(loaded_reader.encode(pairs), "plain", reader.pad_id)).rewards
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
