"""One comparison, four tables: terminal text, Markdown, LaTeX (all rounded to 0.1%), and tidy CSV (full precision)."""

from __future__ import annotations

import csv
import io
import math

from rm_methods.comparison.result import Cell, Column, Comparison, VariantRow

MISSING = "—"
WIDTH = 112  # of the terminal table; wider tables are stacked
GAP = 3  # columns that the table puts between two of its columns
COST_HEADINGS = ("Tokens", "Time", "Memory")
CSV_FIELDS = (
    *("variant", "method", "benchmark", "metric", "heading"),
    *("mean", "low", "high", "standard_error", "degrees_of_freedom", "basis", "n_seeds", "n_items", "n_groups"),
    *("reference", "difference", "diff_low", "diff_high", "p", "p_holm", "n_paired_seeds", "pairing", "verdict"),
    *("chance", "tie_rate", "n_scored", "n_total", "n_truncated", "content_blind", "scalar_reward", "seed_free"),
    *("tokens", "wall_seconds", "peak_memory_bytes"),
)


def cell_text(cell: Cell | None) -> str:
    """Mean ± half-width in percent with its marks, e.g. ``83.1 ±1.2*``; ``±>50`` says nothing is known; an em dash: there is nothing.

    Marks: * significant difference to the reference, ‡ interval of items only, § interval of seeds only.
    """
    if cell is None or math.isnan(cell.estimate.mean):
        return MISSING
    text = f"{100 * cell.estimate.mean:.1f}"
    if not math.isnan(cell.estimate.half_width):
        # With two seeds an interval may be wider than all that a share can be.
        text += f" ±{100 * cell.estimate.half_width:.1f}" if cell.estimate.half_width < 0.5 else " ±>50"
    text += {"items": "‡", "seeds": "§"}.get(cell.estimate.basis, "")
    return text + ("*" if cell.verdict == "significant" else "")


def method_text(row: VariantRow) -> str:
    """Variant, with its method where that has another name, and † where there is no scalar reward."""
    name = row.variant if row.variant == row.method else f"{row.variant} ({row.method})"
    return name + ("" if row.scalar_reward else " †")


def cost_texts(row: VariantRow) -> tuple[str, str, str]:
    """Tokens, wall time and peak memory for readers."""
    return _count(row.cost.tokens), _duration(row.cost.wall_seconds), _bytes(row.cost.peak_memory_bytes)


def _count(value: float | None) -> str:
    if value is None:
        return MISSING
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value / size < 999.5 else f"{value / size:.0f}{unit}"
    return f"{value:.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 59.5:
        return "0 s" if seconds == 0 else f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{seconds / 60:.1f} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _bytes(value: float | None) -> str:
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    mebibytes = value / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.1f} GiB"


def _blocks(comparison: Comparison) -> list[list[int]]:
    """Row indices of the trained and of the content-blind variants, without empty blocks."""
    blind = [index for index, row in enumerate(comparison.rows) if row.content_blind]
    trained = [index for index, row in enumerate(comparison.rows) if not row.content_blind]
    return [block for block in (trained, blind) if block]


# --- terminal ---------------------------------------------------------------------------------------------------------------------


