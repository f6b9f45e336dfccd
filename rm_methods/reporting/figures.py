"""Colors, and files that are the same bytes for the same figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rm_methods.files import written_atomically

# Okabe-Ito colors: told apart by readers with any kind of color vision, and in gray print by the shape of the dot.
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
GRAY = "#7F7F7F"


def save_figure(drawn: Callable[[], Any], targets: Sequence[Path]) -> None:
    """Draw a figure once and save it to every target.

    Args:
        drawn: gives a matplotlib figure.
        targets: .png (200 dots an inch) and .svg (text as text).
    """
    import matplotlib

    style: dict[str, Any] = {
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "rm-methods",
        "axes.unicode_minus": False,
    }
    # matplotlib's annotations list every key as a literal; a plain dictionary has none.
    with matplotlib.rc_context(style):  # type: ignore[arg-type]
        figure = drawn()
        # Laid out once: a layout engine would measure every text again for every file, which takes longer than drawing.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for target in targets:
            metadata = {"Date": None} if target.suffix == ".svg" else {}
            with written_atomically(target) as path:
                figure.savefig(path, format=target.suffix[1:], dpi=200, metadata=metadata)
