import pytest

from rm_methods.config.path_settings import expand_path, expand_paths
from rm_methods.errors import UserError

PATH = {"type": "string", "format": "path"}


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/a b")
    monkeypatch.setenv("LOOP", "$SCRATCH")
    monkeypatch.delenv("ABSENT", raising=False)


@pytest.mark.parametrize(
    ("path", "expanded"),
    [
        *(
            ("~", "/home/me"),
            ("~/x", "/home/me/x"),
            ("$SCRATCH/x", "/scratch/a b/x"),
            ("a/${SCRATCH}b", "a//scratch/a bb"),
        ),
        *(
            ("a/~", "a/~"),
            ("a~", "a~"),
            ("$", "$"),
            ("a$5", "a$5"),
            ("owner/model", "owner/model"),
            ("tiny", "tiny"),
            ("", ""),
        ),
    ],
)
def test_home_and_variables_are_replaced_and_nothing_else(path, expanded):
    assert expand_path(path) == expanded


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("$ABSENT/x", "the environment variable 'ABSENT', which is not set"),
        ("${ABSENT}", "the environment variable 'ABSENT'"),
        ("${ABSENT:-x}", "the environment variable 'ABSENT:-x'"),
        ("${}", "the environment variable ''"),
        ("~no_such_user/x", "a user that this machine does not have"),
        ("$LOOP/x", "which has a variable again"),
    ],
)
def test_what_cannot_be_replaced_is_refused_by_name(path, says):
    with pytest.raises(UserError, match="write the folder out") as error:
        expand_path(path)
    assert says in str(error.value)


def test_the_schema_says_what_is_a_path():
    schema = {
        "properties": {
            "results": PATH,
            "name": {"type": "string"},
            "files": {"items": {"type": "string", "format": "file"}},
        },
        "additionalProperties": {"properties": {"root": PATH}},
    }
    world = {"root": "$SCRATCH", "other": "$SCRATCH"}
    value = {"results": "~", "name": "~", "files": ["~/a", 3], "world": world, "none": None}
    problems = []
    expanded = expand_paths(value, schema, "", problems)
    assert expanded["world"] == {"root": "/scratch/a b", "other": "$SCRATCH"}
    assert expanded | {"world": None} == {
        "results": "/home/me",
        "name": "~",
        "files": ["/home/me/a", 3],
        "world": None,
        "none": None,
    }
    assert problems == []


def test_every_path_that_cannot_be_replaced_is_named_with_its_key():
    problems = []
    schema = {"properties": {"a": PATH, "b": {"items": PATH}}}
    assert expand_paths({"a": "$ABSENT", "b": ["x", "$ABSENT"]}, schema, "top", problems) == {
        "a": None,
        "b": ["x", None],
    }
    assert [problem.split(":")[0] for problem in problems] == ["top.a", "top.b.1"]


@pytest.mark.parametrize(
    ("uri", "expanded"),
    [
        ("sqlite:///~/mlflow.db", "sqlite:////home/me/mlflow.db"),
        ("sqlite:///$SCRATCH/mlflow.db?timeout=5", "sqlite:////scratch/a b/mlflow.db?timeout=5"),
        ("http://server/~me", "http://server/~me"),
    ],
)
def test_a_tracking_address_is_a_path_after_sqlite_only(uri, expanded):
    assert expand_paths(uri, {"format": "tracking-uri"}, "tracking.uri", []) == expanded


def test_no_password_is_read_into_a_configuration():
    problems = []
    assert (
        expand_paths("postgresql://me:$SCRATCH@server/db", {"format": "tracking-uri"}, "tracking.uri", problems) is None
    )
    assert "set MLFLOW_TRACKING_URI" in problems[0]
    assert "/scratch" not in problems[0]