def terminal_table(comparison: Comparison, width: int = WIDTH) -> str:
    """Monospace table of at most `width` columns; benchmark columns that do not fit go into further tables below the first."""
    costs = zip(*(cost_texts(row) for row in comparison.rows), strict=True)
    cost_columns = [(heading, list(texts)) for heading, texts in zip(COST_HEADINGS, costs, strict=True)]
    # Groups of columns that stand in one table: each benchmark column alone, the three of the cost together.
    groups = [
        [(column.heading, _terminal_column(comparison, index))] for index, column in enumerate(comparison.columns)
    ] + [cost_columns]
    first = [
        ("Method", [method_text(row) for row in comparison.rows]),
        ("Seeds", [str(len(row.seeds)) for row in comparison.rows]),
    ]
    room = width - min(_needed(*first[0]), width // 3 + GAP) - _needed(*first[1])
    stacks, left = [[]], room
    for group in groups:
        need = sum(_needed(heading, texts) for heading, texts in group)
        if stacks[-1] and need > left:
            stacks.append([])
            left = room
        stacks[-1] += group
        left -= need
    parts = [_rich_table(comparison, first + stack, width) for stack in stacks]
    notes = [">: best mean of the column, content-blind rows included.", *comparison.notes]
    return "\n".join(parts) + "\n" + "\n".join(_wrapped(note, width) for note in notes) + "\n"


def _needed(heading: str, texts: list[str]) -> int:
    """Width of a column whose heading may break between words, with the gap to its neighbour."""
    from rich.cells import cell_len

    return max(cell_len(text) for text in [*texts, *heading.split()]) + GAP


def _terminal_column(comparison: Comparison, column: int) -> list[str]:
    """Texts of a column, padded so that the numbers stand below each other whatever marks follow them."""
    best = comparison.best_rows(column)
    texts = [(">" if index in best else "") + cell_text(row.cells[column]) for index, row in enumerate(comparison.rows)]
    marks = [len(text) - len(text.rstrip("*‡§")) for text in texts]
    return [text + " " * (max(marks) - own) for text, own in zip(texts, marks, strict=True)]


def _rich_table(comparison: Comparison, columns: list[tuple[str, list[str]]], width: int) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for index, (heading, texts) in enumerate(columns):
        if index == 0:
            longest = max(map(len, texts), default=0)
            table.add_column(Text(heading), overflow="fold", min_width=min(longest, width // 3), max_width=width // 3)
        else:
            table.add_column(Text(heading), justify="right", width=_needed(heading, texts) - GAP)
    for block in _blocks(comparison):
        for row in block:
            table.add_row(*(Text(texts[row]) for _, texts in columns), end_section=row == block[-1])
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, force_terminal=False, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _wrapped(note: str, width: int) -> str:
    import textwrap

    return textwrap.fill(note, width, subsequent_indent="   ", break_on_hyphens=False)


# --- Markdown ---------------------------------------------------------------------------------------------------------------------


def markdown_table(comparison: Comparison) -> str:
    """A GitHub table: the best mean of a column is bold, content-blind rows stand last and are named in italics."""
    headings = ["Method", "Seeds", *(_markdown(c.heading) for c in comparison.columns), *COST_HEADINGS]
    lines = ["| " + " | ".join(headings) + " |", "|:---|" + "---:|" * (len(headings) - 1)]
    best = [comparison.best_rows(index) for index in range(len(comparison.columns))]
    for block in _blocks(comparison):
        for index in block:
            row = comparison.rows[index]
            name = _markdown(method_text(row))
            cells = [_markdown_cell(cell, index in best[column]) for column, cell in enumerate(row.cells)]
            lines.append(
                "| "
                + " | ".join(
                    [f"_{name}_" if row.content_blind else name, str(len(row.seeds)), *cells, *cost_texts(row)]
                )
                + " |"
            )
    notes = [
        "Bold: best mean of the column, content-blind rows included. _Italic_: content-blind scorers.",
        *map(_markdown, comparison.notes),
    ]
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"


def _markdown_cell(cell: Cell | None, best: bool) -> str:
    mean, _, rest = _markdown(cell_text(cell)).partition(" ")
    return (f"**{mean}**" if best else mean) + (f" {rest}" if rest else "")


def _markdown(text: str) -> str:
    for character in "\\`*_{}[]<>|#":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


# --- LaTeX ------------------------------------------------------------------------------------------------------------------------

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
}


def latex_escape(text: str) -> str:
    """Escape what LaTeX would read as a command; letters beyond ASCII stay as they are (UTF-8 is LaTeX's default)."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def latex_table(comparison: Comparison) -> str:
    """A booktabs tabular with its footnotes, to be \\input inside a table environment (needs the package booktabs)."""
    headings = ["Method", "Seeds", *(c.heading for c in comparison.columns), *COST_HEADINGS]
    best = [comparison.best_rows(index) for index in range(len(comparison.columns))]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{tabular}{l" + "r" * (len(headings) - 1) + "}",
        "\\toprule",
        " & ".join(latex_escape(h) for h in headings) + r" \\",
    ]
    for block in _blocks(comparison):
        lines.append("\\midrule")
        for index in block:
            row = comparison.rows[index]
            cells = [_latex_cell(cell, index in best[column]) for column, cell in enumerate(row.cells)]
            costs = [latex_escape(text) for text in cost_texts(row)]
            lines.append(" & ".join([latex_escape(method_text(row)), str(len(row.seeds)), *cells, *costs]) + r" \\")
    notes = ["Bold: best mean of the column, content-blind rows (last block) included.", *comparison.notes]
    lines += ["\\bottomrule", "\\end{tabular}", "", "\\smallskip", "{\\footnotesize"]
    lines += [latex_escape(note) + r"\\" for note in notes[:-1]] + [latex_escape(notes[-1]), "}"]
    return "\n".join(lines) + "\n"


def _latex_cell(cell: Cell | None, best: bool) -> str:
    mean, _, rest = cell_text(cell).partition(" ")
    mean = f"\\textbf{{{latex_escape(mean)}}}" if best else latex_escape(mean)
    return mean + (f" {latex_escape(rest)}" if rest else "")


# --- CSV --------------------------------------------------------------------------------------------------------------------------


def csv_table(comparison: Comparison) -> str:
    """One line per (variant, column) that exists, fractions in full precision, empty where undefined."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in comparison.rows:
        for column, cell in zip(comparison.columns, row.cells, strict=True):
            if cell is not None:
                record = _csv_record(comparison, row, column, cell)
                writer.writerow({key: _csv_value(value) for key, value in record.items()})
    return stream.getvalue()


def _csv_record(comparison: Comparison, row: VariantRow, column: Column, cell: Cell) -> dict[str, object]:
    record = {
        "variant": row.variant,
        "method": row.method,
        "benchmark": column.benchmark,
        "metric": column.metric,
        "heading": column.heading,
        "mean": cell.estimate.mean,
        "low": cell.estimate.low,
        "high": cell.estimate.high,
        "standard_error": cell.estimate.standard_error,
        "degrees_of_freedom": cell.estimate.degrees_of_freedom,
        "basis": cell.estimate.basis,
        "n_seeds": cell.estimate.n_seeds,
        "n_items": cell.estimate.n_items,
        "n_groups": cell.estimate.n_clusters,
        "reference": comparison.reference,
        "verdict": cell.verdict,
        "chance": column.chance,
        "tie_rate": cell.tie_rate,
        "n_scored": cell.n_scored,
        "n_total": cell.n_total,
        "n_truncated": cell.n_truncated,
        "content_blind": row.content_blind,
        "scalar_reward": row.scalar_reward,
        "seed_free": row.seed_free,
        "tokens": row.cost.tokens,
        "wall_seconds": row.cost.wall_seconds,
        "peak_memory_bytes": row.cost.peak_memory_bytes,
    }
    if cell.difference is not None:
        difference = cell.difference.estimate
        record |= {
            "difference": difference.mean,
            "diff_low": difference.low,
            "diff_high": difference.high,
            "p": cell.difference.p_value,
            "p_holm": cell.p_holm,
            "n_paired_seeds": difference.n_seeds,
            "pairing": cell.difference.pairing,
        }
    return record


def _csv_value(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
