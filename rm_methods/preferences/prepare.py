"""The prepare stage: read a data set, clean it, split it by prompt, and write the pairs and a report of all steps.

read -> duplicates -> splits -> leaks -> shuffle -> length limit (train) -> length balance (train) -> cap
-> label noise (train) -> write
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rm_methods.errors import DataError
from rm_methods.files import write_json
from rm_methods.preferences.balance import balance_length
from rm_methods.preferences.cards import card_for, card_for_test
from rm_methods.preferences.noise import flip_labels
from rm_methods.preferences.pair import PreferencePair, write_pairs
from rm_methods.preferences.pairing import pairing_lines
from rm_methods.preferences.read_report import ReadReport, form_text, tally_lines, unread_notes
from rm_methods.preferences.readers import read_dataset
from rm_methods.preferences.splits import (
    cap_pairs,
    check_groups,
    drop_duplicates,
    drop_leaks,
    longest_text,
    seeded_order,
    share_chosen_longer,
    split_train,
    summarize_splits,
)


def prepare(
    data: dict[str, Any], out_pairs: str | Path, out_report: str | Path, needed_splits: Iterable[str] = ()
) -> dict[str, Any]:
    """Prepare the preference data of an experiment.

    Args:
        data: the resolved section `data` of the configuration (rm_methods/config/config.schema.yaml).
        out_pairs: Parquet file of the pairs (`pair.write_pairs`), in training order.
        out_report: JSON file of the report.
        needed_splits: splits that a benchmark is made of, so that they must not be empty.

    Returns:
        the report: "dataset", "seed", "read" (`ReadReport.to_json`), "steps" (pairs before and after each, with
        counts), "splits" (`splits.summarize_splits`), "notes".

    Raises:
        ConfigError: with every problem of the reader's options.
        DataError: the data cannot be read, nothing is left to train on, or a requested split is empty.
    """
    pairs, report = prepared_pairs(data, needed_splits)
    write_pairs(pairs, out_pairs)
    write_json(out_report, report)
    return report


def prepared_pairs(
    data: dict[str, Any], needed_splits: Iterable[str] = ()
) -> tuple[list[PreferencePair], dict[str, Any]]:
    """What `prepare` writes: the pairs in training order, and the report.

    Args:
        data, needed_splits: as in `prepare`.

    Raises:
        ConfigError, DataError: as `prepare`.
    """
    card, root = card_for(data["dataset"], data["root"])
    pairs, options, read_report = read_pairs_of(data)
    pairs, steps, notes = _clean_and_split(pairs, data)
    check_groups(pairs)
    read = read_report.to_json()
    report = {
        "dataset": {
            "name": card.name,
            "title": card.title,
            "hub_id": card.hub_id,
            "revision": card.revision,
            "license": card.license,
            "citation": card.citation,
            "reader": card.reader,
            "options": options,
            "local": root is not None,
            "test_file": data["test"],
        },
        "seed": data["seed"],
        "read": read,
        "steps": steps,
        "splits": summarize_splits(pairs),
        "notes": read.pop("notes") + notes,
    }
    _check_not_empty(data, report, needed_splits)
    return pairs, report


def read_pairs_of(data: dict[str, Any]) -> tuple[list[PreferencePair], dict[str, Any], ReadReport]:
    """Read the data set and the file of test pairs, if one is named.

    `data.options` also hold for the file of test pairs if the data set is a file of pairs, too.

    Args:
        data: the resolved section `data` of the configuration.

    Returns:
        the pairs in reading order, those of the test file last; the resolved options; the report of all files.

    Raises:
        ConfigError: with every problem of the reader's options.
        DataError: the data cannot be read, or has two test splits.
    """
    card, root = card_for(data["dataset"], data["root"])
    pairs, options, report = read_dataset(card, root, data["options"])
    if data["test"] is None:
        return pairs, options, report
    if in_test := sum(pair.split == "test" for pair in pairs):
        raise DataError(
            f"data.test: names '{data['test']}', but the data set '{data['dataset']}' has a split test of {in_test} "
            "pairs. Only one can be the test split: remove data.test, or the split from the data set."
        )
    test_card, folder = card_for_test(data["test"])
    test_options = options if card.reader == test_card.reader else {}
    test_pairs, _, _ = read_dataset(test_card, folder, test_options, report)
    return pairs + test_pairs, options, report


def _clean_and_split(
    pairs: list[PreferencePair], data: dict[str, Any]
) -> tuple[list[PreferencePair], list[dict[str, Any]], list[str]]:
    """All steps after reading.

    Returns:
        the pairs, split by split (train first); the counts of each step; notes.
    """
    seed = data["seed"]
    steps = []
    unique, counts = drop_duplicates(pairs)
    steps.append(_step("duplicates", pairs, unique, counts))
    present = {pair.split for pair in unique}
    notes = [
        f"data.{split}_fraction is not used: the source has a {split} split."
        for split in ("validation", "test")
        if split in present and data[f"{split}_fraction"] > 0
    ]
    without_leaks, counts = drop_leaks(split_train(unique, data["validation_fraction"], data["test_fraction"], seed))
    steps.append(_step("leaks", unique, without_leaks, counts))

    splits = _by_split(seeded_order(without_leaks, seed, "order"))
    for limit in ("max_pairs", "max_characters"):
        for split in sorted(data[limit].keys() - splits.keys()):
            if data[limit][split] is not None:
                notes.append(f"data.{limit}.{split} is not used: no split has that name.")
    for split, members in splits.items():
        if limit := data["max_characters"].get(split):
            splits[split] = [pair for pair in members if longest_text(pair) <= limit]
            steps.append(_step(f"max_characters of {split} ({limit})", members, splits[split], {}))
    if data["length_balance"]:
        train = splits.get("train", [])
        balanced = balance_length(train, seed)
        shares = {
            "share_chosen_longer_before": share_chosen_longer(train),
            "share_chosen_longer_after": share_chosen_longer(balanced),
        }
        steps.append(_step("length balance of train", train, balanced, shares))
        splits["train"] = balanced
    for split, members in splits.items():
        keep_balance = data["length_balance"] and split == "train"
        splits[split] = cap_pairs(members, data["max_pairs"].get(split), keep_balance=keep_balance)
        if len(splits[split]) < len(members):
            steps.append(_step(f"max_pairs of {split}", members, splits[split], {}))
    noise = data["label_noise"]
    if noise["rate"] > 0:
        capped = splits.get("train", [])
        splits["train"], counts = flip_labels(capped, noise["rate"], noise["kind"], seed)
        name = f"label noise in train ({noise['kind']}, rate {noise['rate']})"
        steps.append(_step(name, capped, splits["train"], counts))
    return [pair for members in splits.values() for pair in members], steps, notes


def _step(
    name: str, before: list[PreferencePair], after: list[PreferencePair], counts: dict[str, Any]
) -> dict[str, Any]:
    return {"step": name, "before": len(before), "after": len(after), "counts": counts}


def _by_split(pairs: list[PreferencePair]) -> dict[str, list[PreferencePair]]:
    """Pairs by split, each in the order given: train, validation, then the others by name."""
    order = sorted({pair.split for pair in pairs}, key=lambda split: (split != "train", split != "validation", split))
    return {split: [pair for pair in pairs if pair.split == split] for split in order}


def _check_not_empty(data: dict[str, Any], report: dict[str, Any], needed_splits: Iterable[str]) -> None:
    requested = ["train"] + [split for split in ("validation", "test") if data[f"{split}_fraction"] > 0]
    if data["test"] is not None:
        requested.append("test")
    empty = [split for split in requested if split not in report["splits"]]
    missing = [split for split in needed_splits if split not in {*report["splits"], *empty}]
    if not empty and not missing:
        return
    if "train" in empty:
        problem = "nothing is left to train on."
    elif "test" in empty and data["test"] is not None:
        problem = f"no pair of data.test ('{data['test']}') is left, so the split test is empty. Name another file."
    elif not empty:
        split = missing[0]
        problem = f"a benchmark is made of the split {split}, but the data has none. {missing_split_remedy(split)}."
    else:
        problem = (
            f"the split {' and the split '.join(empty)} is empty. "
            "Raise data.<split>_fraction, or set it to 0 to do without the split."
        )
    raise DataError(f"Data set '{report['dataset']['name']}': {problem} The report of the rows:\n{describe(report)}")


def missing_split_remedy(split: str) -> str:
    """What to set so that prepared pairs have a split; for a split without a setting, what to leave out."""
    fraction = f"set data.{split}_fraction above 0, such as {split}_fraction: 0.1"
    if split == "test":
        return f"{fraction[0].upper()}{fraction[1:]}, or name a file of test pairs: data.test"
    if split == "validation":
        return f"{fraction[0].upper()}{fraction[1:]}"
    return f"Leave the split {split} out of the benchmark's options"


def describe(report: dict[str, Any]) -> str:
    """The report of `prepare` as text for a terminal."""
    dataset = report["dataset"]
    read = report["read"]
    source = dataset["name"]
    if dataset["hub_id"] is not None and not dataset["local"]:
        source += f", {dataset['hub_id']} at {dataset['revision'] or 'no fixed revision'}"
    lines = [f"{dataset['title']} ({source}; license: {dataset['license']})", "", f"Read{form_text(read['forms'])}"]
    lines += [f"  {count:>9,} rows   {file}" for file, count in read["files"].items()]
    lines += [f"  {read['pairs']:>9,} pairs made"]
    if read["pairing"]:
        lines += pairing_lines(read["pairing"])
    lines += tally_lines("dropped", read["dropped"])
    lines += tally_lines("put right", read["changed"])
    lines += [f"  {note}" for note in unread_notes(read["unread"])]
    lines += ["", "Steps"]
    for step in report["steps"]:
        counts = [
            f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
            for name, value in step["counts"].items()
        ]
        name = f"{step['step']}: {', '.join(counts)}" if counts else step["step"]
        lines.append(f"  {step['before']:>9,} -> {step['after']:,}   {name}")
    headings = f"{'':20}{'pairs':>9}{'prompts':>9}{'chosen longer':>15}{'flipped':>9}"
    lines += ["", "Splits", f"  {headings}   mean characters (prompt, chosen, rejected)"]
    for split, summary in report["splits"].items():
        share = f"{summary['share_chosen_longer']:.1%}"
        sizes = f"{summary['pairs']:>9,}{summary['groups']:>9,}{share:>15}{summary['flipped']:>9,}"
        characters = ", ".join(f"{value:,.0f}" for value in summary["mean_characters"].values())
        lines.append(f"  {split:20}{sizes}   {characters}")
    if report["notes"]:
        lines += ["", "Notes", *(f"  - {note}" for note in report["notes"])]
    return "\n".join(lines)
