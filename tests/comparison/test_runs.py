"""Runs as the comparison reads them: equal weights, shared teachers, metrics without a member."""

import math

import numpy as np
import pandas as pd
import pytest

from rm_methods.comparison.result import Column
from rm_methods.comparison.runs import distinct_runs, read_runs
from rm_methods.errors import DataError

OVERALL = Column("rm_bench", "overall", "RM-Bench", 0.5)


def with_hashes(files, hashes, edit_json):
    for run_files, value in zip(files, hashes, strict=True):
        edit_json(run_files.summary, lambda summary, value=value: summary.update(weights_hash=value))
    return files


def test_runs_with_equal_weights_are_one(experiment, edit_json):
    world = experiment()
    files = with_hashes(world.add("teacher", 0.0, (2, 0, 1)), ["w", "w", "v"], edit_json)
    files += with_hashes(world.add("other", 0.0, (0, 1)), ["w", "w"], edit_json)
    files += world.add("older", 0.0, (0, 1))
    distinct = distinct_runs(read_runs(files, [OVERALL]))
    assert [(run.variant, run.seed, run.merged_seeds) for run in distinct] == [
        ("teacher", 0, (2,)),
        ("teacher", 1, ()),
        ("other", 0, (1,)),
        ("older", 0, ()),
        ("older", 1, ()),
    ]


def shared(files):
    return {(run.variant, run.seed): run.shared_with_all_seeds for run in read_runs(files, [OVERALL])}


def test_students_of_one_teacher_under_all_seeds_share_it(experiment, edit_json):
    world = experiment()
    student = {"method": "interaction_distillation", "settings": {"teacher": "teacher"}}
    students = world.add("student", 0.0, (0, 1), **student)
    teachers = world.add("teacher", 0.0, (0, 1), method="joint_encoder")
    assert shared(students + teachers)["student", 0] == ()  # results of an older release
    with_hashes(teachers, ["w", "w"], edit_json)
    assert shared(students + teachers)["student", 1] == ("teacher",)
    assert shared(students + teachers)["teacher", 1] == ()
    assert shared(students + teachers[:1])["student", 1] == ()  # it is not known what the other seed used
    assert shared(students[:1] + teachers)["student", 0] == ()  # one run shares nothing
    with_hashes(teachers, ["w", "v"], edit_json)
    assert shared(students + teachers)["student", 0] == ()


def test_runs_that_need_all_or_the_first_seed_of_a_variant_share_it(experiment):
    world = experiment()
    files = world.add("strength", 0.0, (0, 1), method="preference_strength")
    files += world.add("data_strength", 0.0, (0, 1), method="preference_strength", settings={"strengths": "data"})
    files += world.add("warm_member", 0.0, (0, 1))
    files += world.add("ensemble", 0.0, (0,))
    sharing = shared(files)
    assert sharing["strength", 0] == sharing["strength", 1] == ("cross_fitted",)
    assert sharing["data_strength", 0] == ()
    assert sharing["warm_member", 1] == ("linear_probe",)
    assert sharing["ensemble", 0] == ()


def test_metrics_without_a_member_are_read_by_seed(experiment, edit_json):
    files = experiment().add("ensemble", 0.0, (0,))
    assert read_runs(files, [OVERALL])[0].left_out == {}

    def add(metrics):
        metrics["benchmarks"]["rm_bench"] |= {"left_out_seeds": [4, 5], "left_out": {"overall": [0.5, None]}}

    edit_json(files[0].metrics, add)
    left_out = read_runs(files, [OVERALL])[0].left_out["rm_bench", "overall"]
    assert left_out[4] == 0.5
    assert math.isnan(left_out[5])
    assert list(left_out) == [4, 5]


@pytest.mark.parametrize("seeds", [[4, 4], [4, 5, 6], [4, 4, 5], None])
def test_values_without_a_member_need_a_seed_each(experiment, edit_json, seeds):
    files = experiment().add("ensemble", 0.0, (0,))

    def add(metrics):
        metrics["benchmarks"]["rm_bench"] |= {"left_out": {"overall": [0.5, 0.25]}}
        metrics["benchmarks"]["rm_bench"] |= {"left_out_seeds": seeds} if seeds else {}

    edit_json(files[0].metrics, add)
    with pytest.raises(DataError, match=r"rm_bench/overall has 2 values without a member, but 'left_out_seeds' is \["):
        read_runs(files, [OVERALL])


def test_equal_items_of_several_runs_are_in_memory_once_and_credits_stay_apart(experiment):
    world = experiment(benchmarks={"rm_bench": {"metrics": ["overall"], "items": 300}})
    runs = read_runs(world.add("a", 0.0, (0, 1)) + world.add("b", 1.0, (0,)), [OVERALL])
    frames = [run.credits["rm_bench", "overall"] for run in runs]
    for frame in frames[1:]:
        assert np.shares_memory(frame["weight"].to_numpy(), frames[0]["weight"].to_numpy())
    for run, frame in zip(runs, frames, strict=True):
        assert frame["credit"].mean() == pytest.approx(run.metric(OVERALL))
    assert len({run.metric(OVERALL) for run in runs}) == 3


def test_other_items_stay_as_they_were_read(experiment):
    world = experiment()
    first, second = world.add("a", 0.0, (0, 1))
    frame = pd.read_parquet(second.credits)
    frame.assign(group=frame["group"] + "x").to_parquet(second.credits)
    groups = [run.credits["rm_bench", "overall"]["group"][0] for run in read_runs([first, second], [OVERALL])]
    assert groups == ["group0", "group0x"]
