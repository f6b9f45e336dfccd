import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Inputs
from rm_methods.methods.inform import FILE, Bottleneck, kl_to_standard_normal
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.reward_models.layouts import PairBatch, lay_out
from rm_methods.scoring.scorer import ScoringSettings, load_scorer
from rm_methods.training.run import RunFiles, train
from rm_methods.validation import schema_problems
from tests.conftest import experiment_config

SCORING = ScoringSettings(max_length=256, threads=1)


def made(prepared, tokenizer, pairs, folder, layout="packed", progress=0.5, **settings):
    """(method, model, micro-batch) as training would make them."""
    method = load_method("inform", load_method_card("inform").defaults() | settings)
    config = {"backbone": prepared[2]["backbone"], "training": prepared[2]["training"]}
    inputs = Inputs(0, folder / "work", "inform", config, prepared[1])
    model = method.model(pairs, tokenizer, inputs)
    method.build(model, inputs)
    return method, model, micro_batch(tokenizer, pairs, layout, progress)


def micro_batch(tokenizer, pairs, layout="packed", progress=0.5):
    rows = lay_out(tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs), layout, tokenizer.pad_id)
    return PairBatch(
        **vars(rows), margin=torch.zeros(len(pairs)), pair_ids=tuple(p.pair_id for p in pairs), progress=progress
    )


def test_kl_by_hand():
    zeros, ones = torch.zeros(6), torch.ones(6)
    assert kl_to_standard_normal(zeros, zeros).item() == 0
    assert kl_to_standard_normal(ones, zeros).item() == 3  # d / 2
    # Summed over dimensions, not taken of their mean: (+a, -a) gives d a^2 / 2, not 0.
    assert kl_to_standard_normal(torch.tensor([2.0, -2.0] * 3), zeros).item() == 12
    # Variance e^2: (e^2 - 1 - 2) / 2 a dimension.
    assert kl_to_standard_normal(zeros, 2 * ones).item() == pytest.approx(3 * (math.exp(2) - 3))


def test_kl_is_that_of_torch():
    mean, log_variance = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)


def test_latent_is_mean_plus_scaled_noise():
    bottleneck = Bottleneck(2, 3, 1.0, seed=0)
    torch.nn.init.constant_(bottleneck.log_variance.bias, math.log(4.0))
    states, noise = torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, 0.0, -3.0]])
    rewards, mean, log_variance = bottleneck(states, noise)
    # Standard deviation 2, so g . (mu + 2 noise).
    expected = (bottleneck.decoder.weight @ (bottleneck.mean.weight @ states[0] + torch.tensor([2.0, 0.0, -6.0])))[0]
    torch.testing.assert_close(rewards[0], expected)
    torch.testing.assert_close(mean[0], bottleneck.mean.weight @ states[0])
    torch.testing.assert_close(log_variance, torch.full((1, 3), math.log(4.0)))
    assert bottleneck(1e30 * states)[2].max() <= 10


def test_center_of_the_latents_moves_mu_and_no_reward():
    bottleneck = Bottleneck(4, 3, 1.0, seed=0)
    states = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    before = bottleneck(states)
    torch.nn.init.constant_(bottleneck.center, 2.0)
    after = bottleneck(states)
    assert torch.equal(before[0], after[0])
    torch.testing.assert_close(after[1], before[1] + 2)


def test_without_noise_and_kl_it_is_bradley_terry_with_a_linear_bottleneck(prepared, tokenizer, pairs, tmp_path):
    method, model, batch = made(prepared, tokenizer, pairs[:6], tmp_path, weight=0.0)
    assert method.bottleneck.training
    torch.nn.init.constant_(model.bottleneck.log_variance.bias, -math.inf)
    loss = method.loss(model, batch).per_pair
    loss.mean().backward()
    expected = copy.deepcopy(model.classifier)
    expected.score.weight.data = model.bottleneck.decoder.weight.data @ model.bottleneck.mean.weight.data
    expected.zero_grad()
    reference = copy.copy(model)
    reference._modules = {"classifier": expected}
    bradley_terry = bradley_terry_loss(reference(batch).rewards)
    bradley_terry.mean().backward()
    torch.testing.assert_close(loss, bradley_terry)
    for one, other in zip(model.backbone.parameters(), expected.base_model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_loss_adds_the_kl_of_both_responses(prepared, tokenizer, pairs, tmp_path):
    method, model, batch = made(prepared, tokenizer, pairs[:4], tmp_path, weight=0.3)
    method.bottleneck.eval()
    loss = method.loss(model, batch)
    rewards, mean, log_variance = model.bottleneck(model(batch).last_hidden.float())
    kl = kl_to_standard_normal(mean, log_variance)
    torch.testing.assert_close(loss.terms["kl"], kl[:, 0] + kl[:, 1])
    torch.testing.assert_close(loss.per_pair, bradley_terry_loss(rewards) + 0.3 * (kl[:, 0] + kl[:, 1]))


@pytest.mark.parametrize("weight", [0.0, 0.01])
def test_everything_that_is_trained_gets_a_gradient(prepared, tokenizer, pairs, tmp_path, weight):
    method, model, batch = made(prepared, tokenizer, pairs[:6], tmp_path, weight=weight)
    method.loss(model, batch).per_pair.mean().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, p in trained.items() if p.grad is None]
    assert "classifier.score.weight" not in trained
    assert ("bottleneck.center" in trained) == bool(weight)


