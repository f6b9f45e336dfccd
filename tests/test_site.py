"""The site of the documents: no broken link, and reference pages that name everything."""

import importlib.util
import shutil
import subprocess
import sys

import pytest

from rm_methods.benchmarks.cards import list_benchmark_cards
from rm_methods.cli import main
from rm_methods.config.resolve import schema
from rm_methods.methods.registry import method_names
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def site():
    """The module .ci/site.py."""
    spec = importlib.util.spec_from_file_location("site_of_the_documents", REPOSITORY / ".ci" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(REPOSITORY / ".ci"))


@pytest.fixture(scope="module")
def pages(site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "pages"
    assert site.gather(folder) == []
    return folder


def test_every_setting_verb_and_card_is_on_its_reference_page(pages):
    configuration = (pages / "reference" / "configuration.md").read_text()
    for name in schema()["properties"]:
        assert f"\n## {name}\n" in configuration
    assert "| `training.learning_rate` | number, > 0 |" in configuration
    commands = (pages / "reference" / "commands.md").read_text()
    for name in main.commands:
        assert f"\n### {name}\n" in commands
    cards = (pages / "reference" / "cards.md").read_text()
    for name in [*method_names(), *list_benchmark_cards()]:
        assert name in cards


def test_links_to_the_readme_lead_to_the_start_page(site):
    page = REPOSITORY / "docs" / "world.md"
    assert site.with_site_links(page, "[a](../README.md) [b](ppo.md#x)") == "[a](../index.md) [b](ppo.md#x)"
    folder = "[m](methods/)\n```\n[code](../README.md)\n```\n"
    assert site.with_site_links(page, folder) == "[m](methods/README.md)\n```\n[code](../README.md)\n```\n"


def test_a_link_to_a_missing_file_is_named(site, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "config").mkdir()
    (tmp_path / "README.md").write_text("[a](docs/missing.md)")
    monkeypatch.setattr(site, "ROOT", tmp_path)
    assert site.gather(tmp_path / "pages") == ["README.md: no file docs/missing.md"]


@pytest.mark.process
@pytest.mark.skipif(shutil.which("mkdocs") is None, reason="needs mkdocs-material: pip install -e .[docs]")
def test_the_site_builds_without_a_warning():
    done = subprocess.run([sys.executable, ".ci/site.py"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
