"""Links, paths and commands of the Markdown pages are right; no banned construction or British spelling is left."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from rm_methods import __version__
from rm_methods.cli import main
from tests.conftest import REPOSITORY
from tests.test_import_order import ORDER

PAGES = sorted(
    path.relative_to(REPOSITORY)
    for folder in ("", "config", "data", "docs")
    for path in (REPOSITORY / folder).glob("**/*.md" if folder else "*.md")
)
LINK = re.compile(r"\]\(([^()\s]+)\)")
# Readers stop at these constructions.  Each has a plain verb: is listed in, is stored in, overrides, uses.
BANNED = [
    r"\b(stand|lie)s? (in|under|beside)\b",
    r"\bgo(es)? (over|by)\b(?! hand)",
    r"\bof (its|their|his|one's) own\b",
    r"\bas (it is|they are)\b",
    r"\bthat is all there is\b",
    r"\bthe other way round\b",
    r"\bwhat augments\b",
    r"\bthere (is|are)\b",
]
# A word begins and ends where letters do, so that names_with_underscores count, too.
_STEMS = (
    "anonymi|binari|categori|characteri|customi|discreti|emphasi|factori|generali|harmoni|initiali|lineari|locali|"
    "maximi|memori|minimi|neutrali|normali|optimi|organi|orthogonali|paralleli|penali|prioriti|quanti|randomi|reali|"
    "recogni|regulari|seriali|speciali|stabili|standardi|summari|symboli|synchroni|tokeni|utili|vectori|visuali"
)
BRITISH = [
    rf"[a-z]*({_STEMS})s(e[drs]?|ing|ations?|able)(?![a-z])",
    r"[a-z]*analys(e|ed|ing|ers?)(?![a-z])",
    r"[a-z]*(behaviour|colour|favour|flavour|harbour|honour|labour|neighbour|rumour)[a-z]*",
    r"[a-z]*(cancell|labell|levell|modell|signall|travell)(ed|ing)(?![a-z])",
    r"(?<![a-z])(afterwards|amongst|artefacts?|centre[ds]?|centring|cheques?|defence|fibres?|fulfil|grey|"
    r"judgements?|learnt|"
    r"licence[ds]?|litres?|offence|programmes?|sceptic(al)?|skilful|spelt|towards|whilst)(?![a-z])",
]


# Names of files in this repository, without placeholders.
FILE = re.compile(
    r"`((?:rm_methods|tests|workflow|performance|examples)/[\w./-]*\w|config/[\w/]*\.(?:yaml|md)|"
    r"[A-Z]\w+\.md|\w+\.cff|Makefile)`"
)


def prose(text: str) -> str:
    """A page without code, formulas and the addresses of links: what is left was written for readers."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "", text)
    return re.sub(r"\]\([^()\s]+\)", "]", text)


# These files name the old spelling of renamed keys, or hold the words for this test.
SPELLED_ON_PURPOSE = {"CHANGELOG.md", "rm_methods/stored.py", "tests/test_documents.py", "tests/test_stored.py"}
TEXT = {".cff", ".csv", ".json", ".jsonl", ".md", ".py", ".smk", ".tex", ".toml", ".txt", ".yaml", ".yml", ""}


def text_files(folder: str) -> list[Path]:
    """Text files of a folder of the repository with its folders; of the repository itself, only those at the top."""
    return [
        path
        for path in sorted((REPOSITORY / folder).glob("**/*" if folder else "*"))
        if path.is_file()
        and path.suffix in TEXT
        and not path.name.startswith(".")
        and "__pycache__" not in path.parts
        and str(path.relative_to(REPOSITORY)) not in SPELLED_ON_PURPOSE
    ]


