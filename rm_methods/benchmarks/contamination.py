"""Contamination: benchmark items whose texts also occur in the training pairs.

Texts are compared as sequences of words. N-grams of 13 words follow GPT-3's analysis (Brown et al. 2020, arXiv
2005.14165, appendix C), which uses 8 to 13 words, ignores punctuation and case, and calls a text contaminated if any of
its n-grams occurs in the training data. Each text counts with n-grams of 13 words. A text of 8 to 12 words counts if
all of it occurs. A shorter one counts only as an equal prompt: most collisions of so few words are chance.

Only the pairs are searched. What a backbone was pretrained on is unknown here.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rm_methods.benchmarks.contamination_report import COUNTS, ContaminationReport, Example
from rm_methods.benchmarks.item import BenchmarkItem, read_items
from rm_methods.files import file_hash, write_json
from rm_methods.preferences.pair import Message, PreferencePair, read_pairs
from rm_methods.preferences.tool_calls import TOOLS
from rm_methods.stored import with_checksum

NGRAM_WORDS = 13
LEAST_WORDS = 8
TRAINING_SPLIT = "train"
EXAMPLES_KEPT = 3  # of each count

# A run of letters and digits, or one Chinese character, because Chinese has no blanks between words.
_WORD = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3400-\u4dbf\u4e00-\u9fff]+")

_UNKNOWN = 0  # id of a training word that no benchmark text has, and of the gap between two training texts
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no word of an n-gram is lost modulo 2^64
_WORDS_AT_ONCE = 2**20  # training words that are hashed together


def words(text: str) -> list[str]:
    """The words of a text in Unicode's compatibility form (NFKC), case-folded.

    A word is a run of letters and digits, or one Chinese character. Everything between words (white space, punctuation,
    symbols, underscores) is dropped.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def count_contamination(
    benchmark: str, items: Sequence[BenchmarkItem], pairs: Sequence[PreferencePair]
) -> ContaminationReport:
    """Count the items of a benchmark whose texts occur in the training pairs. The order of either is irrelevant.

    The n-grams of the benchmark are kept in memory, about 20 bytes for each word, and the training texts pass by. They
    are compared by 64-bit hashes: about 10^19 comparisons of different n-grams give one false match. An n-gram may
    cross the turns of a prompt, and in training the end of the prompt.

    Args:
        pairs: those of the split "train" count.
    """
    ordered_items = sorted(items, key=lambda item: item.item_id)
    training = sorted((pair for pair in pairs if pair.split == TRAINING_SPLIT), key=lambda pair: pair.pair_id)
    equal_prompts, equal_responses = _equal_texts(ordered_items, training)
    ngrams = _NgramIndex(ordered_items)
    ngrams.search(training)
    prompt_ngrams, response_ngrams = ngrams.matches(training)
    by_count: dict[str, dict[int, Example]] = {
        "prompt": equal_prompts,
        "prompt_and_response": equal_responses,
        "prompt_words": equal_prompts | prompt_ngrams,
        "response_words": response_ngrams,
    }
    subsets: dict[str, dict[str, int]] = {}
    for number, item in enumerate(ordered_items):
        entry = subsets.setdefault(item.subset, {"items": 0, **dict.fromkeys(COUNTS, 0)})
        entry["items"] += 1
        for count in COUNTS:
            entry[count] += number in by_count[count]
    return {
        "benchmark": benchmark,
        "ngram_words": NGRAM_WORDS,
        "least_words": LEAST_WORDS,
        "training_pairs": len(training),
        "items": len(ordered_items),
        "counts": {
            "prompt": len(equal_prompts),
            "prompt_and_response": len(equal_responses),
            "prompt_words": len(by_count["prompt_words"]),
            "response_words": len(response_ngrams),
        },
        "shares": {count: len(by_count[count]) / max(len(ordered_items), 1) for count in COUNTS},
        "subsets": dict(sorted(subsets.items())),
        "examples": {count: _first_examples(by_count[count]) for count in COUNTS},
    }


