"""performance/method_costs.py: rows and sentences of made-up times, worked out by hand, and one real measurement."""

from __future__ import annotations

import csv
import json

import pytest
from click.testing import CliRunner

from performance import cost_table, method_costs
from performance.harness.benchmark import Work
from performance.harness.machine import describe_machine
from performance.harness.record import VERSION, check_record
from rm_methods.errors import UserError
from rm_methods.methods.registry import load_method_card, method_names
from rm_methods.reporting.figures import save_figure

TINY = {"model": "tiny", "pairs": 0, "epochs": 0, "backbone": ""}


def side(seconds, scoring, before, needs=()):
    """Rounds of one method; the CPU time is twice the wall time."""
    details = [
        {"scoring_seconds": score, "before": start, "scored_pairs": 256, "needs": list(needs)}
        for score, start in zip(scoring, before, strict=True)
    ]
    return {
        "seconds": seconds,
        "cpu_seconds": [2 * value for value in seconds],
        "peak_memory_bytes": [2**30] * len(seconds),
        "amount": 32,
        "details": details,
    }


def made_record(**sides):
    """A record of three rounds with these sides."""
    proof = {"statement": "equal", "difference": 0.0, "tolerance": 1.0}
    return {
        "version": VERSION,
        "benchmark": "method_costs",
        "command": "python -m performance run method_costs",
        "machine": describe_machine(),
        "options": TINY,
        "rounds": 3,
        "threads": 1,
        "tests": {"ids": ["x"], "summary": "1 passed"},
        "cases": [{"case": "all", "title": "", "proof": proof, "sides": sides, "sides_skipped": {}}],
    }


@pytest.fixture
def record():
    return made_record(
        bradley_terry=side([1.0, 2.0, 1.0], [0.1, 0.1, 0.1], [5.0, 5.0, 5.0]),
        meta_rm=side([3.0, 5.0, 3.0], [0.1, 0.2, 0.1], [5.5, 5.5, 5.5]),
        joint_encoder=side([1.0, 2.0, 1.05], [0.3, 0.3, 0.3], [9.0, 9.0, 12.0]),
        linear_probe=side([0.5, 0.5, 0.5], [0.1, 0.1, 0.1], [4.0, 9.0, 9.0]),
        warm_member=side([1.2, 2.4, 1.2], [0.1, 0.1, 0.1], [5.0, 5.0, 5.0], ["Linear probe"]),
    )


def test_rows_are_relative_to_bradley_terry_in_the_same_round(record):
    rows = {row.method: row for row in cost_table.costs_of(record)}
    assert list(rows) == ["linear_probe", "bradley_terry", "joint_encoder", "warm_member", "meta_rm"]
    assert rows["meta_rm"].step == {"median": 3.0, "lowest": 2.5, "highest": 3.0}
    assert rows["meta_rm"].cpu == 3.0
    assert rows["meta_rm"].scoring["highest"] == pytest.approx(2.0)
    assert rows["joint_encoder"].scoring["median"] == pytest.approx(3.0)
    assert rows["warm_member"].needs == ("Linear probe",)


def test_what_comes_once_counts_only_if_every_round_shows_more_than_a_step(record):
    once = {row.method: row.once for row in cost_table.costs_of(record)}
    assert once == {
        "bradley_terry": None,
        "meta_rm": None,  # 0.5 s: less than a step of Bradley-Terry
        "joint_encoder": 4.0,
        "linear_probe": None,  # less than Bradley-Terry in one round
        "warm_member": None,
    }


