"""Seeded changes of valid files: of their values, of their tables, of their bytes, and of what is at their path.

Every function takes a `random.Random`, so that one number gives the same change again.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

# Values that no Python object can be written as are written as a mark, which the text is searched for afterward.
_RAW = {
    "@deep": "[" * 3000 + "]" * 3000,
    "@digits": "9" * 400,
    "@overflow": "1.0e+999",
    "@nan": {".yaml": ".nan", ".json": "NaN", ".jsonl": "NaN"},
    "@cycle": {".yaml": "&a [*a]", ".json": "-Infinity", ".jsonl": "-Infinity"},
}
# Words for the value of an option, or for a name.
ODD_WORDS = [
    "", " ", "-1", "0", "1e999", "9" * 400, "nan", "null", "x", "x" * 300, "a\nb", "it's \"quoted\"", "e\u0301\u200b",
    "{}", "{variant}", "%s", "$(echo x)", "../x", ".", "..", "a=b", "=", ",", "\udcff", "no/such/folder",
]  # fmt: skip
_AGAIN = "@again:"  # before a key that is there already
ODD_VALUES = [
    *_RAW, None, True, False, 0, -1, 3, 1.5, 1e-300, 2**40, "", " ", "x", "null", "NaN", "7", "\ud800", "a\x00b",
    "e\u0301 \u200b", "~/x", "$HOME", "../../x", "{}", "long " * 20000, [], {}, [[]], [None], ["x", 1],
    {"role": "user"}, {"a": {"b": [1]}},
]  # fmt: skip


@dataclass(frozen=True)
class Change:
    """What was done to a file.

    Attributes:
        what: in words.
        names: what a message may name to be understood: the file, the key, the value.
        harmless: the file still says the same.
        folder: the run that the file is of, as "<variant>/seed<k>"; "" for other files.
    """

    what: str
    names: tuple[str, ...]
    harmless: bool = False
    folder: str = ""


def change_file(rng: Random, file: Path, others: list[Path]) -> Change:
    """Change one file in place.

    Args:
        others: files that it may be mixed up with.
    """
    ways: list[tuple[int, Callable[[], Change]]] = [
        (2, lambda: _change_bytes(rng, file)),
        (1, lambda: _change_place(rng, file, others)),
    ]
    if file.suffix == ".parquet":
        ways += [(6, lambda: _change_table(rng, file)), (1, lambda: _rewrite_table(rng, file))]
    elif file.suffix in (".json", ".jsonl", ".yaml"):
        ways += [(6, lambda: _change_values(rng, file)), (1, lambda: _rewrite_text(rng, file))]
        ways += [(2, lambda: _change_syntax(rng, file))] if file.suffix == ".yaml" else []
    elif file.suffix == ".csv":
        ways += [(6, lambda: _change_cells(rng, file))]
    (way,) = rng.choices([way for _, way in ways], [weight for weight, _ in ways])
    folder = "/".join(file.parts[-3:-1]) if file.parent.name.startswith("seed") else ""
    return replace(way(), folder=folder)


# Values


def read_values(file: Path) -> Any:
    """The value of a JSON or YAML file; a list of rows for JSON lines."""
    if file.suffix == ".yaml":
        return yaml.safe_load(file.read_text())
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().split("\n") if line.strip()]
    return json.loads(file.read_text())


def write_values(value: Any, file: Path) -> None:
    """Write a value in the format of the file's suffix; marks become what they stand for."""
    if file.suffix == ".yaml":
        text = yaml.safe_dump(value, sort_keys=False, width=10**6)
    elif file.suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in value)
    else:
        text = json.dumps(value, indent=1)
    for mark, raw in _RAW.items():
        text = re.sub(f"""["']{mark}["']""", lambda _, raw=raw: raw if isinstance(raw, str) else raw[file.suffix], text)
    text = re.sub(f"""(["']?){_AGAIN}""", r"\1", text)
    file.write_text(text)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value inside `value`."""
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    else:
        return
    for key, child in inner:
        yield value, key
        yield from places(child)


def _change_values(rng: Random, file: Path) -> Change:
    value = copy.deepcopy(read_values(file))
    inside = list(places(value))
    if not inside:
        return _change_bytes(rng, file)
    container, key = rng.choice(inside)
    old = container[key]
    ways = ["drop", "set", "set", "set", "exchange"]
    if isinstance(container, dict):
        ways += ["rename", "repeat", "add"]
    else:
        ways += ["double"]
    way = rng.choice(ways)
    new, other = rng.choice(ODD_VALUES), rng.choice(inside)
    if way == "drop":
        del container[key]
    elif way == "set":
        container[key] = new
    elif way == "exchange":
        container[key], other[0][other[1]] = copy.deepcopy(other[0][other[1]]), copy.deepcopy(old)
    elif way == "rename":
        renamed = rng.choice([str(key)[:-1], f"{key} ", str(key).upper(), f"{key}s", "", "\u200b"])
        container[renamed] = container.pop(key)
        new = renamed
    elif way == "repeat":
        container[f"{_AGAIN}{key}"] = new
    elif way == "add":
        container[f"{key}_2"] = new
    else:
        container.insert(key, copy.deepcopy(old))
    write_values(value, file)
    names = (
        file.name,
        str(key),
        *([str(other[1])] if way == "exchange" else []),
        *([str(new)[:20]] if way == "rename" else []),
    )
    return Change(f"{way} {key!r} (was {str(old)[:60]!r}, new {str(new)[:60]!r}) in {file.name}", names)


def _change_cells(rng: Random, file: Path) -> Change:
    import csv
    import io

    rows = list(csv.reader(io.StringIO(file.read_text())))
    row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    name = rows[0][column]
    way = rng.choice(["set", "drop cell", "add cell", "drop row", "double row", "rename", "repeat column", "quote"])
    if way == "set":
        rows[row][column] = rng.choice(["", " ", "NaN", "null", "1e999", "\x00", "[1, 2]", "long " * 40000, '"', "\r"])
    elif way == "drop cell":
        del rows[row][column]
    elif way == "add cell":
        rows[row].append("more")
    elif way == "drop row":
        del rows[row]
    elif way == "double row":
        rows.insert(row, list(rows[row]))
    elif way == "rename":
        rows[0][column] = rng.choice([f"{name} ", name.upper(), "", f"{name}s"])
    elif way == "repeat column":
        rows = [[*cells, cells[column]] for cells in rows]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    content = text.getvalue()
    file.write_text(
        content[: len(content) // 2] + '"' + content[len(content) // 2 :] if way == "quote" else content, newline=""
    )
    return Change(f"{way} in row {row}, column {name!r} of {file.name}", (file.name, name))


# Tables


def _change_table(rng: Random, file: Path) -> Change:
    table = pq.read_table(file)
    index = rng.randrange(table.num_columns)
    name, column = table.column_names[index], table.column(index)
    row = rng.randrange(table.num_rows)
    way = rng.choice(
        [
            "drop",
            "rename",
            "repeat",
            "null",
            "nulls",
            "retype",
            "set",
            "double row",
            "drop row",
            "no rows",
            "reverse",
            "add",
        ]
    )
    if way == "drop":
        table = table.drop_columns([name])
    elif way == "rename":
        table = table.rename_columns([f"{n}s" if n == name else n for n in table.column_names])
    elif way == "repeat":
        table = table.append_column(name, column)
    elif way == "add":
        table = table.append_column(f"{name}_2", column)
    elif way == "double row":
        table = pa.concat_tables([table, table.slice(row, 1)])
    elif way == "drop row":
        table = pa.concat_tables([table.slice(0, row), table.slice(row + 1)])
    elif way == "no rows":
        table = table.slice(0, 0)
    elif way == "reverse":
        table = table.take(list(range(table.num_rows))[::-1])
    elif way == "retype":
        table = table.set_column(index, name, _retyped(rng, column))
    else:
        values = column.to_pylist()
        values[row] = None if way == "null" else _other_value(rng, column.type, values)
        values = [None] * len(values) if way == "nulls" else values
        table = table.set_column(index, name, pa.array(values, column.type))
    pq.write_table(table, file)
    return Change(f"{way} in column {name!r}, row {row} of {file.name}", (file.name, name))


def _retyped(rng: Random, column: pa.ChunkedArray) -> pa.Array:
    values = column.to_pylist()
    return rng.choice(
        [
            lambda: pa.array([str(value) for value in values]),
            lambda: pa.array([str(value).encode() for value in values]),
            lambda: pa.array([k for k, _ in enumerate(values)]),
            lambda: pa.array([k / 2 for k, _ in enumerate(values)]),
            lambda: pa.array([[str(value)] for value in values]),
            lambda: pa.array([{"a": str(value)} for value in values]),
            lambda: pa.array([True for _ in values]),
        ]
    )()


def _other_value(rng: Random, kind: pa.DataType, values: list) -> Any:
    """Another value of a column's type."""
    if pa.types.is_floating(kind):
        return rng.choice([float("nan"), float("inf"), -1.0, 1e30, 0.25])
    if pa.types.is_integer(kind):
        return rng.choice([-1, 0, 1, 2**31 - 1])
    if pa.types.is_boolean(kind):
        return not values[0]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return rng.choice(["", " ", "x", "{", "null", "a\x00b", rng.choice(values)])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return rng.choice([[], values[0][:1], rng.choice(values), [None]])
    return rng.choice(values)


