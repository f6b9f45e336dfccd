from pathlib import Path

import pytest
import yaml

from rm_methods.card_files import PACKAGED
from rm_methods.errors import ConfigError, DataError
from rm_methods.preferences.cards import card_for, list_dataset_cards, load_dataset_card

GOOD = {
    "name": "mine",
    "title": "Mine",
    "hub_id": "me/mine",
    "revision": "0123456789abcdef0123456789abcdef01234567",
    "license": "MIT",
    "citation": "none",
    "url": "https://example.org",
    "reader": "pairs",
    "splits": {"train": {"hub": "train"}, "test": {"files": ["test/*.jsonl"]}},
}


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """The folder of a user's cards in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "datasets"
    folder.mkdir(parents=True)
    return folder


def write_card(folder: Path, **changes) -> None:
    (folder / "mine.yaml").write_text(
        yaml.safe_dump({key: value for key, value in (GOOD | changes).items() if value != "absent"})
    )


@pytest.mark.parametrize("name", [path.stem for path in (PACKAGED / "datasets").glob("*.yaml")])
def test_every_shipped_card_loads(name):
    card = load_dataset_card(name)
    assert card.name == name
    assert card.license
    assert card.splits or card.reader == "world"


def test_the_promised_cards_are_there():
    assert {"world", "hh_rlhf", "alpaca_eval", "ultrafeedback_binarized"} <= set(list_dataset_cards())


def test_a_good_card_keeps_its_values(cards):
    write_card(cards, options={"strength_field": "margin"})
    card = load_dataset_card("mine")
    assert card.splits["train"].hub == "train"
    assert card.splits["test"].files == ("test/*.jsonl",)
    assert card.options == {"strength_field": "margin"}
    assert card.hub_config is None


def test_all_problems_of_a_card_come_at_once(cards):
    write_card(
        cards,
        name="other",
        revision="main",
        license="absent",
        reader="pears",
        splits={"train": {"hub": 3}, "test": {"files": ["../elsewhere/*.jsonl"]}, "dev": {"optional": True}},
        licens="MIT",
    )
    with pytest.raises(ConfigError) as caught:
        load_dataset_card("mine")
    text = str(caught.value)
    assert len(caught.value.problems) == 8
    for expected in (
        "missing license",
        "licens: unknown key. Did you mean 'license'?",
        'revision: is "main"',
        "splits.train.hub: is 3; expected text",
        "must agree",
        "Did you mean 'pairs'?",
        "leaves the local root",
        "splits.dev: give 'hub'",
    ):
        assert expected in text


def test_an_option_the_reader_does_not_know_is_a_problem_of_the_card(cards):
    write_card(cards, options={"strength_feild": "margin"})
    with pytest.raises(ConfigError, match=r"options\.strength_feild: unknown key\. Did you mean 'strength_field'\?"):
        load_dataset_card("mine")


@pytest.mark.parametrize("text", ["name: [", "- just\n- a list\n", "", "name: !!python/object:os.system {}\n"])
def test_a_file_that_is_no_card_is_a_config_error(text, cards):
    (cards / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_dataset_card("mine")


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'hh_rlhf'"):
        load_dataset_card("hh_rhlf")
    with pytest.raises(ConfigError, match="Did you mean 'alpaca_eval'"):
        card_for("alpaca_evl")


def test_a_path_gives_a_card_of_its_own(write_lines, tmp_path):
    path = write_lines("my[1].pairs.jsonl", [{"prompt": "Q?", "chosen": "a", "rejected": "b"}])
    card, root = card_for(str(path))
    assert (card.name, card.reader, root) == ("my[1]", "preference_rows", tmp_path)
    assert card_for("my[1].pairs.jsonl", tmp_path)[1] == tmp_path


def test_a_path_that_is_not_there_or_not_readable_is_said_so(tmp_path):
    with pytest.raises(ConfigError, match="no card is called ''"):
        card_for("")
    with pytest.raises(ConfigError, match=r"no file or folder .* exists"):
        card_for(str(tmp_path / "none.jsonl"))
    (tmp_path / "pairs.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"unknown format\. Allowed: \.jsonl"):
        card_for(str(tmp_path / "pairs.xlsx"))
