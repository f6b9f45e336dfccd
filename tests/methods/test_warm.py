import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import UserError
from rm_methods.methods.contract import Inputs
from rm_methods.methods.warm import Method, average_of
from rm_methods.reward_models.backbones import load_classifier, load_tokenizer, prepare_backbone
from rm_methods.reward_models.model import RewardModel
from rm_methods.scoring.scorer import ScoringSettings, load_scorer
from rm_methods.training.run import RunFiles, train
from tests.conftest import experiment_config, made_up_pairs

SETTINGS = ScoringSettings(max_length=256, threads=1)


def test_mean_by_hand_in_fp32():
    tensors = [torch.tensor(row, dtype=torch.bfloat16) for row in ([1.0, -2.0], [2.0, 0.0], [6.0, 5.0])]
    mean = average_of(tensors)
    assert mean.tolist() == [3.0, 1.0]
    assert mean.dtype == torch.float32


@pytest.mark.parametrize("members", [1, 2, 3, 6])
def test_one_member_or_equal_members_give_exactly_themselves(members):
    weight = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(average_of([weight] * members), weight)


@pytest.fixture
def member(prepared, tokenizer, tmp_path):
    """member(k) saves a reward model, by default with the weights of one backbone and a head of its own, as the run of
    seed k."""

    def of(seed, change=None, backbone=None, tokenizer=tokenizer, start="probe", section=prepared[2]["backbone"]):
        folder = tmp_path / "runs" / "warm_member" / f"seed{seed}"
        model = RewardModel(load_classifier(backbone or prepared[1], section, 0))
        torch.nn.init.normal_(model.classifier.score.weight, generator=torch.Generator().manual_seed(seed))
        if change:
            change(model.classifier)
        model.save(folder / "model")
        tokenizer.tokenizer.save_pretrained(folder / "model")
        (folder / "summary.json").write_text(
            json.dumps({"run_key": f"key{seed}", "report": {"start_run_key": start} if start else {}})
        )
        return folder / "model"

    return of


def averaged(prepared, tmp_path, members, pairs=None):
    inputs = Inputs(0, tmp_path, "warm seed 0", prepared[2], required={"members": members})
    folder = tmp_path / "average"
    folder.mkdir()
    return Method({"members": "warm_member"}).combine(
        made_up_pairs(10, seed=3) if pairs is None else pairs, inputs, folder
    ), folder


def rewards(folder, pairs):
    items = [BenchmarkItem(p.pair_id, "s", p.prompt, [p.chosen, p.rejected], 0) for p in pairs]
    return torch.tensor([row.score for row in load_scorer(folder, SETTINGS).score(items)])


def test_with_frozen_features_the_average_of_weights_is_the_average_of_predictions(prepared, pairs, member, tmp_path):
    members = [member(seed) for seed in range(3)]
    folder = averaged(prepared, tmp_path, members)[1]
    single = torch.stack([rewards(folder, pairs[:8]) for folder in members])
    torch.testing.assert_close(rewards(folder, pairs[:8]), single.mean(dim=0), atol=1e-5, rtol=0)
    assert single.std(dim=0).min() > 1e-3


def test_with_frozen_features_the_scores_without_a_member_are_those_of_the_average_of_the_others(
    prepared, pairs, member, tmp_path
):
    members = [member(seed) for seed in range(3)]
    report, folder = averaged(prepared, tmp_path, members)
    single = np.stack([rewards(folder, pairs[:8]).double().numpy() for folder in members])
    left_out = Method({"members": "warm_member"}).left_out_scores(
        single, rewards(folder, pairs[:8]).double().numpy(), report
    )
    for j in range(3):
        (tmp_path / f"without{j}").mkdir()
        _, others = averaged(prepared, tmp_path / f"without{j}", [*members[:j], *members[j + 1 :]], pairs=[])
        np.testing.assert_allclose(left_out[j], rewards(others, pairs[:8]).numpy(), atol=1e-5, rtol=0)
    assert np.abs(left_out[0] - left_out[1]).min() > 1e-3


def test_the_average_is_a_plain_checkpoint_that_needs_no_member(prepared, pairs, member, tmp_path):
    from transformers import AutoModelForSequenceClassification

    folder = averaged(prepared, tmp_path, [member(0), member(1)])[1]
    before = rewards(folder, pairs[:3])
    (tmp_path / "runs").rename(tmp_path / "away")
    assert torch.equal(rewards(folder, pairs[:3]), before)
    model, loading = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.dtype == torch.float32


def test_weights_cut_into_shards_are_averaged_too(prepared, tokenizer, tmp_path):
    def saved(seed, **options):
        folder = tmp_path / f"seed{seed}{options.get('max_shard_size', '')}" / "model"
        load_classifier(prepared[1], prepared[2]["backbone"], seed).save_pretrained(folder, **options)
        tokenizer.tokenizer.save_pretrained(folder)
        (folder.parent / "summary.json").write_text(json.dumps({"report": {"start_run_key": "probe"}}))
        return folder

    sharded = [saved(seed, max_shard_size="30KB") for seed in (0, 1)]
    assert len(list(sharded[0].glob("*.safetensors"))) > 1
    folder = averaged(prepared, tmp_path, sharded, pairs=[])[1]
    first, second = (load_file(saved(seed) / "model.safetensors") for seed in (0, 1))
    actual = {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}
    assert actual.keys() == first.keys()
    for name, weight in actual.items():
        torch.testing.assert_close(weight, (first[name] + second[name]) / 2, atol=1e-7, rtol=0)


