import math

import numpy as np
import pytest

from rm_methods.diagnostics import figures
from rm_methods.diagnostics.findings import ALL, Scope, read_findings
from rm_methods.diagnostics.summary import write_summary
from rm_methods.diagnostics.tables import csv_of_findings, notes, sections
from rm_methods.errors import DataError, UserError
from rm_methods.experiment import diagnosed_runs
from rm_methods.experiment.diagnosed_runs import figure_names, left_out
from rm_methods.experiment.layout import DIAGNOSTICS_TABLES
from rm_methods.methods.registry import load_method_card
from rm_methods.reporting.tables import terminal_text
from tests.conftest import experiment_config
from tests.diagnostics.conftest import masking_rows_of, sequence_row, write_run

SECTIONS = {"benchmarks": {"heldout": {}}, "diagnostics": {"benchmarks": ["heldout"]}}


@pytest.fixture
def config(tmp_path):
    return experiment_config(tmp_path, methods={"bradley_terry": {}, "longest": {}}, **SECTIONS)


def rows_of_a_run(late_correct, late_wrong, n_correct=30, n_wrong=20, **more):
    rows = [row for i in range(n_correct) for row in sequence_row(i, True, late=late_correct, **more)]
    return rows + [
        row for i in range(n_correct, n_correct + n_wrong) for row in sequence_row(i, False, late=late_wrong, **more)
    ]


def gap(findings, version="raw", seed=None, subset=ALL):
    (found,) = findings.find(Scope("heldout", subset, "bradley_terry", seed), "late_gap", "reward_row", version)
    return found


def test_the_late_gap_is_the_last_three_stages_of_misclassified_minus_correct(config, tmp_path):
    write_run(tmp_path, "bradley_terry", 0, rows_of_a_run(0.3, 0.45, late_text=0.4))
    findings = read_findings(config, tmp_path)
    assert gap(findings).value == pytest.approx(0.15)
    assert gap(findings).low == pytest.approx(0.15)
    assert gap(findings, "text").value == pytest.approx(0)
    scope = Scope("heldout", ALL, "bradley_terry")
    mass = [f.value for f in findings.find(scope, "stage_mass", "received", "raw", "misclassified")]
    np.testing.assert_allclose(mass, [0.55 / 7] * 7 + [0.15] * 3)
    cumulative = [f.value for f in findings.find(scope, "cumulative_mass", "received", "raw", "misclassified")]
    np.testing.assert_allclose(cumulative, np.cumsum(mass))
    assert findings.find(scope, "dropped_mass", "reward_row")[0].value == pytest.approx(0.25)


def test_seeds_are_compared_each_with_itself(config, tmp_path):
    """Seed 1 errs more often and attends later everywhere, but within a seed there is no difference."""
    config["seeds"] = [0, 1]
    write_run(tmp_path, "bradley_terry", 0, rows_of_a_run(0.3, 0.3, n_correct=40, n_wrong=10))
    write_run(tmp_path, "bradley_terry", 1, rows_of_a_run(0.5, 0.5, n_correct=10, n_wrong=40))
    findings = read_findings(config, tmp_path)
    assert gap(findings).value == pytest.approx(0)
    assert gap(findings, "length").value == pytest.approx(0)
    assert findings.seeds == {"bradley_terry": (0, 1)}


def test_the_length_control_reaches_the_finding(config, tmp_path):
    short = [r for i in range(40) for r in sequence_row(i, i < 30, late=0.2, n_tokens=20)]
    long = [r for i in range(40, 80) for r in sequence_row(i, i < 50, late=0.5, n_tokens=80)]
    write_run(tmp_path, "bradley_terry", 0, short + long)
    findings = read_findings(config, tmp_path)
    assert gap(findings).value == pytest.approx(0.15)
    assert gap(findings, "length").value == pytest.approx(0)
    assert gap(findings, "controlled").value == pytest.approx(0)


def test_findings_are_the_same_each_time(config, tmp_path, generator):
    rows = [row for i in range(50) for row in sequence_row(i, bool(i % 3), late=float(generator.uniform(0.2, 0.6)))]
    write_run(tmp_path, "bradley_terry", 0, rows)
    first, second = (csv_of_findings(read_findings(config, tmp_path)) for _ in range(2))
    assert first == second
    found = gap(read_findings(config, tmp_path))
    assert found.low < found.value < found.high


def test_subsets_are_kept_in_the_order_of_the_card(config, tmp_path):
    rows = [r for i in range(20) for r in sequence_row(i, i % 2 == 0, late=0.3, subset="validation")]
    rows += [r for i in range(20, 40) for r in sequence_row(i, i % 2 == 0, late=0.3 if i % 2 else 0.2)]
    write_run(tmp_path, "bradley_terry", 0, rows)
    findings = read_findings(config, tmp_path)
    assert [scope.subset for scope in findings.scopes("heldout")] == [ALL, "test", "validation"]
    assert gap(findings, subset="test").value == pytest.approx(0.1)
    assert gap(findings, subset="validation").value == pytest.approx(0)


def test_too_few_misclassified_items_give_no_interval(config, tmp_path):
    write_run(tmp_path, "bradley_terry", 0, rows_of_a_run(0.3, 0.4, n_wrong=9))
    found = gap(read_findings(config, tmp_path))
    assert found.value == pytest.approx(0.1)
    assert math.isnan(found.low)