def test_the_page_names_methods_that_cost_more_or_less_in_every_round(record):
    text = cost_table.table(record)
    sentence = " ".join(text.partition("\n\n")[0].split())
    assert sentence == (
        "**In every round, a step of 2 of 4 methods takes more than 1.1 times as long as one of Bradley-Terry (MetaRM "
        "3.00, Member of a weight average 1.20).** Less than 0.9 times: Linear probe 0.50. The rest (1) is within "
        "these limits in at least one round. A step of Bradley-Terry with 32 of 256 pairs takes 1 s; scoring both "
        "responses of a pair, 100 ms."
    )
    lines = [line for line in text.split("\n") if line.startswith("| ")]
    assert lines[1] == "| Linear probe | 0.50 (0.25 to 0.50) | 0.50 | 1.00 (1.00 to 1.00) |  | 1.00 GiB |  |"
    assert lines[2] == "| Bradley-Terry | 1 | 1 | 1 |  | 1.00 GiB |  |"
    assert lines[4].endswith("| Linear probe |")
    assert "![" not in text


def test_without_bradley_terry_there_are_no_ratios():
    text = cost_table.table(made_record(meta_rm=side([3.0], [0.1], [5.5])))
    assert text.split("\n")[0].startswith("| method |")
    assert text.split("\n")[2] == "| MetaRM |  |  |  |  | 1.00 GiB |  |"


COLUMNS = (
    "variant", "method", "title", "role", "heading", "reference", "difference", "diff_low", "diff_high", "verdict"
)  # fmt: skip


def write_table(folder, rows):
    """A table.csv of a comparison, with the columns that are read."""
    folder.mkdir(parents=True)
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return folder


@pytest.fixture
def comparison(tmp_path):
    def row(variant, method, title, *numbers, role="trained", verdict="not significant"):
        return (variant, method, title, role, "world neutral", "bradley_terry", *numbers, verdict)

    return write_table(
        tmp_path / "results" / "noise" / "comparison" / "symmetric_20",
        [
            row("bradley_terry", "bradley_terry", "Bradley-Terry", "", "", "", verdict="reference"),
            row("meta_rm", "meta_rm", "MetaRM", 0.02, -0.01, 0.05),
            row("frozen", "linear_probe", "Linear probe", 0.1, 0.05, 0.15, verdict="significant"),
            row("warm", "warm", "WARM", 0.05, "", "", role="combined", verdict="not tested"),
            row("longest", "longest", "Longest", -0.2, -0.3, -0.1, role="content_blind", verdict="not tested"),
        ],
    )


def test_quality_is_joined_by_method(record, comparison):
    quality = cost_table.read_quality(comparison)
    assert quality["source"] == "noise/symmetric_20"
    dots = {dot.label: dot for dot in cost_table.dots_of(record | {"quality": quality})}
    assert set(dots) == {"Bradley-Terry", "MetaRM", "frozen (Linear probe)"}
    assert (dots["MetaRM"].cost, dots["MetaRM"].difference, dots["MetaRM"].interval) == (3.0, 0.02, (-0.01, 0.05))
    assert dots["frozen (Linear probe)"].verdict == "significant"
    assert dots["Bradley-Terry"].verdict == "reference"
    text = cost_table.table(record | {"quality": quality})
    assert "](images/method_costs.png)" in text
    assert "Not drawn, as no training of theirs was timed: WARM." in " ".join(text.split())


def test_the_command_stores_the_quality_and_draws_the_figure(record, comparison, tmp_path):
    file = tmp_path / "method_costs.json"
    figure = tmp_path / "figure.png"
    file.write_text(json.dumps(record))
    command = ["--record", str(file), "--figure", str(figure)]
    refused = CliRunner().invoke(cost_table.main, command)
    assert isinstance(refused.exception, UserError)
    done = CliRunner().invoke(cost_table.main, [*command, "--table", str(comparison)])
    assert done.exit_code == 0, done.output
    assert figure.read_bytes()[:4] == b"\x89PNG"
    stored = check_record(json.loads(file.read_text()), file)
    assert stored["quality"]["dots"]
    figure.unlink()
    # The record suffices.
    assert CliRunner().invoke(cost_table.main, command).exit_code == 0
    assert figure.exists()