def _rewrite_table(rng: Random, file: Path) -> Change:
    table = pq.read_table(file)
    way = rng.choice(["other order of columns", "row groups of one row", "compression"])
    if way == "other order of columns":
        pq.write_table(table.select(table.column_names[::-1]), file)
    elif way == "row groups of one row":
        pq.write_table(table, file, row_group_size=1)
    else:
        pq.write_table(table, file, compression="zstd", use_dictionary=False)
    return Change(f"{way} in {file.name}", (file.name,), harmless=True)


# Text and bytes


def _rewrite_text(rng: Random, file: Path) -> Change:
    value = read_values(file)
    way = rng.choice(["order of keys", "line ends", "spaces", "no last line end"])
    text = file.read_text()
    if way == "order of keys":
        write_values(_keys_reversed(value), file)
    elif way == "line ends":
        file.write_bytes(text.replace("\n", "\r\n").encode())
    elif way == "spaces" and file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row, separators=(" ,  ", "  :\t")) + "  \n" for row in value))
    elif way == "spaces" and file.suffix == ".json":
        file.write_text(json.dumps(value, indent=7) + "\n\n")
    elif way == "spaces":
        file.write_text(text + "\n# the end\n\n")
    elif file.name != "metrics.jsonl":  # whose last line counts only once its end is written
        file.write_text(text.rstrip("\n"))
    return Change(f"other {way} in {file.name}", (file.name,), harmless=True)


