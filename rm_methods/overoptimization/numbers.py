"""Gold values as text."""

from __future__ import annotations

import math

from rm_methods.reporting.tables import MISSING


def number_text(value: float) -> str:
    """Three decimals below 10, one below 1,000, three digits above.

    >>> number_text(0.12345), number_text(33.0), number_text(-0.0001), number_text(float("nan"))
    ('0.123', '33.0', '0.000', '—')
    """
    if math.isnan(value):
        return MISSING
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.3g}"
    return text.removeprefix("-") if float(text) == 0 else text


def signed_text(value: float) -> str:
    """`number_text` with its sign.

    >>> signed_text(0.12345), signed_text(-0.5), signed_text(0.0)
    ('+0.123', '-0.500', '0.000')
    """
    text = number_text(value)
    return f"+{text}" if value > 0 and text != "0.000" else text
