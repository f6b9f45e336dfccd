"""A teacher, its student and the diagnose stage through the real workflow."""

from __future__ import annotations

import pytest

from tests.workflow.checkouts import SMOKE, checkout, planned, results, snakemake

pytestmark = pytest.mark.process

STUDY = SMOKE | {
    "methods": {
        "student": {"method": "interaction_distillation", "teacher": "teacher"},
        "teacher": {"method": "joint_encoder", "masked_language_epochs": 1, "epochs": 1},
    },
    "diagnostics": {"benchmarks": ["world"], "limit": 4},
    "tracking": {"enabled": False},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = checkout(tmp_path_factory.mktemp("distillation"), STUDY)
    snakemake(folder)
    return folder


def test_teacher_student_and_diagnostics_run_to_the_end(finished):
    table = (results(finished) / "comparison" / "table.md").read_text()
    assert "student (Interaction Distillation)" in table
    assert "teacher (Joint encoder) †" in table
    diagnostics = results(finished) / "diagnostics"
    assert "student" in (diagnostics / "table.txt").read_text()
    distances = (diagnostics / "teacher_distance.txt").read_text()
    assert "student" in distances
    assert "teacher" in distances
    made = {path.name for path in (diagnostics / "student" / "seed0").iterdir()}
    records = {"made_with.json", "teacher.made_with.json"}
    files = {"attention.parquet", "masking.parquet", "report.json", "teacher.parquet", "teacher_maps.png"}
    assert made == files | records
    assert not (diagnostics / "teacher").exists()
    assert "Nothing to be done" in snakemake(finished, "-n")


@pytest.mark.parametrize(
    ("file", "trained"),
    [
        ("methods/joint_encoder.py", 2),
        ("methods/interaction_distillation.py", 1),
        ("interaction/objectives.py", 1),
        ("methods/longest.py", 0),
    ],
)
def test_editing_code_reruns_what_uses_it(finished, file, trained):
    path = finished / "rm_methods" / file
    before = path.read_text()
    try:
        path.write_text(before + "\n# changed\n")
        jobs = planned(snakemake(finished, "-n"))
    finally:
        path.write_text(before)
    assert jobs.get("train", 0) == trained
