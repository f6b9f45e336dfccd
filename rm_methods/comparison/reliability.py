"""Reliability diagrams: how often predictions are right against how sure the rewards are, a panel a trained variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rm_methods.comparison.runs import Run
from rm_methods.reporting.figures import BLUE, GRAY, save_figure
from rm_methods.reporting.sentences import method_label
from rm_methods.run_card import Calibration

ACROSS = 5  # panels side by side
_PANEL = (1.85, 1.45)  # inches, with the space for its title
_TITLE_CHARACTERS = 34


@dataclass(frozen=True)
class Panel:
    """One variant on one benchmark.

    Attributes:
        label: of the variant, for readers.
        calibrations: of the runs of the variant, one a seed.
    """

    label: str
    benchmark: str
    calibrations: tuple[Calibration, ...]

    @property
    def n_pairs(self) -> int:
        """Pairs with both scores; the least over seeds."""
        return min(sum(members["n"] for members in measured["bins"]) for measured in self.calibrations)

    @property
    def ece(self) -> float:
        """Expected calibration error, mean over seeds."""
        return sum(measured["ece"] for measured in self.calibrations) / len(self.calibrations)

    @property
    def ece_if_calibrated(self) -> float:
        """What chance alone makes of it, mean over seeds."""
        return sum(measured["ece_if_calibrated"] for measured in self.calibrations) / len(self.calibrations)


def write_reliability(runs: Sequence[Run], targets: Sequence[Path]) -> None:
    """Draw the calibration of every trained variant on every benchmark of pairs, and save it to every target.

    One panel a variant and benchmark, a row of panels begins with each benchmark. A line is one run: the accuracy of
    its bins against their mean confidence. Below the diagonal the rewards are surer than they are right. Without a
    panel (only content-blind scorers, no benchmark of pairs) the figure says so.

    Args:
        runs: `rm_methods.comparison.runs.read_runs`.
        targets: .png and .svg.
    """
    save_figure(lambda: draw_reliability(reliability_panels(runs)), targets)


def reliability_panels(runs: Sequence[Run]) -> list[Panel]:
    """The panels, by benchmark and then by variant, both in the order of their first run."""
    calibrations: dict[str, dict[str, list[Calibration]]] = {}
    for run in runs:
        for benchmark, result in run.benchmarks.items():
            if not run.is_line and "calibration" in result:
                label = method_label(run.variant, run.method, run.title)
                calibrations.setdefault(benchmark, {}).setdefault(label, []).append(result["calibration"])
    return [
        Panel(label, benchmark, tuple(of_seeds))
        for benchmark, by_label in calibrations.items()
        for label, of_seeds in by_label.items()
    ]


def draw_reliability(panels: Sequence[Panel]):
    """The figure (matplotlib, without pyplot: no window, no global state)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = _cells(panels)
    across = max((column for _, column in cells), default=0) + 1
    down = max((row for row, _ in cells), default=0) + 1
    left, right, top, bottom = 0.55, 0.15, 0.6, 0.4
    width = max(left + across * _PANEL[0] + right, 4.3)
    height = top + down * _PANEL[1] + bottom
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    if not panels:
        figure.text(0.5, 0.5, "no calibration: no trained variant on a benchmark of pairs", ha="center", color=GRAY)
        return figure
    for panel, (row, column) in zip(panels, cells, strict=True):
        x = left + column * _PANEL[0] + 0.06
        y = height - top - (row + 1) * _PANEL[1] + 0.12
        axis = figure.add_axes((x / width, y / height, (_PANEL[0] - 0.2) / width, (_PANEL[1] - 0.5) / height))
        is_last = (row + 1, column) not in cells
        _draw_panel(axis, panel, label_x=is_last, label_y=column == 0)
    figure.text(0.08 / width, 1 - 0.1 / height, "Calibration", ha="left", va="top", fontweight="bold")
    note = "Line: one run. Below the diagonal: too sure.\nECE [what a calibrated model would get by chance]"
    figure.text(0.08 / width, 1 - 0.28 / height, note, ha="left", va="top", fontsize=6.5, color=GRAY)
    figure.text(0.5, 0.12 / height, "Confidence, sigmoid(|reward difference|), in percent", ha="center", fontsize=8)
    figure.text(
        0.08 / width, (height - top + bottom) / 2 / height, "Right, in percent", va="center", rotation=90, fontsize=8
    )
    return figure


def _cells(panels: Sequence[Panel]) -> list[tuple[int, int]]:
    """Row and column of each panel: left to right, and a new row for each benchmark."""
    cells: list[tuple[int, int]] = []
    for number, panel in enumerate(panels):
        if number == 0:
            cells.append((0, 0))
            continue
        row, column = cells[-1]
        is_full = column + 1 == ACROSS or panel.benchmark != panels[number - 1].benchmark
        cells.append((row + 1, 0) if is_full else (row, column + 1))
    return cells


def _draw_panel(axis, panel: Panel, *, label_x: bool, label_y: bool) -> None:
    axis.plot((50, 100), (50, 100), color=GRAY, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    for measured in panel.calibrations:
        confidence = [100 * members["mean_confidence"] for members in measured["bins"]]
        accuracy = [100 * members["accuracy"] for members in measured["bins"]]
        axis.plot(
            confidence,
            accuracy,
            color=BLUE,
            linewidth=0.8,
            alpha=0.75,
            marker="o",
            markersize=2,
            markeredgewidth=0,
            clip_on=False,
            zorder=3,
        )
    axis.set_xlim(48, 102)
    axis.set_ylim(0, 102)
    axis.set_xticks((50, 75, 100), ("50", "75", "100") if label_x else ("", "", ""))
    axis.set_yticks((0, 50, 100), ("0", "50", "100") if label_y else ("", "", ""))
    axis.tick_params(labelsize=7, length=2)
    axis.grid(color="#E5E5E5", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    size = f"{panel.benchmark}, n = {panel.n_pairs:,}"
    axis.set_title(f"{_cut(panel.label)}\n{_cut(size)}", fontsize=6.5, loc="left", pad=3)
    axis.text(
        0.97,
        0.05,
        f"ECE {panel.ece:.3f} [{panel.ece_if_calibrated:.3f}]",
        fontsize=6.5,
        horizontalalignment="right",
        transform=axis.transAxes,
        zorder=4,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
    )


def _cut(text: str) -> str:
    return text if len(text) <= _TITLE_CHARACTERS else text[: _TITLE_CHARACTERS - 1] + "…"
