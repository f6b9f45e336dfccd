"""Cards of the package and of the working directory."""

import pytest

from rm_methods.card_files import PACKAGED, card_files
from rm_methods.errors import ConfigError


@pytest.mark.parametrize("kind", ["datasets", "benchmarks"])
def test_cards_of_the_package_and_of_the_working_directory(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = card_files(kind)
    assert "world" in shipped
    assert all(path.parent == PACKAGED / kind for path in shipped.values())
    (tmp_path / "data" / kind).mkdir(parents=True)
    (tmp_path / "data" / kind / "mine.yaml").touch()
    assert card_files(kind).keys() - shipped.keys() == {"mine"}
    assert card_files(kind)["mine"].samefile(tmp_path / "data" / kind / "mine.yaml")


def test_a_card_with_the_name_of_a_shipped_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "datasets").mkdir(parents=True)
    (tmp_path / "data" / "datasets" / "world.yaml").touch()
    with pytest.raises(ConfigError, match=r"data/datasets/world\.yaml: a card of this name comes with the package"):
        card_files("datasets")
