"""Names that are suggested, and problems of other files."""

from __future__ import annotations

import pytest

from rm_methods.errors import ConfigError, nearest

NAMES = ["bradley_terry", "focal", "hinge", "inform", "longest", "odin", "random", "ropo", "rrm", "shortest"]


@pytest.mark.parametrize(
    ("name", "allowed", "sentence"),
    [
        ("hing", ["hinge", "odin"], "Did you mean 'hinge'? Allowed: hinge, odin."),
        ("hing", NAMES[:8], f"Did you mean 'hinge'? Allowed: {', '.join(NAMES[:8])}."),
        ("hing", NAMES, "Did you mean 'hinge'? Allowed: hinge, inform, odin and 7 more."),
        # A suggestion that may be wrong hides no name.
        ("longish", NAMES, f"Did you mean 'longest'? Allowed: {', '.join(NAMES)}."),
        ("zzz", NAMES, f"Allowed: {', '.join(NAMES)}."),
        ("zzz", [], "No name can be given here; leave it out."),
    ],
)
def test_many_names_are_cut_beside_a_very_near_one(name, allowed, sentence):
    assert nearest(name, allowed) == sentence


def test_problems_of_another_file_begin_with_it(tmp_path):
    card = tmp_path / "card.yaml"
    card.touch()
    error = ConfigError(["title: missing"], str(card))
    assert error.problems_with_file("my.yaml") == [f"{card}: title: missing"]
    assert error.problems_with_file(str(card)) == ["title: missing"]
    assert ConfigError(["title: missing"]).problems_with_file("my.yaml") == ["title: missing"]
