"""Mistakes at the command line in one line, from the texts of Snakemake 9.27."""

from __future__ import annotations

import pytest

from rm_methods.terminal.mistakes import explained, target_rules
from tests.conftest import REPOSITORY

NO_RULE = (
    "MissingRuleException:\nNo rule to produce {} (if you use input functions make sure that they don't raise "
    "unexpected exceptions)."
)
LOADING = 'Traceback (most recent call last):\n\n  File "configfile.py", line 12, in _load_configfile\n    ...\n{}\n'


def said(exception, text):
    return explained(exception, text, REPOSITORY)


def test_rules_that_are_one_job_are_targets():
    assert set(target_rules(REPOSITORY)) == {
        "all", "compare", "diagnose_summary", "export", "html_report", "overoptimization", "prepare",
        "prepare_backbone", "sample_pool", "sample_references", "sft", "track", "tune",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("compar", "Unknown target 'compar'. Did you mean 'compare'? Allowed: compare, "),
        ("my.yaml", "Unknown target 'my.yaml'. A configuration needs --configfile before it."),
        ("results/x/y", "No rule makes the file results/x/y with this configuration."),
    ],
)
def test_an_unknown_target(target, answer):
    text = said("MissingRuleException", NO_RULE.format(target))
    assert text.startswith(answer)
    assert "\n" not in text


def test_a_configuration_that_does_not_exist_suggests_the_nearest(tmp_path, monkeypatch):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "noise.yaml").touch()
    monkeypatch.chdir(tmp_path)
    error = "FileNotFoundError: [Errno 2] No such file or directory: '{}'"
    assert said("FileNotFoundError", LOADING.format(error.format("noise.yml"))) == (
        "--configfile noise.yml: no such file. Did you mean 'config/noise.yaml'? How to write one: config/README.md; "
        "for a method of yours: docs/adding-a-method.md; for pairs of yours, `rm-methods init` writes it."
    )
    (tmp_path / "m_nodesc.yaml").touch()
    for name in ("zzz", "my_method.yaml"):
        assert "Did you mean" not in said("FileNotFoundError", LOADING.format(error.format(name)))
    assert said("FileNotFoundError", LOADING.format(error.format("track"))) == (
        "--configfile track: no such file. --configfile takes all words that follow it; write the target 'track' "
        "before it."
    )


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        ("IsADirectoryError: [Errno 21] Is a directory: 'tests'", "--configfile tests: Is a directory."),
        ("PermissionError: [Errno 13] Permission denied: 'a b.yaml'", "--configfile a b.yaml: Permission denied."),
    ],
)
def test_a_configuration_that_cannot_be_read(error, answer):
    assert said("x", LOADING.format(error)) == f"{answer} Name a YAML file that can be read."


def test_the_problems_of_a_configuration_come_without_the_place_in_our_code():
    text = (
        'WorkflowError in file "/x/workflow/rules/common.smk", line 38:\n2 problems in a.yaml:\n  - data: missing\n'
        '  File "/x/workflow/rules/common.smk", line 38, in <module>'
    )
    assert said("WorkflowError", text) == "2 problems in a.yaml:\n  - data: missing"


@pytest.mark.parametrize(
    ("exception", "text"),
    [
        ("WorkflowError", "WorkflowError:\nAt least one job did not complete successfully."),
        ("CalledProcessError", "RuleException:\nCalledProcessError in file x, line 3:\nCommand 'y' returned ..."),
    ],
)
def test_what_the_message_of_a_failed_job_says_better_is_left_out(exception, text):
    assert said(exception, text) is None


@pytest.mark.parametrize(
    ("exception", "text", "answer"),
    [
        ("LockException", "LockException:\nError: Directory cannot be locked.", "`snakemake --unlock`"),
        (
            "IncompleteFilesException",
            "IncompleteFilesException:\nThe files below ...\nIncomplete files:\nresults/a\nresults/b",
            "2 results are incomplete, because an earlier run was stopped (such as results/a). Add --rerun-incomplete",
        ),
        (
            "WorkflowError",
            "WorkflowError:\nConfig file is not valid JSON or YAML. In case",
            "`rm-methods check --config",
        ),
        ("WorkflowError", "WorkflowError:\nTarget rules may not contain wildcards. Please", "a job for each run"),
    ],
)
def test_other_mistakes_say_what_to_do_in_one_line(exception, text, answer):
    explanation = said(exception, text)
    assert answer in explanation
    assert "\n" not in explanation


FUNCTION = (
    'InputFunctionException in rule train in file "/x/workflow/rules/train.smk", line 5:\nError:\n  {}\n'
    "Wildcards:\n  variant=a\n  seed=0\nTraceback:\n"
)


def test_an_error_of_a_function_of_our_rules_is_its_last_line():
    text = FUNCTION.format("KeyError: 'x'")
    assert said("InputFunctionException", text) == (
        "KeyError: 'x'\nSnakemake stopped. Add --verbose for where it happened."
    )


def test_a_file_where_a_folder_belongs_is_named(tmp_path):
    (tmp_path / "runs").touch()
    record = tmp_path / "runs" / "a" / "seed0" / "made_with.json"
    error = f"NotADirectoryError: [Errno 20] Not a directory: '{record}'"
    answer = (
        f"{tmp_path}/runs: a file, but a folder is needed in its place. Move it away, and run the same command again."
    )
    assert said("InputFunctionException", FUNCTION.format(error)) == answer
    assert said("NotADirectoryError", f'Traceback (most recent call last):\n\n  File "x.py"\n\n{error}\n') == answer
    full = "OSError: [Errno 28] No space left on device: '/x'"
    assert said("InputFunctionException", FUNCTION.format(full)) == "/x: No space left on device."


def test_an_unknown_error_keeps_its_last_line_and_no_traceback():
    text = 'Traceback (most recent call last):\n\n  File "x.py", line 1, in f\n\nKeyError: 5\n'
    assert said("KeyError", text) == "KeyError: 5\nSnakemake stopped. Add --verbose for where it happened."


def test_a_configuration_in_another_encoding():
    text = "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"
    assert said("UnicodeDecodeError", text).startswith("A file of --configfile is not UTF-8.")
