"""AttnRM: terms by hand, the attention against a plain softmax, and which tokens are context."""

import math
from dataclasses import replace

import pytest
import torch

from rm_methods.errors import UserError
from rm_methods.methods.attn_rm import attention_of_reward_token, context_terms, context_tokens
from rm_methods.preferences.world import generate
from tests.conftest import made_up_pairs
from tests.methods.ready import ready_to_train


def made(prepared, tokenizer, pairs, folder, name="attn_rm", **settings):
    """(method, model, batch) as training would make them."""
    return ready_to_train(prepared, tokenizer, pairs, folder, name, **settings)[:3]


def gradients(method, model, batch):
    model.zero_grad()
    method.loss(model, batch).per_pair.mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_terms_by_hand():
    attention = torch.tensor([[0.1, 0.3, 0.2, 0.4]] * 2)
    context = torch.tensor([[True, True, False, False], [False, False, True, False]])
    # Context of 0.1 and 0.3: sum 0.4, mean 0.2, standard deviation 0.1.  Of 0.2 alone: no deviation.
    strength, dispersion, mass = context_terms(attention, context, "log")
    assert strength.tolist() == pytest.approx([-math.log(0.4), -math.log(0.2)])
    assert dispersion.tolist() == pytest.approx([0.1 / 0.2, 0.0])
    assert mass.tolist() == pytest.approx([0.4, 0.2])
    strength, dispersion, mass = context_terms(attention, context, "linear")
    assert strength.tolist() == pytest.approx([-0.2, -0.2])
    assert dispersion.tolist() == pytest.approx([0.1, 0.0])


@pytest.mark.parametrize("form", ["log", "linear"])
def test_no_context_and_equal_attention_have_terms_and_gradients_of_0(form):
    attention = torch.full((2, 4), 0.25, requires_grad=True)
    context = torch.tensor([[False] * 4, [True] * 4])
    strength, dispersion, _ = context_terms(attention, context, form)
    assert strength[0] == dispersion[0] == dispersion[1] == 0
    (strength.sum() + dispersion.sum()).backward()
    # All attention is on the context: d(-log sum)/dp = -1, d(-mean)/dp = -1/4.
    assert attention.grad.tolist() == [[0.0] * 4, [-1.0 if form == "log" else -0.25] * 4]


@pytest.mark.parametrize("layout", ["packed", "plain"])
def test_attention_is_that_of_a_plain_softmax_with_shared_key_heads(layout, prepared, tokenizer, pairs, tmp_path):
    _, model, batch = made(prepared, tokenizer, pairs[:3], tmp_path, layout=layout)
    config = model.config
    assert config.num_attention_heads == 2 * config.num_key_value_heads
    items = tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:3])
    captured = model.eval()(batch).attention
    assert sorted(captured) == [0, 1]
    alone = {}
    model.classifier.set_attn_implementation("eager")
    for s, tokens in enumerate(tokens for item in items for tokens in item.sequences):
        with torch.no_grad():
            out = model.backbone(torch.from_numpy(tokens)[None].long(), output_attentions=True, use_cache=False)
        alone[s] = [layer[0, :, -1].mean(0) for layer in out.attentions]
    for layer in captured:
        actual = attention_of_reward_token(captured[layer], batch, items)
        for s, rows in alone.items():
            length = len(rows[layer])
            torch.testing.assert_close(actual[s, :length], rows[layer], atol=1e-5, rtol=1e-4)
            assert (actual[s, length:] == 0).all()


def test_weight_0_is_bradley_terry_to_the_bit(prepared, tokenizer, pairs, tmp_path):
    actual = gradients(*made(prepared, tokenizer, pairs[:6], tmp_path, weight=0.0))
    expected = gradients(*made(prepared, tokenizer, pairs[:6], tmp_path, "bradley_terry"))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_layouts_have_the_same_loss_and_gradients(prepared, tokenizer, pairs, tmp_path):
    packed, plain = (
        made(prepared, tokenizer, pairs[:6], tmp_path, layout=layout, weight=1.0) for layout in ("packed", "plain")
    )
    losses = [method.loss(model, batch).per_pair for method, model, batch in (packed, plain)]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=0)
    first, second = gradients(*packed), gradients(*plain)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-5, rtol=1e-3)


