import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from rm_methods.config.resolve import resolve
from rm_methods.errors import ConfigError, UserError
from rm_methods.methods import registry
from rm_methods.methods.registry import FOLDER, card_problems, load_method, load_method_card, method_names
from rm_methods.system.code_hash import code_hash
from rm_methods.training.run_key import training_code
from tests.conftest import REPOSITORY


def test_methods_are_found_by_their_cards():
    assert {"bradley_terry", "label_smoothing", "longest", "shortest", "random"} <= set(method_names())
    for name in method_names():
        assert (FOLDER / f"{name}.py").exists(), f"{name}: a card without code"


def test_cards_are_read_without_torch():
    code = (
        "import sys; from rm_methods.methods.registry import method_names, load_method_card;"
        "[load_method_card(n) for n in method_names()];"
        "from rm_methods.config.resolve import load_config; load_config(['config/quickstart.yaml']);"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'mlflow', 'pyarrow'} & set(sys.modules); assert not "
        "heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_unknown_methods_suggest_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'bradley_terry'"):
        load_method_card("bradley_tery")


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
    problems = " ".join(card_problems(content))
    for expected in ("citation", "kind", "targets.0", "title"):
        assert expected in problems
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
    assert card_problems(complete) == ['settings.a.default: is "x"; expected a number.']


def copy_template(folder, name):
    """The template's two files under another name."""
    folder.mkdir(exist_ok=True)
    for ending in ("py", "yaml"):
        text = (FOLDER / "template" / f"my_method.{ending}").read_text()
        (folder / f"{name}.{ending}").write_text(text)


def test_a_new_method_needs_only_its_two_files(tmp_path, monkeypatch):
    """The template, copied under a new name, is found, resolved and loaded with no other change."""
    import rm_methods.methods as package

    copy_template(tmp_path, "copied_method")
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    monkeypatch.setattr(package, "__path__", [str(tmp_path), *package.__path__])
    try:
        assert method_names() == ("copied_method",)
        method = load_method("copied_method", load_method_card("copied_method").defaults())
        assert method.settings == {"temperature": 1.0}
    finally:
        sys.modules.pop("rm_methods.methods.copied_method", None)


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A working directory with a folder for the user's methods."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "methods").mkdir()
    yield tmp_path / "methods"
    for name in [name for name in sys.modules if name.startswith("methods_of_the_user_")]:
        del sys.modules[name]


def test_methods_of_the_working_directory_are_found_and_trained_like_ours(own_folder):
    copy_template(own_folder, "tempered")
    assert set(method_names()) == {"tempered"} | {path.stem for path in FOLDER.glob("*.yaml")}
    config = resolve(
        {
            "experiment": "e",
            "data": {"dataset": "world"},
            "methods": {"hot": {"method": "tempered", "temperature": 2.0}},
        }
    )
    entry = config["methods"]["hot"]
    method = load_method(entry["method"], entry["settings"])
    rewards = torch.tensor([[1.0, 0.0]])
    loss = method.loss(lambda batch: SimpleNamespace(rewards=rewards), None)
    assert loss.per_pair.item() == pytest.approx(math.log1p(math.exp(-0.5)), abs=1e-6)
    assert type(method) is type(load_method("tempered", {"temperature": 1.0}))
    assert load_method_card("tempered").file == own_folder / "tempered.yaml"


def test_the_run_key_depends_on_the_code_of_a_users_method_and_not_on_its_place(own_folder, tmp_path, monkeypatch):
    copy_template(own_folder, "tempered")
    config = {"methods": {"tempered": {"method": "tempered"}}}
    first = training_code(config, "tempered")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy_template(elsewhere / "methods", "tempered")
    monkeypatch.chdir(elsewhere)
    assert training_code(config, "tempered") == first
    with (elsewhere / "methods" / "tempered.py").open("a") as stream:
        stream.write("# edited\n")
    code_hash.cache_clear()
    assert training_code(config, "tempered") != first


