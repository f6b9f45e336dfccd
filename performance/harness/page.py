"""The tables of docs/speed.md and their figure, from the committed records."""

from __future__ import annotations

import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from performance.harness.benchmark import FOLDER, Benchmark, benchmark_files, load_benchmark
from performance.harness.machine import ROOT, machine_line
from performance.harness.record import read_records
from performance.harness.submission import read_submissions
from rm_methods.errors import UserError

PAGE = ROOT / "docs" / "speed.md"
FIGURE = ROOT / "docs" / "images" / "speed.svg"
_BLOCK = re.compile(r"(<!-- begin: ([\w-]+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)
_WIDTH = 140


def headlines(benchmark: Benchmark, record: Mapping[str, Any]) -> list[str]:
    """One sentence for each case and side that is compared."""
    lines = []
    for case in record["cases"]:
        for name, side in case.get("sides", {}).items():
            if "ratio" not in side:
                continue
            titles = [side_title(benchmark, record, part) for part in (name, _baseline(benchmark, record, name))]
            words = "times as fast as" if benchmark.compares == "speed" else "times the time of"
            where = f"{case['title']}: " if case["title"] else ""
            lines.append(f"{where}{titles[0]}: {_ratio(side['ratio'])} {words} {titles[1]}")
    return lines


def side_title(benchmark: Benchmark, record: Mapping[str, Any], name: str) -> str:
    """Title of a side of a record; sides of another commit have its name."""
    plain = name.removesuffix("@base")
    # A submission can have a side that is no longer declared.
    title = next((side.title for side in benchmark.sides if side.name == plain), plain)
    return f"{title}, {record['base']}" if name.endswith("@base") else title


def _baseline(benchmark: Benchmark, record: Mapping[str, Any], name: str) -> str:
    return f"{name}@base" if record.get("base") else benchmark.baseline or name


def _ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"


def number(value: float) -> str:
    """At least three digits from 1 on, two decimals below; no exponent."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def table(benchmark: Benchmark, record: Mapping[str, Any]) -> str:
    """The measured cases of a record as Markdown."""
    if benchmark.table is not None:
        return benchmark.table(record)
    cases = [case for case in record["cases"] if "sides" in case]
    sides = [side for case in cases for side in case["sides"].values()]
    has_rate = any(side["amount"] is not None for side in sides)
    has_ratio = any("ratio" in side for side in sides)
    header = [*(["data"] if len(benchmark.cases) > 1 else []), "side", "seconds, median (each round)", "CPU s"]
    header += [f"{benchmark.unit}/s"] if has_rate else []
    header += [*benchmark.detail_columns.values(), "peak memory"]
    header += ["times as fast" if benchmark.compares == "speed" else "times the time"] if has_ratio else []
    rows = []
    for case in cases:
        for name, side in case["sides"].items():
            seconds = statistics.median(side["seconds"])
            row = [case["title"]] if len(benchmark.cases) > 1 else []
            rounds = " ".join(number(value) for value in side["seconds"])
            row += [side_title(benchmark, record, name), f"{number(seconds)} ({rounds})"]
            row += [number(statistics.median(side["cpu_seconds"]))]
            if has_rate:
                row += [number(side["amount"] / seconds) if side["amount"] is not None else ""]
            row += [_detail(side, key) for key in benchmark.detail_columns]
            row += [f"{statistics.median(side['peak_memory_bytes']) / 2**30:.2f} GiB"]
            if has_ratio:
                row += [_ratio(side["ratio"]) if "ratio" in side else "1"]
            rows.append(row)
    left = 2 if len(benchmark.cases) > 1 else 1
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def _detail(side: Mapping[str, Any], key: str) -> str:
    values = [detail[key] for detail in side["details"] if key in detail]
    return number(statistics.median(values)) if values else ""


def block(benchmark: Benchmark, record: Mapping[str, Any] | None) -> str:
    """What the page says about one benchmark."""
    command = f"    {record['command'] if record else f'python -m performance run {benchmark.name}'}\n"
    if record is None:
        return f"Not measured yet on this machine.\n\n{command}"
    skipped = [f"{case['title'] or case['case']}: {case['skipped']}" for case in record["cases"] if "skipped" in case]
    for case in record["cases"]:
        skipped += [
            f"{side_title(benchmark, record, name)}: {why}" for name, why in case.get("sides_skipped", {}).items()
        ]
    proofs = [_proof(case) for case in record["cases"] if "proof" in case]
    options = ", ".join(f"{key} {value}" for key, value in record["options"].items() if value != "")
    notes = [
        f"Tests: {re.sub(r' in [0-9.]+s.*', '', record['tests']['summary'])}.",
        *proofs,
        f"Options: {options}." if options else "",
        *(f"Not measured: {reason}." for reason in dict.fromkeys(skipped)),
        f"Machine: {machine_line(dict(record['machine']))}.",
    ]
    return f"{command}\n{table(benchmark, record)}\n\n{wrapped(' '.join(note for note in notes if note))}\n"


def _proof(case: Mapping[str, Any]) -> str:
    proof = case["proof"]
    statement = f"{case['title']}: {proof['statement']}" if case["title"] else proof["statement"]
    numbers = f"difference {proof['difference']:.0e}, at most {proof['tolerance']:.0e}"
    return f"{statement[:1].upper()}{statement[1:]} ({numbers})."


def wrapped(text: str) -> str:
    """A paragraph in lines of the page's width."""
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def items(lines: Sequence[str]) -> str:
    """The items of a list in lines of the page's width."""
    return "\n".join(textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_on_hyphens=False) for line in lines)