def test_the_loss_is_the_weighted_sum_of_its_terms(prepared, tokenizer, pairs, tmp_path):
    method, model, batch = made(prepared, tokenizer, pairs[:6], tmp_path, weight=2.0, dispersion=0.0, layers=[-1])
    items = tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:6])
    (attention,) = (attention_of_reward_token(a, batch, items) for a in model(batch).attention.values())
    context = [tokens for both in method.context.values() for tokens in both]
    mass = torch.stack([attention[s, tokens.tolist()].sum() for s, tokens in enumerate(context)])
    loss = method.loss(model, batch)
    expected = loss.terms["preference_loss"] - 2.0 * mass.log().view(6, 2).mean(1)
    torch.testing.assert_close(loss.per_pair, expected)
    torch.testing.assert_close(loss.terms["context_attention"], mass.view(6, 2).mean(1))
    spread = made(prepared, tokenizer, pairs[:6], tmp_path, weight=2.0, dispersion=0.5, layers=[-1])
    other = spread[0].loss(*spread[1:])
    torch.testing.assert_close(other.per_pair, loss.per_pair + other.terms["context_dispersion"])


def test_steps_against_the_gradient_raise_attention_on_the_prompt(prepared, tokenizer, pairs, tmp_path):
    method, model, batch = made(prepared, tokenizer, pairs[:6], tmp_path, weight=1.0, dispersion=0.0)
    optimizer = torch.optim.Adam([p for n, p in model.named_parameters() if "score" not in n], lr=1e-2)
    before = method.loss(model, batch).terms["context_attention"].mean()
    for _ in range(10):
        loss = method.loss(model, batch)
        optimizer.zero_grad()
        (loss.per_pair - loss.terms["preference_loss"]).mean().backward()
        optimizer.step()
    assert method.loss(model, batch).terms["context_attention"].mean() > before + 0.05


def test_context_is_the_text_of_the_prompt_or_its_evidence(tokenizer):
    reader = type(tokenizer)(tokenizer.tokenizer, 2000)
    world = generate(annotator={}, multi_turn_rate=1.0, train_pairs=20, validation_pairs=0, test_pairs=0)
    for pair in world:
        (item,) = reader.encode([(pair.prompt, (pair.chosen, pair.rejected))])
        words = {"prompt": [], "evidence": []}
        for kind in words:
            for sequence, tokens in zip(item.sequences, context_tokens(pair, item, reader, kind), strict=True):
                words[kind].append(tokenizer.tokenizer.decode(sequence[tokens]))
        evidence = [pair.prompt[number]["content"][start:end] for number, start, end in pair.meta["evidence_prompt"]]
        prompt = "".join(message["content"] for message in pair.prompt)
        for k in range(2):
            assert words["prompt"][k].replace(" ", "") == prompt.replace(" ", "")
            assert words["evidence"][k].replace(" ", "") == "".join(evidence).replace(" ", "")


def test_a_prompt_that_was_cut_has_no_evidence(prepared, tokenizer, tmp_path):
    pair = generate(annotator={}, train_pairs=1, validation_pairs=0, test_pairs=0)[0]
    short = type(tokenizer)(tokenizer.tokenizer, 60)
    (item,) = short.encode([(pair.prompt, (pair.chosen, pair.rejected))])
    assert all(item.prompt_cut)
    assert [len(tokens) for tokens in context_tokens(pair, item, short, "evidence")] == [0, 0]
    assert all(len(tokens) for tokens in context_tokens(pair, item, short, "prompt"))
    method, model, batch = made(prepared, short, [pair], tmp_path, context="evidence")
    loss = method.loss(model, batch)
    assert torch.equal(loss.per_pair, loss.terms["preference_loss"])
    assert method.report() == {"responses_without_context": 2}


def test_mistakes_are_explained(prepared, tokenizer, pairs, tmp_path):
    with pytest.raises(UserError, match=r"attn_rm\.layers: the model has 2 layers, so \[3\] do not exist"):
        made(prepared, tokenizer, pairs[:2], tmp_path, layers=[1, 3])
    with pytest.raises(UserError, match=r"attn_rm\.context: 'evidence' needs marked spans .* 2 of 2 training pairs"):
        made(prepared, tokenizer, pairs[:2], tmp_path, context="evidence")
    marked = replace(made_up_pairs(1)[0], meta={"evidence_prompt": [[0, 0, 7]]})
    method, _, _ = made(prepared, tokenizer, [marked], tmp_path, context="evidence")
    assert len(method.context[marked.pair_id][0]) > 0
