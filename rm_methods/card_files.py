"""Where cards are: those that come with the package, and those of the user in `data/<kind>` of the working directory."""

from __future__ import annotations

from pathlib import Path

from rm_methods.errors import ConfigError

PACKAGED = Path(__file__).parent / "data"
OF_THE_USER = Path("data")  # below the working directory


def card_files(kind: str) -> dict[str, Path]:
    """The file of every card, by the card's name.

    Args:
        kind: "datasets" or "benchmarks".

    Raises:
        ConfigError: a card of the user has the name of one that comes with the package.
    """
    packaged = {path.stem: path for path in sorted((PACKAGED / kind).glob("*.yaml"))}
    added = {path.stem: path for path in sorted((OF_THE_USER / kind).glob("*.yaml"))}
    both = sorted(packaged.keys() & added.keys())
    if both:
        # One of them would win without a word, and results of two different data would have one name.
        raise ConfigError(
            [f"{added[name]}: a card of this name comes with the package; rename yours" for name in both], "the cards"
        )
    return dict(sorted((packaged | added).items()))
