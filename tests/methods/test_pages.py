"""Every method's page has the same headings, the settings of its card, a valid command, and numbers of result pages."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from rm_methods.config.resolve import load_config
from rm_methods.errors import ConfigError
from rm_methods.methods.registry import MethodCard, load_method_card, method_names
from rm_methods.methods.sources import use_folders
from tests.conftest import REPOSITORY

PAGES = REPOSITORY / "docs" / "methods"
TEMPLATE = REPOSITORY / "rm_methods" / "methods" / "template"
RULE_HEADING = {
    "trained": "Loss",
    "joint": "Loss",
    "combined": "How it combines",
    "content_blind": "Rule",
    "computed": "Rule",
    "external": "Rule",
}
CODE_DIFFERENCES = "Differences from released code"
NOT_MEASURED = "Not measured in our studies yet."
ROW = re.compile(r"^\| `(\w+)`(?: \([^|]*\))? \| `([^`]*)` \| [^|]+ \|$", re.MULTILINE)
# A value with its interval: 12.1 ±5.2, or -11.8 [-16.8, -6.7].
NUMBER = r"[-+]?\d+\.\d+"
VALUE = re.compile(rf"{NUMBER} (?:±\d+\.\d+|\[{NUMBER}, {NUMBER}\])")


def page_of(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def sections(text: str) -> dict[str, str]:
    """The text under each second-level heading, in order; "" is the text before the first one."""
    first, *parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return {"": first, **dict(zip(parts[::2], parts[1::2], strict=True))}


def skeleton(card: MethodCard, headings: list[str]) -> list[str]:
    """The headings that the page of a method must have, given those that it has."""
    expected = [RULE_HEADING[card.kind], "Settings", "Source"]
    if CODE_DIFFERENCES in headings:
        expected.append(CODE_DIFFERENCES)
    if not card.cost.startswith("none"):
        expected.append("Cost")
    return [*expected, "When to use", "Our result", "Reproduce"]


def heading_problems(card: MethodCard, text: str) -> list[str]:
    parts = sections(text)
    headings = [heading for heading in parts if heading]
    problems = []
    if headings != skeleton(card, headings):
        problems.append(f"headings {headings}, not {skeleton(card, headings)}")
    problems += [f"nothing under {heading!r}" for heading in headings if not parts[heading].strip()]
    title, _, introduction = parts[""].partition("\n")
    if not re.fullmatch(r"# \S.*", title):
        problems.append(f"the first line is no title: {title!r}")
    if not re.match(r"[\w*]", introduction.strip()):
        problems.append("no sentence says what the method is")
    return problems


def setting_problems(card: MethodCard, text: str) -> list[str]:
    """Settings whose name, default or order is not the card's; 1 and 1.0 differ."""
    written = [(name, json.dumps(yaml.safe_load(default))) for name, default in ROW.findall(sections(text)["Settings"])]
    expected = [(name, json.dumps(fragment["default"])) for name, fragment in card.settings.items()]
    problems = [f"{row} is on one of page and card only" for row in sorted({*written} ^ {*expected})]
    if not problems and written != expected:
        problems.append(f"the rows are in the order {[name for name, _ in written]}")
    if not expected and sections(text)["Settings"].strip() != "None.":
        problems.append("a method without settings says `None.`")
    return problems


