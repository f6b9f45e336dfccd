import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rm_methods.benchmarks.item import BenchmarkItem, read_items, write_items
from rm_methods.errors import DataError
from rm_methods.preferences.tool_calls import split_tools, stored_tools

PROMPT = [{"role": "user", "content": "?"}]


@pytest.fixture
def edited(tmp_path):
    """The path of an items file with two items, whose rows were edited by a function."""

    def edit(change):
        write_items(
            [BenchmarkItem(item_id, "test", PROMPT, ["good", "bad"], 0) for item_id in ("a", "b")],
            tmp_path / "items.parquet",
        )
        rows = pq.read_table(tmp_path / "items.parquet").to_pylist()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
        return tmp_path / "items.parquet"

    return edit


def test_items_are_read_as_they_were_written(edited):
    assert read_items(edited(lambda rows: None)) == [
        BenchmarkItem(i, "test", PROMPT, ["good", "bad"], 0, group=i) for i in ("a", "b")
    ]


def test_an_item_id_that_occurs_twice_is_refused(edited):
    """Grading would count the item twice."""
    with pytest.raises(DataError, match=r"items.parquet, row 3: item_id 'a' occurs twice, first in row 1"):
        read_items(edited(lambda rows: rows.append(rows[0])))


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("item_id", [1, 2], "'item_id' is 1; expected text"),
        ("item_id", [None, "b"], "'item_id' is None; expected text"),
        ("item_id", ["", "b"], "'item_id' is ''; expected one that is not empty"),
        ("subset", [None, "test"], "'subset' is None"),
        ("group", [2.5, 1.0], "'group' is 2.5; expected text"),
        ("prompt", [[], PROMPT], "'prompt' is \\[\\]; expected a list of messages"),
        ("prompt", [None, PROMPT], "'prompt' is None"),
        ("prompt", ["?", "?"], "'prompt' is '\\?'"),
        ("prompt", [[{"role": "judge", "content": "?"}], PROMPT], "'prompt' has the role 'judge'"),
        ("prompt", [[{"role": "user", "content": None}], PROMPT], "expected a list of messages"),
        ("prompt", [[{"role": "user"}], [{"role": "user"}]], "expected a list of messages"),
        ("responses", [[], ["a"]], "'responses' is \\[\\]; expected one that is not empty"),
        ("responses", [["a", None], ["a"]], "expected a list of texts"),
        ("responses", ["ab", "ab"], "'responses' is 'ab'"),
        ("label", ["A>B", "0"], "'label' is 'A>B'; expected JSON"),
        ("label", [0, 0], "'label' is 0; expected JSON"),
        ("label", ["[" * 100_000, "0"], "'label' is .*expected JSON"),
        ("meta", ["[]", "{}"], "'meta' is '\\[\\]'; expected a JSON object"),
    ],
)
def test_a_field_of_another_kind_is_named_with_its_row(edited, name, values, expected):
    def change(rows):
        for row, value in zip(rows, values, strict=True):
            row[name] = value

    with pytest.raises(DataError, match=f"items.parquet, row 1: .*{expected}"):
        read_items(edited(change))


def test_prompts_with_tools_are_read_as_written_and_damaged_ones_are_an_error(tmp_path):
    tools = stored_tools([{"name": "weather"}])
    prompt = [tools, {"role": "user", "content": "?"}, {"role": "tool", "content": "12 C"}]
    path = tmp_path / "items.parquet"
    write_items([BenchmarkItem("a", "s", prompt, ["x"], 0)], path)
    (item,) = read_items(path)
    assert item.prompt == prompt
    assert split_tools(item.prompt) == ([{"name": "weather"}], prompt[1:])
    for content in ("[", "{}", '["weather"]', '[{"name": ""}]', "5"):
        with pytest.raises(DataError, match="expected a JSON list of functions with names"):
            split_tools([{"role": "tools", "content": content}, *prompt[1:]])
