"""The report of contamination: its content, and how it is read and put into words. Imports nothing that reads texts."""

from __future__ import annotations

import os
from typing import TypedDict, cast

from rm_methods.errors import DataError
from rm_methods.files import read_json
from rm_methods.stored import with_checksum


class Overlap(TypedDict):
    """Numbers of items that share texts with the training pairs; an item may count in each."""

    prompt: int  # the prompt is a training prompt
    prompt_and_response: int  # and under it, training has one of the item's responses, as chosen or rejected
    prompt_words: int  # the prompt is a training prompt, or shares an n-gram with a training text
    response_words: int  # one of the responses shares an n-gram with a training text, prompts included


COUNTS = ("prompt", "prompt_and_response", "prompt_words", "response_words")


class Example(TypedDict, total=False):
    """An item and the training pair that it shares a text with."""

    item_id: str
    pair_id: str
    words: str  # the shared n-gram, normalized; absent for equal prompts


class ContaminationReport(TypedDict, total=False):
    """The overlap of one benchmark with the training pairs."""

    benchmark: str
    ngram_words: int  # words of an n-gram
    least_words: int  # of a text that counts without being an equal prompt
    training_pairs: int
    items: int
    counts: Overlap
    shares: dict[str, float]  # counts / items, from 0 to 1; 0 without items
    subsets: dict[str, dict[str, int]]  # by subset: "items", and the counts
    examples: dict[str, list[Example]]  # by count: the first items by item_id, each with its first pair by pair_id
    hashes: dict[str, str]  # of the files "pairs" and "items"
    checksum: str  # hash of all other entries, which shows edits


def read_contamination(source: str | os.PathLike) -> ContaminationReport:
    """Read what `write_contamination` wrote.

    Raises:
        UserError: the file is missing or not JSON.
        DataError: it was edited, or is another file.
    """
    report = read_json(source)
    if not isinstance(report, dict) or report != with_checksum(report):
        raise DataError(
            f"{source}: not a report of contamination, or edited: 'checksum' does not fit the rest. "
            "Run the contamination stage again."
        )
    return cast(ContaminationReport, report)


def contamination_note(report: ContaminationReport) -> str:
    """The counts as a sentence for the notes below a table."""
    counts = report["counts"]
    size = f"{report['ngram_words']} words (or all of {report['least_words']} to {report['ngram_words'] - 1})"
    start = f"{report['benchmark']}, overlap with {report['training_pairs']:,} training pairs:"
    if not any(counts.values()):
        return f"{start} none. No prompt of {report['items']:,} items occurs in them, and no text shares {size}."
    more = counts["prompt_words"] - counts["prompt"]
    return (
        f"{start} {counts['prompt']:,} of {report['items']:,} prompts occur in them "
        f"({counts['prompt_and_response']:,} with a response), {more:,} more prompts share {size}, and so do the "
        f"responses of {counts['response_words']:,} items."
    )
