"""Every registered method goes through this file; a new one needs no line here."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import load_method, load_method_card, method_names
from rm_methods.preferences.pair import read_pairs, write_pairs
from rm_methods.preferences.world import generate
from rm_methods.reward_models.backbones import load_tokenizer, prepare_backbone
from rm_methods.reward_models.layouts import lay_out
from rm_methods.scoring.scorer import ScoringSettings, load_scorer
from rm_methods.training.run import RunFiles, train
from rm_methods.training.trainer import PlannedSteps, RewardTrainer
from tests.conftest import experiment_config
from tests.training.commands import losses as losses_of
from tests.training.commands import run_to_the_end, train_command

pytestmark = pytest.mark.process

TRAINED = [name for name in method_names() if load_method_card(name).has_weights]
COMBINED = [name for name in method_names() if load_method_card(name).kind == "combined"]
CONTENT_BLIND = [name for name in method_names() if load_method_card(name).kind == "content_blind"]


@pytest.fixture(scope="session")
def data(prepared, pairs, tmp_path_factory):
    """What a method can train on: data(name) gives (prepared, pairs), of the controlled world if its card says so."""
    world = {}

    def of(name):
        if load_method_card(name).data is None:
            return prepared, pairs
        if not world:
            folder = tmp_path_factory.mktemp("world")
            made = generate(annotator={}, train_pairs=48, validation_pairs=12, test_pairs=0)
            write_pairs(made, folder / "pairs.parquet")
            train = [pair for pair in made if pair.split == "train"]
            prepare_backbone(prepared[2]["backbone"], train, folder / "backbone")
            world["data"] = (folder / "pairs.parquet", folder / "backbone", prepared[2]), train
        return world["data"]

    return of


@pytest.fixture(scope="session")
def required(prepared, tmp_path_factory):
    """Trains what a method requires, once: required(name) gives {setting: model folders}."""
    trained = {}

    def of(name):
        folders, card = {}, load_method_card(name)
        for key, other in card.required_variants(card.defaults()).items():
            for seed in range(
                max(2, card.requires[key].get("at_least", 1)) if card.requires[key].get("seeds") == "all" else 1
            ):
                if (other, seed) not in trained:
                    trained[other, seed] = tmp_path_factory.mktemp(other)
                    run(prepared, trained[other, seed], other, of(other), seed=seed)
                folders.setdefault(key, []).append(trained[other, seed] / "model")
        return folders

    return of


def run(prepared, folder, name, required, seed=0, **training):
    config = experiment_config(folder, training=training, **sections_of(name))
    outputs = (folder / "model", folder / "metrics.jsonl", folder / "summary.json", folder / "work")
    files = RunFiles(prepared[0], prepared[1], *outputs, required)
    return train(config, name, seed, files), [json.loads(line) for line in files.metrics.read_text().splitlines()]


@pytest.fixture(scope="session")
def trained(data, required, tmp_path_factory):
    """Trains a method for six epochs, once for all tests: trained(name) gives (folder, summary, training log)."""
    runs = {}

    def train_once(name):
        if name not in runs:
            folder = tmp_path_factory.mktemp(name)
            runs[name] = (folder, *run(data(name)[0], folder, name, required(name), epochs=6))
        return runs[name]

    return train_once


def sections_of(name):
    """Sections of a configuration that trains a method."""
    sections = {"methods": with_required(name), "seeds": [0, 1]}
    if load_method_card(name).data is not None:
        sections["data"] = {"dataset": "world", "options": {"annotator": {}}}
    return sections


def with_required(name):
    """The method, what it requires, what those require, and so on."""
    methods = {name: {}}
    for other in load_method_card(name).required_variants(load_method_card(name).defaults()).values():
        methods |= with_required(other)
    return methods


def micro_batch(prepared, folder, pairs, name, required, layout):
    """(method, model, micro-batch) as training would make them."""
    from rm_methods.reward_models.batching import plan_steps

    method = load_method(name, load_method_card(name).defaults())
    config = {"backbone": prepared[2]["backbone"], "training": method.training(prepared[2]["training"], 0)}
    inputs = Inputs(0, folder / "work" / "run", name, config, prepared[1], required)
    pairs = list(method.transform_pairs(list(pairs), inputs))
    reader = method.reader(pairs, inputs)
    items = reader.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs)
    model = method.model(pairs, reader, inputs)
    layout = model.layout(layout)
    plan = plan_steps(
        items, steps=1, pairs_per_step=len(items), tokens_per_microbatch=10**6, seed=0, ranks=1, layout=layout
    )
    method.build(model, replace(inputs, pairs=pairs, items=items, reader=reader))
    batch = PlannedSteps(plan, pairs, items, layout=layout, rank=0, pad_id=reader.pad_id)[0]["micro_batches"][0]
    return method, model, replace(batch, progress=0.5)


@pytest.mark.parametrize("name", TRAINED)
def test_loss_decreases_and_every_trainable_parameter_moves(name, data, required, trained, tmp_path):
    prepared, pairs = data(name)
    folder, summary, log = trained(name)
    first, last = (sum(row["loss"] for row in rows) / 6 for rows in (log[:6], log[-6:]))
    assert last < first, f"{name}: mean loss of the first epoch {first:.3f}, of the last {last:.3f}"
    method, model, _ = micro_batch(prepared, tmp_path, pairs, name, required(name), "packed")
    start, end = model.classifier.state_dict(), load_file(folder / "model" / "model.safetensors")
    for key in end:
        moved = not torch.equal(start[key], end[key])
        assert moved != method.is_frozen(key), (
            f"{name}: {key} {'moved, but is called frozen' if moved else 'did not move'}"
        )
    assert summary["method"] == name


@pytest.mark.parametrize("name", TRAINED)
def test_loss_is_one_finite_number_per_pair(name, data, required, tmp_path):
    prepared, pairs = data(name)
    method, model, batch = micro_batch(prepared, tmp_path, pairs[:6], name, required(name), "packed")
    loss = method.loss(model, batch)
    assert loss.per_pair.shape == (len(batch.pair_ids),)
    assert loss.per_pair.dtype == torch.float32
    assert torch.isfinite(loss.per_pair).all()
    assert all(term.shape == loss.per_pair.shape for term in loss.terms.values())


@pytest.mark.parametrize("name", TRAINED)
def test_packed_and_plain_layouts_give_the_same_loss(name, data, required, tmp_path):
    prepared, pairs = data(name)
    losses = []
    for layout in ("packed", "plain"):
        method, model, batch = micro_batch(prepared, tmp_path, pairs[:6], name, required(name), layout)
        by_pair = dict(zip(batch.pair_ids, method.loss(model.eval(), batch).per_pair.tolist(), strict=True))
        losses.append([by_pair[key] for key in sorted(by_pair)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_transformed_pairs_are_pure_and_seeded(name, data, required, tmp_path):
    prepared, pairs = data(name)
    before = list(pairs)
    inputs = Inputs(5, tmp_path, name, prepared[2], prepared[1], required(name))
    first, second = (
        list(load_method(name, load_method_card(name).defaults()).transform_pairs(list(pairs), inputs))
        for _ in range(2)
    )
    assert first == second
    assert list(pairs) == before


@pytest.mark.parametrize("name", TRAINED)
def test_a_resumed_run_equals_the_uninterrupted_one(name, data, required, tmp_path, monkeypatch):
    prepared, _ = data(name)
    needs = required(name)
    run(prepared, tmp_path / "whole", name, needs, checkpoint_every_steps=3)
    original = RewardTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RewardTrainer, "training_step", dies)
        with pytest.raises(KeyboardInterrupt):
            run(prepared, tmp_path / "resumed", name, needs, checkpoint_every_steps=3)
    run(prepared, tmp_path / "resumed", name, needs, checkpoint_every_steps=3)
    whole, resumed = (load_file(tmp_path / folder / "model" / "model.safetensors") for folder in ("whole", "resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("name", TRAINED)
def test_scores_survive_saving_and_loading(name, data, trained, tmp_path):
    prepared, pairs = data(name)
    folder, _, _ = trained(name)
    items = [BenchmarkItem(p.pair_id, "s", p.prompt, [p.chosen, p.rejected], 0) for p in pairs[:5]]
    scorer = load_scorer(folder / "model", ScoringSettings(max_length=256, threads=1))
    loaded = torch.tensor([row.score for row in scorer.score(items)]).view(5, 2)
    method = load_method(name, load_method_card(name).defaults())
    method.export(scorer.model, tmp_path / "again")
    scorer.tokenizer.tokenizer.save_pretrained(tmp_path / "again")
    again = load_scorer(tmp_path / "again", ScoringSettings(max_length=256, threads=1))
    assert torch.equal(torch.tensor([row.score for row in again.score(items)]).view(5, 2), loaded)
    assert loaded.std() > 0
    if load_method_card(name).kind == "trained":
        encoded = load_tokenizer(prepared[1], 256).encode((p.prompt, (p.chosen, p.rejected)) for p in pairs[:5])
        with torch.inference_mode():
            in_memory = scorer.model(lay_out(encoded, "packed", 0)).rewards
        torch.testing.assert_close(in_memory, loaded, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_two_ranks_learn_what_one_rank_learns(name, data, required, tmp_path):
    prepared, _ = data(name)
    losses = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        command = train_command(
            prepared, folder, name, required=required(name), sections=sections_of(name), processes=ranks
        )
        run_to_the_end(command)
        losses.append(losses_of(folder))
    assert len(losses[0]) == len(losses[1]) > 0
    if load_method(name, load_method_card(name).defaults()).depends_on_cut:
        assert all(math.isfinite(loss) for loss in losses[1])
    else:
        assert losses[0] == pytest.approx(losses[1], abs=1e-3)


@pytest.mark.parametrize("name", COMBINED)
def test_what_is_combined_scores_without_its_own_training(name, prepared, pairs, required, tmp_path):
    summary, log = run(prepared, tmp_path / "first", name, required(name))
    run(prepared, tmp_path / "second", name, required(name))
    assert log == []
    assert summary["cost"]["optimizer_steps"] == 0
    assert 0 <= summary["metrics"]["validation_accuracy"] <= 1
    items = [BenchmarkItem(p.pair_id, "s", p.prompt, [p.chosen, p.rejected], 0) for p in pairs[:5]]
    settings = ScoringSettings(max_length=256, threads=1)
    first, second = (
        [row.score for row in load_scorer(tmp_path / run / "model", settings).score(items)]
        for run in ("first", "second")
    )
    assert first == second
    assert len(set(first)) == 2 * len(items)
    method = load_method(name, load_method_card(name).defaults())
    members = np.random.default_rng(0).normal(size=(2, 7))
    left_out = method.left_out_scores(members, members.mean(axis=0), summary["report"])
    assert left_out is None or (left_out.shape == members.shape and np.isfinite(left_out).all())


def fitted(name, pairs):
    """The content-blind method, fitted on the pairs, as a run stores it and a scorer loads it."""
    method = load_method(name, load_method_card(name).defaults())
    method.fitted = json.loads(json.dumps(method.fit(pairs)))
    return method


@pytest.mark.parametrize("name", CONTENT_BLIND)
def test_content_blind_scores_are_finite_deterministic_and_blind_to_the_other_response(name, pairs):
    method = fitted(name, pairs)
    scores = [method.score(p.prompt, p.chosen, 0) for p in pairs]
    assert all(isinstance(s, float) and abs(s) < 1e9 for s in scores)
    assert scores == [fitted(name, pairs).score(p.prompt, p.chosen, 0) for p in pairs]
    assert method.score(pairs[0].prompt, "", 0) == method.score(pairs[0].prompt, "", 0)
    other_seed = [method.score(p.prompt, p.chosen, 1) for p in pairs]
    assert (scores == other_seed) == load_method_card(name).seed_free


@pytest.mark.parametrize("name", CONTENT_BLIND)
def test_a_content_blind_run_stores_its_fit_and_scores_with_it(name, prepared, pairs, tmp_path):
    summary, log = run(prepared, tmp_path, name, {})
    assert log == []
    assert summary["kind"] == "content_blind"
    items = [BenchmarkItem(p.pair_id, "s", p.prompt, [p.chosen, p.rejected], 0) for p in pairs[:5]]
    stored = [row.score for row in load_scorer(tmp_path / "model", ScoringSettings()).score(items)]
    method = fitted(name, read_pairs(prepared[0], splits=["train"]))
    assert stored == [method.score(item.prompt, text, 0) for item in items for text in item.responses]
    assert summary.get("report", {}) == method.fitted
