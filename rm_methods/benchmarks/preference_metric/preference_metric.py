"""The benchmarks' metrics as a module of the `evaluate` library, one configuration for each card; nothing is fetched.

    metric = evaluate.load("rm_methods/benchmarks/preference_metric", "rm_bench")
    label = '{"chosen": [0, 1, 2], "rejected": [3, 4, 5]}'
    metric.compute(predictions=[[...], ...], references=[label, ...], subsets=["chat", ...])

The figures are those of `rm_methods.benchmarks.metric_functions.benchmark_metrics`.

The loader of `evaluate` looks for imports line by line, so each import must be on one line.
"""

import json

import datasets
import evaluate

from rm_methods.benchmarks.cards import benchmark_module, load_benchmark_card
from rm_methods.benchmarks.metric_functions import benchmark_metrics, detail_keys
from rm_methods.errors import DataError

_DESCRIPTION = "The metrics of a reward model on this benchmark as published: its averages and its rule for ties."

_INPUTS = """
Args:
    predictions: for each item the scores of its responses, in the order of the item (float32; NaN: not scored, earns
        nothing).
    references: for each item its label as JSON text, as in the items file ('0', '"A>B"', '{"chosen": [0, 1, 2], ...}').
    subsets: for each item its subset, of: {subsets}.
{details}Returns:
    the metrics of the benchmark by name, most in [0, 1]. Equal scores: {ties}.
"""


class PreferenceMetric(evaluate.Metric):
    """One benchmark's metrics; the configuration name is the name of the benchmark's card."""

    def _info(self) -> evaluate.MetricInfo:
        card = load_benchmark_card(self.config_name)
        features = datasets.Features(
            {
                "predictions": datasets.Sequence(datasets.Value("float32")),
                "references": datasets.Value("string"),
                "subsets": datasets.Value("string"),
            }
        )
        inputs = _INPUTS.replace("{subsets}", ", ".join(card.subsets))
        inputs = inputs.replace("{ties}", benchmark_module(card).TIE_RULE)
        return evaluate.MetricInfo(
            description=f"{card.title}. {_DESCRIPTION}",
            citation=card.citation,
            inputs_description=inputs.replace("{details}", _details_text(detail_keys(card))),
            features=features,
            reference_urls=[card.url],
        )

    def _compute(self, predictions, references, subsets, details=None) -> dict[str, float]:
        labels = [_label(reference, row) for row, reference in enumerate(references, start=1)]
        return benchmark_metrics(self.config_name, predictions, labels, subsets, details=details)


def _details_text(keys: dict[str, str]) -> str:
    """The lines of the description for the argument `details`; none if the benchmark has none."""
    if not keys:
        return ""
    lines = ["    details: optional, given to `compute`: for each item a dictionary with"]
    lines += [f"        {key}: {meaning}" for key, meaning in keys.items()]
    return "".join(f"{line}\n" for line in lines)


def _label(reference: str, row: int):
    """The label of an item from its JSON text.

    Raises:
        DataError: it is not JSON.
    """
    try:
        return json.loads(reference)
    except ValueError:
        raise DataError(
            f"references, row {row}: {reference!r} is not JSON; text labels need their quotation marks."
        ) from None