def write_contamination(
    benchmark: str, items: str | os.PathLike, pairs: str | os.PathLike, out: str | os.PathLike
) -> ContaminationReport:
    """Count the overlap of a file of items with a file of prepared pairs, and write it as JSON.

    Raises:
        DataError: a file is missing or damaged.
    """
    report = count_contamination(benchmark, read_items(items), read_pairs(pairs, [TRAINING_SPLIT]))
    report["hashes"] = {"pairs": file_hash(pairs), "items": file_hash(items)}
    write_json(out, with_checksum(report))
    return report


def _first_examples(examples: dict[int, Example]) -> list[Example]:
    return [examples[number] for number in sorted(examples)[:EXAMPLES_KEPT]]


# Equal texts


def _text_key(text: str) -> str:
    """The words of a text, joined; a text without words keeps its symbols, so that "?" and "!" differ."""
    return " ".join(words(text)) or " ".join(text.split())


def _prompt_key(prompt: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], _text_key(message["content"])) for message in prompt)


def _equal_texts(
    items: Sequence[BenchmarkItem], training: Sequence[PreferencePair]
) -> tuple[dict[int, Example], dict[int, Example]]:
    """Items, by number, whose prompt is a training prompt; and those that also share a response under it."""
    keys = [_prompt_key(item.prompt) for item in items]
    benchmark_prompts = set(keys)
    first_pair: dict[Any, str] = {}
    for pair in training:
        prompt = _prompt_key(pair.prompt)
        if prompt not in benchmark_prompts:
            continue
        first_pair.setdefault(prompt, pair.pair_id)
        for response in (pair.chosen, pair.rejected):
            first_pair.setdefault((prompt, _text_key(response)), pair.pair_id)
    equal_prompts: dict[int, Example] = {}
    equal_responses: dict[int, Example] = {}
    for number, (item, prompt) in enumerate(zip(items, keys, strict=True)):
        if prompt not in first_pair:
            continue
        equal_prompts[number] = {"item_id": item.item_id, "pair_id": first_pair[prompt]}
        responses = [(prompt, _text_key(response)) for response in item.responses]
        shared = [first_pair[key] for key in responses if key in first_pair]
        if shared:
            equal_responses[number] = {"item_id": item.item_id, "pair_id": min(shared)}
    return equal_prompts, equal_responses


# N-grams


def _prompt_words(prompt: Sequence[Message]) -> list[str]:
    """The words of a prompt but for its tools: conversations about other things have the same tools."""
    return [word for message in prompt if message["role"] != TOOLS for word in words(message["content"])]


@dataclass
class _Ngrams:
    """The n-grams of one length.

    Attributes:
        starts: int64[number of n-grams], their first words among the words of the benchmark, increasing.
        keys: uint64[number of n-grams], their hashes.
        distinct: uint64[distinct hashes], increasing.
        pairs: int64[distinct hashes], number of the first training pair that has the n-gram; -1 for none.
    """

    starts: np.ndarray
    keys: np.ndarray
    distinct: np.ndarray
    pairs: np.ndarray


