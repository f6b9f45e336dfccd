"""The files that describe a run, key by key: `summary.json` of its training and `metrics.json` of its evaluation.

`rm_methods.stored` checks them where they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict


class RunIdentity(TypedDict):
    """The identity of a run; both files begin with it."""

    variant: str  # name of the entry of `methods` in the configuration
    method: str  # name of the method's card
    seed: int  # one of `seeds`
    run_key: str  # hash of everything that the run's result depends on (`depends_on`)


class RunData(TypedDict, total=False):
    """The training data of a run."""

    dataset: str  # `data.dataset`: a card's name or a path; or the sources of a mixture
    hash: str  # of the file of prepared pairs
    pairs: int | None  # training pairs in that file
    pairs_offered: int  # of them, after the method added pairs or left some out; absent without a training
    pairs_used: int  # of those offered, the pairs that it was trained on; the others are counted in `truncation`


class RunCost(TypedDict, total=False):
    """The computation of a run, over all ranks; zeros for a scorer without training."""

    wall_seconds: float  # of the training and the validation, with the earlier parts of a resumed run
    pairs_seen: int  # each pair once an epoch
    tokens: int  # of all sequences, as if each were computed alone, times the forwards that the method needs for a pair
    launched_tokens: int  # tokens that the forwards computed, with padding and fillers
    optimizer_steps: int
    forwards: int  # of micro-batches
    peak_memory_bytes: int  # of rank 0: of the GPU's memory; of main memory if training ran on the CPU
    device: str  # name of the GPU, "cpu", or "none" for a scorer without training
    world_size: int  # ranks


class ValidationMetrics(TypedDict, total=False):
    """Measures of the exported model on the pairs of split "validation"; empty without such pairs."""

    validation_accuracy: float  # share of pairs whose chosen response has the higher reward; ties are wrong
    validation_loss: float  # mean Bradley-Terry loss, in nats
    validation_pairs: int  # pairs that were scored
    validation_pairs_refused: int  # pairs that the chat template refuses; the key is absent if it refuses none
    validation_position_bias: float  # joint models: mean probability of the response that is read first, less 1/2


class FinalMetrics(ValidationMetrics, total=False):
    """`metrics` of summary.json."""

    train_loss: float | None  # the last that was logged; None for a run of no steps


class LayoutRecord(TypedDict):
    """The layout of batches in training."""

    used: str  # "packed" or "plain"
    probe: dict[str, float | str | None] | str  # what `LayoutProbe` measured, or why it did not


class Reduction(TypedDict):
    """Less memory for a training, because a micro-batch did not fit."""

    step: int  # optimizer steps that were made before
    tokens_per_microbatch: int  # the limit from then on
    gradient_checkpointing: bool  # whether activations are recomputed from then on, because a single pair did not fit
    because: str  # the error, or the estimate


class StepsRecord(TypedDict):
    """The optimizer steps of a training."""

    planned: int  # by the budget
    made: int  # fewer after early stopping
    kept: int  # the step whose weights were exported
    kept_because: str  # why that one
    stopped_because: str | None  # why the training stopped early; None if it made all planned steps


class TrainingRecords(TypedDict, total=False):
    """The report of a training, or of a method that combines runs."""

    truncation: dict[str, int]  # counts of what was cut, dropped or changed by the chat template
    training: dict[str, Any]  # section `training` as this seed used it; empty for a scorer without training
    noise: dict[str, int]  # counts of labels that were flipped; empty without label noise
    report: dict[str, Any]  # whatever the method reports
    layout: LayoutRecord
    steps: StepsRecord
    reductions: list[Reduction]  # absent if every micro-batch fitted
    live_run: str | None  # id of the MLflow run that was written during training, which the export completes


class RunSummary(RunIdentity, TrainingRecords, total=False):
    """`summary.json` of a training run, or of a scorer without weights."""

    experiment: str  # `experiment` of the configuration
    kind: str  # of the method's card: "trained", "joint", "combined", "external", "content_blind" or "computed"
    scalar_reward: bool  # whether a single response has a reward
    seed_free: bool  # whether all seeds give the same result
    settings: dict[str, Any]  # the method's settings, with defaults
    backbone: dict[str, Any]  # section `backbone`, and under "prepared" the record of its preparation
    data: RunData
    cost: RunCost
    metrics: FinalMetrics
    weights_hash: str  # of the weight files of the model, equal for equal weights; absent without weights
    depends_on: dict[str, Any]  # everything that the result depends on, by name
    provenance: dict[str, Any]  # commit, hash of the code, versions of packages, machine
    checksum: str  # hash of all other entries, which shows edits


class CalibrationBin(TypedDict):
    """Pairs of like confidence. Confidence is sigmoid(|margin|), that of the predicted response; from 0.5 to 1."""

    low: float  # least confidence of its pairs
    high: float  # largest
    n: int  # pairs
    mean_confidence: float
    accuracy: float  # share of right predictions; equal rewards count half


class Calibration(TypedDict):
    """How well sigmoid(margin) says whether the prediction on a pair is right (`rm_methods.benchmarks.calibration`)."""

    ece: float  # expected calibration error, from 0 to 1
    ece_if_calibrated: float  # what a calibrated model with these confidences would get by chance
    bins: list[CalibrationBin]  # of equal numbers of pairs, by confidence


class BenchmarkResult(TypedDict, total=False):
    """One benchmark in metrics.json."""

    metrics: dict[str, float | None]  # by name, from 0 to 1; None where a stratum of the metric has no items
    tie_rate: float | None  # share of the comparisons whose two float32 scores are equal
    tie_rule: str  # what a tie earns
    calibration: Calibration  # only where all items are pairs, and one has both scores
    n_scored: int  # items all of whose scores are finite
    n_total: int  # items
    n_truncated: int | None  # items with a response that was cut
    most_responses: int | None  # responses of the item with the most
    notes: list[str]  # remarks of the preparation of the items
    made_from: dict[str, str]  # hashes of the files "items", "scores" and, for `left_out`, "scores of member <seed>"
    # Only for a combined run that was evaluated together with its members:
    left_out: dict[str, list[float | None]]  # metrics of the combination without one member, one value a member
    left_out_seeds: list[int]  # seeds of the members left out, in the order of those values


class RunMetrics(RunIdentity, total=False):
    """`metrics.json` of an evaluated run."""

    benchmarks: dict[str, BenchmarkResult]  # by the benchmark's name
    checksum: str  # hash of all other entries, which shows edits


MANY_LEFT_OUT = 0.1  # of the training pairs; more is worth a warning


@dataclass(frozen=True)
class TrainedPairs:
    """The pairs that a run was trained on.

    Attributes:
        offered: pairs of the method: the training pairs, and those that it adds.
        used: pairs it was trained on.
        too_long: pairs left out because a response does not fit into `max_length`.
        refused: pairs left out because of the chat template: refused, or both responses with the same tokens.
        cut: pairs it was trained on with a response cut at its end.
        prompts_cut: pairs whose prompt was cut at its start.
        max_length: longest sequence in tokens; None if not recorded.
    """

    offered: int
    used: int
    too_long: int
    refused: int
    cut: int
    prompts_cut: int
    max_length: int | None

    @property
    def share_left_out(self) -> float:
        """Share of the pairs that it was not trained on."""
        return 1 - self.used / self.offered

    def __str__(self) -> str:
        limit = "max_length" if self.max_length is None else f"{self.max_length:,} tokens"
        remarks = {
            f"left out because a response does not fit into {limit}": self.too_long,
            "left out because of the chat template": self.refused,
            "with a response cut at its end": self.cut,
            "with a prompt cut at its start": self.prompts_cut,
        }
        counts = [f"{count:,} {remark}" for remark, count in remarks.items() if count]
        return "; ".join([f"{self.used:,} of {self.offered:,}", *counts])


def trained_pairs(summary: Mapping[str, Any]) -> TrainedPairs | None:
    """The pairs that a run was trained on; None without a training, and for results of older releases."""
    data = summary.get("data") or {}
    if not data.get("pairs_offered"):
        return None
    counts = summary.get("truncation", {})
    section = summary.get("training") or {}
    return TrainedPairs(
        offered=data["pairs_offered"],
        used=data["pairs_used"],
        too_long=counts.get("dropped_response_cut", 0) + counts.get("dropped_equal", 0),
        refused=counts.get("dropped_same_tokens", 0) + counts.get("dropped_refused", 0),
        cut=counts.get("responses_cut", 0) - counts.get("dropped_response_cut", 0),
        prompts_cut=counts.get("prompts_cut", 0),
        max_length=section.get("max_length") or (summary.get("backbone") or {}).get("max_length"),
    )
