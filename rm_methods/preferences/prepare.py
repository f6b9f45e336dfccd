"""The prepare stage: read a data set, clean it, split it by prompt, and write the pairs and a report of all steps.

read -> duplicates -> splits -> leaks -> shuffle -> length limit (train) -> length balance (train) -> cap
-> label noise (train) -> write

In a mixture with weights, one draw from each source is the length balance and the cap of train (`mixture.draw`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rm_methods.errors import DataError
from rm_methods.files import write_json
from rm_methods.preferences.balance import balance_length
from rm_methods.preferences.cards import card_for_test, card_of, located
from rm_methods.preferences.data_sources import DataSource, data_sources, dataset_name, source_name
from rm_methods.preferences.dataset_card import DatasetCard
from rm_methods.preferences.mixture import (
    Snapshots,
    accounts_of,
    describe_sources,
    draw,
    fraction_notes,
    problems_of,
    split_sources,
)
from rm_methods.preferences.noise import flip_labels
from rm_methods.preferences.pair import PreferencePair, write_pairs
from rm_methods.preferences.pairing import pairing_lines
from rm_methods.preferences.read_report import ReadReport, form_text, tally_lines, unread_notes
from rm_methods.preferences.readers import read_dataset
from rm_methods.preferences.removals import REMOVALS, removals
from rm_methods.preferences.splits import (
    cap_pairs,
    check_groups,
    drop_duplicates,
    drop_leaks,
    longest_text,
    seeded_order,
    share_chosen_longer,
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
        counts), "splits" (`splits.summarize_splits`), "notes". Of a mixture also "sources": each with its origin,
        "rows", "refused" and "pairs" read, and what became of the pairs (`mixture.accounts_of`).

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
    pairs, origins, read_report = read_pairs_of(data)
    pairs, steps, notes, snapshots = _clean_and_split(pairs, data)
    check_groups(pairs)
    read = read_report.to_json()
    report = {
        "dataset": _described(data, origins) | {"test_file": data["test"]},
        "seed": data["seed"],
        "read": read,
        "steps": steps,
        "splits": summarize_splits(pairs),
        "notes": read.pop("notes") + notes,
    }
    if "sources" in data:
        accounts = accounts_of(data_sources(data), snapshots, pairs)
        report["sources"] = [origin | account for origin, account in zip(origins, accounts, strict=True)]
    _check_not_empty(data, report, needed_splits)
    return pairs, report


def read_pairs_of(data: dict[str, Any]) -> tuple[list[PreferencePair], list[dict[str, Any]], ReadReport]:
    """Read all sources, and the file of test pairs, if one is named.

    The options of the first source that is a file of pairs also hold for the file of test pairs.

    Args:
        data: the resolved section `data` of the configuration.

    Returns:
        the pairs in reading order, those of the test file last; the origin of each source (its card, options, and
        the rows and pairs read); the report of all files.

    Raises:
        ConfigError: with every problem of the readers' options.
        DataError: the data cannot be read, or has two test splits.
    """
    sources = data_sources(data)
    report = ReadReport()
    pairs: list[PreferencePair] = []
    origins = []
    for source in sources:
        card, root = card_of(source)
        rows, refused = report.rows, report.refused
        with located(source):
            members, options, _ = read_dataset(card, root, source.options, report)
        counts = {"rows": report.rows - rows, "refused": report.refused - refused, "pairs": len(members)}
        origins.append(_origin(card, root, options) | counts)
        pairs += _named(members, card, source)
    if data["test"] is None:
        return pairs, origins, report
    for source in sources:
        in_test = sum(pair.split == "test" and source.name in ("", source_name(pair.source)) for pair in pairs)
        if in_test:
            raise DataError(
                f"data.test: names '{data['test']}', but the data set '{source.dataset}' has a split test of {in_test} "
                "pairs. Only one can be the test split: remove data.test, or the split from the data set."
            )
    test_card, folder = card_for_test(data["test"])
    test_options: dict[str, Any] = next(
        (origin["options"] for origin in origins if origin["reader"] == test_card.reader), {}
    )
    test_pairs, _, _ = read_dataset(test_card, folder, test_options, report)
    return pairs + test_pairs, origins, report


def _origin(card: DatasetCard, root: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """The source of a data set, for the report."""
    return {
        "name": card.name,
        "title": card.title,
        "hub_id": card.hub_id,
        "revision": card.revision,
        "license": card.license,
        "citation": card.citation,
        "reader": card.reader,
        "options": options,
        "local": root is not None,
    }


def _described(data: dict[str, Any], origins: list[dict[str, Any]]) -> dict[str, Any]:
    """The origin of the whole data: that of a single data set, or what the sources of a mixture have in common."""
    if "sources" not in data:
        return {key: value for key, value in origins[0].items() if key not in ("rows", "refused", "pairs")}

    def all_of(key: str) -> str:
        return "; ".join(dict.fromkeys(origin[key] for origin in origins))

    count = len(origins)
    return {
        "name": dataset_name(data),
        "title": f"a mixture of {count} source{'s' if count != 1 else ''}",
        "hub_id": None,
        "revision": None,
        "license": all_of("license"),
        "citation": all_of("citation"),
        "reader": all_of("reader"),
        "local": all(origin["local"] for origin in origins),
    }


def _named(pairs: list[PreferencePair], card: DatasetCard, source: DataSource) -> list[PreferencePair]:
    """The pairs of a source, whose `PreferencePair.source` begins with the name that the source has in the mixture."""
    if not source.name:
        return pairs
    named = []
    for pair in pairs:
        first, slash, rest = pair.source.partition("/")
        if first != source.name:
            # The controlled world's pairs have its name, whatever the name of the card.
            below = f"{slash}{rest}" if first == card.name else f"/{pair.source}"
            pair = replace(pair, source=f"{source.name}{below}")
        named.append(pair)
    return named


def _clean_and_split(
    pairs: list[PreferencePair], data: dict[str, Any]
) -> tuple[list[PreferencePair], list[dict[str, Any]], list[str], Snapshots]:
    """All steps after reading.

    Returns:
        the pairs, split by split (train first); the counts of each step; notes; the pairs between steps.
    """
    seed = data["seed"]
    sources = data_sources(data)
    steps = []
    unique, counts = drop_duplicates(pairs)
    steps.append(_step("duplicates", pairs, unique, counts))
    notes = fraction_notes(unique, sources, data)
    without_leaks, counts = drop_leaks(split_sources(unique, data["validation_fraction"], data["test_fraction"], seed))
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
    snapshots = Snapshots(read=pairs, unique=unique, left=without_leaks, available=splits.get("train", []))
    if any(source.weight is not None for source in sources):
        steps.append(_draw_train(splits, sources, data))
    elif data["length_balance"]:
        train = splits.get("train", [])
        balanced = balance_length(train, seed)
        steps.append(_step("length balance of train", train, balanced, _shares_of_longer(train, balanced)))
        splits["train"] = balanced
    for split in data["length_balanced_splits"]:
        if split not in splits:
            notes.append(f"data.length_balanced_splits: '{split}' is not used: no split has that name.")
            continue
        members = splits[split]
        splits[split] = balance_length(members, seed)
        steps.append(
            _step(f"length balance of {split}", members, splits[split], _shares_of_longer(members, splits[split]))
        )
    balanced_splits = {*data["length_balanced_splits"], *(["train"] if data["length_balance"] else [])}
    for split, members in splits.items():
        keep_balance = split in balanced_splits
        splits[split] = cap_pairs(members, data["max_pairs"].get(split), keep_balance=keep_balance)
        if len(splits[split]) < len(members):
            steps.append(_step(f"max_pairs of {split}", members, splits[split], {}))
    noise = data["label_noise"]
    if noise["rate"] > 0:
        capped = splits.get("train", [])
        splits["train"], counts = flip_labels(capped, noise["rate"], noise["kind"], seed)
        name = f"label noise in train ({noise['kind']}, rate {noise['rate']})"
        steps.append(_step(name, capped, splits["train"], counts))
    return [pair for members in splits.values() for pair in members], steps, notes, snapshots


def _draw_train(
    splits: dict[str, list[PreferencePair]], sources: list[DataSource], data: dict[str, Any]
) -> dict[str, Any]:
    """Draw the training pairs of a mixture by the weights of its sources; returns the step."""
    train = splits.get("train", [])
    is_balanced = data["length_balance"]
    limit = data["max_pairs"].get("train")
    drawn = draw(train, sources, data["seed"], limit=limit, length_balance=is_balanced)
    splits["train"] = drawn
    name = "mixture of train" + (", balanced by length" if is_balanced else "")
    return _step(name, train, drawn, _shares_of_longer(train, drawn) if is_balanced else {})


def _shares_of_longer(before: list[PreferencePair], after: list[PreferencePair]) -> dict[str, float | None]:
    return {
        "share_chosen_longer_before": share_chosen_longer(before),
        "share_chosen_longer_after": share_chosen_longer(after),
    }


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
    name = report["dataset"]["name"]
    if "sources" in report and (problems := problems_of(report["sources"], data_sources(data))):
        raise DataError(f"Mixture '{name}': {' '.join(problems)} The report of the rows:\n{describe(report)}")
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
    raise DataError(f"Data set '{name}': {problem} The report of the rows:\n{describe(report)}")


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
    lines += describe_sources(report["sources"]) if "sources" in report else []
    lines += ["", "Steps"]
    for step in report["steps"]:
        if step["step"] in REMOVALS:
            lines.append(f"  {step['before']:>9,} -> {step['after']:,}   {step['step']}")
            lines += [f"            {sentence}" for sentence in removals(step, dataset)]
            continue
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