def test_report_has_distances_and_the_check_of_connectivity(prepared, member, tmp_path):
    def only_head(value):
        def change(classifier):
            for parameter in classifier.parameters():
                torch.nn.init.zeros_(parameter)
            with torch.no_grad():
                classifier.score.weight[0, 0] = value

        return change

    members = [member(seed, only_head(value)) for seed, value in enumerate((1.0, 2.0, 6.0))]
    report, _ = averaged(prepared, tmp_path, members)
    # The average is 3, so the distances 1, 5 and 4 are a third of that each.
    assert report["weight_distances"] == pytest.approx({"0-1": 1 / 3, "0-2": 5 / 3, "1-2": 4 / 3})
    assert report["members"] == ["warm_member/seed0", "warm_member/seed1", "warm_member/seed2"]
    # All rewards are 0, so every pair is a tie, which counts as wrong.
    assert report["member_accuracy"] == [0.0, 0.0, 0.0]
    assert report["accuracy_of_average"] == report["mean_member_accuracy"] == 0.0
    assert report["connected"]


def test_accuracies_are_those_of_the_scores(prepared, member, tmp_path):
    validation = made_up_pairs(30, seed=3)
    members = [member(0), member(1)]
    report, folder = averaged(prepared, tmp_path, members, validation)
    expected = [(r[::2] > r[1::2]).double().mean().item() for r in (rewards(f, validation) for f in (*members, folder))]
    assert [*report["member_accuracy"], report["accuracy_of_average"]] == pytest.approx(expected)
    assert report["connected"] == (expected[2] >= (expected[0] + expected[1]) / 2)


def test_without_validation_pairs_the_distances_are_still_reported(prepared, member, tmp_path):
    report, _ = averaged(prepared, tmp_path, [member(0), member(1)], pairs=[])
    assert report["weight_distances"]["0-1"] > 0
    assert "accuracy_of_average" not in report


def of_other_backbone(prepared, pairs, member, folder, **changes):
    section = prepared[2]["backbone"] | {"tiny": prepared[2]["backbone"]["tiny"] | changes}
    prepare_backbone(section, pairs, folder)
    return member(1, backbone=folder, section=section)


@pytest.mark.parametrize(
    ("changes", "weight"),
    [
        ({"intermediate_size": 48}, r"layers.0.mlp.down_proj.weight is \[32, 48\] against"),
        ({"layers": 3}, r"layers.2\S* is \[32\] against \S* is None"),
    ],
)
def test_other_shapes_are_refused_by_name(changes, weight, prepared, pairs, member, tmp_path):
    other = of_other_backbone(prepared, pairs, member, tmp_path / "backbone", **changes)
    with pytest.raises(UserError, match=f"differ in their shapes, .*{weight}"):
        averaged(prepared, tmp_path, [member(0), other])


def test_other_tokenizers_are_refused(prepared, member, tmp_path):
    changed = load_tokenizer(prepared[1], 256)
    changed.tokenizer.chat_template = changed.tokenizer.chat_template.replace("<", " <")
    with pytest.raises(UserError, match="differ in their tokenizer"):
        averaged(prepared, tmp_path, [member(0), member(1, tokenizer=changed)])


def test_other_starts_are_refused(prepared, member, tmp_path):
    with pytest.raises(UserError, match=r"differ in their start, .*another against probe"):
        averaged(prepared, tmp_path, [member(0), member(1, start="another")])


def test_members_without_a_known_start_are_refused(prepared, member, tmp_path):
    with pytest.raises(UserError, match="is not a run of warm_member"):
        averaged(prepared, tmp_path, [member(0), member(1, start=None)])


def test_heads_of_another_width_are_refused(prepared, member, tmp_path):
    other = member(1)
    weights = load_file(other / "model.safetensors")
    weights["score.weight"] = torch.zeros(2, weights["score.weight"].shape[1])
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"score.weight is \[2, 32\] against score.weight is \[1, 32\]"):
        averaged(prepared, tmp_path, [member(0), other])


def test_a_single_member_is_refused_by_the_run(prepared, member, tmp_path):
    config = experiment_config(tmp_path, methods={"linear_probe": {}, "warm_member": {}, "warm": {}}, seeds=[0, 1])
    outputs = [tmp_path / name for name in ("model", "metrics.jsonl", "summary.json", "work")]
    with pytest.raises(UserError, match="2 or more runs of 'warm_member'; 1 were given"):
        train(config, "warm", 0, RunFiles(prepared[0], prepared[1], *outputs, {"members": [member(0)]}))