def test_nothing_misclassified_or_decided_is_a_note_not_a_crash(tmp_path):
    config = experiment_config(tmp_path, methods={"bradley_terry": {}, "label_smoothing": {}}, **SECTIONS)
    tied = [row for i in range(100, 103) for row in sequence_row(i, None, late=0.3)]
    none_wrong = [row for i in range(12) for row in sequence_row(i, True, late=0.3)]
    none_decided = [row | {"correct": None} for row in none_wrong]
    write_run(tmp_path, "bradley_terry", 0, none_wrong + tied)
    write_run(tmp_path, "label_smoothing", 0, none_decided + tied)
    text = " ".join(write_summary(config, tmp_path, tmp_path / "out").split())
    assert (
        "Nothing misclassified, so nothing to compare: heldout: all, bradley_terry; heldout: all, label_smoothing."
        in text
    )
    assert "neither correct nor wrong: heldout: all, bradley_terry 3; heldout: all, label_smoothing 15." in text
    assert "bradley_terry 12 / 0 — —" in text
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *DIAGNOSTICS_TABLES,
        *(f"{n}.{s}" for n in figure_names(config) for s in ("png", "svg")),
    }
    assert "no misclassified pair" in (tmp_path / "out" / "heldout_attention_received_raw.svg").read_text()


def test_sequences_without_text_are_left_out_of_the_comparison(config, tmp_path):
    rows = rows_of_a_run(0.3, 0.4)
    nothing = {name: [float("nan")] * 10 for name in ("reward_row_text", "received_text")}
    rows += [row | nothing | {"n_text_tokens": 0} for row in sequence_row(90, True, late=0.9)]
    write_run(tmp_path, "bradley_terry", 0, rows)
    assert gap(read_findings(config, tmp_path), "controlled").value == pytest.approx(0.1)


def test_accuracy_counts_ties_as_half(config, tmp_path):
    rows = rows_of_a_run(0.3, 0.3)
    masking = masking_rows_of(rows)
    for row in masking:
        if row["mode"] == "response" and row["percent"] == 90:
            row["credit"] = 0.5 if row["item_id"] < "i2" else 0.0
    write_run(tmp_path, "bradley_terry", 0, rows, masking)
    findings = read_findings(config, tmp_path)
    scope = Scope("heldout", ALL, "bradley_terry")
    ties = sum(f"i{k}" < "i2" for k in range(50))
    accuracy = {f.position: f.value for f in findings.find(scope, "accuracy", "response")}
    assert accuracy[0] == 1
    assert accuracy[90] == pytest.approx(0.5 * ties / 50)
    assert findings.find(scope, "tie_rate", "response")[-1].value == pytest.approx(ties / 50)
    assert [f.value for f in findings.find(scope, "accuracy", "sequence")] == [1] * 10
    last = findings.find(scope, "accuracy", "response")[-1]
    text = terminal_text(sections(findings), ["note"])
    assert f"{100 * last.value:.1f} ±{50 * (last.high - last.low):.1f}" in text
    assert "100.0 ±0.0" in text


def test_tables_name_what_was_left_out_and_round_for_readers(config, tmp_path):
    write_run(tmp_path, "bradley_terry", 0, rows_of_a_run(0.3, 0.45))
    findings = read_findings(config, tmp_path)
    text = terminal_text(sections(findings), notes(findings, left_out(config)))
    assert "+15.0 [+15.0, +15.0]" in text
    assert "30 / 20" in text
    assert "1 of 1" in text
    assert "Not diagnosed: longest (content-blind: no model is trained)." in " ".join(text.split())
    assert "3 without one best of two responses" in text
    assert "layers 1 of 2" in text
    header, *lines = csv_of_findings(findings).splitlines()
    assert header.startswith("benchmark,subset,variant,seed,quantity")
    assert len(lines) == len(findings.entries)


def test_joint_and_combined_models_are_left_out_with_the_reason(config):
    every = [{"bradley_terry": {}}, {"joint_encoder": {}}, {"ensemble": {}}]
    config["methods"] = {
        name: {"method": name, "settings": load_method_card(name).defaults()} for methods in every for name in methods
    }
    assert {variant for variant, _ in diagnosed_runs.diagnosed_runs(config)} == {"bradley_terry"}
    assert diagnosed_runs.left_out(config) == {
        "joint_encoder": "joint: no scalar reward, it reads both responses together",
        "ensemble": "combined: no model is trained",
    }


def test_runs_on_other_pairs_and_missing_files_are_refused(config, tmp_path):
    config["seeds"] = [0, 1]
    write_run(tmp_path, "bradley_terry", 0, rows_of_a_run(0.3, 0.3))
    with pytest.raises(DataError, match=r"seed1.*Run the diagnose stage first"):
        read_findings(config, tmp_path)
    write_run(tmp_path, "bradley_terry", 1, rows_of_a_run(0.3, 0.3, n_wrong=21))
    with pytest.raises(DataError, match="other pairs"):
        read_findings(config, tmp_path)
    config["diagnostics"]["benchmarks"] = []
    with pytest.raises(UserError, match=r"diagnostics\.benchmarks is empty"):
        read_findings(config, tmp_path)
    config["diagnostics"]["benchmarks"] = ["world"]
    config["seeds"] = [0]
    with pytest.raises(DataError, match="not diagnosed on 'world'"):
        read_findings(config, tmp_path)


def test_the_same_findings_give_the_same_figures(config, tmp_path, monkeypatch):
    write_run(tmp_path, "bradley_terry", 0, rows_of_a_run(0.3, 0.45))
    findings = read_findings(config, tmp_path)
    monkeypatch.setattr(figures, "SHOWN_VERSIONS", ("raw",))
    for folder in ("a", "b"):
        figures.write_figures(findings, "heldout", "bradley_terry", tmp_path / folder)
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert b"misclassified" in drawn["heldout_attention_received_raw.svg"]
    assert b"bradley_terry" in drawn["heldout_masking.svg"]
