"""Levels of label noise, a method that needs all seeds of another, and a tuning grid through the real workflow."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.workflow.checkouts import SMOKE, checkout, planned, results, snakemake

pytestmark = pytest.mark.process

QUIET = {"tracking": {"enabled": False}}


def test_every_level_of_noise_is_trained_and_compared(tmp_path):
    folder = checkout(tmp_path)
    study = SMOKE | QUIET | {
        "seeds": [0, 1],
        "methods": {"bradley_terry": {}, "ensemble": {}, "longest": {}},
        "noise_levels": [{"rate": 0.0}, {"rate": 0.25}],
    }  # fmt: skip
    (folder / "config" / "smoke.yaml").write_text(yaml.safe_dump(study))
    assert planned(snakemake(folder, "-n"))["train"] == 2 * (2 + 1) + 1
    snakemake(folder)
    comparison = results(folder) / "comparison"
    header = " ".join((comparison / "table.md").read_text().splitlines()[0].split())
    assert "0% flips" in header
    assert "25% flips" in header
    rows = [
        line.split("|")[1].strip()
        for line in (comparison / "table.md").read_text().splitlines()
        if line.startswith("|")
    ][2:]
    assert [row.replace("\\", "").strip("_*") for row in rows] == ["Bradley-Terry", "Ensemble", "Longest response"]
    assert (comparison / "symmetric_25" / "table.txt").exists()
    assert list(comparison.glob("noise_world_*.png"))
    noisy = json.loads((results(folder) / "runs" / "bradley_terry_noise25" / "seed1" / "summary.json").read_text())
    assert noisy["noise"]["flipped"] == 30
    members = (results(folder) / "runs" / "ensemble_noise25" / "seed0" / "model" / "scorer.json").read_text()
    assert "bradley_terry_noise25/seed1" in members
    assert "Nothing to be done" in snakemake(folder, "-n")


def test_a_tuning_grid_ends_in_settings_that_a_configuration_takes(tmp_path):
    folder = checkout(tmp_path)
    grid = {key: value for key, value in SMOKE.items() if key != "benchmarks"} | QUIET | {
        "methods": {"label_smoothing": {}},
        "tuning": {"enabled": True, "learning_rates": [1e-4], "knobs": False},
    }  # fmt: skip
    (folder / "config" / "smoke.yaml").write_text(yaml.safe_dump(grid))
    snakemake(folder)
    tuned = results(folder) / "tuning" / "tuned.yaml"
    assert set(yaml.safe_load(tuned.read_text())["settings"]["label_smoothing"]) == {"learning_rate"}
    (folder / "config" / "smoke.yaml").write_text(
        yaml.safe_dump(SMOKE | QUIET | {"methods": {"label_smoothing": {}}, "tuned": str(tuned)})
    )
    assert planned(snakemake(folder, "-n"))["train"] == 1
