import errno
from pathlib import Path

import pytest

from rm_methods.errors import UserError
from rm_methods.files import (
    canonical_json,
    check_outputs,
    content_hash,
    file_hash,
    read_json,
    read_json_lines,
    write_json,
    written_atomically,
)


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


def test_unreadable_json_is_named(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    for name in ("broken.json", "absent.json"):
        with pytest.raises(UserError, match=name):
            read_json(tmp_path / name)


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
