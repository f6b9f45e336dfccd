"""Full and read-only disks: what the libraries say, and what a user reads."""

import errno
import os
import subprocess

import pytest
from click.testing import CliRunner

from rm_methods.cli import main
from rm_methods.errors import UserError
from rm_methods.system.disk import disk_problem
from rm_methods.yaml_files import yaml_text


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:820] . PytorchStreamWriter failed writing file data/3"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 192320 vs 192212"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("(os error 122)"),
    ],
)
def test_a_full_disk_is_explained_whoever_finds_it(tmp_path, error):
    problem = disk_problem(error, [tmp_path / "not" / "there"])
    assert problem.startswith(f"the disk is full or over its quota while writing to {tmp_path / 'not' / 'there'} (")
    assert "MiB are free now" in problem
    assert "`results:`" in problem


def test_a_full_disk_is_seen_behind_the_error_that_it_was_turned_into():
    shown = UserError("backbone.source cannot be loaded")
    shown.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert "the disk is full" in disk_problem(shown, [])
    shown.__cause__ = None
    assert disk_problem(shown, []) is None


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_folder_that_cannot_be_written_is_named(number):
    assert disk_problem(OSError(number, os.strerror(number), "/a/b"), []).startswith(f"/a/b: {os.strerror(number)}. ")
    assert disk_problem(RuntimeError(f"I/O error (os error {number})"), ["out"]).startswith(
        f"out: {os.strerror(number)}. "
    )


def denied(path, number=errno.EACCES):
    return OSError(number, os.strerror(number), str(path))


def test_an_unreadable_input_is_not_called_half_written(tmp_path, monkeypatch):
    """Root may read everything, so the system's answer is simulated."""
    pairs = tmp_path / "my pairs.jsonl"
    pairs.write_text("{}")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    problem = disk_problem(denied(pairs), [tmp_path / "results"])
    assert problem == f"{pairs}: Permission denied. You may not read it. `ls -ld '{pairs}'` shows who may."


def test_a_file_that_may_be_read_but_not_changed_is_told_apart(tmp_path):
    settings = tmp_path / "settings.json"
    settings.write_text("{}")
    assert "You may read it, but not change it." in disk_problem(denied(settings), [tmp_path / "results"])


@pytest.mark.parametrize("path", ["out", "out/a/b.parquet", ".", ".out.host.1.abc.partial", "elsewhere/new"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_an_output_that_cannot_be_written_asks_for_another_folder(tmp_path, path, number):
    """The output itself, below it, the folder that holds it, its temporary file, or anything that does not exist."""
    problem = disk_problem(denied(tmp_path / path, number), [tmp_path / "out"])
    assert problem.endswith("Nothing half-written was kept; choose a folder that can be written.")


def test_a_read_only_disk_is_a_matter_of_writing_whatever_the_path(tmp_path):
    (tmp_path / "input").write_text("x")
    assert "choose a folder that can be written" in disk_problem(denied(tmp_path / "input", errno.EROFS), [])


def test_without_a_path_both_reading_and_writing_are_named():
    problem = disk_problem(RuntimeError("I/O error (os error 13)"), ["out"])
    assert problem == (
        "out: Permission denied. Check the rights of the files to read and of the folder to write. Nothing "
        "half-written was kept."
    )


def test_a_verb_that_may_not_read_its_input_says_so(tmp_path, monkeypatch):
    config = tmp_path / "x.yaml"
    config.write_text("experiment: x\n")

    def refuse(*_, **_options):
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
        raise denied(config)

    monkeypatch.setattr("rm_methods.config.resolve.load_config", refuse)
    done = invoke("check", "--config", config)
    assert done.exit_code == 2
    assert (
        done.output
        == f"rm-methods: {config}: Permission denied. You may not read it. `ls -ld {config}` shows who may.\n"
    )


@pytest.mark.parametrize(
    "error", [RuntimeError("something else"), FileNotFoundError(2, "No such file", "x"), KeyError()]
)
def test_other_errors_are_no_problem_of_the_disk(error):
    assert disk_problem(error, []) is None


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def policy_config(prepared, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml_text(prepared[2]))
    return "--config", tmp_path / "config.yaml", "--pairs", prepared[0]


def test_a_full_disk_ends_the_preparation_of_a_backbone_with_what_to_do(policy_config, small_disk):
    (small_disk / "other").write_bytes(b"x" * 1020 * 1024)
    done = invoke("prepare-backbone", *policy_config, "--out", small_disk / "backbone")
    assert done.exit_code == 2, done.output
    assert f"the disk is full or over its quota while writing to {small_disk / 'backbone'} (" in done.output
    assert [path.name for path in small_disk.iterdir()] == ["other"]


@pytest.mark.slow
def test_a_full_disk_ends_fine_tuning_with_what_to_do_and_nothing_half_written(policy_config, small_disk, tmp_path):
    (small_disk / "other").write_bytes(b"x" * 950 * 1024)
    done = invoke("sft", *policy_config, "--out", small_disk / "sft", "--work", small_disk / "work")
    assert done.exit_code == 2, done.output
    assert "the disk is full or over its quota while writing to" in done.output
    assert not (small_disk / "sft" / "policy").exists()
    assert not (small_disk / "sft" / "summary.json").exists()


def test_a_read_only_disk_is_named_without_a_traceback(policy_config, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = invoke("prepare-backbone", *policy_config, "--out", small_disk / "backbone")
    assert done.exit_code == 2, done.output
    assert "Read-only file system" in done.output