def _change_syntax(rng: Random, file: Path) -> Change:
    """Syntax of YAML that other tools write, or that no configuration needs."""
    text = file.read_text()
    lines = text.split("\n")
    tops = [k for k, line in enumerate(lines) if re.match(r"[a-z_]+:", line)]
    number = rng.choice(tops)
    key = lines[number].split(":")[0]
    made: dict[str, Callable[[], str]] = {
        "anchor": lambda: text.replace(f"{key}:", f"{key}: &anchor", 1),
        "merge key": lambda: text + "\nbase: &base {epochs: 2}\ntraining_2:\n  <<: *base\n",
        "merge of nothing": lambda: text + "\n<<: *nothing\n",
        "tag": lambda: text.replace(f"{key}:", f"{key}: !!python/object/apply:os.system", 1),
        "two documents": lambda: text + "\n---\n" + text,
        "document end": lambda: text + "\n...\nmore: 1\n",
        "tab": lambda: "\n".join([*lines[:number], f"\t{lines[number]}", *lines[number + 1 :]]),
        "key twice": lambda: text + f"\n{key}: 1\n",
        "directive": lambda: "%YAML 9.9\n---\n" + text,
        "list at the top": lambda: f"- {text}",
        "long line": lambda: text + "\n#" + "x" * 200_000,
        "aliases of aliases": lambda: (
            text
            + "\na: &a [x]\n"
            + "".join(f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join([f'*{chr(97 + k)}'] * 9)}]\n" for k in range(9))
        ),
    }
    way = rng.choice(sorted(made))
    file.write_text(made[way]())
    return Change(f"{way} at {key!r} in {file.name}", (file.name, key))


