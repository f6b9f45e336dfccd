import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rm_methods.errors import ConfigError
from rm_methods.yaml_files import load_yaml, parse_yaml, read_yaml, yaml_text
from tests.conftest import REPOSITORY

# Texts that one version of YAML or the other takes for something else.
MISTAKABLE = st.sampled_from(["1e-4", "010", "yes", "1:30", "2024-01-01", "~", "5e12345", "0o7"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    MISTAKABLE,
)
VALUES = st.recursive(
    SCALARS, lambda inside: st.lists(inside) | st.dictionaries(st.text("abc1e-4", min_size=1), inside), max_leaves=8
)


def doubling(first: bytes, twice: bytes) -> bytes:
    """A document in which every value holds the one before it two times."""
    lines = [b"a0: &a0 " + first]
    for k in range(1, 60):
        alias = b"*a%d" % (k - 1)
        lines.append(b"a%d: &a%d " % (k, k) + twice.replace(b"%b", alias))
    return b"\n".join(lines)


@pytest.mark.parametrize(
    ("text", "path", "lines"),
    [
        ("a: 1\nb: 2\na: 3\n", "a", (1, 3)),
        ("a:\n  b: 1\n  c: {d: 1,\n    'd': 2}\n", "a.c.d", (3, 4)),
        ("a:\n- x: 1\n- y: 1\n  y: 2\n", "a.1.y", (3, 4)),
        ("a: &shared {x: 1}\nb:\n  <<: *shared\n  <<: *shared\n", "b.<<", (3, 4)),
    ],
)
def test_a_key_that_is_written_twice_is_named_with_its_lines(text, path, lines):
    (problem,) = parse_yaml(text)[1]
    assert problem.startswith(f"{path}: written twice, on lines {lines[0]} and {lines[1]}")


def test_a_merged_key_can_be_given_anew():
    assert parse_yaml("a: &shared {x: 1, y: 2}\nb: {<<: *shared, x: 3}\n") == (
        {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}},
        [],
    )


@pytest.mark.parametrize(
    "text", ["yes", "No", "on", "OFF", "1:30", "1:30.5", "1_000", "0b11", "2024-01-31", "2001-12-14 21:59:43.10"]
)
def test_words_that_the_versions_of_yaml_read_differently_are_refused_unless_quoted(text):
    (problem,) = parse_yaml(f"a:\n  b: {text}\n", " of c.yaml")[1]
    assert problem.startswith(f"a.b: {text} on line 2 of c.yaml is ")
    assert "in quotation marks" in problem
    assert parse_yaml(f"a: '{text}'") == ({"a": text}, [])


@pytest.mark.parametrize("text", ["010", "-08", "00", "+01"])
def test_leading_zeros_are_refused_unless_quoted(text):
    (problem,) = parse_yaml(f"a: {text}")[1]
    assert "leading zero" in problem
    assert parse_yaml(f"a: '{text}'") == ({"a": text}, [])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            ("1e-4", 1e-4),
            ("-2E+3", -2e3),
            ("1.5", 1.5),
            (".5", 0.5),
            ("3.", 3.0),
            ("7", 7),
            ("0", 0),
            ("-7", -7),
            ("0x1F", 31),
        ),
        *(
            ("0o17", 15),
            ("true", True),
            ("False", False),
            ("~", None),
            ("null", None),
            ("", None),
            ("n", "n"),
            ("=", "="),
        ),
        *(("1e", "1e"), ("e5", "e5"), ("1.2.3", "1.2.3"), ("'1e-4'", "1e-4")),
    ],
)
def test_other_words_and_numbers_are_those_of_yaml_1_2(text, value):
    content, problems = parse_yaml(f"a: {text}")
    assert problems == []
    assert content == {"a": value}
    assert type(content["a"]) is type(value)


@given(VALUES)
def test_what_is_written_is_read_again(value):
    assert parse_yaml(yaml_text({"key": value})) == ({"key": value}, [])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a: \xe9\n", "not UTF-8 text: byte 4 is 0xe9"),
        ("a: 1".encode("utf-16"), "not UTF-8 text: byte 1 is 0xff"),
        (b"a:\n\t- 1\n", "indent with spaces, not tabs"),
        (b"a: [", "line 2, column 1: while parsing a flow node"),
        (b"a: &a [*a]\n", "line 1: an alias that contains itself"),
        (b"a: &a\n  b: *a\n", "an alias that contains itself"),
        (b"a: " + b"[" * 100_000, "nested more than"),
        (b"a: " + b"{a: " * 100_000, "nested more than"),
        (doubling(b"[x, x]", b"[%b, %b]"), "more than 100000 values"),
        (doubling(b"{x: 1}", b"{<<: [%b, %b]}"), "more than 100000 values"),
        (b"? [a]\n: 1\n", "a key that is not a single word"),
        (b"{{x}}: 1\n", "a key that is not a single word"),
        (b"a: 1\n---\nb: 1\n", "expected a single document"),
        (b"a: \0\n", "not valid YAML"),
        (
            b"a: !!python/object/apply:os.getcwd []\n",
            "the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd' is not used here",
        ),
        (b"a: !!int x\n", "is not used here"),
        (b"!!int a: x\n", "is not used here"),
        (b"!!binary a: x\n", "is not used here"),
        (b"a: !!set {x}\n", "is not used here"),
        (b"a: !!int {x: 1}\n", "is not used here"),
        (b"a: !!timestamp x\n", "is not used here"),
    ],
)  # fmt: skip
def test_files_of_which_nothing_can_be_made_are_refused_in_one_sentence(tmp_path, content, says):
    (tmp_path / "c.yaml").write_bytes(content)
    started = time.monotonic()
    with pytest.raises(ConfigError) as error:
        read_yaml(tmp_path / "c.yaml")
    (problem,) = error.value.problems
    assert says in problem
    assert "\n" not in problem
    assert "c.yaml" in str(error.value)
    assert time.monotonic() - started < 5


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path):
    (tmp_path / "c.yaml").write_text("a: 1\n", encoding="utf-8-sig")
    assert read_yaml(tmp_path / "c.yaml") == ({"a": 1}, [])


def test_a_number_of_thousands_of_digits_is_refused():
    assert "a number of 5000 digits" in parse_yaml("a: " + "9" * 5000)[1][0]


def test_every_problem_of_a_file_is_reported(tmp_path):
    (tmp_path / "c.yaml").write_text("a: yes\na: 010\nb: {c: 1:30}\n")
    with pytest.raises(ConfigError) as error:
        load_yaml(tmp_path / "c.yaml")
    assert len(error.value.problems) == 4


@pytest.mark.parametrize(
    "path", sorted(REPOSITORY.glob("[cdrw]*/**/*.yaml")), ids=lambda path: str(path.relative_to(REPOSITORY))
)
def test_yaml_files_of_the_project_mean_the_same_to_pyyaml(path):
    assert load_yaml(path) == yaml.safe_load(path.read_text())