def test_the_figure_has_every_name_and_a_bar_for_every_interval(record, comparison, tmp_path):
    from rm_methods.comparison.cost_figure import draw_dots

    dots = cost_table.dots_of(record | {"quality": cost_table.read_quality(comparison)})
    drawn = draw_dots(dots, "time of a step")
    bars = [line for line in drawn.axes[0].lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] > 0]
    assert sorted(tuple(line.get_ydata()) for line in bars if line.get_xdata()[0] == line.get_xdata()[1]) == [
        (-1.0, 5.0),
        (5.0, 15.0),
    ]
    save_figure(lambda: drawn, [tmp_path / "figure.svg"])
    text = (tmp_path / "figure.svg").read_text()
    assert all(dot.label in text for dot in dots)


def test_a_comparison_with_another_reference_is_refused(tmp_path):
    row = ("odin", "odin", "ODIN", "trained", "world", "odin", "", "", "", "reference")
    folder = write_table(tmp_path / "comparison", [row])
    with pytest.raises(UserError, match="its reference is odin"):
        cost_table.read_quality(folder)
    with pytest.raises(UserError, match="no such table"):
        cost_table.read_quality(tmp_path / "nothing")


def test_the_sides_are_all_methods_that_train_weights():
    sides = {one.name for one in method_costs.BENCHMARK.sides}
    assert sides == {name for name in method_names() if load_method_card(name).has_weights}


@pytest.mark.parametrize("model", ["tiny", "smol"])
def test_every_side_has_a_configuration_or_a_reason(model):
    options = TINY | {"model": model}
    skipped = {}
    for name in method_costs.trained_methods():
        skipped[name] = method_costs.side_missing(options, name)
        if skipped[name] is None:
            config = method_costs.config_of(options, name)
            assert config["training"]["log_every_steps"] == 1
            assert {other for _, other, _ in method_costs.required_runs(options, name)} <= set(config["methods"])
    assert [name for name, reason in skipped.items() if reason] == ([] if model == "tiny" else ["cue_removed"])


def test_unknown_models_are_refused():
    with pytest.raises(UserError, match="allowed are tiny, smol"):
        method_costs.missing(TINY | {"model": "large"})


def test_the_clock_counts_no_first_step(monkeypatch):
    now = iter([0.0, 5.0, 9.0, 10.0, 12.0])
    monkeypatch.setattr(method_costs.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(method_costs, "cpu_seconds", lambda: 0.0)
    clock = method_costs.Clock()
    clock.begin([])
    for loss in (0.7, 0.6, 0.5):
        clock.row({"step": 1, "loss": loss})
        clock.row({"step": 1, "validation_loss": 0.9})
    assert {key: clock.times[key] for key in ("before", "first_step", "steps")} == {
        "before": 5.0,
        "first_step": 4.0,
        "steps": [1.0, 2.0],
    }
    alone = method_costs.Clock.__new__(method_costs.Clock)
    alone.losses = [0.7]
    with pytest.raises(ValueError, match="Steps made: 1"):
        _ = alone.times


@pytest.mark.process
def test_two_methods_are_measured(tmp_path, monkeypatch):
    """Prepared, proven and measured, without the runs that other methods require."""
    monkeypatch.setattr(method_costs, "trained_methods", lambda: ["bradley_terry", "rrm"])
    options = TINY | {"pairs": 64, "epochs": 1}
    for name in ("case", "shared"):
        (tmp_path / name).mkdir()
    work = Work("all", None, options, tmp_path / "case", tmp_path / "shared")
    method_costs.prepare(work)
    proof = method_costs.prove(work)
    assert proof.difference <= proof.tolerance
    for name in ("bradley_terry", "rrm"):
        measured = method_costs.measure(Work("all", name, options, work.folder, work.shared))
        assert measured.seconds > 0
        assert len(measured.details["steps"]) == 1
        assert measured.details["scored_pairs"] == 64
        assert measured.details["before"] > 0
        assert measured.details["needs"] == []
