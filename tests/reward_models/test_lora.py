"""The adapters of LoRA: where they are put, how they are merged, and what is counted of them."""

from __future__ import annotations

import pytest
import torch

from rm_methods.planning.sizes import checkpoint_bytes, model_state_bytes, shape_of
from rm_methods.reward_models.backbones import load_classifier
from rm_methods.reward_models.joint_model import JointModel
from rm_methods.reward_models.layouts import lay_out
from rm_methods.reward_models.lora import add_adapters, merge_adapters, target_layers, trainable_parameters
from rm_methods.reward_models.model import RewardModel
from rm_methods.system.deepspeed import zero_settings

LORA = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": "all-linear"}


def randomized(model):
    """Adapters as after a training: B is not 0 any more."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


@pytest.fixture
def adapted(reward_model):
    """The reward model of the fixture with adapters that do something."""
    add_adapters(reward_model, LORA, seed=0)
    return randomized(reward_model)


def test_the_merged_model_scores_as_the_unmerged_one(adapted, tokenizer, pairs, tmp_path):
    from transformers import AutoModelForSequenceClassification

    batch = lay_out(tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:8]), "packed", 0)
    with torch.no_grad():
        before = adapted(batch).rewards
        adapted.save(tmp_path / "model", merge_adapters(adapted))
        loaded = RewardModel(AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")).eval()
        torch.testing.assert_close(loaded(batch).rewards, before, atol=1e-5, rtol=0)
    assert before.std() > 1e-3


def test_merging_is_that_of_peft_and_restores_the_modules(adapted):
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}
    merged = merge_adapters(adapted)
    assert merged.keys() == adapted.state_dict().keys()
    assert not [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    for name, layer in layers.items():
        layer.merge()
        torch.testing.assert_close(merged[f"{name}.weight"], layer.base_layer.weight.data)


def test_weights_in_16_bits_are_merged_in_32(prepared):
    classifier = load_classifier(prepared[1], prepared[2]["backbone"], seed=0).to(torch.bfloat16)
    model = RewardModel(classifier)
    add_adapters(model, LORA, seed=0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    name = "classifier.model.layers.0.self_attn.q_proj"
    layer, before = model.get_submodule(name), model.get_submodule(name).base_layer.weight.detach().float()
    # Far below what bf16 could add to the weights.
    layer.lora_B["default"].weight.data.fill_(1e-6)
    update = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merged = merge_adapters(model)
    assert {w.dtype for w in merged.values()} == {torch.float32}
    assert update.abs().max() > 0
    torch.testing.assert_close(merged[f"{name}.weight"] - before, update.detach(), atol=1e-8, rtol=0.05)
    assert model.classifier.dtype == torch.float32


def test_transposed_layers_and_biases_are_merged_too(tmp_path):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=32, num_labels=1, pad_token_id=0)
    model = torch.nn.Module()
    model.classifier = GPT2ForSequenceClassification(config).eval()
    names = list(model.state_dict())
    add_adapters(model, LORA | {"target_modules": ["c_attn", "mlp.c_proj"]}, seed=0)
    randomized(model)
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        before = model.classifier(ids).logits
        model.load_state_dict(merge_adapters(model))
        torch.testing.assert_close(model.classifier(ids).logits, before, atol=1e-5, rtol=0)
    assert list(model.state_dict()) == names


def test_at_the_start_it_is_the_model_without_adapters(prepared, reward_model, tokenizer, pairs):
    batch = lay_out(tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:4]), "packed", 0)
    before = reward_model(batch).rewards
    state = torch.get_rng_state()
    add_adapters(reward_model, LORA, seed=0)
    assert torch.equal(torch.get_rng_state(), state), "adapters must not use up random numbers that others draw"
    assert torch.equal(reward_model(batch).rewards, before)


def test_the_seed_draws_the_adapters(prepared):
    drawn = []
    for seed in (0, 0, 1):
        model = RewardModel(load_classifier(prepared[1], prepared[2]["backbone"], seed=0))
        add_adapters(model, LORA, seed)
        drawn.append(model.state_dict()["classifier.model.layers.1.mlp.up_proj.lora_A.default.weight"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_pooler_belongs_to_the_head():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50, num_labels=1
    )
    model = JointModel(BertForSequenceClassification(config), decoder=False)
    counted = trainable_parameters(model.classifier, LORA)
    add_adapters(model, LORA, seed=0)
    whole = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    names = ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias")
    assert whole == {f"classifier.{name}" for name in names}
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_layers_are_named_as_a_whole_or_by_the_end_of_their_name(reward_model):
    classifier = reward_model.classifier
    assert len(target_layers(classifier, "all-linear")) == 14
    assert target_layers(classifier, ["q_proj", "layers.1.mlp.up_proj"]) == [
        "layers.0.self_attn.q_proj",
        "layers.1.self_attn.q_proj",
        "layers.1.mlp.up_proj",
    ]


def test_memory_counts_what_is_trained(reward_model):
    counted = trainable_parameters(reward_model.classifier, LORA)
    # Width 32, key and value width 16, MLP width 64: q and o, k and v, then gate, up and down; 2 layers; the head.
    assert counted == 2 * 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64)) + 32
    shape = shape_of(reward_model.config, LORA)
    assert (shape.trainable, shape.parameters) == (counted, sum(p.numel() for p in reward_model.parameters()))
    assert shape_of(reward_model.config).trainable == shape.parameters
    add_adapters(reward_model, LORA, seed=0)
    assert counted == sum(p.numel() for p in reward_model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("stage", "ranks", "gpu", "checkpoint"),
    [
        (None, 1, 4000 + 12 * 100, 4000 + 800),
        (None, 2, 4000 + 16 * 100, 4000 + 800),
        ("zero1", 4, 4000 + 4 * 100 + 12 * 100 + 300, 8000 + 1200),
        ("zero2", 4, 4000 + 12 * 100 + 400, 8000 + 3600 + 1200),
        ("zero3", 4, 1000 + 4000 + 400, 4000 + 3600 + 1200),
    ],
)
def test_bytes_of_a_run_that_trains_a_tenth_by_hand(stage, ranks, gpu, checkpoint):
    zero = zero_settings(stage) if stage else None
    assert model_state_bytes(1000, 100, zero, ranks, trainable=100) == (gpu, 0)
    assert checkpoint_bytes(1000, zero, trainable=100) == checkpoint
