"""What readers see: rounding, marks, blocks, stacking and escaping."""

import csv
import io
import math
from dataclasses import replace

import pytest
from rich.cells import cell_len

from rm_methods.comparison.result import Cost
from rm_methods.comparison.tables import (
    WIDTH,
    cell_text,
    cost_texts,
    csv_table,
    difference_cell_text,
    latex_table,
    markdown_table,
    terminal_table,
)
from rm_methods.reporting.tables import latex_escape
from tests.comparison.made import made_cell, made_comparison, made_row

TRAINED = made_row("a", [])
SINGLE = made_row("a", [], seeds=(0,), n_models=1)
LONGEST = made_row("longest", [], role="content_blind", seeds=(0,), n_models=1)


@pytest.mark.parametrize(
    ("cell", "row", "text"),
    [
        (made_cell(0.8312, 0.0119), TRAINED, "83.1 ±1.2"),
        (made_cell(0.8312, 0.0119, "significant"), TRAINED, "83.1 ±1.2"),
        (made_cell(0.5, 0.02, "", "items"), SINGLE, "50.0 (±2.0)"),
        (made_cell(0.5, 0.02, "", "items"), LONGEST, "50.0 ±2.0"),
        (made_cell(0.5, 0.02, "", "members and items"), SINGLE, "50.0 ±2.0"),
        (made_cell(0.5, 0.02, "", "seeds"), TRAINED, "50.0 ±2.0§"),
        (made_cell(0.5, 0.9), TRAINED, "50.0 ±>50"),
        (made_cell(1.0, math.nan, "", "nothing"), TRAINED, "100.0"),
        (made_cell(math.nan, math.nan), TRAINED, "—"),
        (None, TRAINED, "—"),
    ],
)
def test_cell_text(cell, row, text):
    assert cell_text(cell, row) == text


@pytest.mark.parametrize(
    ("cell", "row", "text"),
    [
        (made_cell(0.0812, 0.0119, "significant"), TRAINED, "+8.1 ±1.2*"),
        (made_cell(-0.0812, 0.0119, "not significant"), TRAINED, "-8.1 ±1.2"),
        (made_cell(-0.0001, 0.0119, "not significant"), TRAINED, "0.0 ±1.2"),
        (made_cell(0.0812, 0.0119, "not enough evidence", "items"), SINGLE, "+8.1 (±1.2)"),
        (made_cell(0.0812, math.nan, "not tested", "nothing"), SINGLE, "+8.1"),
        (replace(made_cell(0.7), difference=None, verdict="reference"), TRAINED, ""),
        (replace(made_cell(0.7), difference=None), TRAINED, "—"),
        (None, TRAINED, "—"),
    ],
)
def test_difference_cell_text(cell, row, text):
    assert difference_cell_text(cell, row) == text


@pytest.mark.parametrize(
    ("cost", "texts"),
    [
        (Cost(1.25e6, 194.0, 1.4 * 2**30), ("3", "1.25M", "3.2 min", "1.4 GiB")),
        (Cost(0, 0.0, 0), ("3", "0", "0 s", "0")),
        (Cost(None, None, None), ("3", "—", "—", "—")),
        (Cost(999_999, 59.7, 900 * 2**20), ("3", "1000k", "1.0 min", "900 MiB")),
        (Cost(2.5e9, 7265.0, 0), ("3", "2.5G", "2 h 01 min", "0")),
    ],
)
def test_cost_texts(cost, texts):
    assert cost_texts(replace(made_row("a", []), cost=cost)) == texts


def test_best_mean_is_marked_even_if_it_is_content_blind_and_blocks_are_apart():
    rows = [
        made_row("a", [made_cell(0.7)]),
        made_row("b", [made_cell(0.6)]),
        made_row("longest", [made_cell(0.8)], role="content_blind"),
    ]
    text = terminal_table(made_comparison(rows))
    lines = text.splitlines()
    assert any(line.startswith("longest") and ">80.0" in line for line in lines)
    assert sum(">" in line for line in lines) == 2  # the mark and its footnote
    assert lines[lines.index(next(x for x in lines if x.startswith("longest"))) - 1] == ""
    assert "**80.0** ±1.2" in markdown_table(made_comparison(rows))
    assert r"\textbf{80.0} $\pm$1.2" in latex_table(made_comparison(rows))


def test_a_computed_row_is_last_named_and_never_the_best():
    rows = [
        made_row("a", [made_cell(0.7)]),
        made_row("gold", [made_cell(1.0, math.nan, "not tested", "nothing")], role="computed", n_models=1),
    ]
    text = terminal_table(made_comparison(rows))
    lines = text.splitlines()
    assert any(line.startswith("a ") and ">70.0" in line for line in lines)
    assert lines[lines.index(next(x for x in lines if x.startswith("gold"))) - 1] == ""
    assert "Computed, not trained, so neither ranked nor tested: gold." in text
    assert "Computed, not trained" in markdown_table(made_comparison(rows))
    assert "Computed, not trained" not in terminal_table(made_comparison(rows[:1]))


