"""YAML files that users write: every key once, and words and numbers that all versions of YAML read alike.

PyYAML takes the last of two equal keys. It reads YAML 1.1, in which `010` is 8, `1:30` is 90, `no` is false and `1e-4`
is text. Here a key that is written twice is a problem. So is a word or number that YAML 1.1 and 1.2 read differently,
except for `1e-4`, which is a number as in YAML 1.2. Tags are those of `yaml.safe_load`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from rm_methods.errors import ConfigError
from rm_methods.files import special_kind

MAX_DEPTH = 40
MAX_VALUES = 100_000  # with every alias written out
_MAX_DIGITS = 400
_TAG = "tag:yaml.org,2002:"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
# Regular expressions of the core schema of YAML 1.2 with the letters they begin with; the merge key is of YAML 1.1.
_YAML_1_2 = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("merge", r"<<", "<"),
)
# Type in YAML 1.1 of a word or number that the two versions read differently -> its name in messages.
_OLD_READINGS = {
    "bool": "true or false",
    "int": "another number",
    "float": "another number",
    "timestamp": "a date",
}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml may be missing
    """Constructs what `yaml.safe_load` constructs, with the implicit types of YAML 1.2."""

    yaml_implicit_resolvers: ClassVar[dict[str, list]] = {}


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # libyaml may be missing
    """Quotes every text that either version of YAML would take for something else."""

    yaml_implicit_resolvers: ClassVar[dict[str, list]] = {
        letter: list(rules) for letter, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


def _integer(loader: yaml.Loader, node: yaml.ScalarNode) -> int:
    text = node.value
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


_PATTERNS = {name: re.compile(rf"(?:{expression})\Z") for name, expression, _ in _YAML_1_2}
for _name, _, _letters in _YAML_1_2:
    _Loader.add_implicit_resolver(_TAG + _name, _PATTERNS[_name], list(_letters))
    _Dumper.add_implicit_resolver(_TAG + _name, _PATTERNS[_name], list(_letters))
_Loader.add_constructor(_TAG + "int", _integer)


def read_yaml(source: str | Path) -> tuple[Any, list[str]]:
    """The content of a YAML file, and the problems of its syntax.

    Returns:
        The content (the last value of a key that is written twice), and one sentence per problem, with key path and
        line.

    Raises:
        ConfigError: the file cannot be read, or is not YAML.
    """
    source = Path(source)
    if kind := special_kind(source):
        raise ConfigError([f"is a {kind}, not a file; write its content to a file"], source=str(source))
    try:
        text = source.read_text(encoding="utf-8-sig")
        return parse_yaml(text, f" of {source}")
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"], source=str(source)) from None
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 text: byte {error.start + 1} is 0x{error.object[error.start]:02x}; save the file as UTF-8"
        raise ConfigError([problem], source=str(source)) from None
    except yaml.YAMLError as error:
        tab = "; indent with spaces, not tabs" if re.search(r"^ *\t", text, re.MULTILINE) else ""
        raise ConfigError([f"not valid YAML: {_syntax_error(error)}{tab}"], source=str(source)) from None


def load_yaml(source: str | Path) -> Any:
    """The content of a YAML file that must have no problem.

    Raises:
        ConfigError: with all problems.
    """
    content, problems = read_yaml(source)
    if problems:
        raise ConfigError(problems, source=str(source))
    return content


def parse_yaml(text: str, where: str = "") -> tuple[Any, list[str]]:
    """As `read_yaml`, of a text.

    Args:
        where: what follows a line number in a problem, such as " of config.yaml".

    Raises:
        yaml.YAMLError: the text is not YAML.
    """
    _check_depth(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, []
        nodes = _Nodes(where)
        if nodes.count(node, "") > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES} values when every alias is written out")
        return loader.construct_document(node), nodes.problems
    finally:
        loader.dispose()


def yaml_text(value: Any) -> str:
    """A value as YAML, keys in the order given; `read_yaml` gives it back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Nodes:
    """Visits the nodes of a document, counts its values and collects problems.

    Args:
        where: what follows a line number in a problem.
    """

    def __init__(self, where: str):
        self.where = where
        self.problems: list[str] = []
        self._counts: dict[int, int] = {}
        self._open: set[int] = set()

    def count(self, node: yaml.Node, path: str) -> int:
        """Number of values of a node, aliases written out.

        Raises:
            yaml.YAMLError: a node holds itself.
        """
        key = id(node)
        if key in self._open:
            raise yaml.YAMLError(f"line {_line(node)}: an alias that contains itself, which has no end")
        if key not in self._counts:
            self._open.add(key)
            self._counts[key] = self._count(node, path)
            self._open.remove(key)
        return self._counts[key]

    def _count(self, node: yaml.Node, path: str) -> int:
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node, path)
            return 1
        _check_tag(node)
        if isinstance(node, yaml.SequenceNode):
            return 1 + sum(self.count(item, _joined(path, str(k))) for k, item in enumerate(node.value))
        lines: dict[tuple[str, str], int] = {}
        total = 1
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(
                    f"line {_line(key)}: a key that is not a single word; is a quotation mark missing around it?"
                )
            inside = _joined(path, key.value)
            name = (key.tag, key.value)
            if name in lines:
                self.problems.append(
                    f"{inside}: written twice, on lines {lines[name]} and {_line(key)}{self.where}, "
                    "and the last would win; keep one"
                )
            lines[name] = _line(key)
            self._check_scalar(key, inside)
            total += 1 + self.count(value, inside)
        return total

    def _check_scalar(self, node: yaml.ScalarNode, path: str) -> None:
        _check_tag(node)
        text = node.value
        name = node.tag.removeprefix(_TAG)
        line = f"line {_line(node)}{self.where}"
        if name == "int" and len(text) > _MAX_DIGITS:
            self.problems.append(f"{path}: a number of {len(text)} digits on {line}")
            node.value = "0"
        if node.style not in (None, "") or name == "merge":
            return
        old = _old_reading(text)
        if name == "int" and re.match(r"[-+]?0[0-9]", text):
            self.problems.append(
                f"{path}: {text} on {line} has a leading zero, which is octal in YAML 1.1 and decimal in YAML 1.2; "
                "leave the zero out, or put the value in quotation marks if it is text"
            )
        elif name == "str" and old in _OLD_READINGS:
            advice = "write true or false" if old == "bool" else "write it out"
            self.problems.append(
                f"{path}: {text} on {line} is {_OLD_READINGS[old]} in YAML 1.1 and text in YAML 1.2; "
                f"{advice}, or put it in quotation marks if it is text"
            )


