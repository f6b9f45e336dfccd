import pytest

from rm_methods.benchmarks.item import BenchmarkItem, write_items
from rm_methods.errors import DataError, UserError
from rm_methods.preferences.pair import write_pairs
from rm_methods.scoring.data import load_data

GOOD = {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "Rock."}
OTHER = {"prompt": "Name a bird.", "chosen": "Owl.", "rejected": "Car."}


def test_every_row_is_an_item_a_repetition_or_refused_with_its_number(write_rows):
    path = write_rows("x.jsonl", GOOD, OTHER | {"rejected": ""}, GOOD, OTHER)
    data = load_data(str(path))
    assert data.unit == "pairs"
    assert [item.responses for item in data.items] == [["Oak.", "Rock."], ["Owl.", "Car."]]
    assert [(row.file, row.row, row.item) for row in data.rows] == [
        (str(path), 1, 0),
        (str(path), 3, 0),
        (str(path), 4, 1),
    ]
    assert (data.reading.rows, data.reading.n_refused, data.reading.files) == (4, 1, {str(path): 4})
    assert data.reading.refused == {"empty response": {"count": 1, "examples": [f"{path}, row 2"]}}


def test_pairs_that_contradict_each_other_and_flipped_labels_are_noted(write_rows, tmp_path, pairs):
    path = write_rows("x.jsonl", GOOD, GOOD | {"chosen": "Rock.", "rejected": "Oak."}, OTHER)
    assert load_data(str(path)).reading.notes == [
        "Contradictory: 2 pairs are also in the data with chosen and rejected exchanged."
    ]
    pairs[0].meta["flipped"] = True
    write_pairs(pairs[:3], tmp_path / "pairs.parquet")
    del pairs[0].meta["flipped"]
    assert load_data(str(tmp_path / "pairs.parquet")).reading.notes == [
        "1 pairs have injected label noise; accuracy counts their flipped labels."
    ]


def test_prepared_pairs_and_items_are_told_by_their_columns(pairs, tmp_path):
    write_pairs(pairs[:4], tmp_path / "pairs.parquet")
    write_items([BenchmarkItem("a", "s", pairs[0].prompt, ["x", "y", "z"], 0)], tmp_path / "items.parquet")
    prepared, items = (load_data(str(tmp_path / name)) for name in ("pairs.parquet", "items.parquet"))
    assert [(row.row, row.item) for row in prepared.rows] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert (items.unit, items.rows, len(items.items)) == ("items", None, 1)


def test_a_preference_file_may_have_columns_named_like_ours(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([GOOD | {"pair_id": "1", "responses": ["a"]}]), tmp_path / "x.parquet")
    assert [item.responses for item in load_data(str(tmp_path / "x.parquet")).items] == [["Oak.", "Rock."]]


def test_one_pair_id_with_two_texts_is_refused(pairs, tmp_path):
    from dataclasses import replace

    write_pairs([pairs[0], replace(pairs[1], pair_id=pairs[0].pair_id)], tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match=r"pairs.parquet, row 2: pair_id '\w+' occurs with two texts"):
        load_data(str(tmp_path / "pairs.parquet"))


def test_a_benchmarks_card_says_what_it_excludes(write_rows, tmp_path):
    (tmp_path / "helpful-base").mkdir()
    good = {"chosen": "\n\nHuman: Hi.\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi.\n\nAssistant: No."}
    path = write_rows("helpful-base/test.jsonl", good, good | {"chosen": "no transcript"})
    data = load_data("hh_rlhf", tmp_path)
    assert (data.unit, data.benchmark, data.rows, len(data.items)) == ("items", "hh_rlhf", None, 1)
    assert (data.reading.rows, data.reading.n_refused, data.reading.files) == (2, 1, {str(path): None})
    (entry,) = data.reading.refused.values()
    assert f"{path}, row 2" in entry["examples"][0]
    assert "hh_rlhf is the name of a benchmark and of a data set: the benchmark's items" in data.reading.notes[0]


def test_unknown_data_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'rm_bench'"):
        load_data("rm_bnch")
    with pytest.raises(
        UserError,
        match=r"prepared pairs of an experiment. Give its file, results/<experiment>/benchmarks/world.parquet",
    ):
        load_data("world")
    (tmp_path / "broken.parquet").write_bytes(b"PA")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load_data(str(tmp_path / "broken.parquet"))


