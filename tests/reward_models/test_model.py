import copy

import pytest
import torch

from rm_methods.errors import UserError
from rm_methods.reward_models import packed_attention
from rm_methods.reward_models.layouts import lay_out
from rm_methods.reward_models.model import RewardModel


@pytest.fixture
def items(tokenizer, pairs):
    return tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:9])


def rewards(model, items, layout, **options):
    with torch.inference_mode():
        return model(lay_out(items, layout, options.pop("pad_id", 0), **options)).rewards


def test_packed_equals_plain(reward_model, items):
    packed, plain = rewards(reward_model, items, "packed"), rewards(reward_model, items, "plain")
    assert packed.shape == (9, 2)
    assert packed.std() > 1e-3
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=0)


def test_packed_gradients_equal_plain_gradients(reward_model, items):
    gradients = []
    for layout in ("packed", "plain"):
        reward_model.zero_grad()
        (reward_model(lay_out(items, layout, 0)).rewards ** 2).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in reward_model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


def test_reward_does_not_depend_on_batch_size_or_order_or_padding(reward_model, items):
    together = rewards(reward_model, items, "packed")
    alone = torch.cat([rewards(reward_model, [item], "packed") for item in items])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(rewards(reward_model, items[::-1], "packed").flip(0), together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pad", ["pad_token_id", "eos_token_id", "bos_token_id"])
def test_reward_does_not_depend_on_the_pad_token(reward_model, items, tokenizer, pad):
    expected = torch.cat([rewards(reward_model, [item], "plain") for item in items])
    for layout in ("packed", "plain"):
        torch.testing.assert_close(
            rewards(reward_model, items, layout, pad_id=getattr(tokenizer.tokenizer, pad)), expected, atol=1e-5, rtol=0
        )


def test_plain_rows_equal_eager_attention(reward_model, items, prepared):
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(reward_model.config)
    eager = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    eager.load_state_dict(reward_model.classifier.state_dict())
    model = RewardModel(eager)
    assert "eager" in model.packing_obstacle
    assert (model.layout("auto"), reward_model.layout("auto"), reward_model.layout("plain")) == (
        "plain",
        "packed",
        "plain",
    )
    torch.testing.assert_close(
        rewards(model, items, "plain"), rewards(reward_model, items, "packed"), atol=1e-5, rtol=0
    )
    with pytest.raises(UserError, match="eager"):
        model.layout("packed")
    with pytest.raises(UserError, match="eager"):
        rewards(model, items, "packed")


@pytest.mark.parametrize("key_heads", [4, 2])
def test_bf16_attention_by_blocks_equals_the_fused_kernel(prepared, items, key_heads):
    """Same rewards and gradients, also of grouped queries."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(prepared[1], num_attention_heads=4, num_key_value_heads=key_heads)
    config.num_labels = 1
    model = RewardModel(AutoModelForSequenceClassification.from_config(config), autocast=torch.bfloat16)
    results = []
    for attention, layout in (("sdpa", "plain"), (packed_attention.NAME, "plain"), (packed_attention.NAME, "packed")):
        model.classifier.set_attn_implementation(attention)
        model.zero_grad()
        rewards_BN = model(lay_out(items, layout, 0)).rewards
        rewards_BN.square().sum().backward()
        results.append((rewards_BN.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    expected, expected_gradient = results[0]
    for rewards_BN, gradient in results[1:]:
        torch.testing.assert_close(rewards_BN, expected, atol=0.03 * expected.std().item(), rtol=0)
        assert torch.nn.functional.cosine_similarity(gradient, expected_gradient, dim=0) > 0.995


def test_equal_texts_tie_exactly(reward_model, items):
    """A matrix product with one column would round the rows in different ways."""
    from rm_methods.reward_models.tokenization import TokenizedItem

    item = items[0]
    twins = TokenizedItem((item.sequences[0],) * 5, item.shared, (False,) * 5, (False,) * 5)
    rewards_N = rewards(reward_model, [twins], "packed")[0]
    assert torch.equal(rewards_N, rewards_N[:1].expand(5))


def test_a_head_that_is_more_than_a_linear_layer_keeps_its_forward(reward_model, items):
    class Doubled(torch.nn.Linear):
        def forward(self, states):
            return 2 * super().forward(states)

    once = rewards(reward_model, items, "plain")
    classifier = reward_model.classifier
    doubled = Doubled(classifier.score.in_features, 1, bias=False)
    doubled.load_state_dict(classifier.score.state_dict())
    classifier.score = doubled
    torch.testing.assert_close(rewards(RewardModel(classifier), items, "plain"), 2 * once)


def test_items_without_a_shared_prompt_are_packed_too(reward_model, items):
    from rm_methods.reward_models.tokenization import TokenizedItem

    apart = [TokenizedItem(i.sequences, 0, i.prompt_cut, i.response_cut) for i in items]
    expected = rewards(reward_model, items, "plain")
    torch.testing.assert_close(rewards(reward_model, apart, "packed"), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rewards(reward_model, [*apart[:3], *items[3:]], "packed"), expected, atol=1e-5, rtol=0)


def test_reward_does_not_depend_on_the_other_response(reward_model, tokenizer, pairs):
    pair = pairs[0]
    alone = rewards(reward_model, tokenizer.encode([(pair.prompt, [pair.chosen])]), "packed")[0, 0]
    among = rewards(reward_model, tokenizer.encode([(pair.prompt, ["x", pair.chosen, "y" * 50])]), "packed")[0, 1]
    torch.testing.assert_close(alone, among, atol=1e-5, rtol=0)


def test_head_is_fp32_under_bf16_autocast(reward_model, items):
    reward_model.autocast = torch.bfloat16
    out = reward_model(lay_out(items, "packed", 0))
    assert out.rewards.dtype == torch.float32
    by_hand = out.last_hidden.float() @ reward_model.classifier.score.weight[0]
    torch.testing.assert_close(out.rewards, by_hand, atol=1e-6, rtol=1e-5)


def test_gradient_checkpointing_changes_nothing(reward_model, items):
    reward_model.train()
    results = []
    for enabled in (False, True):
        if enabled:
            reward_model.recompute_activations()
        reward_model.zero_grad()
        reward_model(lay_out(items, "packed", 0)).rewards.sum().backward()
        results.append([p.grad.clone() for p in reward_model.parameters()])
    for without, with_checkpointing in zip(*results, strict=True):
        torch.testing.assert_close(without, with_checkpointing)


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_saved_folder_gives_the_same_scores_with_transformers_alone(
    reward_model, tokenizer, pairs, tmp_path, padding_side
):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    reward_model.save(tmp_path / "model")
    tokenizer.tokenizer.save_pretrained(tmp_path / "model")
    served = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    chat = AutoTokenizer.from_pretrained(tmp_path / "model", padding_side=padding_side)
    texts = [[*p.prompt, {"role": "assistant", "content": p.chosen}] for p in pairs[:6]]
    batch = chat.apply_chat_template(texts, tokenize=True, padding=True, return_dict=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = served(**batch).logits[:, 0]
    ours = rewards(reward_model, tokenizer.encode((p.prompt, [p.chosen]) for p in pairs[:6]), "packed")[:, 0]
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert not list((tmp_path / "model").glob("*.bin"))


def test_two_label_heads_are_refused(prepared):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(prepared[1])
    config.num_labels = 2
    with pytest.raises(UserError, match="num_labels=1"):
        RewardModel(AutoModelForSequenceClassification.from_config(config))


def test_sliding_window_backbones_are_not_packed():
    from transformers import AutoModelForSequenceClassification, MistralConfig

    size = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    config = MistralConfig(**size, vocab_size=50, num_labels=1, sliding_window=128, max_position_embeddings=4096)
    model = RewardModel(AutoModelForSequenceClassification.from_config(config))
    assert "sliding-window" in model.packing_obstacle
    assert model.config._attn_implementation == "sdpa"


def test_a_backbone_that_drops_the_attention_map_is_noticed(reward_model, items, monkeypatch):
    forward = reward_model.backbone.forward
    monkeypatch.setattr(reward_model.backbone, "forward", lambda attention_map, **kwargs: forward(**kwargs))
    with pytest.raises(UserError, match="plain batches only"):
        rewards(reward_model, items, "packed")


@pytest.mark.slow
def test_packed_equals_plain_on_a_real_backbone(smollm2, pairs):
    from rm_methods.reward_models.backbones import load_classifier, load_tokenizer

    folder, section = smollm2
    model = RewardModel(load_classifier(folder, section, seed=0)).eval()
    items = load_tokenizer(folder, 1024).encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:4])
    packed, plain = rewards(model, items, "packed"), rewards(model, items, "plain")
    assert packed.std() > 1e-3
    torch.testing.assert_close(packed, plain, atol=1e-4, rtol=0)
