"""Preference data in any of five forms of rows; the columns of a file tell which one it has.

* pairs: chosen and rejected (`readers.pairs`);
* ranked, scored, ratings and pointwise: judged responses (`readers.judged_rows`), which become pairs by the rule of
  `preferences.pairing`.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rm_methods.errors import ConfigError, DataError, nearest
from rm_methods.files import content_hash
from rm_methods.preferences.dataset_card import DatasetCard
from rm_methods.preferences.file_rows import SPLITS, Row, Unusable, first_names, source_rows
from rm_methods.preferences.pair import PreferencePair, make_pair, prompt_group
from rm_methods.preferences.pairing import (
    ALL,
    BEST_AND_WORST,
    JudgedResponse,
    PairingCounts,
    PairingRule,
    pair_responses,
)
from rm_methods.preferences.read_report import ReadReport
from rm_methods.preferences.readers import pairs as pair_rows
from rm_methods.preferences.readers.judged_rows import (
    POINTWISE,
    PREFERENCE_COLUMNS,
    RANKED,
    RATINGS,
    RESPONSE_COLUMNS,
    SCORED,
    JudgedRow,
    column_of,
    is_object,
    judged_row,
)
from rm_methods.preferences.readers.ratings import check_signs, signed_number

PAIRS = "pairs"
FORMS = (PAIRS, RANKED, SCORED, RATINGS, POINTWISE)
_PEEKED_ROWS = 100  # whose columns tell the form: a row of JSON lines may lack a column

_NAME = {"type": "string", "minLength": 1}
_OPTIONAL_NAME = {"type": ["string", "null"], "minLength": 1}
_VALUES = {
    "type": ["array", "null"],
    "items": {"type": ["string", "number", "boolean"]},
    "minItems": 1,
    "default": None,
}
_FORM: dict[str, dict[str, Any]] = {
    "form": {
        "enum": [*FORMS, None],
        "default": None,
        "description": "What a row is. pairs: chosen and rejected. ranked: a list of responses with ranks, or ordered "
        "best first. scored: a list of responses with scores. ratings: two responses and a preference. pointwise: one "
        "response and its score. null: the columns tell.",
    },
}
_LISTS: dict[str, dict[str, Any]] = {
    "responses_field": {**_NAME, "default": "responses", "description": "Column with the list of responses."},
    "response_key": {
        **_NAME,
        "default": "response",
        "description": "Key of the text, where the responses in the list are objects.",
    },
}
_RANKED: dict[str, dict[str, Any]] = {
    "rank_field": {
        **_OPTIONAL_NAME,
        "default": None,
        "description": "Column with the rank of each response; the smallest is the best. null: ranks.",
    },
    "rank_key": {
        **_NAME,
        "default": "rank",
        "description": "Key of the rank, where the responses in the list are objects.",
    },
    "order_field": {
        **_OPTIONAL_NAME,
        "default": None,
        "description": "Column with the positions of the responses, best first, from 0 or 1. null: none.",
    },
}
_SCORE: dict[str, dict[str, Any]] = {
    "score_field": {
        **_OPTIONAL_NAME,
        "default": None,
        "description": "Column with the score of each response (larger is better). null: scores, or for one response a "
        "row score.",
    },
}
_SCORED: dict[str, dict[str, Any]] = {
    "score_key": {
        **_NAME,
        "default": "score",
        "description": "Key of the score, where the responses in the list are objects.",
    },
}
_RATINGS: dict[str, dict[str, Any]] = {
    "response_a_field": {**_NAME, "default": "response_a", "description": "Column of response A."},
    "response_b_field": {**_NAME, "default": "response_b", "description": "Column of response B."},
    "preference_field": {
        **_OPTIONAL_NAME,
        "default": None,
        "description": "Column with the preference between A and B. null: preference, rating or label, whichever the "
        "file has.",
    },
    "positive_prefers": {
        "enum": ["a", "b", None],
        "default": None,
        "description": "The response that a positive number prefers. null: b, if a number of the file is negative.",
    },
    "prefers_a": {**_VALUES, "description": "Values that prefer A, instead of words and signed numbers. null: none."},
    "prefers_b": {**_VALUES, "description": "Values that prefer B. null: none."},
    "means_tie": {**_VALUES, "description": "Values that mean a tie. null: none."},
}
_POINTWISE: dict[str, dict[str, Any]] = {
    "response_field": {
        **_OPTIONAL_NAME,
        "default": None,
        "description": "Column of the response, one a row. null: response or completion, whichever the file has.",
    },
    "label_field": {
        **_OPTIONAL_NAME,
        "default": None,
        "description": "Column with a label, true for a good response, instead of a score. null: label.",
    },
}
_TIES: dict[str, dict[str, Any]] = {
    "ties": {
        "enum": ["drop", "error"],
        "default": "drop",
        "description": "Two responses with one score. drop: they make no pair, and are counted. error: the file is "
        "refused.",
    },
}
_PAIRING: dict[str, dict[str, Any]] = {
    "pairing": {
        "enum": [ALL, BEST_AND_WORST],
        "default": ALL,
        "description": "Pairs made of the responses to one prompt. all: every two with different scores. "
        "best_and_worst: one pair.",
    },
    "pairs_per_prompt": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "At most this many pairs a prompt, a sample fixed by the texts. null: no limit.",
    },
}
_SHARED = ("prompt_field", "system_field", "tools_field", "id_field", "split_field")
_SHARED_OPTIONS = {name: pair_rows.OPTIONS[name] for name in _SHARED}
OPTIONS_OF_FORM: dict[str, dict[str, dict[str, Any]]] = {
    PAIRS: pair_rows.OPTIONS,
    RANKED: _SHARED_OPTIONS | _LISTS | _RANKED | _PAIRING | _TIES,
    SCORED: _SHARED_OPTIONS | _LISTS | _SCORE | _SCORED | _PAIRING | _TIES,
    RATINGS: _SHARED_OPTIONS | _RATINGS | _TIES,
    POINTWISE: _SHARED_OPTIONS | _SCORE | _POINTWISE | _PAIRING | _TIES,
}
OPTIONS: dict[str, dict[str, Any]] = _FORM | {
    name: fragment for options in OPTIONS_OF_FORM.values() for name, fragment in options.items()
}


def read(card: DatasetCard, root: Path | None, options: dict[str, Any], report: ReadReport) -> Iterator[PreferencePair]:
    """Read rows of any of the five forms as pairs.

    Raises:
        ConfigError: options exclude each other.
        DataError: the columns fit no form or several, or a row is damaged; names file and row.
    """
    form = form_of(card, root, options)
    report.forms[card.name if root is None else str(root / card.name)] = form
    _note_unused(card.name, form, options, report)
    if form == PAIRS:
        yield from pair_rows.read(card, root, options, report)
        return
    rule = PairingRule(options["pairing"], options["pairs_per_prompt"], refuse_ties=options["ties"] == "error")
    report.pairing = report.pairing or PairingCounts()
    rows = judged_rows(card, root, form, options, report)
    report.pairing.prompts += len({content_hash(row.prompt) for row in rows})
    made = _pairs_of_prompts(rows, rule, report) if form == POINTWISE else _pairs_of_rows(rows, form, rule, report)
    splits = set()
    for pair in made:
        splits.add(pair.split)
        yield pair
    if others := sorted(splits - {*SPLITS, *card.splits}):
        report.note(
            f"Splits that nothing is trained on, because they are neither train nor validation: {first_names(others)}."
        )


def judged_rows(
    card: DatasetCard, root: Path | None, form: str, options: dict[str, Any], report: ReadReport, judged: bool = True
) -> list[JudgedRow]:
    """The rows of judged responses that can be read; the others are counted in the report.

    Args:
        judged: read the judgments, too; otherwise the scores are None.

    Raises:
        ConfigError, DataError: as `read`.
    """
    if form == RANKED and options["rank_field"] and options["order_field"]:
        raise ConfigError(["data.options: give rank_field or order_field, not both: each says which response is best."])
    if form == POINTWISE and options["score_field"] and options["label_field"]:
        raise ConfigError(["data.options: give score_field or label_field, not both: each is the judgment."])
    read_rows = []
    first_use: dict[str, str] = {}
    numbers: dict[float, str] = {}
    row = None
    for row in source_rows(card, root, report):
        try:
            source = f"{card.name}/{Path(row.file).name}" if root is not None else card.name
            read_rows.append(judged_row(row, form, options, report, source=source, first_use=first_use, judged=judged))
        except Unusable as problem:
            report.drop(problem.reason, row.file, row.number, problem.why)
            continue
        if form == RATINGS and judged:
            name = column_of(row, "preference_field", PREFERENCE_COLUMNS, options)
            number = signed_number(row, name, options)
            if number is not None:
                numbers.setdefault(number, f"{row.file}, row {row.number}: field '{name}'")
    if row is not None:
        pair_rows.check_named_columns(row, options, report)
    if options["positive_prefers"] is None:
        check_signs(numbers)
    return read_rows


# The form of a file


def form_of(card: DatasetCard, root: Path | None, options: dict[str, Any], judged: bool = True) -> str:
    """The form of the rows: `options["form"]`, or the only one that the columns of the first rows fit.

    Columns named chosen and rejected (or as the options call them) are pairs, whatever other columns there may be.

    Args:
        judged: the judgments must be in the file.

    Raises:
        DataError: the columns fit no form, or several.
    """
    rows = list(itertools.islice(source_rows(card, root, ReadReport()), _PEEKED_ROWS))
    if options["form"] is not None:
        if options["form"] == RANKED and rows:
            _check_order_is_meant(rows, options)
        return options["form"]
    columns = {name for row in rows for name in row.fields}
    pair_columns = {options["chosen_field"], options["rejected_field"]}
    if not rows or pair_columns <= columns:
        return PAIRS
    fitting = _fitting_forms(rows, columns, options, judged)
    if len(fitting) == 1:
        return fitting[0]
    file = rows[0].file
    if fitting:
        raise DataError(
            f"{file}: its columns fit the forms {' and '.join(fitting)}. Set data.options.form to one of them. "
            f"Found: {', '.join(sorted(columns))}."
        )
    if pair_columns & columns:
        return PAIRS  # whose reader says which column is missing
    raise DataError(f"{file}, row {rows[0].number}: {_no_form(columns, options)}")


def _fitting_forms(rows: Sequence[Row], columns: set[str], options: dict[str, Any], judged: bool) -> list[str]:
    """The forms of judged responses whose columns the rows have."""
    fitting = []
    responses = options["responses_field"]
    if responses in columns:
        keys = _keys_of_objects(rows, responses)
        if {options["rank_field"] or "ranks", options["order_field"]} & columns or options["rank_key"] in keys:
            fitting.append(RANKED)
        if (options["score_field"] or "scores") in columns or options["score_key"] in keys:
            fitting.append(SCORED)
        if not fitting and not judged:
            fitting.append(SCORED)
    if {options["response_a_field"], options["response_b_field"]} <= columns and (
        not judged or _named(options, "preference_field", PREFERENCE_COLUMNS) & columns
    ):
        fitting.append(RATINGS)
    if _named(options, "response_field", RESPONSE_COLUMNS) & columns:
        judgments = {options["score_field"] or "score", options["label_field"] or "label"}
        if not judged or judgments & columns:
            fitting.append(POINTWISE)
    return fitting


def _named(options: dict[str, Any], option: str, usual: Iterable[str]) -> set[str]:
    return {options[option]} if options[option] else set(usual)


def _keys_of_objects(rows: Sequence[Row], name: str) -> set[str]:
    """The keys of the objects in a column of lists."""
    values = [value for row in rows if isinstance(value := row.fields.get(name), list)]
    return {key for value in values for element in value if is_object(element) for key in element}


def _check_order_is_meant(rows: Sequence[Row], options: dict[str, Any]) -> None:
    """Refuse a column `ranking` that no option explains: it may hold ranks, or positions in the order of the ranks.

    Raises:
        DataError: with the two options.
    """
    columns = {name for row in rows for name in row.fields}
    unexplained = options["rank_field"] is None and options["order_field"] is None and "ranks" not in columns
    if "ranking" in columns and unexplained:
        raise DataError(f"{rows[0].file}: {_ranking_sentence()}")


def _ranking_sentence() -> str:
    return (
        "the column 'ranking' may mean two things. If it holds the rank of each response (the smallest is the best), "
        "set data.options.rank_field: ranking. If it holds the positions of the responses, best first, set "
        "data.options.order_field: ranking."
    )


def _no_form(columns: set[str], options: dict[str, Any]) -> str:
    """What is missing, for columns that fit no form."""
    shown = f"Found: {', '.join(sorted(columns)) or 'nothing'}."
    if options["responses_field"] in columns:
        if "ranking" in columns:
            return _ranking_sentence()
        return (
            f"no column says which of the responses in '{options['responses_field']}' is better. Name the column with "
            "data.options.score_field (larger is better) or rank_field (smaller is better); if the responses are "
            f"ordered best first, set data.options.form: ranked. {shown}"
        )
    if {options["response_a_field"], options["response_b_field"]} <= columns:
        return f"no column says which response is preferred. Name it with data.options.preference_field. {shown}"
    if response := sorted(_named(options, "response_field", RESPONSE_COLUMNS) & columns):
        return (
            f"no column has the score of '{response[0]}'. Name it with data.options.score_field, or with label_field "
            f"if it is true or false. {shown}"
        )
    chosen = options["chosen_field"]
    return (
        f"field '{chosen}' is missing. If another column has the chosen response, name it with "
        f"data.options.chosen_field. Rows that are not pairs need '{options['responses_field']}' with scores or ranks, "
        f"'{options['response_a_field']}' and '{options['response_b_field']}' with a preference, or 'response' with a "
        f"score. {nearest(chosen, columns, 'Found')}"
    )


def _note_unused(name: str, form: str, options: dict[str, Any], report: ReadReport) -> None:
    """Note options that were set and mean nothing for rows of this form."""
    unused = [
        option
        for option, fragment in OPTIONS.items()
        if options[option] != fragment["default"] and option not in {"form", *OPTIONS_OF_FORM[form]}
    ]
    if unused:
        report.note(f"Not used for {name}, whose rows have the form {form}: data.options.{', '.join(unused)}.")


# From judged responses to pairs


def _pairs_of_rows(
    rows: Iterable[JudgedRow], form: str, rule: PairingRule, report: ReadReport
) -> Iterator[PreferencePair]:
    """The pairs of rows that each hold all responses to compare."""
    assert report.pairing is not None
    for judged in rows:
        pairing = pair_responses(judged.responses, rule, report.pairing)
        if not pairing.pairs:
            reasons = Counter(reason for _, reason in pairing.unpaired)
            reason = next(iter(reasons)) if len(reasons) == 1 else "no two different responses with different scores"
            report.drop(reason, judged.row.file, judged.row.number)
        for better, worse in pairing.pairs:
            if form == RATINGS:
                yield _pair(judged, better, worse, judged.strength, {})
            else:
                yield _pair(judged, better, worse, *_difference(better, worse, form))


def _pairs_of_prompts(rows: Sequence[JudgedRow], rule: PairingRule, report: ReadReport) -> Iterator[PreferencePair]:
    """The pairs of rows with one response each, grouped by split and prompt."""
    assert report.pairing is not None
    by_prompt: dict[tuple[str, str], list[JudgedRow]] = defaultdict(list)
    for judged in rows:
        by_prompt[judged.split, content_hash(judged.prompt)].append(judged)
    _note_similar_prompts(by_prompt, report)
    for members in by_prompt.values():
        row_of = {id(judged.responses[0]): judged for judged in members}
        pairing = pair_responses([judged.responses[0] for judged in members], rule, report.pairing)
        for response, reason in pairing.unpaired:
            report.drop(reason, response.file, response.row)
        for better, worse in pairing.pairs:
            yield _pair(row_of[id(better)], better, worse, *_difference(better, worse, POINTWISE))


def _note_similar_prompts(by_prompt: dict[tuple[str, str], list[JudgedRow]], report: ReadReport) -> None:
    """Note prompts that are the same but for white space, case or Unicode form: their responses are not paired."""
    first: dict[tuple[str, str], JudgedRow] = {}
    similar = []
    for (split, _), members in by_prompt.items():
        earlier = first.setdefault((split, prompt_group(members[0].prompt)), members[0])
        if earlier is not members[0]:
            similar.append((members[0], earlier))
    if similar:
        later, earlier = similar[0]
        report.note(
            f"Prompts that differ from another one only in white space, case or Unicode form: {len(similar):,}. Their "
            f"responses are not paired with the other prompt's. E.g. {later.row.file}, row {later.row.number}, and row "
            f"{earlier.row.number}."
        )


def _difference(better: JudgedResponse, worse: JudgedResponse, form: str) -> tuple[float, dict[str, Any]]:
    """The strength of a pair, the difference of scores or ranks, and both of them.

    Raises:
        DataError: the difference is beyond all floats.
    """
    assert better.score is not None
    assert worse.score is not None
    strength = better.score - worse.score
    if not math.isfinite(strength):
        raise DataError(
            f"{better.file}, row {better.row}: the difference of the scores {[better.score, worse.score]} is beyond "
            "all floats."
        )
    if form == RANKED:
        return strength, {"chosen_rank": 0.0 - better.score, "rejected_rank": 0.0 - worse.score}
    return strength, {"chosen_score": better.score, "rejected_score": worse.score}


def _pair(
    judged: JudgedRow, better: JudgedResponse, worse: JudgedResponse, strength: float | None, values: dict[str, Any]
) -> PreferencePair:
    return make_pair(
        judged.prompt,
        better.text,
        worse.text,
        split=judged.split,
        source=judged.source,
        strength=strength,
        meta=judged.meta | values,
        file=judged.row.file,
        row=judged.row.number,
    )
