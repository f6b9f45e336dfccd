import pytest

from rm_methods.errors import ConfigError, DataError
from rm_methods.preferences.readers.hh_rlhf import merge_turns, parse_transcript


def roles(messages):
    return [message["role"] for message in messages]


def test_a_transcript_is_split_at_paragraphs_that_begin_with_a_speaker():
    text = (
        "\n\nHuman: He said Human: no\nAssistant: maybe\n\nAssistant: Well.\n\nSecond paragraph."
        "\n\nHuman: And?\n\nAssistant: Yes."
    )
    assert parse_transcript(text) == [
        {"role": "user", "content": "He said Human: no\nAssistant: maybe"},
        {"role": "assistant", "content": "Well.\n\nSecond paragraph."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Yes."},
    ]


def test_a_transcript_may_begin_without_blank_lines_and_end_with_an_empty_answer():
    assert parse_transcript("Human: Hi\n\nAssistant:")[-1] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no 'Human:'"),
        ("Hello there", "no 'Human:'"),
        ("Hello\n\nHuman: Hi\n\nAssistant: Yo", "begins with 'Hello'"),
        ("\n\nAssistant: Hi\n\nHuman: Hi\n\nAssistant: Yo", "begins with an Assistant turn"),
        ("\n\nHuman: Hi\n\nAssistant: Yo\n\nHuman: Bye", "ends with a Human turn"),
    ],
)
def test_a_malformed_transcript_is_refused_with_the_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_transcript(text)


def test_consecutive_turns_of_one_speaker_are_merged():
    messages = parse_transcript("\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: d\n\nHuman: e\n\nAssistant: f")
    merged = merge_turns(messages)
    assert roles(messages) == ["user", "user", "assistant", "assistant", "user", "assistant"]
    assert [message["content"] for message in merged] == ["a\n\nb", "c\n\nd", "e", "f"]


@pytest.fixture
def hh_folder(write_lines, tmp_path):
    def row(chosen, rejected):
        return {"chosen": chosen, "rejected": rejected}

    start = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?"
    twice = "\n\nHuman: Hi\n\nHuman: You?"
    rows = [
        row(f"{start}\n\nAssistant: good", f"{start}\n\nAssistant: bad"),
        row(f"{start}\n\nAssistant: good", "\n\nHuman: Hi\n\nAssistant: No?\n\nHuman: Why?\n\nAssistant: bad"),
        row(f"{twice}\n\nAssistant: good", f"{twice}\n\nAssistant: bad"),
        row(f"{start}\n\nAssistant:", f"{start}\n\nAssistant: bad"),
        row("no transcript", f"{start}\n\nAssistant: bad"),
    ]
    write_lines("hh/harmless-base/train.jsonl.gz", rows)
    write_lines(
        "hh/harmless-base/test.jsonl", [row("\n\nHuman: Test\n\nAssistant: good", "\n\nHuman: Test\n\nAssistant: bad")]
    )
    write_lines("hh/helpful-base/train.jsonl.gz", rows[:1])
    return tmp_path / "hh"


def test_rows_become_pairs_or_are_counted(read, hh_folder):
    pairs, report = read("hh_rlhf", hh_folder, subsets=["harmless-base"])
    assert [(pair.split, pair.source, pair.chosen, pair.rejected) for pair in pairs] == [
        ("train", "hh_rlhf/harmless-base", "good", "bad"),
        ("train", "hh_rlhf/harmless-base", "good", "bad"),
        ("test", "hh_rlhf/harmless-base", "good", "bad"),
    ]
    assert [message["content"] for message in pairs[0].prompt] == ["Hi", "Yes?", "Why?"]
    assert pairs[1].prompt == [{"role": "user", "content": "Hi\n\nYou?"}]
    counts = {reason: entry["count"] for reason, entry in report["dropped"].items()}
    assert counts == {"prompts of chosen and rejected differ": 1, "empty response": 1, "malformed transcript": 1}
    assert report["changed"]["transcript with consecutive turns of one speaker: merged"]["count"] == 2
    assert report["rows"] == 6


def test_all_tranches_found_are_read_and_missing_ones_are_noted(read, hh_folder):
    pairs, report = read("hh_rlhf", hh_folder)
    assert {pair.source for pair in pairs} == {"hh_rlhf/harmless-base", "hh_rlhf/helpful-base"}
    assert any("helpful-online" in note for note in report["notes"])


def test_a_tranche_that_was_asked_for_must_be_there(read, hh_folder):
    with pytest.raises(DataError, match="the folders helpful-online of data set 'hh_rlhf' are missing"):
        read("hh_rlhf", hh_folder, subsets=["harmless-base", "helpful-online"])
    with pytest.raises(ConfigError, match=r'data\.options\.subsets\.0: is "harmless"; allowed: harmless-base'):
        read("hh_rlhf", hh_folder, subsets=["harmless"])


def test_the_counts_of_the_real_harmless_test_set(read, real_data):
    pairs, report = read("hh_rlhf", real_data("hh_rlhf"))
    counts = {reason: entry["count"] for reason, entry in report["dropped"].items()}
    assert report["rows"] == 2312
    assert counts == {"prompts of chosen and rejected differ": 5, "empty response": 4}
    assert report["changed"]["transcript with consecutive turns of one speaker: merged"]["count"] == 13
    assert len(pairs) == 2303
    assert {pair.split for pair in pairs} == {"test"}