def british_words(text: str) -> list[str]:
    """The words of a text, and the parts of names in it, that Americans spell otherwise."""
    text = re.sub(r"\bCANCELLED\b", "", text)  # a job state of Slurm
    text = re.sub(r"\bvalue_judgement\b", "", text)  # a scenario of Auto-J
    return [match.group() for pattern in BRITISH for match in re.finditer(pattern, text, re.IGNORECASE)]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(
        r"^#+ +(.*?) *$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """The relative links of a page whose file or anchor does not exist."""
    broken = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = page.parent / path if path else page
        is_broken = not target.exists()
        if anchor and not is_broken:
            is_broken = anchor not in anchors(target.read_text(encoding="utf-8"))
        if is_broken:
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_relative_links_resolve(page):
    assert broken_links(REPOSITORY / page) == []


def missing_files(text: str) -> list[str]:
    """Files that a page names in backticks and the repository does not have."""
    return [name for name in FILE.findall(text) if not (REPOSITORY / name).exists()]


def wrong_commands(text: str) -> list[str]:
    """Verbs and options of `rm-methods` on a page that the command line does not have."""
    wrong = []
    lines = [line.partition("#")[0] for line in text.replace("\\\n", " ").split("\n")]
    for verb, rest in re.findall(r"rm-methods +([a-z][\w-]*)([^\n`]*)", "\n".join(lines)):
        command = main.commands.get(verb)
        options = {option for parameter in command.params for option in parameter.opts} if command else set()
        unknown = [option for option in re.findall(r" (--[\w-]+)", rest) if option not in options]
        wrong += [f"{verb} {option}" for option in unknown] if command else [verb]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_and_commands_exist(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^(?:    .*|rm-methods .*)$|`rm-methods [^`]*`", text, flags=re.MULTILINE))
    assert missing_files(text) == []
    assert wrong_commands(code) == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_page_holds_a_banned_construction_or_a_british_spelling(page):
    text = prose((REPOSITORY / page).read_text(encoding="utf-8"))
    phrases = [match.group() for pattern in (*BANNED, *BRITISH) for match in re.finditer(pattern, text, re.IGNORECASE)]
    assert phrases == []


@pytest.mark.parametrize(
    "folder", ["", ".ci", "config", "data", "docs", "examples", "performance", "rm_methods", "tests", "workflow"]
)
def test_no_file_or_name_is_spelled_the_british_way(folder):
    assert [
        f"{path.relative_to(REPOSITORY)}: {word}"
        for path in text_files(folder)
        for word in british_words(f"{path.relative_to(REPOSITORY)}\n{path.read_text(encoding='utf-8')}")
    ] == []


# The sentences of the controlled world are data.  The other modules still have to be reworded.
NOT_HELD = ("preferences/world/vocabulary", "overoptimization/summary_tables")
CODE = sorted(
    path.relative_to(REPOSITORY)
    for folder in (".ci", "examples", "performance", "rm_methods")
    for path in (REPOSITORY / folder).rglob("*.py")
    if not str(path.relative_to(REPOSITORY / folder)).startswith(NOT_HELD)
)


def code_words(source: str) -> str:
    """The comments and strings of Python code, without code in backticks."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return re.sub(r"`[^`\n]*`", "", "\n".join(token.string for token in tokens if token.type in kinds))


@pytest.mark.parametrize("path", CODE, ids=str)
def test_no_comment_or_message_holds_a_banned_construction(path):
    text = code_words((REPOSITORY / path).read_text(encoding="utf-8"))
    assert [match.group() for pattern in BANNED for match in re.finditer(pattern, text, re.IGNORECASE)] == []


@pytest.mark.parametrize("page", ["AGENTS.md", "docs/architecture.md"])
def test_the_import_order_on_the_pages_is_the_one_that_a_test_holds(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    block = re.search(r"^    errors < .*?\n\n", text, flags=re.DOTALL | re.MULTILINE)
    assert tuple(re.findall(r"\w+", block.group())) == ORDER


@pytest.mark.parametrize("package", ["comparison", "reporting", "statistics"])
def test_the_architecture_page_names_every_module_between_scores_and_a_table(package):
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = re.search(r"^## From scores to a table\n(.*?)^## ", text, flags=re.DOTALL | re.MULTILINE).group(1)
    rows = re.search(rf"^\| `{package}/` .*?(?=^\| `|\Z)", section, flags=re.DOTALL | re.MULTILINE).group()
    modules = {path.stem for path in (REPOSITORY / "rm_methods" / package).glob("*.py")} - {"__init__"}
    assert modules == set(re.findall(r"`(\w+)`", rows))


def test_the_citation_names_the_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__


def test_mistakes_are_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One heading\n[a](page.md#one-heading) [b](missing.md) [c](#two) [d](https://example.org)\n")
    assert broken_links(page) == ["missing.md", "#two"]
    assert missing_files("`rm_methods/cli.py`, `rm_methods/missing.py`") == ["rm_methods/missing.py"]
    assert wrong_commands("rm-methods score --data x --wrong y\nrm-methods missing") == ["score --wrong", "missing"]
    assert "stands in" not in prose("`stands in` and\n\n    it stands in code\n")
    assert re.search(BANNED[0], prose("It stands in the\ncard."))
    assert re.search(BANNED[0], code_words("x = 1  # it stands in the card"))
    assert re.search(BANNED[0], code_words('raise ValueError(f"it stands in {card}")'))
    assert "stands in" not in code_words('stands = "`stands in`"')
    text = "proxy_standardised, --utilisation; analyses, CANCELLED, modeling; Centres"
    assert british_words(text) == ["standardised", "utilisation", "Centres"]
    assert british_words("The labelled colours of `licence_file`") == ["colours", "labelled", "licence"]
