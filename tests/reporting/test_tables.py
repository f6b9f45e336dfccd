"""Tables in four forms: what stacks, what is marked, what is escaped."""

import csv
import io
import math

import pytest
from rich.cells import cell_len

from rm_methods.reporting.tables import (
    Section,
    csv_text,
    latex_escape,
    latex_text,
    markdown_escape,
    markdown_text,
    terminal_text,
)


def section(**changes):
    given = {
        "title": "A title",
        "headings": ("Method", "Accuracy, %"),
        "rows": (("first", "50.0 ±1.0"), ("second", "60.0 ±10.0*")),
        "best": frozenset({(1, 1)}),
    }
    return Section(**(given | changes))


def test_numbers_line_up_whatever_marks_follow_them():
    first, second = terminal_text([section()], []).splitlines()[4:6]
    assert first.rindex(".0") == second.rindex(".0")
    assert second.endswith(">60.0 ±10.0*")
    assert first.endswith("50.0 ±1.0")


def test_the_best_value_is_bold_without_its_interval():
    assert "| second | **60.0** ±10.0\\* |" in markdown_text([section()], [])
    assert r"second & \textbf{60.0} $\pm$10.0$^{*}$ \\" in latex_text([section()], [])


def test_columns_that_stay_together_are_stacked_as_one():
    headings = ("Method", *(f"Column {k}" for k in range(6)))
    rows = (("a", *["100.0 ±10.0"] * 6),)
    text = terminal_text([section(headings=headings, rows=rows, together=(1, 1, 1, 3), best=frozenset())], [], width=60)
    tables = text.split("Method")[1:]
    assert [table.count("100.0") for table in tables] == [3, 3]
    assert max(map(cell_len, text.splitlines())) <= 60


@pytest.mark.parametrize("width", range(24, 100, 5))
def test_no_text_is_lost_at_any_width(width):
    headings = ("Method", "Seeds", *(f"Data {k}" for k in range(5)))
    rows = tuple((f"m{row}", "3", *(f"{row}{k}.0" for k in range(5))) for row in range(4))
    text = terminal_text([section(headings=headings, rows=rows, names=2, best=frozenset())], ["note " * 30], width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert all(text.count(f" {row}{k}.0") == 1 for row in range(4) for k in range(5))


def test_a_value_that_repeats_in_the_first_column_is_printed_once_where_readers_see_rows_below_each_other():
    repeated = section(rows=(("world", "1.0"), ("world", "2.0"), ("heldout", "3.0")), once=True, best=frozenset())
    assert terminal_text([repeated], []).count("world") == 1
    assert latex_text([repeated], []).count("world") == 1
    assert markdown_text([repeated], []).count("world") == 2


def test_a_rule_sets_blocks_apart():
    text = terminal_text([section(rules=(1,))], [])
    assert text.splitlines()[5] == ""
    assert latex_text([section(rules=(1,))], []).count(r"\midrule") == 2


def test_a_long_title_is_wrapped():
    lines = terminal_text([section(title="title " * 30)], []).splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert " ".join(lines).count("title") == 30


def test_notes_are_wrapped_listed_and_small():
    note = "word " * 40
    assert max(map(len, terminal_text([section()], [note]).splitlines())) <= 80
    assert markdown_text([section()], ["5 > 3"]).endswith("\n- 5 \\> 3\n")
    assert latex_text([section()], ["one", "two"]).endswith("{\\footnotesize\none\\\\\ntwo\n}\n")


def test_every_character_that_formats_is_escaped():
    assert markdown_escape("a_b|c\n*d*") == r"a\_b\|c \*d\*"
    assert latex_escape("50% & $x_1^2$") == r"50\% \& \$x\_1\textasciicircum{}2\$"


def test_csv_has_full_precision_and_empty_fields():
    text = csv_text(
        [{"a": 0.1 + 0.2, "b": math.nan, "c": None, "d": True}, {"a": 1, "b": -0.0, "c": "x,y", "d": False}]
    )
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[1] == ["0.30000000000000004", "", "", "true"]
    assert rows[2] == ["1", "-0.0", "x,y", "false"]
