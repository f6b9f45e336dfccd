"""The files of cards: those of the package, and the user's in folders of the working directory."""

from __future__ import annotations

from pathlib import Path

from rm_methods.errors import ConfigError

PACKAGED = Path(__file__).parent / "data"
OF_THE_USER = Path("data")  # below the working directory


def card_files(kind: str) -> dict[str, Path]:
    """The file of every card, by the card's name: packaged ones, and the user's in `data/<kind>`.

    Args:
        kind: "datasets" or "benchmarks".

    Raises:
        ConfigError: a card of the user has the name of one that comes with the package.
    """
    packaged = PACKAGED / kind
    added = OF_THE_USER / kind
    shipped = {path.stem: path for path in sorted(packaged.glob("*.yaml"))}
    if added.resolve() == packaged.resolve():
        return shipped
    users = {path.stem: path for path in sorted(added.glob("*.yaml"))}
    # Otherwise one of them would win silently, and results of two different things would have one name.
    problems = [
        f"{users[name]}: a card of this name comes with the package; rename yours"
        for name in sorted(shipped.keys() & users.keys())
    ]
    if problems:
        raise ConfigError(problems, "the cards")
    return dict(sorted((shipped | users).items()))