def summary(benchmarks: Mapping[str, Benchmark], records: Mapping[str, Mapping[str, Any]]) -> str:
    """All conclusions, one a line, and the figure."""
    lines = []
    for name, benchmark in benchmarks.items():
        if name in records:
            lines += [f"* {benchmark.title}: {line}." for line in headlines(benchmark, records[name])]
    if not lines:
        return "Nothing was measured with these scripts yet.\n"
    return items(lines) + "\n\n![Speed of each side beside its baseline](images/speed.svg)\n"


def submissions_list(benchmarks: Mapping[str, Benchmark], submissions: Mapping[str, Mapping[str, Any]]) -> str:
    """The conclusions from other machines."""
    lines = []
    for submission in submissions.values():
        for record in submission["records"]:
            benchmark = benchmarks.get(record["benchmark"])
            if benchmark is None:
                continue
            where = f"{record['machine']['processor']}, {record['machine']['cores']} cores ({submission['who']})"
            lines += [f"* {where}, {benchmark.title}: {line}." for line in headlines(benchmark, record)]
    return (items(lines) or "None yet.") + "\n"


def page_text(
    text: str,
    benchmarks: Mapping[str, Benchmark],
    records: Mapping[str, Mapping[str, Any]],
    submissions: Mapping[str, Mapping[str, Any]],
) -> str:
    """The page with its generated blocks; a benchmark without a block is put into the block `others`.

    Raises:
        UserError: a block is missing, or named like no benchmark.
    """
    placed = [match[2] for match in _BLOCK.finditer(text)]
    unknown = [name for name in placed if name not in (*benchmarks, "summary", "others", "submissions")]
    if unknown:
        raise UserError(f"The page has a block '{unknown[0]}', but no benchmark of that name is declared.")
    absent = [name for name in ("summary", "others", "submissions") if name not in placed]
    if absent:
        raise UserError(f"The page lacks the block '<!-- begin: {absent[0]} -->'.")
    contents = {name: block(benchmark, records.get(name)) for name, benchmark in benchmarks.items()}
    others = [
        f"### {benchmark.title}\n\n{benchmark.question}\n\n{contents[name]}"
        for name, benchmark in benchmarks.items()
        if name not in placed
    ]
    contents["others"] = "\n".join(others) or "None.\n"
    contents["summary"] = summary(benchmarks, records)
    contents["submissions"] = submissions_list(benchmarks, submissions)
    return _BLOCK.sub(lambda match: f"{match[1]}\n{contents[match[2]]}\n{match[3]}", text)


def figure(benchmarks: Mapping[str, Benchmark], records: Mapping[str, Mapping[str, Any]]) -> str:
    """An SVG with one bar for each ratio: the median, and a line from the lowest to the highest round.

    Written by hand, so that the same records give the same bytes under every version of a plotting library.
    """
    rows = []
    for name, benchmark in benchmarks.items():
        for case in records.get(name, {"cases": []})["cases"]:
            for side, values in case.get("sides", {}).items():
                if "ratio" in values and benchmark.compares == "speed":
                    parts = [benchmark.title, case["title"], side_title(benchmark, records[name], side)]
                    rows.append((", ".join(part for part in parts if part), values["ratio"]))
    left, right, step = 560, 900, 26
    height = 60 + step * max(1, len(rows))
    largest = max([ratio["highest"] for _, ratio in rows] + [1.0]) * 1.1

    def across(value: float) -> float:
        return left + (right - left) * value / largest

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 {height}" font-family="sans-serif" font-size="13">',
        "<title>Times as fast as the baseline</title>",
        f'<rect width="960" height="{height}" fill="white"/>',
        f'<text x="{left}" y="20" fill="#333">times as fast as the baseline (line: single rounds)</text>',
    ]
    for number_of_row, (label, ratio) in enumerate(rows):
        y = 36 + step * number_of_row
        low, high, end = across(ratio["lowest"]), across(ratio["highest"]), across(ratio["median"])
        lines += [
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end" fill="#333">{escape(label)}</text>',
            f'<rect x="{left}" y="{y}" width="{end - left:.1f}" height="17" fill="#4c78a8"/>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 8.5}" y2="{y + 8.5}" stroke="#222" stroke-width="2"/>',
            f'<text x="{max(end, high) + 6:.1f}" y="{y + 13}" fill="#333">{ratio["median"]:.2f}</text>',
        ]
    one = across(1.0)
    lines.append(
        f'<line x1="{one:.1f}" x2="{one:.1f}" y1="28" y2="{height - 18}" stroke="#888" stroke-dasharray="4 3"/>'
    )
    lines.append(f'<text x="{one:.1f}" y="{height - 5}" text-anchor="middle" fill="#666">1</text>')
    return "\n".join([*lines, "</svg>", ""])


def generated_files() -> dict[Path, str]:
    """Every generated file with its text; the figure only if something was compared."""
    benchmarks = {name: load_benchmark(name) for name in benchmark_files()}
    records = {name: record for name, record in read_records(FOLDER / "results").items() if name in benchmarks}
    files = {PAGE: page_text(PAGE.read_text(encoding="utf-8"), benchmarks, records, read_submissions())}
    if "images/speed.svg" in files[PAGE]:
        files[FIGURE] = figure(benchmarks, records)
    return files


def write_files() -> None:
    """Write the page and the figure."""
    for path, text in generated_files().items():
        path.write_text(text, encoding="utf-8")


def stale_files() -> list[str]:
    """Generated files that are not those of the records."""
    return [
        str(path.relative_to(ROOT))
        for path, text in generated_files().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
