import subprocess
import sys

import pytest

from rm_methods.errors import UserError
from rm_methods.methods.registry import FOLDER, card_problems, load_card, load_method, method_names
from tests.conftest import REPOSITORY


def test_methods_are_found_by_their_cards():
    assert {"bradley_terry", "label_smoothing", "longest", "shortest", "random"} <= set(method_names())
    for name in method_names():
        assert (FOLDER / f"{name}.py").exists(), f"{name}: a card without code"


def test_cards_are_read_without_torch():
    code = (
        "import sys; from rm_methods.methods.registry import method_names, load_card;"
        "[load_card(n) for n in method_names()];"
        "from rm_methods.config.resolve import load_config; load_config(['config/quickstart.yaml']);"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'mlflow', 'pyarrow'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_unknown_methods_suggest_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'bradley_terry'"):
        load_card("bradley_tery")


@pytest.mark.parametrize("name", method_names())
def test_every_method_has_a_documentation_page(name):
    page = REPOSITORY / "docs" / "methods" / f"{name}.md"
    assert page.exists(), f"write {page}"
    text = page.read_text()
    for setting in load_card(name).settings:
        assert f"`{setting}`" in text, f"{page} does not explain `{setting}`"


def test_the_index_of_the_documentation_links_every_method():
    index = (REPOSITORY / "docs" / "methods" / "README.md").read_text()
    assert [name for name in method_names() if f"]({name}.md)" not in index] == []


def test_card_mistakes_are_all_found():
    content = {
        "title": "",
        "kind": "magic",
        "targets": ["nosie"],
        "cost": "x",
        "settings": {"a": {"default": "x", "type": "number"}},
    }
    found = " ".join(card_problems(content))
    for expected in ("citation", "kind", "targets.0", "title"):
        assert expected in found
    complete = {
        "title": "t",
        "citation": "c",
        "kind": "trained",
        "targets": [],
        "cost": "x",
        "settings": content["settings"],
    }
    assert card_problems(complete) == ["settings.a: description missing"]
    complete["settings"]["a"]["description"] = "d"
    assert card_problems(complete) == ['settings.a.default: is "x"; expected number.']


def test_a_new_method_needs_only_its_two_files(tmp_path, monkeypatch):
    """The template, copied under a new name, is found, resolved and loaded with no other change."""
    import rm_methods.methods as package
    import rm_methods.methods.registry as registry

    for ending in ("py", "yaml"):
        text = (FOLDER / "template" / f"my_method.{ending}").read_text()
        (tmp_path / f"copied_method.{ending}").write_text(text)
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    monkeypatch.setattr(package, "__path__", [str(tmp_path), *package.__path__])
    registry.method_names.cache_clear()
    registry.load_card.cache_clear()
    try:
        assert method_names() == ("copied_method",)
        method = load_method("copied_method", load_card("copied_method").defaults())
        assert method.settings == {"temperature": 1.0}
    finally:
        monkeypatch.undo()
        registry.method_names.cache_clear()
        registry.load_card.cache_clear()
        sys.modules.pop("rm_methods.methods.copied_method", None)
