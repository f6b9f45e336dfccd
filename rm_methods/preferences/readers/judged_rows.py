"""Rows of judged responses: a prompt with one or more responses and their scores, in four forms.

Ranked, with the rank of each response (the smallest is the best), or in the order of the list, best first:

    {"prompt": "Why?", "responses": ["Because.", "No.", "It rains."], "ranks": [2, 3, 1]}

Scored, as UltraFeedback is (https://huggingface.co/datasets/openbmb/UltraFeedback); a larger score is better:

    {"prompt": "Why?", "responses": ["Because.", "No."], "scores": [4.5, 1.0]}

The responses of both may be objects, as in UltraFeedback and NeMo RL
(https://docs.nvidia.com/nemo/rl/latest/guides/rm.html): {"response": "Because.", "score": 4.5}.

Ratings of two responses, as HelpSteer3 has (`readers.ratings`):

    {"prompt": "Why?", "response_a": "Because.", "response_b": "No.", "preference": "A"}

Pointwise, one response a row; a Boolean `label` is TRL's unpaired preference
(https://huggingface.co/docs/trl/dataset_formats#unpaired-preference):

    {"prompt": "Why?", "response": "Because.", "score": 4.5}
    {"prompt": "Why?", "completion": "Because.", "label": true}
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rm_methods.errors import DataError, nearest
from rm_methods.preferences.file_formats import shown, strict_json
from rm_methods.preferences.file_rows import Row, Unusable, check_prompt, number_column
from rm_methods.preferences.pair import Message
from rm_methods.preferences.pairing import JudgedResponse
from rm_methods.preferences.read_report import ReadReport
from rm_methods.preferences.readers.pairs import (
    PROMPT_COLUMNS,
    as_messages,
    only_answer,
    row_id_of,
    row_split,
    text_or_messages,
    with_system_turn,
)
from rm_methods.preferences.readers.ratings import rating_of
from rm_methods.preferences.tool_rows import with_tools

RANKED = "ranked"
SCORED = "scored"
RATINGS = "ratings"
POINTWISE = "pointwise"
PREFERENCE_COLUMNS = ("preference", "rating", "label")
RESPONSE_COLUMNS = ("response", "completion")
_TRUTH = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}


@dataclass(frozen=True)
class JudgedRow:
    """The content of one row.

    Attributes:
        row: the row of the file.
        prompt: the conversation up to the responses.
        responses: in the order of the row; with scores, larger is better.
        split: of the row.
        source: of its pairs.
        meta: further values of the source, for each pair that is made.
        strength: of the preference between two responses, where the row gives it and the scores do not; None: unknown.
    """

    row: Row
    prompt: list[Message]
    responses: list[JudgedResponse]
    split: str
    source: str
    meta: dict[str, Any] = field(default_factory=dict)
    strength: float | None = None


def judged_row(
    row: Row,
    form: str,
    options: dict[str, Any],
    report: ReadReport,
    *,
    source: str,
    first_use: dict[str, str],
    judged: bool = True,
) -> JudgedRow:
    """The content of a row of one of the four forms.

    Args:
        options: resolved options of the reader `preference_rows`.
        source: of the pairs made of the row.
        first_use: place of each id seen so far; gets the row's.
        judged: read the judgments; otherwise the responses alone, with scores None.

    Raises:
        DataError: a column is missing or of the wrong type, or two lists differ in length.
        Unusable: the row gives no response with a prompt.
    """
    # One prompt has several pointwise rows, which may all have the id of the prompt.
    row_id = "" if form == POINTWISE else row_id_of(row, options["id_field"], first_use)
    turns = _prompt(row, options["prompt_field"], report)
    prompt = with_system_turn(turns, row, options["system_field"], report)
    prompt = with_tools(prompt, row, options["tools_field"], report)
    check_prompt(prompt)
    content = _Content(row, turns, options, report)
    strength = None
    if form in (RANKED, SCORED):
        texts, scores = content.of_list(form, judged)
    elif form == RATINGS:
        texts, scores, strength = content.of_rating(judged)
    else:
        texts, scores = content.of_response(judged)
    return JudgedRow(
        row=row,
        prompt=prompt,
        responses=[
            JudgedResponse(text, score, row.file, row.number) for text, score in zip(texts, scores, strict=True)
        ],
        split=row.split or row_split(row, options["split_field"], report),
        source=source,
        meta={"id": row_id} if row_id else {},
        strength=strength,
    )


@dataclass(frozen=True)
class _Content:
    """Reads the responses of one row and their judgments.

    Attributes:
        row, options, report: as for `judged_row`.
        prompt: in the column of the prompt.
    """

    row: Row
    prompt: list[Message]
    options: dict[str, Any]
    report: ReadReport

    def of_list(self, form: str, judged: bool) -> tuple[list[str], list[float | None]]:
        """The texts and scores of a ranked or scored row."""
        elements = _list_column(self.row, self.options["responses_field"], "responses_field")
        texts = [self._text_of_element(element) for element in elements]
        if not judged:
            return texts, [None] * len(texts)
        if len(texts) < 2:
            raise Unusable("fewer than two responses")
        return texts, _list_scores(self.row, form, elements, self.options, self.report)

    def of_rating(self, judged: bool) -> tuple[list[str], list[float | None], float | None]:
        """The texts of responses A and B, 1 for the preferred one and 0 for the other or both, and the strength."""
        texts = [self._text_column(self.options[option], option) for option in ("response_a_field", "response_b_field")]
        if not judged:
            return texts, [None, None], None
        if texts[0] == texts[1]:
            raise Unusable("responses A and B are equal")
        name = column_of(self.row, "preference_field", PREFERENCE_COLUMNS, self.options)
        preferred, strength = rating_of(self.row, name, self.options)
        return texts, [float(preferred == side) for side in ("a", "b")], strength

    def of_response(self, judged: bool) -> tuple[list[str], list[float | None]]:
        """The text and the score of a pointwise row."""
        name = column_of(self.row, "response_field", RESPONSE_COLUMNS, self.options)
        text = self._text_column(name, "response_field")
        return [text], [_pointwise_score(self.row, self.options) if judged else None]

    def _text_column(self, name: str, option: str) -> str:
        if name not in self.row.fields:
            raise _missing(self.row, name, option)
        return self._answer(self.row, name)

    def _text_of_element(self, element: Any) -> str:
        """The text of one element of the list of responses; an element null is an empty response."""
        value = _member(self.row, element, "response_key", self.options) if is_object(element) else element
        if value is None:
            return ""
        row = self.row
        name = self.options["responses_field"]
        if not isinstance(value, (str, list, dict)):
            raise DataError(
                f"{row.file}, row {row.number}: field '{name}' holds {shown(value)}; each response must be text or a "
                "list of {role, content} messages."
            )
        return self._answer(Row(row.split, row.file, row.number, {name: value}), name)

    def _answer(self, row: Row, name: str) -> str:
        """A response in a column: text, one assistant message, or the conversation that begins with the prompt."""
        value = text_or_messages(row, name, self.report)
        if isinstance(value, str):
            return value
        size = len(self.prompt)
        repeats_prompt = len(value) > size and value[:size] == self.prompt
        if len(value) > 1 and not repeats_prompt:
            raise Unusable("a response of several turns does not begin with the prompt", f"field '{name}'")
        return only_answer(value[size:] if repeats_prompt else value)


def column_of(row: Row, option: str, names: Sequence[str], options: dict[str, Any]) -> str:
    """The column that an option names, or the one of several usual names that the row has.

    Raises:
        DataError: the row has none of them, or several.
    """
    wanted = [options[option]] if options[option] else names
    present = [name for name in wanted if name in row.fields]
    if len(present) == 1:
        return present[0]
    if present:
        raise DataError(
            f"{row.file}, row {row.number}: the columns {' and '.join(map(repr, present))} could both be meant. Name "
            f"one with data.options.{option}."
        )
    raise _missing(row, wanted[0], option)


def _missing(row: Row, name: str, option: str) -> DataError:
    return DataError(
        f"{row.file}, row {row.number}: field '{name}' is missing. If another column has it, name that column with "
        f"data.options.{option}. {nearest(name, row.fields, 'Found')}"
    )


def _prompt(row: Row, name: str | None, report: ReadReport) -> list[Message]:
    if name is None or name not in row.fields:
        usual = sorted(PROMPT_COLUMNS & set(row.fields))
        hint = f" The column '{usual[0]}' may be it." if usual else ""
        raise DataError(f"{_missing(row, name or 'prompt', 'prompt_field')}{hint}")
    prompt = text_or_messages(row, name, report)
    if isinstance(prompt, str) and prompt.lstrip().startswith("Human:"):
        report.note(
            "Prompts begin with 'Human:', like transcripts. They are read as one user turn, not split into turns."
        )
    return as_messages(prompt)


def is_object(element: Any) -> bool:
    """Whether an element of a list of responses is an object with keys, and not a message."""
    return isinstance(element, dict) and not element.keys() & {"role", "from"}


def _member(row: Row, element: Any, option: str, options: dict[str, Any]) -> Any:
    key = options[option]
    if not is_object(element) or key not in element:
        keys = element if is_object(element) else ()
        raise DataError(
            f"{row.file}, row {row.number}: a response in field '{options['responses_field']}' has no key '{key}'. "
            f"Name the key with data.options.{option}. {nearest(key, keys, 'Found')}"
        )
    return element[key]


def _list_column(row: Row, name: str, option: str) -> list[Any]:
    """A column of lists; a cell of CSV holds the list as JSON."""
    if name not in row.fields:
        raise _missing(row, name, option)
    value = row.fields[name]
    if value is None or value == "":
        raise Unusable(f"field '{name}' is null")
    if isinstance(value, str) and _is_csv(row):
        with contextlib.suppress(ValueError, RecursionError):  # reported below
            value = strict_json(value)
    if not isinstance(value, list):
        kind = "a list as JSON, such as [1, 2]" if _is_csv(row) else "a list"
        raise DataError(f"{row.file}, row {row.number}: field '{name}' is {shown(value)}; expected {kind}.")
    return value


def _is_csv(row: Row) -> bool:
    return row.file.lower().removesuffix(".gz").endswith(".csv")


def _list_scores(
    row: Row, form: str, elements: list[Any], options: dict[str, Any], report: ReadReport
) -> list[float | None]:
    """The score of each response of a list, larger is better; null for a response without one."""
    if form == SCORED:
        name = options["score_field"] or "scores"
        return _numbers(row, name, "score_field", "score_key", elements, options)
    if options["order_field"]:
        return _scores_of_order(row, options["order_field"], len(elements))
    name = options["rank_field"] or "ranks"
    if name not in row.fields and options["rank_field"] is None and not _all_have(elements, options["rank_key"]):
        return [float(-position) for position in range(len(elements))]  # best first
    ranks = _numbers(row, name, "rank_field", "rank_key", elements, options)
    if not _is_ranking([rank for rank in ranks if rank is not None]):
        report.change("ranks that skip a number: their order is used", row.file, row.number, f"{ranks}")
    return [None if rank is None else -rank for rank in ranks]


def _all_have(elements: list[Any], key: str) -> bool:
    return bool(elements) and all(is_object(element) and key in element for element in elements)


def _numbers(
    row: Row, name: str, field_option: str, key_option: str, elements: list[Any], options: dict[str, Any]
) -> list[float | None]:
    """A number for each response: from the list in a column, or else from the responses' objects."""
    if name in row.fields or options[field_option] or not any(map(is_object, elements)):
        values = _list_column(row, name, field_option)
        where = f"field '{name}'"
    else:
        values = [_member(row, element, key_option, options) for element in elements]
        where = f"key '{options[key_option]}'"
    if len(values) != len(elements):
        raise DataError(
            f"{row.file}, row {row.number}: {where} has {len(values)} entries, but field "
            f"'{options['responses_field']}' has {len(elements)} responses. Each response needs one; write null for a "
            "response without."
        )
    for position, value in enumerate(values, start=1):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not is_number:
            raise DataError(
                f"{row.file}, row {row.number}: {where}, entry {position} is {shown(value)}; expected a finite number."
            )
    return [None if value is None else float(value) for value in values]