def test_a_method_with_the_name_of_one_of_ours_is_refused(own_folder):
    copy_template(own_folder, "hinge")
    with pytest.raises(
        ConfigError,
        match=r"methods/hinge\.yaml: a method of this name comes with the package \(.*/methods/hinge\.yaml\);",
    ):
        method_names()


def test_a_card_without_code_is_refused(own_folder):
    copy_template(own_folder, "tempered")
    (own_folder / "tempered.py").unlink()
    with pytest.raises(ConfigError, match=r"tempered\.py is missing"):
        load_method_card("tempered")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\n", r"defines no class Method\. Write one: `class Method\(TrainedMethod\):`"),
        ("class Metod:\n    pass\n", r"defines no class Method\. It defines Metod; rename the one"),
        ("class Method:\n    pass\n", r"Method is no subclass of TrainedMethod, which a card with `kind: trained`"),
        ("def Method(settings):\n    pass\n", "Method is no subclass of TrainedMethod"),
        (
            "from rm_methods.methods.contract import TrainedMethod\n\n\nclass Method(TrainedMethod):\n    pass\n",
            "Method defines no `loss`",
        ),
        ("import torch\n\nraise RuntimeError('no')\n", r"tempered\.py, line 3: .*RuntimeError: no"),
        ("def f(:\n", r"tempered\.py: the method cannot be imported\. SyntaxError"),
    ],
)
def test_code_that_cannot_be_used_is_refused(code, message, own_folder):
    copy_template(own_folder, "tempered")
    (own_folder / "tempered.py").write_text(code)
    with pytest.raises(UserError, match=message):
        load_method("tempered", {"temperature": 1.0})


HEAD = "from rm_methods.methods.contract import Loss, TrainedMethod\n\n\nclass Method(TrainedMethod):\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(:\n", r"tempered\.py, line 1: not valid Python"),
        ("class Metod:\n    pass\n", r"tempered\.py: defines no class Method\. It defines Metod"),
        (
            HEAD + "    def loss(self, model, batch):\n        return self.settings['temprature']\n",
            r"tempered\.py, line 6: reads the setting 'temprature', which tempered\.yaml does not have; add it under "
            r"`settings:` there\. Did you mean 'temperature'\?",
        ),
    ],
)
def test_code_mistakes_of_a_users_method_are_found_by_check(code, message, own_folder):
    copy_template(own_folder, "tempered")
    (own_folder / "tempered.py").write_text(code)
    with pytest.raises(ConfigError, match=message):
        resolve({"experiment": "e", "data": {"dataset": "world"}, "methods": {"tempered": {}}})
    # A broken method that the configuration does not name stops nobody.
    resolve({"experiment": "e", "data": {"dataset": "world"}, "methods": {"bradley_terry": {}}})


@pytest.mark.parametrize(
    "code",
    [
        "try:\n    from elsewhere import Method\nexcept ImportError:\n    Method = None\n",
        "from rm_methods.methods.hinge import Method as Hinge\nMethod = Hinge\n",
        "from rm_methods.methods.hinge import *\n",
        "if True:\n    class Method:\n        pass\n",
    ],
)
def test_a_class_may_come_from_anywhere(code, own_folder):
    copy_template(own_folder, "tempered")
    (own_folder / "tempered.py").write_text(code)
    assert registry.user_code_problems("tempered") == []


def test_a_setting_that_the_card_does_not_have_is_explained_when_it_is_read(own_folder):
    """Also where the name is known only at run time."""
    copy_template(own_folder, "tempered")
    code = HEAD + "    def loss(self, model, batch):\n        name = 'temp'\n        return self.settings[name]\n"
    (own_folder / "tempered.py").write_text(code)
    method = load_method("tempered", {"temperature": 1.0})
    assert dict(method.settings) == {"temperature": 1.0}
    with pytest.raises(UserError, match=r"tempered\.py: reads the setting 'temp', which tempered\.yaml does not have"):
        method.loss(None, None)


def test_the_methods_folder_of_the_package_is_not_read_twice(monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    assert "hinge" in method_names()
