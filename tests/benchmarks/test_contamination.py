"""Contamination: values derived by hand, and the fast search against a plain one."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from click.testing import CliRunner

from rm_methods.benchmarks import contamination
from rm_methods.benchmarks.contamination import count_contamination, words, write_contamination
from rm_methods.benchmarks.contamination_report import contamination_note, read_contamination
from rm_methods.benchmarks.item import BenchmarkItem, write_items
from rm_methods.cli import main
from rm_methods.errors import DataError
from rm_methods.preferences.pair import make_pair, write_pairs
from rm_methods.preferences.tool_calls import stored_tools, with_records

SENTENCE = "the quick brown fox jumps over the lazy dog near a quiet river"  # 13 words
TWELVE = "the quick brown fox jumps over the lazy dog near a quiet"


def item(prompt, responses=("Yes it is.", "No."), item_id="a", subset="s"):
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return BenchmarkItem(item_id, subset, messages, list(responses), 0)


def pair(prompt, chosen="One.", rejected="Two.", split="train"):
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return make_pair(messages, chosen, rejected, split=split, source="made up")


def counts(items, pairs):
    return count_contamination("bench", items, pairs)["counts"]


def none_but(**others):
    return {"prompt": 0, "prompt_and_response": 0, "prompt_words": 0, "response_words": 0} | others


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Who's  there?\n(Me!)", ["who", "s", "there", "me"]),
        ("ＡＢＣ ﬁne STRASSE straße", ["abc", "fine", "strasse", "strasse"]),
        ("snake_case v2.0", ["snake", "case", "v2", "0"]),
        ("你好 world", ["你", "好", "world"]),
        ("?! ...", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_an_equal_prompt_counts_in_spite_of_case_white_space_and_punctuation():
    training = [pair("what IS\n  a   plum")]
    assert counts([item("What is a plum?")], training) == none_but(prompt=1, prompt_words=1)
    assert counts([item("What is a pear?")], training) == none_but()
    assert counts([item("What is a")], training) == none_but()


def test_prompts_without_words_are_equal_only_with_equal_symbols():
    assert counts([item("?")], [pair("!")]) == none_but()
    assert counts([item(" ? ")], [pair("?")]) == none_but(prompt=1, prompt_words=1)


def test_turns_and_roles_count():
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    assert counts([item(turns)], [pair(turns)])["prompt"] == 1
    assert counts([item(turns)], [pair("Hello Hi Bye")])["prompt"] == 0
    system = [{"role": "system", "content": "Hello"}, *turns[1:]]
    assert counts([item(turns)], [pair(system)])["prompt"] == 0


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_response_counts_with_its_prompt_only(side):
    training = pair("What is a plum?", **{side: "A  FRUIT!"})
    assert counts([item("What is a plum?", ["A stone.", "A fruit."])], [training]) == none_but(
        prompt=1, prompt_and_response=1, prompt_words=1
    )
    assert counts([item("What is a pear?", ["A stone.", "A fruit."])], [training]) == none_but()
    elsewhere = [pair("What is a plum?"), pair("What is a pear?", **{side: "A fruit."})]
    assert counts([item("What is a plum?", ["A stone.", "A fruit."])], elsewhere)["prompt_and_response"] == 0


def test_thirteen_shared_words_count_and_twelve_do_not():
    benchmark = [item(f"Tell me whether {SENTENCE}, please.")]
    assert len(SENTENCE.split()) == 13
    assert counts(benchmark, [pair(f"Someone said {SENTENCE} yesterday")]) == none_but(prompt_words=1)
    assert counts(benchmark, [pair(f"Someone said {TWELVE} lake")]) == none_but()
    # The words must be neighbors.
    assert counts(benchmark, [pair(SENTENCE.replace("lazy", "very lazy"))]) == none_but()


@pytest.mark.parametrize("where", ["prompt", "chosen", "rejected"])
def test_every_training_text_is_searched(where):
    training = {"prompt": "Unlike", "chosen": "One.", "rejected": "Two."} | {where: f"So {SENTENCE}."}
    expected = none_but(prompt_words=1)
    assert counts([item(f"Is it true that {SENTENCE}?")], [pair(**training)]) == expected


def test_a_response_that_shares_words_counts_by_itself():
    report = count_contamination(
        "bench",
        [item("Unlike", ["Short.", f"I say {SENTENCE}."]), item("Other", item_id="b")],
        [pair("Question", chosen=f"Well, {SENTENCE}")],
    )
    assert report["counts"] == none_but(response_words=1)
    assert report["shares"]["response_words"] == 0.5
    assert report["examples"]["response_words"] == [
        {"item_id": "a", "pair_id": pair("Question", chosen=f"Well, {SENTENCE}").pair_id, "words": SENTENCE}
    ]


def test_a_text_of_eight_to_twelve_words_counts_if_all_of_it_occurs():
    eight = "one two three four five six seven eight"
    inside = [pair(f"zero {eight} nine")]
    assert counts([item(eight)], inside) == none_but(prompt_words=1)
    assert counts([item(f"{eight} ten")], inside) == none_but()
    assert counts([item("one two three four five six seven")], inside) == none_but()
    assert counts([item("Unlike", [eight, "No."])], inside) == none_but(response_words=1)


def test_ngrams_cross_turns_but_not_texts():
    first, second = " ".join(SENTENCE.split()[:6]), " ".join(SENTENCE.split()[6:])
    turns = [{"role": "user", "content": first}, {"role": "assistant", "content": second}]
    whole = [item(f"Read: {SENTENCE}")]
    assert counts(whole, [pair([*turns, {"role": "user", "content": "Go on"}])]) == none_but(prompt_words=1)
    for response in ("chosen", "rejected"):
        assert counts(whole, [pair(first, **{response: second})]) == none_but(prompt_words=1)
    assert counts(whole, [pair("Unlike", chosen=first, rejected=second)]) == none_but()
    assert counts(whole, [pair(second, chosen=first)]) == none_but()
    assert counts([item("Unlike", [first, second])], [pair(SENTENCE)]) == none_but()


def test_only_the_training_split_counts():
    training = [pair("What is a plum?", split="validation"), pair("What is a plum?", split="test")]
    report = count_contamination("bench", [item("What is a plum?")], training)
    assert report["counts"] == none_but()
    assert report["training_pairs"] == 0
    assert "overlap with 0 training pairs: none" in contamination_note(report)


def test_calls_count_as_words_and_tools_do_not():
    tools = stored_tools([{"name": "search", "description": SENTENCE}])
    ask = {"role": "user", "content": "Search for it."}
    call = with_records("", [{"name": "search", "arguments": {"query": SENTENCE}}])
    other = {"role": "user", "content": "What is the time?"}
    assert counts([item([tools, other])], [pair([tools, ask], call)]) == none_but()
    assert counts([item([tools, ask])], [pair([tools, ask])]) == none_but(prompt=1, prompt_words=1)
    assert counts([item([ask], ["No.", call])], [pair([other], call)]) == none_but(response_words=1)


def test_nothing_to_count():
    report = count_contamination("bench", [], [pair(SENTENCE)])
    assert (report["items"], report["counts"], report["shares"]["prompt"]) == (0, none_but(), 0.0)


def test_subsets_add_up():
    items = [item(SENTENCE, item_id="a", subset="x"), item("Unlike", item_id="b", subset="y")]
    report = count_contamination("bench", items, [pair(f"Hm, {SENTENCE}")])
    assert report["subsets"] == {
        "x": {"items": 1} | none_but(prompt_words=1),
        "y": {"items": 1} | none_but(),
    }


def random_texts(seed):
    """Texts over 4 words, so that many n-grams of 13 words repeat by chance or by copying."""
    generator = random.Random(seed)

    def text(length):
        return " ".join(generator.choice("abcd") for _ in range(length))

    pairs = [pair(text(generator.randint(1, 40)), text(20), text(20)) for _ in range(30)]
    items = []
    for number in range(40):
        source = generator.choice(pairs)
        cut = generator.randint(0, 12)
        prompt = source.prompt[0]["content"].split()[cut : cut + generator.randint(1, 30)] or ["z"]
        responses = [text(generator.randint(1, 16)), " ".join(source.chosen.split()[:cut]) or "z"]
        items.append(item(" ".join(prompt), responses, item_id=f"{number:03}", subset="xy"[number % 2]))
    return items, pairs


def plain_search(text, training):
    """Whether a text shares an n-gram, by comparing it with every training text."""
    length = min(len(text), 13)
    if length < 8:
        return False
    joined = [f" {' '.join(other)} " for other in training]
    grams = [f" {' '.join(text[start : start + length])} " for start in range(len(text) - length + 1)]
    return any(gram in other for gram in grams for other in joined)


@pytest.mark.parametrize("at_once", [1, 50, 2**20])
@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_what_a_plain_one_finds(seed, at_once, monkeypatch):
    monkeypatch.setattr(contamination, "_WORDS_AT_ONCE", at_once)
    items, pairs = random_texts(seed)
    training = []
    for one in pairs:
        prompt = words(one.prompt[0]["content"])
        training += [prompt + words(one.chosen), prompt + words(one.rejected)]
    equal = {" ".join(words(one.prompt[0]["content"])) for one in pairs}
    prompts = [words(one.prompt[0]["content"]) for one in items]
    expected_prompts = sum(" ".join(text) in equal or plain_search(text, training) for text in prompts)
    expected_responses = sum(any(plain_search(words(text), training) for text in one.responses) for one in items)
    report = count_contamination("bench", items, pairs)
    assert report["counts"]["prompt_words"] == expected_prompts
    assert report["counts"]["response_words"] == expected_responses
    assert 0 < expected_prompts < len(items)
    assert 0 < expected_responses < len(items)
    by_id = {one.pair_id: one for one in pairs}
    for example in report["examples"]["response_words"]:
        source = by_id[example["pair_id"]]
        texts = [f"{source.prompt[0]['content']} {answer}" for answer in (source.chosen, source.rejected)]
        assert any(f" {example['words']} " in f" {text} " for text in texts)


def test_the_order_has_no_influence():
    items, pairs = random_texts(7)
    report = count_contamination("bench", items, pairs)
    shuffled = count_contamination("bench", random.Random(1).sample(items, 40), random.Random(2).sample(pairs, 30))
    assert json.dumps(shuffled) == json.dumps(report)


def test_the_first_pair_is_named_whatever_the_chunks(monkeypatch):
    pairs = [pair(f"{number} {SENTENCE}") for number in range(20)]
    monkeypatch.setattr(contamination, "_WORDS_AT_ONCE", 40)
    report = count_contamination("bench", [item(f"Say {SENTENCE}")], pairs)
    assert report["examples"]["prompt_words"][0]["pair_id"] == min(one.pair_id for one in pairs)


def test_a_note_says_all_counts():
    items = [item("What is a plum?"), item(SENTENCE, item_id="b"), item("Unlike", [SENTENCE, "No."], item_id="c")]
    training = [pair("What is a plum?", "Yes it is."), pair(f"Hm, {SENTENCE}")]
    assert contamination_note(count_contamination("bench", items, training)) == (
        "bench, overlap with 2 training pairs: 1 of 3 prompts occur in them (1 with a response), 1 more prompts share "
        "13 words (or all of 8 to 12), and so do the responses of 1 items."
    )


def test_the_stored_report_is_checked(tmp_path):
    write_items([item("What is a plum?")], tmp_path / "items.parquet")
    write_pairs([pair("What is a plum?"), pair("Unlike", split="test")], tmp_path / "pairs.parquet")
    out = tmp_path / "out.json"
    report = write_contamination("bench", tmp_path / "items.parquet", tmp_path / "pairs.parquet", out)
    assert read_contamination(out)["counts"] == report["counts"] == none_but(prompt=1, prompt_words=1)
    assert set(report["hashes"]) == {"items", "pairs"}
    out.write_text(out.read_text().replace('"prompt": 1', '"prompt": 0'))
    with pytest.raises(DataError, match="edited"):
        read_contamination(out)


def test_the_command(tmp_path):
    write_items([item("What is a plum?")], tmp_path / "items.parquet")
    write_pairs([pair("What is a plum?")], tmp_path / "pairs.parquet")
    arguments = [
        "contamination",
        "--pairs",
        str(tmp_path / "pairs.parquet"),
        "--items",
        str(tmp_path / "items.parquet"),
    ]
    done = CliRunner().invoke(
        main, [*arguments, "--benchmark", "rm_bench", "--report", str(tmp_path / "out.json")], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert "rm_bench, overlap with 1 training pairs: 1 of 1 prompts occur in them" in done.output
    assert read_contamination(tmp_path / "out.json")["counts"]["prompt"] == 1
    done = CliRunner().invoke(main, [*arguments, "--benchmark", "rm_bnch", "--report", str(tmp_path / "none.json")])
    assert done.exit_code == 2
    assert "Did you mean 'rm_bench'" in done.output


def test_hashes_differ_by_the_order_of_words():
    """A sum without positions would call any 13 shared words an n-gram."""
    shuffled = SENTENCE.split()
    np.random.default_rng(0).shuffle(shuffled)
    assert counts([item(SENTENCE)], [pair(" ".join(shuffled))]) == none_but()
