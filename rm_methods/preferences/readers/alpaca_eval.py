"""AlpacaEval (Li et al. 2023): annotations of a model's output against one baseline, by two GPT-4 annotators.

Source: https://github.com/tatsu-lab/alpaca_eval, ``results/<model>/<annotator>/annotations.json``. `preference` is a
number in [1, 2]: 2 means that output_2 is better, 1.5 is a tie. The older annotator (alpaca_eval_gpt4) gives 1, 2 or
1.5, and writes **0.0 for a draw**.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rm_methods.errors import DataError
from rm_methods.files import content_hash
from rm_methods.preferences.dataset_card import DatasetCard
from rm_methods.preferences.file_rows import Row, Unusable, checked_pair, number_column, source_rows, text_column
from rm_methods.preferences.pair import PreferencePair
from rm_methods.preferences.read_report import ReadReport

WEIGHTED = "weighted_alpaca_eval_gpt4_turbo"
DISCRETE = "alpaca_eval_gpt4"
TIE = 1.5
BY_INSTRUCTION = "by_instruction"  # the card's "split" of files that hold all instructions

OPTIONS: dict[str, dict[str, Any]] = {
    "annotators": {
        "type": "array",
        "items": {"enum": [WEIGHTED, DISCRETE]},
        "minItems": 1,
        "uniqueItems": True,
        "default": [WEIGHTED, DISCRETE],
        "description": "Whose annotations to read.",
    },
    "pairing": {
        "enum": ["baseline", "models", "both"],
        "default": "baseline",
        "description": "baseline: each annotation is one pair, model against baseline. models: outputs of two models "
        "on one instruction, ordered by their preferences against the same baseline by the same annotator. "
        "both: all of these.",
    },
    "minimum_strength": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.0,
        "description": "Drop annotations with |preference - 1.5| * 2 below this (pairing baseline).",
    },
    "minimum_difference": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 0.5,
        "description": "Least difference of the two preferences (pairing models).",
    },
    "pairs_per_instruction": {
        "type": "integer",
        "minimum": 1,
        "default": 10,
        "description": "Most pairs of models for an instruction and annotator, a fixed sample (pairing models).",
    },
}


@dataclass(frozen=True)
class Judgment:
    """One annotation: `model_output` against `baseline_output`, preference in [1, 2] with 2 for the model."""

    row: Row
    annotator: str
    instruction: str
    baseline_output: str
    model_output: str
    baseline: str
    model: str
    preference: float


def read(card: DatasetCard, root: Path | None, options: dict[str, Any], report: ReadReport) -> Iterator[PreferencePair]:
    """Read annotations as pairs.

    Annotations without a preference, ties, equal outputs and empty outputs are dropped and counted.

    Raises:
        DataError: a field is missing or of the wrong type, a preference is not in the annotator's range, or a file's
            path does not name the annotator.
    """
    judged: dict[tuple, list[Judgment]] = defaultdict(list)
    for row in source_rows(card, root, report):
        annotator = _annotator(row)
        if annotator not in options["annotators"]:
            report.drop("annotator not asked for", row.file, row.number)
            continue
        try:
            judgment = _judgment(row, annotator)
            if options["pairing"] != "baseline":
                judged[judgment.row.split, annotator, judgment.baseline, judgment.instruction].append(judgment)
            if options["pairing"] != "models":
                yield _against_baseline(card, judgment, options["minimum_strength"])
        except Unusable as problem:
            report.drop(problem.reason, row.file, row.number, problem.why)
    for judgments in judged.values():
        yield from _between_models(card, judgments, options, report)


def _annotator(row: Row) -> str:
    path = Path(row.file)
    if path.name.startswith("v1_pairs"):
        return DISCRETE
    if path.name.startswith("pairs"):
        return WEIGHTED
    for annotator in (WEIGHTED, DISCRETE):
        if path.parent.name == annotator:
            return annotator
    raise DataError(
        f"{row.file}: its path does not name the annotator. "
        f"Expected pairs_*, v1_pairs_*, or annotations.json in a folder {WEIGHTED} or {DISCRETE}."
    )


def _judgment(row: Row, annotator: str) -> Judgment:
    preference = number_column(row, "preference")
    if preference is None:
        raise Unusable("no preference")
    if annotator == DISCRETE and preference == 0.0:
        preference = TIE
    if not 1 <= preference <= 2 or (annotator == DISCRETE and preference not in (1, TIE, 2)):
        allowed = "1, 2, 1.5 or 0 (a draw)" if annotator == DISCRETE else "a number from 1 to 2"
        raise DataError(f"{row.file}, row {row.number}: preference is {preference}; {annotator} gives {allowed}.")
    instruction = text_column(row, "instruction")
    if not instruction.strip():
        raise Unusable("empty prompt")
    return Judgment(
        row=replace(row, split=instruction_split(instruction)) if row.split == BY_INSTRUCTION else row,
        annotator=annotator,
        instruction=instruction,
        baseline_output=text_column(row, "output_1"),
        model_output=text_column(row, "output_2"),
        baseline=text_column(row, "generator_1"),
        model=text_column(row, "generator_2"),
        preference=preference,
    )


def instruction_split(instruction: str) -> str:
    """The split of an instruction whose file does not name one.

    sha256(instruction) mod 100: below 70 train, below 85 validation, otherwise test.
    """
    bucket = int(hashlib.sha256(instruction.encode("utf-8")).hexdigest(), 16) % 100
    if bucket < 70:
        return "train"
    return "validation" if bucket < 85 else "test"


def _against_baseline(card: DatasetCard, judgment: Judgment, minimum_strength: float) -> PreferencePair:
    strength = abs(judgment.preference - TIE) * 2
    model_wins = judgment.preference > TIE
    baseline = (judgment.baseline, judgment.baseline_output)
    model = (judgment.model, judgment.model_output)
    winner, chosen = model if model_wins else baseline
    loser, rejected = baseline if model_wins else model
    # Checked before ties: two equal outputs are nearly always judged a tie, because they are equal.
    pair = checked_pair(
        judgment.row,
        [{"role": "user", "content": judgment.instruction}],
        chosen,
        rejected,
        source=f"{card.name}/{judgment.annotator}",
        strength=strength,
        meta={"chosen_model": winner, "rejected_model": loser},
    )
    if judgment.preference == TIE:
        raise Unusable("tie")
    if strength < minimum_strength:
        raise Unusable("strength below minimum_strength")
    return pair


def _between_models(
    card: DatasetCard, judgments: list[Judgment], options: dict[str, Any], report: ReadReport
) -> Iterator[PreferencePair]:
    """Pairs of two models' outputs on one instruction. A hash of the two models draws them, whatever the file order."""
    candidates = []
    instruction = content_hash(judgments[0].instruction)  # hashed once: the texts are long, and the candidates are many
    answered = []
    for judgment in judgments:
        if judgment.model_output.strip():
            answered.append(judgment)
        elif options["pairing"] == "models":  # otherwise it was counted against the baseline
            report.drop("empty response", judgment.row.file, judgment.row.number)
    for first, second in itertools.combinations(answered, 2):
        better, worse = (first, second) if first.preference > second.preference else (second, first)
        difference = better.preference - worse.preference
        if difference >= options["minimum_difference"] and better.model_output != worse.model_output:
            order = content_hash([instruction, *sorted([better.model, worse.model])])
            candidates.append((order, better, worse, difference))
    candidates.sort(key=lambda candidate: candidate[0])
    for _, better, worse, difference in candidates[: options["pairs_per_instruction"]]:
        yield checked_pair(
            better.row,
            [{"role": "user", "content": better.instruction}],
            better.model_output,
            worse.model_output,
            source=f"{card.name}/{better.annotator}/models",
            strength=difference,
            meta={"chosen_model": better.model, "rejected_model": worse.model},
        )