def test_twenty_methods_on_twelve_columns_are_stacked_within_the_width():
    rows = [
        made_row(f"method_with_a_long_name_{i}", [made_cell(0.5 + 0.01 * i, verdict="significant")] * 12)
        for i in range(20)
    ]
    text = terminal_table(made_comparison(rows, 12, reference="method_with_a_long_name_0", notes=("word " * 80,)))
    assert max(cell_len(line) for line in text.splitlines()) <= WIDTH
    assert text.count("Method ") >= 3
    assert all(text.count(f"method_with_a_long_name_{i} ") == text.count("Method ") for i in range(20))
    assert text.count(" 51.0 ±1.2 ") == 12
    assert text.count("+51.0 ±1.2*") == 12
    # The last table holds the costs, of which this row has none.
    assert text.count("Detectable difference") == text.count("Method ") - 1
    assert text.count(" 4.1") == 12
    assert text.count("Tokens") == 1


def test_a_single_run_and_a_combination_are_never_best():
    rows = [
        made_row("a", [made_cell(0.7)]),
        made_row("once", [made_cell(0.9, basis="items")], seeds=(0,), n_models=1),
        made_row("ensemble", [made_cell(0.9, basis="members and items")], role="combined", seeds=(0,), n_models=1),
        made_row("teacher", [made_cell(0.9, basis="items")], n_models=1),
    ]
    assert made_comparison(rows).best_rows(0) == {0}


def test_the_verdict_comes_first_below_the_table_in_every_format():
    comparison = replace(made_comparison([made_row("a", [made_cell(0.5)])]), verdict=("First. 50% of a_b.", "Second."))
    text = terminal_table(comparison)
    assert text.index("Verdict\nFirst.") < text.index("A note.")
    assert "**Verdict.** First. 50% of a\\_b. Second." in markdown_table(comparison)
    latex = latex_table(comparison)
    assert (
        latex.index("\\bottomrule")
        < latex.index(r"\textbf{Verdict.} First. 50\% of a\_b. Second.")
        < latex.index("note")
    )


def test_awkward_names_and_missing_cells_survive_every_format():
    row = made_row("µ|α_{1} & 50%\\*", [None, made_cell(0.5)], method="größe_#1", scalar_reward=False)
    comparison = made_comparison([row, made_row("b", [made_cell(math.nan, math.nan), None])], 2)
    text = terminal_table(comparison)
    assert "µ|α_{1} & 50%\\*" in text
    assert "†" in text
    markdown = markdown_table(comparison)
    assert r"µ\|α\_\{1\} & 50%\\\* (größe\_\#1) †" in markdown
    assert {line.replace(r"\|", "").count("|") for line in markdown.splitlines() if line.startswith("|")} == {8}
    assert r"µ|α\_\{1\} \& 50\%\textbackslash{}$^{*}$ (größe\_\#1) $^\dagger$" in latex_table(comparison)
    records = list(csv.DictReader(io.StringIO(csv_table(comparison))))
    assert [(r["variant"], r["benchmark"], r["mean"]) for r in records] == [
        ("µ|α_{1} & 50%\\*", "bench1", "0.5"),
        ("b", "bench0", ""),
    ]
    assert records[0]["scalar_reward"] == "false"


def test_latex_rows_have_one_cell_a_column_and_escape_everything():
    text = latex_table(made_comparison([made_row("a_b", [made_cell(0.5)] * 3)], 3))
    row = next(line for line in text.splitlines() if line.startswith(r"a\_b"))
    assert row.count(" & ") == 7
    assert "{lrrrrrrr}" in text
    assert latex_escape("a&b%c$d#e_f{g}h~i^j\\k<") == (
        r"a\&b\%c\$d\#e\_f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k\textless{}"
    )


def test_csv_keeps_full_precision_and_has_the_difference():
    value = 0.1234567890123456
    record = next(
        csv.DictReader(
            io.StringIO(csv_table(made_comparison([made_row("a", [made_cell(value, verdict="significant")])])))
        )
    )
    assert float(record["mean"]) == value
    assert (float(record["p"]), float(record["p_holm"]), record["verdict"]) == (0.01, 0.02, "significant")
    assert float(record["diff_low"]) == value - 0.012
    assert (record["n_seeds"], record["n_items"], record["tokens"]) == ("3", "100", "1250000.0")


def test_csv_limits_stay_within_what_a_share_can_be():
    comparison = made_comparison([made_row("a", [made_cell(0.4, reach=3.7, verdict="not significant")])])
    (record,) = csv.DictReader(io.StringIO(csv_table(comparison)))
    assert (float(record["low"]), float(record["high"])) == (0.0, 1.0)
    assert (float(record["diff_low"]), float(record["diff_high"])) == (-1.0, 1.0)
    assert (float(record["mean"]), float(record["standard_error"])) == (0.4, 1.85)


@pytest.mark.parametrize("length", range(8, 40))
def test_no_cell_and_no_name_is_cut_at_any_width(length):
    name = "m" * length
    text = terminal_table(
        made_comparison([made_row(name, [made_cell(0.5 + 0.0123)] * 6), made_row("b", [made_cell(0.4)] * 6)], 6)
    )
    assert text.count("51.2 ±1.2") == 6
    if length <= WIDTH // 3:
        assert name in text
