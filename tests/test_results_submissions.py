"""Submissions of results: a right one passes, and each thing that is missing is named."""

import hashlib
import importlib.util

import pytest

from tests.conftest import REPOSITORY

RIGHT = """# RRM is 3 points better on RM-Bench

| | |
|---|---|
| budget | paper |
| configuration | config/paper.yaml at commit 0123456789ab |
| hardware | 8 x H100 |
| time | 14 h |
| bundle | https://example.org/paper.zip, sha256 {digest} |
| who | Acme |

| Method | RM-Bench |
|---|---|
| Bradley-Terry | 70.0 ±1.0 |

    snakemake --cores 2 --configfile config/paper.yaml
""".format(digest="0" * 64)
NAME = "paper_8xh100_2026-12-01_acme.md"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check_results", REPOSITORY / ".ci" / "check_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def submission(folder, text=RIGHT, name=NAME):
    path = folder / name
    path.write_text(text)
    return path


def test_a_right_submission_has_no_problems(check, tmp_path):
    assert check.problems(submission(tmp_path)) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("# RRM", "RRM", "the first line is not a heading"),
        ("| budget | paper |", "| budget | huge |", "budget is 'huge'"),
        ("| hardware | 8 x H100 |\n", "", "the row `hardware` is missing"),
        ("| time | 14 h |", "| time | |", "the row `time` is missing or empty"),
        (" at commit 0123456789ab", "", "names no commit"),
        ("±1.0", "", "no table with intervals"),
        ("snakemake", "make", "no command"),
        ("sha256", "md5", "has no sha256"),
    ],
)
def test_each_problem_is_named(check, tmp_path, old, new, problem):
    assert old in RIGHT
    (named,) = check.problems(submission(tmp_path, RIGHT.replace(old, new)))
    assert problem in named


@pytest.mark.parametrize("name", ["results.md", "Paper_8xH100_2026-12-01_acme.md", "paper_8xh100_2026-13-01_acme.md"])
def test_names_are_checked(check, tmp_path, name):
    assert len(check.problems(submission(tmp_path, name=name))) == 1


def test_a_bundle_that_is_there_must_verify(check, tmp_path):
    (tmp_path / "paper.zip").write_bytes(b"no bundle")
    digest = hashlib.sha256(b"no bundle").hexdigest()
    text = RIGHT.replace("https://example.org/paper.zip", "paper.zip")
    assert check.problems(submission(tmp_path, text)) == ["paper.zip has another sha256"]
    (problem,) = check.problems(submission(tmp_path, text.replace("0" * 64, digest)))
    assert "damaged or no zip file" in problem


def test_the_submissions_of_this_repository_pass(check):
    assert check.main([]) == 0
