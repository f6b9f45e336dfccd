"""Methods outside the package: in named folders and in installed packages; mistakes in them are sentences."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from rm_methods.cli import main
from rm_methods.config.resolve import load_config, read_resolved, resolve, write_resolved
from rm_methods.errors import ConfigError, UserError
from rm_methods.methods import sources
from rm_methods.methods.registry import FOLDER, load_method, load_method_card, method_names
from rm_methods.system.code_hash import code_hash, imported_modules, local_modules
from rm_methods.training.run_key import training_code

HELPED = (
    "import torch.nn.functional as F\n\nfrom rm_methods.methods.contract import Loss, TrainedMethod\n\n{imports}\n\n\n"
    "class Method(TrainedMethod):\n    def loss(self, model, batch):\n"
    "        rewards = model(batch).rewards\n        return Loss(F.softplus(scale * (rewards[:, 1] - rewards[:, 0])))\n"
)


def write_method(folder: Path, name: str, code: str | None = None) -> Path:
    """The template under another name, with other code if some is given."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("py", "yaml"):
        (folder / f"{name}.{ending}").write_text((FOLDER / "template" / f"my_method.{ending}").read_text())
    if code is not None:
        (folder / f"{name}.py").write_text(code)
    return folder


def config(folder: object, name: str = "tempered") -> dict:
    return {"experiment": "e", "data": {"dataset": "world"}, "methods": {name: {}}, "methods_path": folder}


def forget() -> None:
    """Let changed files and packages be read again."""
    for cached in (sources.card_files, sources._registered, code_hash, imported_modules):
        cached.cache_clear()
    for name in [name for name in sys.modules if name.startswith(("methods_of_the_user_", "my_rm"))]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forget()
    yield
    sources.use_folders(())
    forget()


def cli(*arguments: object):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.mark.parametrize("written", ["mine", ["mine"], "$PLUGINS/mine"])
def test_a_folder_is_named_by_the_configuration(written, tmp_path, monkeypatch):
    monkeypatch.setenv("PLUGINS", str(tmp_path))
    write_method(tmp_path / "mine", "tempered")
    resolved = resolve(config(written))
    assert resolved["methods"]["tempered"]["settings"] == {"temperature": 1.0}
    assert [Path(folder).absolute() for folder in resolved["methods_path"]] == [tmp_path / "mine"]
    assert resolve(resolved) == resolved
    assert load_method("tempered", {"temperature": 1.0}).settings == {"temperature": 1.0}


def test_another_configuration_does_not_see_the_folder(tmp_path):
    write_method(tmp_path / "mine", "tempered")
    resolve(config("mine"))
    assert "tempered" in method_names()
    with pytest.raises(ConfigError, match=r"unknown method 'tempered'\. .* needs its folder in `methods_path`"):
        resolve(config([]))


def test_folders_of_the_command_line_are_added(tmp_path):
    write_method(tmp_path / "a", "tempered")
    write_method(tmp_path / "b", "other")
    file = tmp_path / "c.yaml"
    file.write_text("experiment: e\ndata: {dataset: world}\nmethods: {tempered: {}, other: {}}\nmethods_path: a\n")
    assert load_config([file], methods=[tmp_path / "b"])["methods_path"] == ["a", str(tmp_path / "b")]
    assert "OK" in cli("check", "--config", file, "--methods", "b").output


def test_verbs_find_methods_in_a_folder(tmp_path):
    write_method(tmp_path / "mine", "tempered")
    assert "tempered  " in cli("list", "methods", "--methods", "mine").output
    assert str(tmp_path / "mine" / "tempered.py") in cli("show", "tempered", "--methods", "mine").output
    sources.use_folders(())
    unknown = cli("show", "tempered")
    assert unknown.exit_code == 2
    assert "name its folder with --methods" in unknown.output


def test_the_same_folder_twice_is_one(tmp_path):
    write_method(tmp_path / "methods", "tempered")
    resolve(config(["methods", str(tmp_path / "methods")]))
    assert load_method_card("tempered").file == tmp_path / "methods" / "tempered.yaml"


def test_two_methods_of_one_name_are_refused_with_both_files(tmp_path):
    write_method(tmp_path / "a", "tempered")
    write_method(tmp_path / "b", "tempered")
    with pytest.raises(ConfigError) as error:
        resolve(config(["a", "b"]))
    assert str(tmp_path / "a" / "tempered.yaml") in str(error.value)
    assert str(tmp_path / "b" / "tempered.yaml") in str(error.value)


