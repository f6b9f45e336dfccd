import json

import pytest
import yaml

from rm_methods.comparison.tuning import tune
from rm_methods.config.resolve import resolve
from rm_methods.errors import UserError


def configuration(**sections):
    return resolve(
        {
            "experiment": "grid",
            "seeds": [0, 1],
            "data": {"dataset": "world"},
            "training": {"learning_rate": 0.002},
            "methods": {"bradley_terry": {}, "label_smoothing": {"smoothing": 0.1}, "longest": {}},
            "tuning": {"enabled": True, "learning_rates": [0.001, 0.004]},
        }
        | sections
    )


def write_runs(folder, config, accuracy, loss=None):
    """Summaries whose validation accuracy is accuracy(variant, seed), 0.5 where that gives None."""
    for variant in config["methods"]:
        for seed in config["seeds"]:
            path = folder / "runs" / variant / f"seed{seed}" / "summary.json"
            path.parent.mkdir(parents=True)
            values = {
                "validation_accuracy": accuracy(variant, seed) or 0.5,
                "validation_loss": (loss or {}).get(variant, 0.6),
            }
            path.write_text(json.dumps({"metrics": values}))


def test_the_best_of_each_line_by_mean_accuracy_over_seeds(tmp_path):
    config = configuration()
    # By hand: 0.001 has (0.9 + 0.5) / 2 = 0.7, which loses to 0.004 with 0.72 in both seeds; smoothing 0.2 wins its
    # line.
    values = {
        "label_smoothing_lr0p001": (0.9, 0.5),
        "label_smoothing_lr0p004": (0.72, 0.72),
        "label_smoothing_smoothing_0p2": (0.6, 0.8),
    }
    write_runs(tmp_path, config, lambda variant, seed: values.get(variant, (None, None))[seed])
    text = tune(config, tmp_path, tmp_path / "tuning")
    settings = yaml.safe_load((tmp_path / "tuning" / "tuned.yaml").read_text())["settings"]
    assert settings["label_smoothing"] == {"learning_rate": 0.004, "smoothing": 0.2}
    assert "longest" not in settings
    selected = ["label_smoothing", "learning_rate", "0.004", "72.0", "72.0", "to", "72.0", "0.600", "selected"]
    assert selected in [line.split() for line in text.splitlines()]
    assert {path.name for path in (tmp_path / "tuning").iterdir()} == {
        "tuned.yaml",
        "table.txt",
        "table.md",
        "table.csv",
    }


def test_equal_accuracy_goes_to_the_lower_loss(tmp_path):
    config = configuration()
    write_runs(tmp_path, config, lambda variant, seed: 0.7, {"bradley_terry_lr0p001": 0.4})
    tune(config, tmp_path, tmp_path / "tuning")
    settings = yaml.safe_load((tmp_path / "tuning" / "tuned.yaml").read_text())["settings"]
    assert settings["bradley_terry"] == {"learning_rate": 0.001}


def test_equal_accuracy_made_of_other_seeds_is_a_tie_too(tmp_path):
    """Sums of the same counts in another order differ in the last bit: 0.1 + 0.7 is not 0.2 + 0.6."""
    config = configuration(seeds=[0, 1, 2])
    values = {
        "bradley_terry": (0.1, 0.2, 0.3),
        "bradley_terry_lr0p001": (0.3, 0.2, 0.1),
        "bradley_terry_lr0p004": (0.1, 0.1, 0.1),
    }
    assert len({sum(seeds) for name, seeds in values.items() if name != "bradley_terry_lr0p004"}) == 2
    for better in ("bradley_terry", "bradley_terry_lr0p001"):
        folder = tmp_path / better
        write_runs(folder, config, lambda variant, seed: values.get(variant, (0.5,) * 3)[seed], {better: 0.4})
        tune(config, folder, folder / "tuning")
        settings = yaml.safe_load((folder / "tuning" / "tuned.yaml").read_text())["settings"]
        assert settings["bradley_terry"] == {"learning_rate": 0.001 if better.endswith("lr0p001") else 0.002}


def test_a_setting_that_was_not_varied_is_not_selected(tmp_path):
    config = configuration(tuning={"enabled": True, "learning_rates": [0.001], "knobs": False})
    write_runs(tmp_path, config, lambda variant, seed: 0.7)
    tune(config, tmp_path, tmp_path / "tuning")
    settings = yaml.safe_load((tmp_path / "tuning" / "tuned.yaml").read_text())["settings"]
    assert set(settings["label_smoothing"]) == {"learning_rate"}


def test_what_was_selected_is_read_back_by_a_configuration(tmp_path):
    config = configuration()
    write_runs(tmp_path, config, lambda variant, seed: 0.7, {"bradley_terry_lr0p001": 0.4})
    tune(config, tmp_path, tmp_path / "tuning")
    tuned = str(tmp_path / "tuning" / "tuned.yaml")
    read = resolve({"experiment": "x", "data": {"dataset": "world"}, "methods": {"bradley_terry": {}}, "tuned": tuned})
    assert read["methods"]["bradley_terry"]["learning_rate"] == 0.001


def test_every_candidate_is_in_the_evidence(tmp_path):
    config = configuration()
    write_runs(tmp_path, config, lambda variant, seed: 0.7)
    tune(config, tmp_path, tmp_path / "tuning")
    candidates = yaml.safe_load((tmp_path / "tuning" / "tuned.yaml").read_text())["evidence"]["candidates"]
    # Three learning rates for both methods, and three values of smoothing.
    assert len(candidates) == 3 + 3 + 3
    assert sum(candidate["selected"] for candidate in candidates) == 3


def test_missing_runs_missing_validation_and_no_grid_are_refused(tmp_path):
    config = configuration()
    with pytest.raises(UserError, match=r"summary\.json: this run is missing"):
        tune(config, tmp_path, tmp_path / "tuning")
    write_runs(tmp_path, config, lambda variant, seed: 0.7)
    broken = tmp_path / "runs" / "bradley_terry" / "seed0" / "summary.json"
    broken.write_text('{"metrics": {}}')
    with pytest.raises(UserError, match="needs a validation split"):
        tune(config, tmp_path, tmp_path / "tuning")
    with pytest.raises(UserError, match=r"tuning\.enabled is false"):
        tune(configuration(tuning={}), tmp_path, tmp_path / "tuning")


def test_a_variant_with_a_name_of_its_own_gives_the_settings_of_its_method(tmp_path):
    config = configuration(methods={"mine": {"method": "label_smoothing", "smoothing": 0.1}})
    write_runs(tmp_path, config, lambda variant, seed: 0.9 if variant == "mine_smoothing_0p2" else 0.5)
    tune(config, tmp_path, tmp_path / "tuning")
    tuned = str(tmp_path / "tuning" / "tuned.yaml")
    read = resolve(
        {"experiment": "x", "data": {"dataset": "world"}, "methods": {"label_smoothing": {}}, "tuned": tuned}
    )
    assert read["methods"]["label_smoothing"]["settings"] == {"smoothing": 0.2}