def experiments(text: str, folder: Path) -> list[dict]:
    """The resolved configurations of the commands under "Reproduce".

    Args:
        folder: the YAML block of the section is written there as `my.yaml`.
    """
    section = sections(text)["Reproduce"]
    blocks = re.findall(r"^```yaml\n# (\S+)\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    for name, block in blocks:
        (folder / name).write_text(block, encoding="utf-8")
    written = {name: folder / name for name, _ in blocks}
    commands = re.findall(r"^    snakemake --cores 2 --configfile (.+)$", section, flags=re.MULTILINE)
    return [load_config([written.get(file, REPOSITORY / file) for file in files.split()]) for files in commands]


def result_problems(text: str, page: Path) -> list[str]:
    """Numbers under "Our result" that have no interval, or that none of the pages linked there has."""
    section = sections(text)["Our result"]
    links = [(page.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+\.md)", section)]
    sources = [
        link
        for link in links
        if link in (REPOSITORY / "README.md", REPOSITORY / "docs" / "world.md") or link.parent.name == "results"
    ]
    if NOT_MEASURED in section:
        return ["it says that nothing is measured, and has a number"] if re.search(NUMBER, section) else []
    if not sources:
        return [f"neither a link to a page of results nor the sentence {NOT_MEASURED!r}"]
    known = " ".join(" ".join(source.read_text(encoding="utf-8").split()) for source in sources)
    section = " ".join(section.split())
    problems = [
        f"{value} is on no linked page"
        for value in VALUE.findall(section)
        if not re.search(rf"(?<![\d.]){re.escape(value)}(?!\d)", known)
    ]
    return problems + [f"{value} has no interval" for value in re.findall(NUMBER, VALUE.sub("", section))]


@pytest.mark.parametrize("name", method_names())
def test_a_page_has_the_skeleton(name):
    assert heading_problems(load_method_card(name), page_of(name)) == []


@pytest.mark.parametrize("name", method_names())
def test_a_page_has_the_settings_of_the_card(name):
    assert setting_problems(load_method_card(name), page_of(name)) == []


@pytest.mark.parametrize("name", method_names())
def test_a_page_has_a_command_that_trains_or_scores_the_method(name, tmp_path):
    configurations = experiments(page_of(name), tmp_path)
    assert configurations
    for configuration in configurations:
        assert name in {variant["method"] for variant in configuration["methods"].values()}


@pytest.mark.parametrize("name", method_names())
def test_a_page_has_only_results_of_the_pages_that_it_links(name):
    assert result_problems(page_of(name), PAGES / f"{name}.md") == []


def test_the_index_names_the_headings():
    index = (PAGES / "README.md").read_text(encoding="utf-8")
    headings = [*dict.fromkeys(RULE_HEADING.values()), "Settings", "Source", CODE_DIFFERENCES]
    headings += ["Cost", "When to use", "Our result", "Reproduce"]
    assert [heading for heading in headings if f"**{heading}**" not in index] == []


@pytest.fixture
def users_methods(tmp_path, monkeypatch):
    """A working directory with the template in the folder `my_methods`; afterward, only our methods are known."""
    shutil.copytree(TEMPLATE, tmp_path / "my_methods")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    use_folders(())


def test_the_template_has_a_page_with_the_skeleton(users_methods):
    text = (TEMPLATE / "page.md").read_text(encoding="utf-8")
    (configuration,) = experiments(text, users_methods)
    card = load_method_card("my_method")
    assert "my_method" in configuration["methods"]
    assert heading_problems(card, text) == []
    assert setting_problems(card, text) == []
    assert result_problems(text, PAGES / "my_method.md") == []


def test_mistakes_are_noticed(tmp_path):
    card = load_method_card("hinge")
    page = PAGES / "hinge.md"
    text = page_of("hinge")
    assert heading_problems(card, text.replace("## Cost\n", ""))
    assert heading_problems(card, text.replace("## Source", "## Sources"))
    assert heading_problems(card, text.replace(NOT_MEASURED, ""))
    assert setting_problems(card, text.replace("`1.0`", "`1`"))
    assert setting_problems(card, text.replace("| `margin` |", "| `margins` |"))
    assert setting_problems(load_method_card("symmetric"), page_of("symmetric").replace("None.", ""))
    assert experiments(text.replace("--configfile", "--config"), tmp_path) == []
    with pytest.raises(ConfigError, match="margins"):
        experiments(text.replace("hinge: {}", "hinge: {margins: 1.0}"), tmp_path)
    assert result_problems(text.replace(NOT_MEASURED, "It is better."), page)
    noise = "[noise](../results/noise.md)"
    measured = f"RRM has +13.2 ±6.1 points ({noise})."
    assert result_problems(text.replace(NOT_MEASURED, measured), page) == []
    for wrong in ("+3.2 ±6.1", "-13.2 ±6.1", "+13.2 ±6.2", "13.2"):
        assert result_problems(text.replace(NOT_MEASURED, measured.replace("+13.2 ±6.1", wrong)), page), wrong
