"""Where rows come from, local files or the hub, and what every reader checks of a row."""

import pytest

from rm_methods.errors import DataError


def test_missing_files_say_what_was_expected_and_what_is_there(read, write_lines, tmp_path):
    write_lines("other.jsonl", [{"chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match=r"no file of 'ultrafeedback_binarized'.*train-\*.*Found: other\.jsonl"):
        read("ultrafeedback_binarized", tmp_path)
    with pytest.raises(DataError, match=r"no such folder\. data\.root must be the folder"):
        read("ultrafeedback_binarized", tmp_path / "none")


@pytest.mark.parametrize("name", ["hh_rlhf", "ultrafeedback_binarized"])
def test_without_the_hub_the_error_says_how_to_use_a_local_folder(read, monkeypatch, tmp_path, name):
    # Set on the module, too: it has read the variable if an earlier test imported it.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError, match=rf"could not be loaded from the hub(.|\n)*data:\n +dataset: {name}\n +root: "):
        read(name)


def test_a_data_set_without_a_hub_says_how_to_get_its_files(read):
    with pytest.raises(DataError, match=r"'alpaca_eval' is not on a hub: set data\.root.*git clone"):
        read("alpaca_eval")


def test_rows_of_the_hub_are_read_like_local_ones(read, monkeypatch):
    import datasets

    asked = []

    def load_dataset(hub_id, config, data_dir, split, revision):
        asked.append((hub_id, config, data_dir, split, revision))
        messages = [{"role": "user", "content": f"Q {split}?"}]
        answer = [{"role": "assistant", "content": text} for text in ("good", "bad")]
        row = {
            "chosen": messages + answer[:1],
            "rejected": messages + answer[1:],
            "score_chosen": 9.0,
            "score_rejected": 5.5,
        }
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    pairs, report = read("ultrafeedback_binarized")
    assert asked == [("trl-lib/ultrafeedback_binarized", None, None, split, None) for split in ("train", "test")]
    assert [(pair.split, pair.prompt[0]["content"], pair.chosen, pair.strength) for pair in pairs] == [
        ("train", "Q train?", "good", 3.5),
        ("test", "Q test?", "good", 3.5),
    ]
    assert any("Unpinned" in note for note in report["notes"])


def test_pairs_keep_the_file_and_row_they_came_from(read, write_lines):
    """A blank line counts, a row that is dropped too, and a repetition stays."""
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path = write_lines("x.jsonl", [good, "", good | {"chosen": ""}, good])
    assert [(pair.file, pair.row) for pair in read(path)[0]] == [(str(path), 1), (str(path), 4)]
