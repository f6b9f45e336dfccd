import contextlib
import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rm_methods.files as module
from rm_methods.errors import UserError
from rm_methods.files import (
    canonical_json,
    check_outputs,
    check_replaceable,
    content_hash,
    damage,
    file_hash,
    is_intact,
    read_json,
    read_json_lines,
    seal,
    special_kind,
    write_json,
    written_atomically,
    written_with_checksum,
)
from rm_methods.parquet import parquet_columns, read_parquet
from rm_methods.preferences.file_formats import file_rows
from rm_methods.scoring.model_options import ModelOptions
from rm_methods.tracking.records import read_training_log
from rm_methods.yaml_files import read_yaml
from tests.conftest import REPOSITORY


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.endswith(".partial")]


def test_an_error_in_mid_write_leaves_the_old_file_and_no_rest(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})
    with pytest.raises(OSError), written_atomically(target) as path:  # noqa: PT012
        path.write_text("half a fi")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert read_json(target) == {"old": 1}
    assert not leftovers(tmp_path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt), written_atomically(target) as path:  # noqa: PT012
        path.mkdir()
        (path / "weights").write_text("half")
        raise KeyboardInterrupt
    assert not target.exists()
    for content in ("first", "second"):
        with written_atomically(target) as path:
            path.mkdir()
            (path / "weights").write_text(content)
    assert (target / "weights").read_text() == "second"
    assert not leftovers(tmp_path)


def test_what_a_killed_writer_left_is_removed_by_the_next_one_and_a_living_ones_is_not(tmp_path):
    """A kill inside the block leaves a folder as large as a model; a writer that is still at work keeps its own."""
    target = tmp_path / "model"
    killed = (
        "import os, sys; from rm_methods.files import written_atomically\n"
        "with written_atomically(sys.argv[1]) as path:\n"
        "    path.mkdir(); (path / 'weights').write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", killed, str(target)], cwd=REPOSITORY, check=False)
    assert len(leftovers(tmp_path)) == 1
    for name in (
        ".model.0badcafe-1-1.aaaaaaaa.partial",
        ".model.12345678.partial",
    ):  # of another machine; of an older release
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    old = tmp_path / ".model.0badcafe-2-2.bbbbbbbb.partial"
    old.touch()
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    (tmp_path / ".models.0badcafe-2-2.bbbbbbbb.partial").touch()  # of another target
    with written_atomically(target) as first:
        first.mkdir()
        with written_atomically(target) as second:
            second.mkdir()
            kept = set(leftovers(tmp_path)) - {first.name, second.name}
        assert first.exists()
    assert kept == {
        ".model.0badcafe-1-1.aaaaaaaa.partial", ".model.12345678.partial", ".models.0badcafe-2-2.bbbbbbbb.partial"
    }  # fmt: skip
    assert target.is_dir()


def test_files_get_the_permissions_of_the_umask(tmp_path):
    """safetensors writes weights for their owner alone; others in the group need them."""
    write = (
        "import os, sys; os.umask(0o027); from rm_methods.files import written_atomically\n"
        "with written_atomically(sys.argv[1]) as path:\n"
        "    path.mkdir(); (path / 'weights').touch(mode=0o600)"
    )
    subprocess.run([sys.executable, "-c", write, str(tmp_path / "model")], cwd=REPOSITORY, check=True)
    assert (tmp_path / "model" / "weights").stat().st_mode & 0o777 == 0o640


def test_every_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(module, "sync", lambda path: synced.append((Path(path).name, (tmp_path / "model").exists())))
    with written_atomically(tmp_path / "model") as path:
        path.mkdir()
        (path / "weights").touch()
    assert synced == [(path.name, False), ("weights", False), (tmp_path.name, True)]


def test_a_sealed_folder_that_lost_bytes_or_files_is_noticed(tmp_path):
    assert damage(tmp_path) == "was not written to its end"
    (tmp_path / "part").mkdir()
    for name in ("weights", "part/state"):
        (tmp_path / name).write_text("whole")
    seal(tmp_path)
    (tmp_path / "later").touch()
    assert damage(tmp_path) is None
    (tmp_path / "part" / "state").write_text("cut")
    assert damage(tmp_path) == "has 3 bytes in part/state, 5 were written"
    (tmp_path / "part" / "state").unlink()
    assert damage(tmp_path) == "lacks part/state"
    for content in ("", "[]", "{"):
        (tmp_path / "complete").write_text(content)
        assert damage(tmp_path) == "has a damaged file 'complete'"


