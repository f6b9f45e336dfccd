"""Imports run one way: a package may import those that stand before it in ORDER (docs/architecture.md)."""

from __future__ import annotations

import ast

import pytest

from rm_methods.system.code_hash import PACKAGE

ORDER = (
    "errors",
    "processes",
    "files",
    "parquet",
    "validation",
    "run_card",
    "stored",
    "yaml_files",
    "card_files",
    "system",
    "terminal",
    "preferences",
    "benchmarks",
    "statistics",
    "reporting",
    "reward_models",
    "interaction",
    "scoring",
    "methods",
    "model_card",
    "config",
    "training",
    "policies",
    "experiment",
    "planning",
    "overoptimization",
    "ppo",
    "diagnostics",
    "comparison",
    "leaderboard",
    "sharing",
    "tracking",
    "html_report",
    "bundle",
    "contract_test",
    "listing",
    "commands",
    "cli",
)
# The scorer looks up the method that a model folder names.
UPWARD = {("scoring/scorer.py", "methods")}

FILES = [
    file.relative_to(PACKAGE)
    for file in sorted(PACKAGE.rglob("*.py"))
    if "template" not in file.parts and file.name != "__init__.py"
]


def imported_packages(file) -> set[str]:
    """First parts below rm_methods of what a file imports when it runs (not for type checking only)."""
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    for_types_only = {
        id(node)
        for statement in ast.walk(tree)
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)
        for node in ast.walk(statement)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in for_types_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= set(below if node.module == "rm_methods" else [node.module])
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("rm_methods.")} - {"__version__"}


def test_every_package_has_a_place_in_the_order():
    assert {file.parts[0].removesuffix(".py") for file in FILES} == set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_run_one_way(file):
    package = file.parts[0].removesuffix(".py")
    before = set(ORDER[: ORDER.index(package) + 1])
    upward = {name for name in imported_packages(file) if name not in before and (str(file), name) not in UPWARD}
    assert not upward, f"{file} imports {', '.join(sorted(upward))}, which stand after {package} in ORDER"


def test_named_exceptions_are_still_needed():
    assert all(package in imported_packages(file) for file, package in UPWARD)