def test_an_unknown_name_lists_each_benchmark_and_data_set_once():
    with pytest.raises(UserError, match=r"no such file, benchmark or data set\. Did you mean 'hh_rlhf'\?") as caught:
        load_data("hh_rlfh")
    assert str(caught.value).count("hh_rlhf") == 2  # the hint and the list


SCORED = {"prompt": "Name a tree.", "responses": ["Oak.", "Rock.", "Elm."], "scores": [3, 1, 3]}


def test_every_response_of_judged_rows_is_an_item_with_its_row(write_rows):
    path = write_rows(
        "x.jsonl", SCORED, SCORED | {"responses": ["Oak.", "", "Elm."]}, SCORED | {"scores": [1, None, 2]}
    )
    data = load_data(str(path))
    assert data.unit == "rows"
    assert [item.responses for item in data.items] == [["Oak.", "Rock.", "Elm."]]
    assert [(row.row, row.item) for row in data.rows] == [(1, 0), (3, 0)]
    assert data.reading.refused == {"empty response": {"count": 1, "examples": [f"{path}, row 2"]}}
    assert not data.reading.unread
    item = data.items[0].item_id
    # Row 1 prefers Oak and Elm to Rock, row 3 Elm to Oak; the pair of row 2 is the same as that of row 3 or a tie.
    assert {(entry.better, entry.worse) for entry in data.comparisons} == {
        ((item, 0), (item, 1)),
        ((item, 2), (item, 1)),
        ((item, 2), (item, 0)),
    }


def test_pointwise_rows_are_compared_across_rows(write_rows):
    rows = [{"prompt": "Name a tree.", "completion": text, "label": text == "Oak."} for text in ("Rock.", "Oak.")]
    data = load_data(str(write_rows("x.jsonl", *rows, {"prompt": "Alone?", "completion": "Yes.", "label": True})))
    assert [item.responses for item in data.items] == [["Rock."], ["Oak."], ["Yes."]]
    assert [row.row for row in data.rows] == [1, 2, 3]
    (entry,) = data.comparisons
    assert (entry.better[0], entry.worse[0]) == (data.items[1].item_id, data.items[0].item_id)


def test_rows_without_judgments_are_scored_without_accuracy(write_rows):
    data = load_data(str(write_rows("x.jsonl", {"prompt": "Name a tree.", "response": "Oak."})))
    assert (len(data.items), list(data.comparisons)) == (1, [])
    assert "No accuracy, because no judgment was read" in data.reading.notes[0]
    assert "score_field" in data.reading.notes[0]


def test_options_name_the_columns_and_are_refused_where_they_mean_nothing(write_rows, tmp_path, pairs):
    path = write_rows("x.jsonl", {"question": "Name a tree.", "responses": ["Oak.", "Rock."], "scores": [2, 1]})
    with pytest.raises(DataError, match=r"row 1: field 'prompt' is missing.*'question' may be it"):
        load_data(str(path))
    assert len(load_data(str(path), options={"prompt_field": "question"}).comparisons) == 1
    write_pairs(pairs[:4], tmp_path / "pairs.parquet")
    with pytest.raises(UserError, match=r"--option ties: .* prepared pairs, which no option changes"):
        load_data(str(tmp_path / "pairs.parquet"), options={"ties": "drop"})


def test_a_parquet_file_of_scored_rows_is_not_taken_for_benchmark_items(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([SCORED]), tmp_path / "x.parquet")
    assert load_data(str(tmp_path / "x.parquet")).unit == "rows"


def test_rows_refused_in_two_rounds_are_all_counted(write_rows):
    rows = [{"prompt": f"Name tree {k}.", "chosen": "Oak.", "rejected": "Rock."} for k in range(3)]
    data = load_data(str(write_rows("x.jsonl", *rows)))
    left = data.without({data.items[0].item_id: "a"}, "refused")
    left = left.without({left.items[0].item_id: "b"}, "refused")
    assert [(row.row, row.item) for row in left.rows] == [(3, 0)]
    assert left.reading.refused["refused"]["count"] == 2
    assert data.reading.n_refused == 0