def test_training_is_noisy_and_evaluation_is_not(prepared, tokenizer, pairs, tmp_path):
    method, model, batch = made(prepared, tokenizer, pairs[:6], tmp_path)
    later = micro_batch(tokenizer, pairs[:6], progress=0.75)
    assert not torch.allclose(method.loss(model, batch).per_pair, method.loss(model, later).per_pair)
    model.eval()
    assert torch.equal(method.loss(model, batch).per_pair, method.loss(model, later).per_pair)


def test_noise_is_the_pairs_own(prepared, tokenizer, pairs, tmp_path):
    """It depends on seed, step and pair: not on the micro-batch, its order, or what else drew random numbers."""
    method, _, batch = made(prepared, tokenizer, pairs[:6], tmp_path)
    noise = method._noise(batch)
    torch.randn(3)
    assert torch.equal(method._noise(micro_batch(tokenizer, pairs[5:2:-1])), noise[[5, 4, 3]])
    flat = noise.flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(6)).abs().max() < 0.6  # 64 numbers each
    assert not torch.allclose(noise[:, 0], noise[:, 1])
    torch.testing.assert_close(torch.stack([flat.mean(), flat.std()]), torch.tensor([0.0, 1.0]), atol=0.15, rtol=0)
    other_seed = made(prepared, tokenizer, pairs[:6], tmp_path)[0]
    other_seed.seed = 1
    assert not torch.allclose(other_seed._noise(batch), noise)


def test_latent_is_not_larger_than_the_hidden_state(prepared, tokenizer, pairs, tmp_path):
    assert made(prepared, tokenizer, pairs[:2], tmp_path)[0].report() == {"latent_size": 32}
    assert made(prepared, tokenizer, pairs[:2], tmp_path, latent_size=5)[0].report() == {"latent_size": 5}


@pytest.mark.parametrize("settings", [{"latent_size": 0}, {"latent_size": 1.5}, {"weight": -1}])
def test_impossible_settings_are_refused(settings):
    assert schema_problems(load_method_card("inform").defaults() | settings, load_method_card("inform").settings_schema)


@pytest.fixture(scope="module")
def exported(prepared, tmp_path_factory):
    """Model folder of a trained run."""
    folder = tmp_path_factory.mktemp("inform")
    config = experiment_config(folder, methods={"inform": {}}, training={"epochs": 3})
    files = RunFiles(
        prepared[0], prepared[1], *(folder / name for name in ("model", "metrics.jsonl", "summary.json", "work"))
    )
    train(config, "inform", 0, files)
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["kl"] > 0
    return folder / "model"


def test_exported_scores_are_those_of_the_bottleneck_without_noise(exported, prepared, tokenizer, pairs):
    items = [BenchmarkItem(p.pair_id, "s", p.prompt, [p.chosen, p.rejected], 0) for p in pairs[:12]]
    scorer = load_scorer(exported, SCORING)
    scores = torch.tensor([row.score for row in scorer.score(items)]).view(-1, 2)
    weights = load_file(exported / FILE)
    bottleneck = Bottleneck(32, 32, 1.0, seed=9).eval()
    bottleneck.load_state_dict(weights)
    with torch.inference_mode():
        states = scorer.model(micro_batch(tokenizer, pairs[:12])).last_hidden
        rewards, mean, _ = bottleneck(states)
    torch.testing.assert_close(scores, rewards, atol=1e-5, rtol=1e-5)
    assert scores.std() > 0.1
    # g reads from the latents mu what the exported head says, up to one constant.
    decoder = weights["decoder.weight"][0]
    difference = mean @ decoder - scores
    torch.testing.assert_close(difference, (decoder @ weights["center"]).expand(12, 2), atol=1e-5, rtol=1e-5)


def test_export_loads_without_our_code_and_lists_what_was_learned(exported):
    from transformers import AutoModelForSequenceClassification

    classifier, loading = AutoModelForSequenceClassification.from_pretrained(exported, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    weights = load_file(exported / FILE)
    assert set(weights) == {"mean.weight", "center", "log_variance.weight", "log_variance.bias", "decoder.weight"}
    torch.testing.assert_close(
        classifier.score.weight, weights["decoder.weight"] @ weights["mean.weight"], atol=1e-6, rtol=1e-5
    )
    assert weights["log_variance.weight"].any()  # it starts at 0
