"""The code that a stage depends on is what it imports."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from rm_methods.errors import UserError
from rm_methods.system.code_hash import PACKAGE, PLUMBING, STAGES, closure, code_hash, imported_modules, stage_files

MODULES = [
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for file in PACKAGE.rglob("*.py")
    if "template" not in file.parts and file != PACKAGE / "__init__.py"
]


def imports_by_the_parser(name: str) -> set[str]:
    """The plain definition: import statements as Python's own parser sees them."""
    path = PACKAGE.joinpath(*name.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    modules = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {full if full.removeprefix("rm_methods.") in MODULES else node.module for full in below}
    return {module.removeprefix("rm_methods.") for module in modules if module.startswith("rm_methods.")}


@pytest.mark.parametrize("name", MODULES)
def test_imports_are_those_of_pythons_parser(name):
    assert set(imported_modules(name)) == imports_by_the_parser(name)


def test_every_stage_and_every_plumbing_module_exists():
    for stage in STAGES:
        assert code_hash(stage)
    for name in PLUMBING:
        assert any(module == name or module.startswith(f"{name}.") for module in MODULES), name


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"rm_methods\.methods\.hing: no such module. Did you mean 'hinge'"):
        code_hash("train", "methods.hing")


def test_plumbing_is_left_out_with_all_that_only_it_imports():
    assert not closure("scoring.scorer") & {"errors", "files", "config.resolve", "system.run_lock"}
    assert "methods.registry" in closure("scoring.scorer")


def stages_with(file: str, *modules: str) -> set[str]:
    return {stage for stage in STAGES if PACKAGE / file in stage_files(stage, *modules)}


READ_A_MODEL = {"train", "score", "diagnose", "diagnose_teacher", "sample", "ppo"}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("scoring/scorer.py", READ_A_MODEL),
        (
            "methods/registry.py",
            set(STAGES) - {"prepare", "backbone", "items", "contamination", "evaluate", "diagnose_summary", "sft"},
        ),
        ("methods/hinge.py", set()),
        ("methods/hinge.yaml", set()),
        ("comparison/compare.py", {"compare", "html_report"}),
        ("comparison/tuning.py", {"tune"}),
        ("statistics/intervals.py", {"compare", "html_report", "overoptimization", "track"}),
        ("ppo/learner.py", {"ppo"}),
        ("cli.py", set()),
        ("system/run_lock.py", set()),
        ("system/deepspeed/zero2.json", {"train", "ppo", "sft"}),
        ("preferences/world/gold.py", {"sample", "ppo", "sft"}),
    ],
)
def test_a_file_belongs_to_the_stages_that_run_it(file, stages):
    assert (PACKAGE / file).exists()
    assert stages_with(file) == stages


def test_pairs_are_read_by_every_stage_that_reads_text():
    unread = {"compare", "html_report", "tune", "track"}
    assert set(STAGES) - stages_with("preferences/pair.py") == unread


def test_a_method_adds_its_file_its_card_and_what_it_imports():
    added = set(stage_files("train", "methods.focal")) - set(stage_files("train"))
    names = ("focal.py", "focal.yaml", "bradley_terry.py", "bradley_terry.yaml")
    assert added == {PACKAGE / "methods" / name for name in names}
    assert stages_with("methods/hinge.py", "methods.hinge") == set(STAGES)
    assert PACKAGE / "interaction" / "objectives.py" in stage_files("train", "methods.interaction_distillation")


def test_a_file_outside_the_package_adds_its_card_and_what_it_imports(tmp_path):
    (tmp_path / "mine.py").write_text("from rm_methods.methods.focal import focal_loss\n")
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "other.py").touch()
    added = [file for file in stage_files("train", str(tmp_path / "mine.py")) if file not in stage_files("train")]
    names = ("bradley_terry.py", "bradley_terry.yaml", "focal.py", "focal.yaml")
    package_files = [PACKAGE / "methods" / name for name in names]
    assert added == [*package_files, tmp_path / "mine.py", tmp_path / "mine.yaml"]
    with pytest.raises(UserError, match=r"missing\.py: no such file"):
        code_hash("train", str(tmp_path / "missing.py"))


def test_a_docstring_is_code_and_another_file_is_not(tmp_path, monkeypatch):
    import shutil

    from rm_methods.system import code_hash as module

    shutil.copytree(PACKAGE, tmp_path / "rm_methods", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "rm_methods")
    before = {stage: module.code_hash.__wrapped__(stage) for stage in STAGES}
    (tmp_path / "rm_methods" / "ppo" / "losses.py").open("a").write("\n# edited\n")
    (tmp_path / "rm_methods" / "cli.py").open("a").write("\n# edited\n")
    after = {stage: module.code_hash.__wrapped__(stage) for stage in STAGES}
    assert {stage for stage in STAGES if before[stage] != after[stage]} == {"ppo"}


def test_hashes_load_nothing_heavy():
    code = (
        "import sys; from rm_methods.system.code_hash import STAGES, code_hash; [code_hash(stage) for stage in STAGES];"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'yaml'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