def _keys_reversed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _keys_reversed(value[key]) for key in reversed(value)}
    return [_keys_reversed(child) for child in value] if isinstance(value, list) else value


def _change_bytes(rng: Random, file: Path) -> Change:
    data = file.read_bytes()
    start = rng.randrange(max(len(data), 1))
    length = rng.choice([1, 8, 1000])
    made: dict[str, Callable[[], bytes]] = {
        "cut": lambda: data[:start],
        "head cut": lambda: data[start:],
        "empty": lambda: b"",
        "zeroed": lambda: data[:start] + bytes(min(length, len(data) - start)) + data[start + length :],
        "one bit": lambda: (
            data[:start] + bytes([data[start] ^ (1 << rng.randrange(8))]) + data[start + 1 :] if data else b"x"
        ),
        "no utf-8": lambda: data[:start] + b"\xff\xfe\xe9" + data[start:],
        "byte order mark": lambda: b"\xef\xbb\xbf" + data,
        "utf-16": lambda: data.decode("latin-1").encode("utf-16"),
        "twice": lambda: data + data,
        "pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
        "gzip": lambda: gzip.compress(data),
        "latin-1": lambda: data[:start] + "é".encode("latin-1") + data[start:],
        "utf-32": lambda: data.decode("latin-1").encode("utf-32"),
        "nul at the end": lambda: data + bytes(4096),
        "old line ends": lambda: data.replace(b"\n", b"\r"),
        "html": lambda: b"<!DOCTYPE html><html><body>404: Not Found</body></html>",
    }
    way = rng.choice(sorted(made))
    file.write_bytes(made[way]())
    return Change(f"bytes: {way} at {start} of {len(data)} in {file.name}", (file.name,))


def _change_place(rng: Random, file: Path, others: list[Path]) -> Change:
    ways = ["missing", "folder", "dangling link", "link to itself", "pipe", "device", "socket"]
    # The administrator reads every file.
    ways += ["not readable"] if os.geteuid() else []
    way = rng.choice(ways + ["mixed up"] * 2 * bool(others))
    other = rng.choice(others) if others else file
    content = other.read_bytes()
    file.unlink()
    if way == "folder":
        file.mkdir()
    elif way == "dangling link":
        file.symlink_to(file.parent / "nowhere")
    elif way == "link to itself":
        file.symlink_to(file)
    elif way == "pipe":
        os.mkfifo(file)
    elif way == "device":
        file.symlink_to("/dev/zero")
    elif way == "socket":
        _make_socket(file)
    elif way == "not readable":
        file.touch(mode=0)
    elif way == "mixed up":
        file.write_bytes(content)
    return Change(f"{way}: {file.name}{f' is {other.name}' if way == 'mixed up' else ''}", (file.name,))


def _make_socket(file: Path) -> None:
    # From its folder: the path of a socket is at most 107 bytes long.
    with contextlib.chdir(file.parent), socket.socket(socket.AF_UNIX) as stream:
        stream.bind(file.name)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a file or folder."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