def test_a_file_with_a_checksum_is_intact_only_with_its_bytes(tmp_path, capsys):
    target = tmp_path / "work"
    assert not is_intact(target)
    with written_with_checksum(target) as path:
        path.write_text("whole")
    assert is_intact(target)
    assert capsys.readouterr().err == ""
    for content in ("whol", "\0" * 5, ""):
        target.write_text(content)
        assert not is_intact(target)
    assert "work is damaged" in capsys.readouterr().err


def test_a_line_that_was_not_written_to_its_end_is_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert read_json_lines(file) == []
    file.write_text('{"step": 1}\n{"step": 2}\n')
    assert read_json_lines(file) == [{"step": 1}, {"step": 2}]
    for rest in ('{"st', '{"step": 3, "more": {"a": 1}', '{"step": 3}'):
        file.write_text('{"step": 1}\n{"step": 2}\n' + rest)
        assert read_json_lines(file) == [{"step": 1}, {"step": 2}]
    file.write_text('{"st\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: a line is not valid JSON"):
        read_json_lines(file)


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    "content", [b"{", b"", b"\0" * 64, b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e400}', b'"\xff"', b"[" * 100_000]
)
def test_unreadable_json_is_named(tmp_path, content):
    (tmp_path / "broken.json").write_bytes(content)
    (tmp_path / "folder.json").mkdir()
    for name in ("broken.json", "absent.json", "folder.json"):
        with pytest.raises(UserError, match=name):
            read_json(tmp_path / name)


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\uDBFF": 1}', '["a", "\\udc00\\ud800"]'])
def test_half_of_a_surrogate_pair_is_not_json(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: not valid JSON \(text is not Unicode"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('"\\ud83d\\ude00"')
    assert read_json(tmp_path / "a.json") == "\U0001f600"


def test_hashes_depend_on_content_only(tmp_path):
    assert canonical_json({"b": 1, "a": [2.5, None]}) == '{"a":[2.5,null],"b":1}'
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1}) != content_hash({"a": 1, "b": 3})
    for name, text in (("one", "x"), ("two", "x"), ("three", "y")):
        (tmp_path / name).write_text(text)
    assert file_hash(tmp_path / "one") == file_hash(tmp_path / "two") != file_hash(tmp_path / "three")
    assert file_hash(tmp_path / "one", tmp_path / "three") != file_hash(tmp_path / "three", tmp_path / "one")


def test_outputs_are_told_apart_by_the_file_that_they_lead_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    check_outputs({"--a": ["x"], "--b": ["y", "z"]}, {"--in": ["w"]})
    with pytest.raises(UserError, match=r"--b link/x: --a x writes the same file"):
        check_outputs({"--a": ["x"], "--b": ["y", "link/x"]}, {})
    with pytest.raises(UserError, match=r"--b ./w: this is the file of --in"):
        check_outputs({"--b": ["./w"]}, {"--in": [tmp_path / "w"]})


def special_file(folder: Path, kind: str) -> Path:
    path = folder / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as stream:  # its path may have 107 bytes
            stream.bind(kind)
    return path


READERS = {
    "JSON": read_json,
    "JSON lines": read_json_lines,
    "hash": file_hash,
    "YAML": read_yaml,
    "Parquet": lambda path: read_parquet(path, {"a": "text"}, "a table", "prepare"),
    "columns": parquet_columns,
    "rows": lambda path: list(file_rows(path.rename(path.with_suffix(".jsonl")))),
    "training log": read_training_log,
    "template": lambda path: ModelOptions(chat_template=path).template(),
}


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_not_read(tmp_path, reader, kind):
    path = special_file(tmp_path, kind)
    with pytest.raises(UserError, match=rf"{kind}.*is a {kind}, not a file|is a {kind}, not a file"):
        READERS[reader](path)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_no_output_takes_the_place_of_a_device(tmp_path, kind):
    path = special_file(tmp_path, kind)
    with pytest.raises(UserError, match=f"is a {kind}, which the output would replace"):
        write_json(path, {})
    assert special_kind(path) == kind


@pytest.mark.parametrize("name", [".", "..", ""])
def test_an_output_needs_a_name(tmp_path, monkeypatch, name):
    (tmp_path / "inner").mkdir()
    (tmp_path / "precious.txt").touch()
    monkeypatch.chdir(tmp_path / "inner")
    with pytest.raises(UserError, match="an output needs a name"), written_atomically(name) as path:
        path.mkdir()
    assert (tmp_path / "precious.txt").exists()


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    check_replaceable(tmp_path / "absent", "own.json")
    check_replaceable(tmp_path, "own.json")
    (tmp_path / "precious.txt").touch()
    with pytest.raises(UserError, match=r"has no own\.json\), which would be removed"):
        check_replaceable(tmp_path, "own.json")
    (tmp_path / "own.json").touch()
    check_replaceable(tmp_path, "own.json")
