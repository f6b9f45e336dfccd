"""The benchmarks' metrics as a module of the `evaluate` library; it runs the same code as `rm-methods evaluate`.

    metric = evaluate.load("rm_methods/benchmarks/preference_metric", "rm_bench")
    label = '{"chosen": [0, 1, 2], "rejected": [3, 4, 5]}'
    metric.compute(predictions=[[...], ...], references=[label, ...], subsets=["chat", ...])

The loader of `evaluate` looks for imports line by line, so each import must be on one line.
"""

import json

import datasets
import evaluate

from rm_methods.benchmarks.cards import load_benchmark_card
from rm_methods.benchmarks.evaluation import credit_table, metric_values, usable_scores
from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import DataError

_DESCRIPTION = (
    "Accuracy of a reward model on a preference benchmark, with the averages and the tie rule of the benchmark's "
    "official code."
)

_INPUTS = """
Args:
    predictions: for each item the scores of its responses, in the order of the item (float32; NaN: not scored, earns
        nothing).
    references: for each item its label as JSON text, as in the items file ('0', '"A>B"', '{"chosen": [0, 1, 2], ...}').
    subsets: for each item its subset.
Returns:
    the metrics of the benchmark by name, in [0, 1]; not the length-controlled ones, which need the texts of the
    responses.
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
        return evaluate.MetricInfo(
            description=f"{card.title}. {_DESCRIPTION}",
            citation=card.citation,
            inputs_description=_INPUTS,
            features=features,
            reference_urls=[card.url],
        )

    def _compute(self, predictions, references, subsets) -> dict[str, float]:
        items = []
        rows = zip(predictions, references, subsets, strict=True)
        for row, (scores, reference, subset) in enumerate(rows, start=1):
            try:
                label = json.loads(reference)
            except ValueError:
                raise DataError(
                    f"references, row {row}: {reference!r} is not JSON; text labels need their quotation marks."
                ) from None
            items.append(BenchmarkItem(f"row {row}", subset, (), [""] * len(scores), label))
        usable = [usable_scores(scores) for scores in predictions]
        return metric_values(credit_table(load_benchmark_card(self.config_name), items, usable))