def _scores_of_order(row: Row, name: str, size: int) -> list[float | None]:
    """Scores from the positions of the responses, best first, counted from 0 or from 1."""
    order = _list_column(row, name, "order_field")
    whole = all(isinstance(position, int) and not isinstance(position, bool) for position in order)
    for first in (0, 1):
        if whole and sorted(order) == list(range(first, first + size)):
            return [float(-order.index(position)) for position in range(first, first + size)]
    raise DataError(
        f"{row.file}, row {row.number}: field '{name}' is {shown(order)}; expected the positions of its {size} "
        f"responses, best first, each once, from 0 to {size - 1} or from 1 to {size}. If it holds the rank of "
        f"each response, set data.options.rank_field: {name} instead of order_field."
    )


def _is_ranking(ranks: list[float]) -> bool:
    """Whether ranks count on from 0 or 1, with ties in one of the usual ways: 1, 1, 2 or 1, 1, 3 or 1.5, 1.5, 3."""
    ordered = sorted(ranks)
    below = {rank: ordered.index(rank) for rank in ordered}
    distinct = sorted(below)
    for first in (0, 1):
        dense = all(rank == first + position for position, rank in enumerate(distinct))
        competition = all(rank == first + below[rank] for rank in ordered)
        mean = all(rank == first + below[rank] + (ordered.count(rank) - 1) / 2 for rank in ordered)
        if dense or competition or mean:
            return True
    return False


def _pointwise_score(row: Row, options: dict[str, Any]) -> float | None:
    """The score of a pointwise row; a label is 1 or 0."""
    score, label = options["score_field"], options["label_field"]
    if score is None and label is None:
        present = [name for name in ("score", "label") if name in row.fields]
        if len(present) == 2:
            raise DataError(
                f"{row.file}, row {row.number}: the columns 'score' and 'label' could both be the judgment. Set "
                "data.options.score_field: score or data.options.label_field: label."
            )
        label = "label" if present == ["label"] else None
    if label is not None:
        return _label(row, label)
    name = score or "score"
    if name not in row.fields:
        raise _missing(row, name, "score_field")
    return number_column(row, name)


def _label(row: Row, name: str) -> float | None:
    """1 for a column with true, 0 for one with false."""
    if name not in row.fields:
        raise _missing(row, name, "label_field")
    value = row.fields[name]
    if value is None or value == "":
        return None
    number = _TRUTH.get(str(value).strip().casefold()) if isinstance(value, (bool, str, int)) else None
    if number is None:
        raise DataError(
            f"{row.file}, row {row.number}: field '{name}' is {shown(value)}; a label is true or false. If it is a "
            f"score, set data.options.score_field: {name}."
        )
    return number