@pytest.mark.parametrize(
    ("files", "written", "message"),
    [
        ([], "nowhere", r"methods_path: no such folder: 'nowhere' \(looked in .*\)\. Name the folder that holds"),
        (["mine.py"], "mine.py", r"methods_path: 'mine\.py' is a file; name the folder"),
        (["mine/notes.txt"], "mine", r"methods_path: 'mine' holds no method\. A method is a card <name>\.yaml and"),
        (["mine/a.py"], "mine", r"methods_path: 'mine' holds a\.py but no card\. A method is a card"),
        ([], "$NO_SUCH/mine", r"methods_path\.0: .* 'NO_SUCH', which is not set"),
        ([], 5, r"methods_path: is 5; expected a folder or a list of folders"),
        ([], [5], r"methods_path\.0: is 5; expected text"),
        ([], "", r"methods_path: is \"\"; must not be empty"),
    ],
)
def test_a_folder_that_cannot_be_used_is_a_sentence(files, written, message, tmp_path):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(ConfigError, match=message):
        resolve(config(written))


def test_a_folder_of_the_command_line_that_cannot_be_used_is_a_sentence():
    done = cli("list", "methods", "--methods", "nowhere")
    assert done.exit_code == 2
    assert "rm-methods: --methods: no such folder: 'nowhere'" in done.output


def test_a_card_without_code_is_a_sentence(tmp_path):
    write_method(tmp_path / "mine", "tempered")
    (tmp_path / "mine" / "tempered.py").unlink()
    with pytest.raises(ConfigError, match=r"mine/tempered\.py is missing.*If tempered\.yaml is no card"):
        resolve(config("mine"))


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("", r"tempered\.yaml"),
        ("title: T\ncitation: c\nkind: magic\ntargets: []\ncost: c\nsettings: {}\n", 'kind: is "magic"; allowed: '),
        ("title: T\nkind: trained\ntargets: []\ncost: c\nsettings: {}\n", "citation"),
        (
            "title: T\ncitation: c\nkind: trained\ntargets: []\ncost: c\nsettings: {a: {default: 1}}\n",
            "description missing",
        ),
        ("title: [\n", r"tempered\.yaml"),
    ],
)
def test_a_wrong_card_is_a_sentence(card, message, tmp_path):
    write_method(tmp_path / "mine", "tempered")
    (tmp_path / "mine" / "tempered.yaml").write_text(card)
    with pytest.raises(ConfigError, match=message):
        resolve(config("mine"))


def test_all_methods_include_those_of_a_folder(tmp_path):
    write_method(tmp_path / "mine", "tempered")
    assert "tempered" in resolve(config("mine") | {"methods": "all"})["methods"]


def test_a_name_that_cannot_be_a_method_is_a_sentence(tmp_path):
    write_method(tmp_path / "mine", "my.method")
    sources.use_folders(["mine"])
    with pytest.raises(ConfigError, match="the name of a method has letters, digits"):
        load_method_card("my.method")


