from __future__ import annotations

import pytest

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.errors import DataError

from .conftest import EXAMPLES
from .made_up import graded_items, metrics_of_graded, prepared, write_lines

CARD = load_benchmark_card("helpsteer3")
USER = {"role": "user", "content": "Hello?"}
ASSISTANT = {"role": "assistant", "content": "Hello."}
ROW = {
    "domain": "stem",
    "language": "english",
    "context": [USER],
    "response1": "A.",
    "response2": "B.",
    "overall_preference": 1,
    "individual_preference": [],
}


def read(tmp_path, *rows, **options):
    write_lines(tmp_path / "root/preference/validation.jsonl", *rows)
    return prepared("helpsteer3", tmp_path / "root", tmp_path, **options)


@pytest.mark.parametrize(("preference", "better"), [(-3, 0), (-2, 0), (-1, 0), (1, 1), (2, 1), (3, 1)])
def test_the_sign_says_which_response_is_better(tmp_path, preference, better):
    _, (item,) = read(tmp_path, ROW | {"overall_preference": preference})
    assert item.label == better
    assert item.responses == ["A.", "B."]
    assert item.meta == {"language": "english", "overall_preference": preference}


def test_ties_are_excluded_and_counted(tmp_path):
    report, items = read(tmp_path, ROW, ROW | {"overall_preference": 0})
    assert len(items) == 1
    reason = "overall_preference is 0: neither response is better"
    assert report["excluded"][reason]["count"] == 1
    assert report["excluded"][reason]["examples"][0].endswith("validation.jsonl, row 2")


def test_the_context_has_several_turns(tmp_path):
    _, items = prepared("helpsteer3", EXAMPLES / "helpsteer3", tmp_path)
    assert [message["role"] for message in items[1].prompt] == ["user", "assistant", "user"]
    assert [item.subset for item in items] == ["general", "code", "stem", "multilingual"]


def test_a_context_that_chat_templates_refuse_is_excluded_and_counted(tmp_path):
    report, items = read(tmp_path, ROW, ROW | {"context": [USER, ASSISTANT]}, ROW | {"context": [USER, USER]})
    assert len(items) == 1
    assert {reason: entry["count"] for reason, entry in report["excluded"].items()} == {
        "prompt does not end with a user turn": 1,
        "turns do not alternate": 1,
    }


def test_accuracy_pools_rows_and_each_domain_has_its_own():
    """General 1 of 3 (a tie is wrong), code 1 of 1: pooled 2 of 4, not the mean of domains 2/3."""
    graded = graded_items("general", 0, 1, 1, 3) + graded_items("code", 1, 1, 0, 1)
    values = metrics_of_graded(CARD, graded)
    assert values == {"accuracy": 0.5, "general": pytest.approx(1 / 3), "code": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"overall_preference": 4},
            r"validation\.jsonl, row 2: `overall_preference` is 4; expected one of -3, -2, -1, 0",
        ),
        ({"overall_preference": None}, r"row 2: `overall_preference` is None; expected one of -3"),
        ({"overall_preference": 1.0}, r"row 2: `overall_preference` is 1\.0; expected one of -3"),
        ({"domain": "math"}, "row 2: domain 'math' is not one of HelpSteer3"),
        ({"context": "Hello?"}, "row 2: `context` must be a list of messages, found 'Hello\\?'"),
        ({"context": []}, r"row 2: `context` must be a list of messages, found '\[\]'"),
        ({"context": [USER, {"role": "bot", "content": "x"}]}, "row 2: `context`, message 2 has the role 'bot'"),
        ({"context": [{"role": "user"}]}, "row 2: `context`, message 1 has no text `content`"),
        ({"response2": None}, "row 2: `response2` must be a text, found null"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, ROW, ROW | change)
