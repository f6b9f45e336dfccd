import numpy as np
import pytest
import torch

from rm_methods.benchmarks.item import BenchmarkItem, write_items
from rm_methods.diagnostics.records import DISTANCE_COLUMNS, read_diagnostics
from rm_methods.diagnostics.teacher_distance import DISTANCES, _grouped_student_map, diagnose_teacher_distance
from rm_methods.errors import UserError
from rm_methods.files import write_json
from rm_methods.interaction.objectives import StudentAttention
from rm_methods.training.run import RunFiles, train
from tests.conftest import experiment_config

METHODS = {
    "bradley_terry": {},
    "joint_encoder": {"masked_language_epochs": 2, "epochs": 1},
    "interaction_distillation": {"weight": 5.0, "student_layers": [2]},
}


@pytest.fixture(scope="module")
def trained(prepared, pairs, tmp_path_factory):
    """(configuration, items file, model folders by variant, folder)."""
    folder = tmp_path_factory.mktemp("distance")
    config = experiment_config(folder, methods=METHODS, training={"epochs": 8})
    models = {}
    for variant in ("joint_encoder", "bradley_terry", "interaction_distillation"):
        out = folder / variant
        required = {"teacher": [models["joint_encoder"]]} if variant == "interaction_distillation" else {}
        outputs = (out / "model", out / "metrics.jsonl", out / "summary.json", folder / "work")
        train(config, variant, 0, RunFiles(prepared[0], prepared[1], *outputs, required))
        models[variant] = out / "model"
    items = [BenchmarkItem(p.pair_id, "test", p.prompt, [p.rejected, p.chosen], 1, p.group) for p in pairs[:12]]
    write_items(items, folder / "items.parquet")
    return config, folder / "items.parquet", models, folder


def distances(trained, prepared, variant, out):
    config, items, models, _ = trained
    folders = {"model": models[variant], "backbone": prepared[1]}
    diagnose_teacher_distance(
        config, variant, 0, [("heldout", items)], folders, {"joint_encoder": models["joint_encoder"]}, out, 1
    )
    return read_diagnostics(out / "teacher.parquet", DISTANCE_COLUMNS)


def test_distillation_brings_the_student_nearer_to_its_teacher_than_bradley_terry(trained, prepared, tmp_path):
    variants = ("bradley_terry", "interaction_distillation")
    rows = {variant: distances(trained, prepared, variant, tmp_path / variant) for variant in variants}
    for frame in rows.values():
        assert len(frame) == 12 * len(DISTANCES)
        assert np.isfinite(frame[["before", "after"]].to_numpy()).all()
    joint = {variant: frame[frame.distance == "joint"] for variant, frame in rows.items()}
    assert joint["interaction_distillation"].after.mean() < 0.75 * joint["interaction_distillation"].before.mean()
    assert joint["interaction_distillation"].after.mean() < joint["bradley_terry"].after.mean()
    assert (tmp_path / "interaction_distillation" / "teacher_maps.png").stat().st_size > 10_000


def test_a_model_that_was_not_trained_is_where_it_began(trained, prepared, tmp_path):
    from rm_methods.reward_models.backbones import load_classifier, load_tokenizer
    from rm_methods.reward_models.model import RewardModel

    config, _, models, _ = trained
    RewardModel(load_classifier(prepared[1], config["backbone"], 0)).save(tmp_path / "run" / "model")
    load_tokenizer(prepared[1], 256).tokenizer.save_pretrained(tmp_path / "run" / "model")
    untrained = (config, trained[1], models | {"bradley_terry": tmp_path / "run" / "model"}, None)
    frame = distances(untrained, prepared, "bradley_terry", tmp_path / "out")
    np.testing.assert_allclose(frame.before, frame.after, atol=1e-5)


def test_pairs_without_any_joint_text_are_an_error(trained, prepared, tmp_path):
    config, _, models, _ = trained
    prompt = [{"role": "user", "content": "one two three four five six seven eight nine ten " * 60}]
    write_items(
        [BenchmarkItem("long", "test", prompt, ["yes", "no no no no no no no no no no no"], 0, "g")],
        tmp_path / "items.parquet",
    )
    with pytest.raises(UserError, match="none of the 1 pairs has a joint text"):
        distances((config, tmp_path / "items.parquet", models, None), prepared, "bradley_terry", tmp_path / "out")


def test_a_run_that_is_not_a_reward_model_is_refused(trained, prepared, tmp_path):
    config, items, models, _ = trained
    (tmp_path / "longest").mkdir()
    write_json(tmp_path / "longest" / "scorer.json", {"method": "longest", "settings": {}, "seed": 0})
    for folder in (tmp_path / "longest", models["joint_encoder"]):
        run = (config, items, models | {"bradley_terry": folder}, None)
        with pytest.raises(UserError, match=rf"{folder.name}: has no attention to compare"):
            distances(run, prepared, "bradley_terry", tmp_path)


def test_a_students_map_over_groups_is_pooled_by_mean_of_rows_and_sum_of_columns():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 5, 4)
    group = torch.tensor([[0, 0, -1, 1, 1]])
    student = StudentAttention(
        query, key, None, 0.5, group, torch.zeros_like(group), torch.zeros(1, 2, dtype=torch.int64)
    )
    found = _grouped_student_map(student, 0, 2)
    weights = (query[0] @ key[0].transpose(1, 2) * 0.5)[:, :, [0, 1, 3, 4]].softmax(-1).mean(0)
    expected = [[weights[rows][:, columns].sum(1).mean() for columns in ([0, 1], [2, 3])] for rows in ([0, 1], [3, 4])]
    np.testing.assert_allclose(found, np.array(expected), atol=1e-6)
