"""One table, four forms: terminal text, Markdown, LaTeX (texts as given), and CSV (records in full precision)."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MISSING = "—"
VERDICT_MARK = "**Verdict.** "  # starts the paragraph of the verdict in Markdown
WIDTH = 80  # of terminal tables and their notes; wider tables are stacked
_GAP = 2  # blanks between two columns of the terminal
_MARKS = "*‡§†"  # footnote marks behind a number; numbers line up whatever marks follow them


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        title: a line above the table; empty for none.
        headings: one text for each column.
        rows: one text for each column, in every row.
        names: number of columns at the start that name the row.  They are repeated where the terminal stacks a wide
            table.
        left_aligned: number of columns at the start that hold words; the others hold numbers.
        together: numbers of columns behind the names that the terminal keeps in one table; empty keeps each alone.
        rules: rows above which a rule is drawn, besides the one below the headings.
        best: (row, column) of values to point out: `>` in the terminal, bold elsewhere.
        italic: rows whose names are set apart where italics exist.
        once: print a value of the first column only where it changes.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1
    left_aligned: int = 1
    together: tuple[int, ...] = ()
    rules: tuple[int, ...] = ()
    best: frozenset[tuple[int, int]] = frozenset()
    italic: frozenset[int] = frozenset()
    once: bool = False

    def shown_rows(self) -> list[tuple[str, ...]]:
        """The rows; with `once`, repetitions in the first column are left blank."""
        if not self.once:
            return list(self.rows)
        before = ["", *(row[0] for row in self.rows)]
        return [("" if row[0] == last else row[0], *row[1:]) for row, last in zip(self.rows, before, strict=False)]


# --- terminal -----------------------------------------------------------------------------------------------------


def terminal_text(
    sections: Sequence[Section], notes: Sequence[str], width: int = WIDTH, *, verdict: Sequence[str] = ()
) -> str:
    """Monospace tables of at most `width` columns, and below them the verdict and the notes.

    Columns that do not fit beside the names go into a further table below the first.  Only a single column that is
    wider than the terminal makes a wider table.
    """
    parts = [_terminal_section(section, width) for section in sections]
    wrapped = [textwrap.fill(note, width, subsequent_indent="   ", break_on_hyphens=False) for note in notes]
    sentences = [textwrap.fill(line, width, subsequent_indent="   ", break_on_hyphens=False) for line in verdict]
    paragraph = ["Verdict", *sentences, ""] if sentences else []
    return "\n".join([*parts, *paragraph, *wrapped]) + "\n"


def _terminal_section(section: Section, width: int) -> str:
    names = list(range(section.names))
    widths = [_needed(section, column, width) for column in range(len(section.headings))]
    room = width - sum(widths[column] + _GAP for column in names)
    stacks: list[list[int]] = [[]]
    left = room
    for group in _groups(section):
        need = sum(widths[column] + _GAP for column in group)
        if stacks[-1] and need > left + _GAP:  # the last column of a table has no gap behind it
            stacks.append([])
            left = room
        stacks[-1] += group
        left -= need
    title = textwrap.fill(section.title, width, break_on_hyphens=False) + "\n\n" if section.title else ""
    return title + "\n".join(_terminal_table(section, names + stack, widths, width) for stack in stacks)


def _groups(section: Section) -> list[list[int]]:
    """Columns behind the names, in groups that one table keeps."""
    counts = section.together or (1,) * (len(section.headings) - section.names)
    starts = [section.names + sum(counts[:k]) for k in range(len(counts))]
    return [list(range(start, start + count)) for start, count in zip(starts, counts, strict=True)]


def _terminal_column(section: Section, column: int) -> list[str]:
    rows = section.shown_rows()
    texts = [(">" if (k, column) in section.best else "") + row[column] for k, row in enumerate(rows)]
    if column < section.left_aligned:
        return texts
    marks = [len(text) - len(text.rstrip(_MARKS)) for text in texts]
    return [text + " " * (max(marks) - mark) for text, mark in zip(texts, marks, strict=True)]


def _needed(section: Section, column: int, width: int) -> int:
    """Width of a column; its heading may break between words, and a long name of a row may fold."""
    from rich.cells import cell_len

    texts = [*_terminal_column(section, column), *section.headings[column].split()]
    needed = max((cell_len(text) for text in texts), default=0)
    return min(needed, width // 3) if column == 0 else needed


def _terminal_table(section: Section, columns: list[int], widths: list[int], width: int) -> str:
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # The box itself puts one blank between columns.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, _GAP - 1, 0, 0), show_edge=False)
    for column in columns:
        heading = Text(section.headings[column], justify="left" if column < section.left_aligned else "right")
        table.add_column(heading, overflow="fold", width=widths[column])
    texts = {column: _terminal_column(section, column) for column in columns}
    values = columns[section.names :]
    for row in range(len(section.rows)):
        if values and not any(texts[column][row].strip() for column in values):
            continue  # this row has something to say in another table of the stack
        cells = []
        for column in columns:
            text = texts[column][row]
            # Rich would strip the blanks behind a number that keep it in line with numbers that have marks.
            indent = widths[column] - cell_len(text) if column >= section.left_aligned else 0
            cells.append(Text(" " * max(indent, 0) + text))
        table.add_row(*cells, end_section=row + 1 in section.rules)
    stream = io.StringIO()
    total = max(width, sum(widths[column] + 2 * _GAP for column in columns))
    Console(file=stream, width=total, color_system=None, force_terminal=False, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


# --- Markdown -----------------------------------------------------------------------------------------------------


def markdown_text(sections: Sequence[Section], notes: Sequence[str], *, verdict: Sequence[str] = ()) -> str:
    """GitHub tables, the verdict as a paragraph, and the notes as a list."""
    parts = []
    for section in sections:
        numbers = len(section.headings) - section.left_aligned
        lines = [f"**{markdown_escape(section.title)}**", ""] if section.title else []
        lines.append(_markdown_row(map(markdown_escape, section.headings)))
        lines.append("|" + ":---|" * section.left_aligned + "---:|" * numbers)
        for k, row in enumerate(section.rows):
            cells = [_markdown_cell(text, (k, column) in section.best) for column, text in enumerate(row)]
            if k in section.italic:
                cells[0] = f"_{cells[0]}_"
            lines.append(_markdown_row(cells))
        parts.append("\n".join(lines))
    if verdict:
        parts.append(VERDICT_MARK + markdown_escape(" ".join(verdict)))
    return "\n\n".join([*parts, "\n".join(f"- {markdown_escape(note)}" for note in notes)]) + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_cell(text: str, best: bool) -> str:
    """A cell whose first word, the value before its interval, may be bold."""
    value, blank, rest = markdown_escape(text).partition(" ")
    return f"**{value}**{blank}{rest}" if best else value + blank + rest


def markdown_escape(text: str) -> str:
    """Escape what Markdown would read as markup."""
    for character in "\\`*_{}[]<>|#":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


# --- LaTeX --------------------------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "§": r"$^\S$",
    "*": r"$^{*}$",
    "—": "---",
    "−": "$-$",
}


def latex_text(sections: Sequence[Section], notes: Sequence[str], *, verdict: Sequence[str] = ()) -> str:
    """A booktabs tabular for each table, the verdict, and the notes: to be \\input inside a table environment."""
    lines = ["% needs \\usepackage{booktabs}"]
    for section in sections:
        if section.title:
            lines += [latex_escape(section.title), ""]
        numbers = len(section.headings) - section.left_aligned
        lines.append(f"\\begin{{tabular}}{{{'l' * section.left_aligned}{'r' * numbers}}}")
        lines += ["\\toprule", _latex_row(map(latex_escape, section.headings)), "\\midrule"]
        for k, row in enumerate(section.shown_rows()):
            if k in section.rules:
                lines.append("\\midrule")
            cells = [_latex_cell(text, (k, column) in section.best) for column, text in enumerate(row)]
            lines.append(_latex_row(cells))
        lines += ["\\bottomrule", "\\end{tabular}", "", "\\smallskip"]
    if verdict:
        lines += [r"\textbf{Verdict.} " + latex_escape(" ".join(verdict)), "", "\\smallskip"]
    if notes:
        *first, last = map(latex_escape, notes)
        lines += ["{\\footnotesize", *(note + r"\\" for note in first), last, "}"]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(text: str, best: bool) -> str:
    value, blank, rest = text.partition(" ")
    shown = f"\\textbf{{{latex_escape(value)}}}" if best else latex_escape(value)
    return shown + blank + latex_escape(rest)


def latex_escape(text: str) -> str:
    """Escape what LaTeX would read as a command; letters beyond ASCII stay (UTF-8 is LaTeX's default)."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


# --- CSV ----------------------------------------------------------------------------------------------------------


def csv_text(records: Sequence[Mapping[str, Any]], fields: Sequence[str] | None = None) -> str:
    """One line a record, in full precision; empty where a value is missing, None or NaN.  Booleans are true and false.

    Args:
        fields: the columns; None takes the keys of the first record.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fields or list(records[0]), lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: _csv_value(value) for key, value in record.items()})
    return stream.getvalue()


def _csv_value(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value
