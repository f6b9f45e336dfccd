from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rm_methods import benchmarks
from rm_methods.benchmarks.cards import MODULES, list_benchmark_cards, load_benchmark_card, resolve_benchmark_options
from rm_methods.errors import ConfigError, UserError
from tests.conftest import REPOSITORY

GOOD = {
    "name": "mine",
    "title": "Mine",
    "module": "rm_bench",
    "license": "MIT",
    "citation": "Me (2025)",
    "url": "https://example.org",
    "subsets": ["chat"],
    "columns": {"overall": "Mine"},
    "chance": 0.5,
}


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """The folder of a user's cards in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "benchmarks"
    folder.mkdir(parents=True)
    return folder


def write(folder, **changes):
    raw = {key: value for key, value in (GOOD | changes).items() if value != "left out"}
    (folder / "mine.yaml").write_text(yaml.safe_dump(raw))
    return folder


def test_the_shipped_benchmarks():
    assert {"heldout", "hh_rlhf", "judge_bench", "rm_bench", "world"} <= set(list_benchmark_cards())
    card = load_benchmark_card("world")
    assert list(card.columns.values()) == [
        "world iid",
        "world neutral",
        "world reversed",
        "world long",
        "world early",
        "world late",
        "world iid, annotated",
        "world cue on better",
        "world cue on worse",
    ]


def test_optional_keys_have_defaults(cards):
    write(cards)
    card = load_benchmark_card("mine")
    assert (card.hub_id, card.revision, card.files, card.options, card.notes) == (None, None, {}, {}, "")
    assert card.subsets == ("chat",)


def test_a_module_that_grades_is_registered():
    names = [path.stem for path in Path(benchmarks.__file__).parent.glob("*.py") if path.stem != "__init__"]
    modules = [importlib.import_module(f"rm_methods.benchmarks.{name}") for name in names]
    assert {module.__name__.rpartition(".")[2] for module in modules if hasattr(module, "grade")} == set(MODULES)


def test_an_unknown_benchmark_names_the_nearest():
    with pytest.raises(UserError, match=r"Unknown benchmark 'rmbench'. Did you mean 'rm_bench'\?"):
        load_benchmark_card("rmbench")


def test_all_problems_of_a_card_are_reported_together(cards):
    bad = {
        "chance": 50,
        "titel": "x",
        "title": "left out",
        "module": "rmbench",
        "revision": "ee19843",
        "hub_id": "nobody",
        "columns": {},
    }
    write(cards, **bad, name="yours", subsets="chat", files=["a"], options=[], notes=3, license=" ")
    with pytest.raises(ConfigError) as error:
        load_benchmark_card("mine")
    text = str(error.value)
    for key in (
        "chance",
        "titel",
        "title",
        "module",
        "revision",
        "hub_id",
        "columns",
        "name",
        "subsets",
        "files",
        "options",
        "notes",
    ):
        assert f"  - {key}: " in text
    assert "Did you mean 'title'" in text
    assert "Did you mean 'rm_bench'" in text


@pytest.mark.parametrize("text", ["name: [", "- a\n- b", "!!python/object/apply:os.getcwd []"])
def test_what_is_not_a_mapping_in_plain_yaml_is_refused(text, cards):
    (cards / "mine.yaml").write_text(text)
    with pytest.raises(UserError):
        load_benchmark_card("mine")


def test_options_come_from_the_module_then_the_card_then_the_configuration():
    assert resolve_benchmark_options(load_benchmark_card("heldout"))["splits"] == ["test"]
    assert resolve_benchmark_options(load_benchmark_card("world"))["splits"][1] == "cue_neutral"
    assert resolve_benchmark_options(load_benchmark_card("world"), {"splits": ["iid"], "limit": 9}) == {
        "splits": ["iid"],
        "limit": 9,
        "sample_seed": 0,
    }


def test_all_bad_options_are_reported_together():
    with pytest.raises(ConfigError) as error:
        resolve_benchmark_options(
            load_benchmark_card("judge_bench"), {"limit": 0, "response_model": "llama", "seed": 1}
        )
    assert len(error.value.problems) == 3
    assert "benchmarks.judge_bench.options.limit: is 0; must be at least 1." in error.value.problems


def test_cards_and_modules_are_read_without_heavy_packages():
    heavy = {"torch", "transformers", "datasets", "evaluate", "pandas", "pyarrow", "jsonschema"}
    code = "\n".join(
        [
            "import sys",
            "from rm_methods.benchmarks.cards import benchmark_module, list_benchmark_cards, load_benchmark_card",
            "import rm_methods.benchmarks.evaluation",
            "for name in list_benchmark_cards():",
            "    benchmark_module(load_benchmark_card(name))",
            f"print(sorted({heavy} & set(sys.modules)))",
        ]
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_the_columns_of_a_benchmark_of_splits_are_those_of_its_splits():
    """The default world has no annotators, so no result has the splits that need them."""
    card = load_benchmark_card("world")
    default = ["iid", "cue_neutral", "cue_reversed", "long_context", "early_evidence", "late_evidence"]
    assert list(card.columns_with(resolve_benchmark_options(card, {}))) == default
    assert list(card.columns_with({"splits": ["iid", "cue_on_better"]})) == ["iid", "cue_on_better"]
    assert load_benchmark_card("rm_bench").columns_with({}) == load_benchmark_card("rm_bench").columns


POINTS = ["Source", "Size", "Fields read", "Metrics", "Ties", "Edge cases", "Reference numbers", "Checked by"]


def sections_of(page: str) -> dict[str, list[str]]:
    """Benchmark -> the points of its section in docs/benchmarks.md."""
    sections = {}
    for section in page.split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        for name in re.findall(r"`(\w+)`", heading):
            sections[name] = re.findall(r"^\* \*\*([\w ]+):\*\*", text, re.MULTILINE)
    return sections


@pytest.mark.parametrize("name", list_benchmark_cards())
def test_every_benchmark_has_a_section_with_the_same_points(name):
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    assert sections_of(page)[name] == POINTS


def test_a_section_that_lacks_a_point_is_noticed():
    assert sections_of("# B\n\n## `a` and `b`\n\n* **Size:** 3\n") == {"a": ["Size"], "b": ["Size"]}


@pytest.mark.parametrize(
    ("splits", "columns"),
    [
        (["test"], ["test", "test_length_controlled"]),
        (["validation"], ["validation", "validation_length_controlled"]),
        (["validation", "test"], ["test", "test_length_controlled", "validation", "validation_length_controlled"]),
    ],
)
def test_heldout_has_the_columns_of_its_splits(splits, columns):
    assert list(load_benchmark_card("heldout").columns_with({"splits": splits})) == columns