@pytest.mark.parametrize(
    ("imports", "message"),
    [
        ("import not_installed_here", r"line 5: .*imports the package 'not_installed_here', which is not installed"),
        ("from not_installed_here.x import scale", r"the package 'not_installed_here', which is not installed"),
        ("from helpers import scale", r"`helpers` is a file beside the method, .*: write `from \. import helpers`"),
        ("from .helpres import scale", r"imports `\.helpres`, but .*mine has no such module"),
        ("from .broken import scale", r"broken\.py, line 1: not valid Python"),
    ],
)
def test_imports_that_cannot_work_are_found_before_anything_runs(imports, message, tmp_path):
    write_method(tmp_path / "mine", "tempered", HELPED.format(imports=imports))
    (tmp_path / "mine" / "helpers.py").write_text("scale = 1\n")
    (tmp_path / "mine" / "broken.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match=message):
        resolve(config("mine"))
    with pytest.raises(UserError, match=r"the method cannot be imported\."):
        load_method("tempered", {"temperature": 1.0})


@pytest.mark.parametrize(
    ("helper", "message"),
    [
        ("raise RuntimeError('no')\n", r"helpers\.py, line 1: the method cannot be imported\. RuntimeError: no"),
        ("import not_here\n", r"helpers\.py, line 1: .*imports the package 'not_here', which is not installed"),
    ],
)
def test_a_helper_that_cannot_be_imported_is_named(helper, message, tmp_path):
    write_method(tmp_path / "mine", "tempered", HELPED.format(imports="from .helpers import scale"))
    (tmp_path / "mine" / "helpers.py").write_text(helper)
    sources.use_folders(["mine"])
    with pytest.raises(UserError, match=message):
        load_method("tempered", {"temperature": 1.0})


@pytest.mark.parametrize(
    "imports", ["from .helpers import scale", "from . import scale", "from .sub.deep import scale"]
)
def test_modules_beside_a_method_are_imported_and_count(imports, tmp_path):
    folder = write_method(tmp_path / "mine", "tempered", HELPED.format(imports=imports))
    (folder / "helpers.py").write_text("scale = 2\n")
    (folder / "scale.py").write_text("")
    (folder / "sub").mkdir()
    (folder / "sub" / "deep.py").write_text("from ..helpers import scale\n")
    (folder / "unused.py").write_text("")
    resolved = resolve(config("mine"))
    assert load_method("tempered", {"temperature": 1.0}) is not None
    before = training_code(resolved, "tempered")
    assert before == training_code(resolved, "tempered")
    changed = {"from . import scale": "scale.py"}.get(imports, "helpers.py")
    for name, counts in (("unused.py", False), (changed, True), ("tempered.yaml", True), ("tempered.py", True)):
        with (folder / name).open("a") as stream:
            stream.write("# edited\n")
        forget()
        after = training_code(resolved, "tempered")
        assert (after != before) == counts, name
        before = after


def test_two_folders_may_have_modules_of_one_name(tmp_path):
    for name, scale in (("first", 1), ("second", 2)):
        write_method(tmp_path / name, name, HELPED.format(imports="from .helpers import scale"))
        (tmp_path / name / "helpers.py").write_text(f"scale = {scale}\n")
    sources.use_folders(["first", "second"])
    modules = [sys.modules[type(load_method(name, {"temperature": 1.0})).__module__] for name in ("first", "second")]
    assert [module.scale for module in modules] == [1, 2]


def test_a_stored_experiment_of_somebody_else_names_the_folder_that_is_missing(tmp_path):
    write_method(tmp_path / "mine", "tempered")
    stored = write_resolved(resolve(config("mine")))
    (tmp_path / "mine").rename(tmp_path / "moved")
    sources.use_folders(())
    forget()
    with pytest.raises(ConfigError, match=r"methods_path: no such folder: 'mine'"):
        read_resolved(stored)
    sources.use_folders(["moved"])
    assert read_resolved(stored)["methods"]["tempered"]["method"] == "tempered"


def test_stored_experiments_may_have_methods_of_one_name(tmp_path):
    """The results of two versions of a method are compared."""
    files = []
    for folder in ("first", "second"):
        write_method(tmp_path / folder, "tempered")
        files.append(write_resolved(resolve(config(folder) | {"experiment": folder})))
    for file in files:
        read_resolved(file)
    assert load_method_card("tempered").file.parent == tmp_path / "second"


def install(site: Path, value: str = "my_rm.methods") -> Path:
    """A package as pip installs it, whose __init__ must not run before a method does; the folder of its methods."""
    write_method(site / "my_rm" / "methods", "tempered", HELPED.format(imports="from my_rm.losses import scale"))
    (site / "my_rm" / "methods" / "__init__.py").touch()
    (site / "my_rm" / "__init__.py").write_text("import pathlib\npathlib.Path('imported').touch()\n")
    (site / "my_rm" / "losses.py").write_text("scale = 1\n")
    information = site / "my_rm-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-rm\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[rm_methods.methods]\nmine = {value}\n")
    return site / "my_rm" / "methods"


def test_an_installed_package_registers_its_methods(tmp_path, monkeypatch):
    folder = install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    forget()
    resolved = resolve(config([]))
    assert load_method_card("tempered").file == folder / "tempered.yaml"
    assert not Path("imported").exists()
    assert (tmp_path / "site" / "my_rm" / "losses.py") in local_modules(folder / "tempered.py")
    before = training_code(resolved, "tempered")
    (tmp_path / "site" / "my_rm" / "losses.py").write_text("scale = 2\n")
    forget()
    assert training_code(resolved, "tempered") != before
    assert type(load_method("tempered", {"temperature": 1.0})).__module__ == "my_rm.methods.tempered"