def _check_tag(node: yaml.Node) -> None:
    name = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.ScalarNode):
        fits = name == "str" or (name in _PATTERNS and _PATTERNS[name].match(node.value))
    else:
        fits = name == ("map" if isinstance(node, yaml.MappingNode) else "seq")
    if not fits:
        raise yaml.YAMLError(f"line {_line(node)}: the tag '{node.tag}' is not used here; remove it")


def _old_reading(text: str) -> str:
    """Name of the type that a plain word or number has in YAML 1.1."""
    rules = yaml.SafeLoader.yaml_implicit_resolvers.get(text[:1], ())
    return next((tag.removeprefix(_TAG) for tag, expression in rules if expression.match(text)), "str")


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _line(part: yaml.Node | yaml.Event) -> int:
    assert part.start_mark is not None  # only documents built by hand have parts without a position
    return part.start_mark.line + 1


def _check_depth(text: str) -> None:
    """Refuse deep nesting: the C parser makes nodes recursively, so it would kill the process without a message."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"line {_line(event)}: nested more than {MAX_DEPTH} levels deep")


def _syntax_error(error: yaml.YAMLError) -> str:
    """One sentence with the line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    parts = [part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part]
    return f"line {mark.line + 1}, column {mark.column + 1}: {', '.join(parts)}"