class _NgramIndex:
    """The n-grams of a benchmark, and the training pairs that have them.

    Args:
        items: of the benchmark.
    """

    def __init__(self, items: Sequence[BenchmarkItem]):
        self._items = items
        self._vocabulary: dict[str, int] = {}
        ids: list[np.ndarray] = []
        self._item_of_text: list[int] = []
        self._is_prompt: list[bool] = []
        for number, item in enumerate(items):
            prompt = _prompt_words(item.prompt)
            for position, text in enumerate((prompt, *map(words, item.responses))):
                ids.append(np.array([self._new_id(word) for word in text], dtype=np.int32))
                self._item_of_text.append(number)
                self._is_prompt.append(position == 0)
        self._words = list(self._vocabulary)
        lengths = np.array([len(text) for text in ids], dtype=np.int64)
        self._ids = np.concatenate([*ids, np.zeros(0, dtype=np.int32)])
        self._text_of_word = np.repeat(np.arange(len(ids), dtype=np.int32), lengths)
        # A random value for each word, and one for unknown words.
        generator = np.random.default_rng(0)
        self._values = generator.integers(2**64, size=len(self._vocabulary) + 1, dtype=np.uint64)
        self._ngrams = {length: self._ngrams_of(keys, lengths, length) for length, keys in self._keys(self._ids)}

    def _new_id(self, word: str) -> int:
        return self._vocabulary.setdefault(word, len(self._vocabulary) + 1)

    def _keys(self, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """For each length of an n-gram, the hash of every n-gram: sum over its words of value x multiplier^position."""
        values = self._values[ids]
        keys = np.zeros(len(ids), dtype=np.uint64)
        for length in range(1, NGRAM_WORDS + 1):
            count = max(len(ids) - length + 1, 0)
            factor = np.uint64(pow(_MULTIPLIER, length - 1, 2**64))
            keys = keys[:count] + values[length - 1 :] * factor
            if length >= LEAST_WORDS:
                yield length, keys

    def _ngrams_of(self, keys: np.ndarray, lengths: np.ndarray, length: int) -> _Ngrams:
        """The n-grams of this length that count: all of the full length, and shorter texts as a whole."""
        if length == NGRAM_WORDS:
            last = np.arange(len(keys)) + length - 1
            starts = np.flatnonzero(self._text_of_word[: len(keys)] == self._text_of_word[last])
        else:
            starts = (np.cumsum(lengths) - lengths)[lengths == length]
        distinct = np.unique(keys[starts])
        return _Ngrams(starts, keys[starts], distinct, np.full(len(distinct), -1, dtype=np.int64))

    def search(self, training: Sequence[PreferencePair]) -> None:
        """Look for the n-grams in the training texts; the first pair of each is kept."""
        ids: list[int] = []
        pair_of_word: list[int] = []
        for number, pair in enumerate(training):
            prompt = [self._id(word) for word in _prompt_words(pair.prompt)]
            chosen = [self._id(word) for word in words(pair.chosen)]
            rejected = [self._id(word) for word in words(pair.rejected)]
            # The second text repeats the end of the prompt only, which n-grams across its end need.
            text = [*prompt, *chosen, _UNKNOWN, *prompt[-(NGRAM_WORDS - 1) :], *rejected, _UNKNOWN]
            ids += text
            pair_of_word += [number] * len(text)
            if len(ids) >= _WORDS_AT_ONCE:
                self._search_chunk(ids, pair_of_word)
                ids = []
                pair_of_word = []
        self._search_chunk(ids, pair_of_word)

    def _id(self, word: str) -> int:
        return self._vocabulary.get(word, _UNKNOWN)

    def _search_chunk(self, ids: Sequence[int], pair_of_word: Sequence[int]) -> None:
        pairs = np.array(pair_of_word, dtype=np.int64)
        for length, keys in self._keys(np.array(ids, dtype=np.int32)):
            ngrams = self._ngrams[length]
            if not len(ngrams.distinct):
                continue
            rows = np.searchsorted(ngrams.distinct, keys)
            rows[rows == len(ngrams.distinct)] = 0
            matching = np.flatnonzero(ngrams.distinct[rows] == keys)
            matched_rows, first = np.unique(rows[matching], return_index=True)
            is_new = ngrams.pairs[matched_rows] < 0
            ngrams.pairs[matched_rows[is_new]] = pairs[matching[first[is_new]]]

    def matches(self, training: Sequence[PreferencePair]) -> tuple[dict[int, Example], dict[int, Example]]:
        """The items, by number, whose prompt shares an n-gram, and those with such a response: the first one of each.

        Args:
            training: as it was searched.
        """
        prompts: dict[int, Example] = {}
        responses: dict[int, Example] = {}
        for length, ngrams in self._ngrams.items():
            pairs = ngrams.pairs[np.searchsorted(ngrams.distinct, ngrams.keys)] if len(ngrams.keys) else ngrams.pairs
            matched = np.flatnonzero(pairs >= 0)
            texts, first = np.unique(self._text_of_word[ngrams.starts[matched]], return_index=True)
            for text, row in zip(texts.tolist(), matched[first].tolist(), strict=True):
                number = self._item_of_text[text]
                start = ngrams.starts[row]
                shared = [self._words[word - 1] for word in self._ids[start : start + length]]
                example: Example = {
                    "item_id": self._items[number].item_id,
                    "pair_id": training[pairs[row]].pair_id,
                    "words": " ".join(shared),
                }
                (prompts if self._is_prompt[text] else responses).setdefault(number, example)
        return prompts, responses