def test_registered_methods_are_listed_without_torch(tmp_path):
    install(tmp_path / "site")
    code = (
        "import sys; from rm_methods.listing import listing; assert 'tempered' in listing('methods');"
        "heavy = {'torch', 'transformers', 'numpy', 'my_rm'} & set(sys.modules); assert not heavy, heavy"
    )
    environment = {"PYTHONPATH": f"{tmp_path / 'site'}:{FOLDER.parents[1]}"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


def test_a_package_and_a_folder_with_methods_of_one_name_are_refused(tmp_path, monkeypatch):
    folder = install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    write_method(tmp_path / "mine", "tempered")
    forget()
    with pytest.raises(ConfigError) as error:
        resolve(config("mine"))
    assert str(folder / "tempered.yaml") in str(error.value)
    assert str(tmp_path / "mine" / "tempered.yaml") in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("not_there.methods", "no package 'not_there' can be imported"),
        ("my_rm.nothing", "it names no package; write the package whose folder holds the methods"),
        ("my_rm", "holds losses.py but no card"),
        ("my_rm.bare", "has no __init__.py; a package needs one"),
    ],
)
def test_a_wrong_entry_point_names_its_package(value, message, tmp_path, monkeypatch):
    install(tmp_path / "site", value)
    (tmp_path / "site" / "my_rm" / "bare").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    forget()
    with pytest.raises(ConfigError) as error:
        method_names()
    assert "package 'my-rm', entry point mine" in str(error.value)
    assert message in str(error.value)
    assert "correct the package, or uninstall it" in str(error.value)


def written(folder: Path, **more: object) -> Path:
    """A file of a configuration with a method of the folder `mine`."""
    path = folder / "my_experiment.yaml"
    path.write_text(yaml.safe_dump(config("mine") | more))
    return path


def test_check_names_the_card_with_the_problem(tmp_path):
    write_method(tmp_path / "mine", "tempered")
    card = tmp_path / "mine" / "tempered.yaml"
    card.write_text(card.read_text().partition("    description")[0])
    done = cli("check", "--config", written(tmp_path))
    assert done.exit_code == 2
    assert done.output.splitlines() == [
        f"rm-methods: 1 problem in {tmp_path / 'my_experiment.yaml'}:",
        f"  - {card}: settings.temperature: description missing",
    ]


def test_check_names_the_card_of_a_data_set_with_the_problem(tmp_path):
    (tmp_path / "data" / "datasets").mkdir(parents=True)
    card = tmp_path / "data" / "datasets" / "mine.yaml"
    card.write_text("name: mine\n")
    done = cli("check", "--config", written(tmp_path, data={"dataset": "mine"}, methods={"hinge": {}}, methods_path=[]))
    assert done.exit_code == 2
    lines = done.output.splitlines()[1:]
    assert lines
    assert all(line.startswith("  - data/datasets/mine.yaml: ") for line in lines), lines


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("m", "title: T\ncitation: c\nkind: trained\nsettings: {}\n", "is the card of a method. Write a configuration "
         "with `methods_path: mine` and `methods: {m: {}}` into another file, see docs/adding-a-method.md"),
        ("d", "name: d\ntitle: T\nreader: pairs\n", "is the card of a data set. Write a configuration with `data: "
         "{dataset: d}`, see config/README.md"),
        ("b", "name: b\ntitle: T\nmodule: rmb\n", "is the card of a benchmark. Write a configuration with `benchmarks: "
         "{b: {}}`, see config/README.md"),
    ],
)  # fmt: skip
def test_a_card_that_is_given_as_a_configuration_is_named(tmp_path, name, content, sentence):
    (tmp_path / "mine").mkdir()
    card = Path("mine") / f"{name}.yaml"
    card.write_text(content)
    done = cli("check", "--config", written(tmp_path), "--config", card)
    assert done.exit_code == 2
    assert done.output.splitlines() == [f"rm-methods: 1 problem in {card}:", f"  - {sentence}"]


def test_a_configuration_with_a_title_is_no_card(tmp_path):
    done = cli("check", "--config", written(tmp_path, title="x", methods={"hinge": {}}, methods_path=[]))
    assert "title: unknown key." in done.output


def test_show_warns_of_mistakes_in_the_code(tmp_path):
    code = (FOLDER / "template" / "my_method.py").read_text()
    write_method(tmp_path / "mine", "tempered", code.replace('"temperature"', '"temprature"'))
    done = cli("show", "tempered", "--methods", "mine")
    assert done.exit_code == 0
    assert "  temperature: a number, more than 0; default 1.0" in done.stdout
    assert "WARNING" not in done.stdout
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("WARNING: ")
    assert "tempered.py, line " in warning
    assert "reads the setting 'temprature', which tempered.yaml does not have" in warning
    write_method(tmp_path / "mine", "tempered", code.replace("class Method", "class Metod"))
    assert "defines no class Method. It defines Metod" in cli("show", "tempered", "--methods", "mine").stderr
