"""The pairs that the preparation removed, in sentences: repetitions, contradictions, and prompts of two splits."""

from __future__ import annotations

from typing import Any

REMOVALS = ("duplicates", "leaks")


def removal_sentences(report: dict[str, Any]) -> list[str]:
    """The pairs that were removed because they are repeated, contradict others, or share a prompt with a test pair."""
    steps = [step for step in report["steps"] if step["step"] in REMOVALS]
    return [sentence for step in steps for sentence in removals(step, report["dataset"])]


def removals(step: dict[str, Any], dataset: dict[str, Any]) -> list[str]:
    """The removals of a step, a sentence each."""
    counts = step["counts"]
    if step["step"] == "leaks":
        by_split = {name.removesuffix("_pairs"): n for name, n in counts.items() if name.endswith("_pairs")}
        count = sum(by_split.values())
        where = "a test pair" if set(by_split) == {"validation"} else "a test or validation pair"
        parts = ", ".join(f"{n:,} of {split}" for split, n in by_split.items())
        shares = "shares" if count == 1 else "share"
        return [f"{_pairs(count)} ({parts}) {shares} a prompt with {where} and {_was(count)} removed."] if count else []
    sentences = []
    copies = counts["exact"]
    for name, count in counts.items():
        split, is_copy, kept_split = name.partition("_pairs_in_")
        if is_copy:
            copies -= count
            in_file = kept_split == "test" and dataset.get("test_file")
            where = "the test file" if in_file else f"the split {kept_split}"
            verb = "is" if count == 1 else "are"
            sentences.append(f"{_pairs(count, split)} {verb} also in {where} and {_was(count)} removed from {split}.")
    if copies:
        repeat = "repeats" if copies == 1 else "repeat"
        sentences.append(f"{_pairs(copies)} {repeat} another one exactly and {_was(copies)} removed.")
    if opposite := counts["contradictory"]:
        say = "contradicts" if opposite == 1 else "contradict"
        remark = "the data also has it with chosen and rejected exchanged"
        sentences.append(f"{_pairs(opposite)} {say} another one and {_was(opposite)} removed: {remark}.")
    return sentences


def _pairs(count: int, split: str = "") -> str:
    kind = {"train": "training "}.get(split, f"{split} " if split else "")
    return f"{count:,} {kind}pair{'' if count == 1 else 's'}"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"
