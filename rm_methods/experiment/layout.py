"""The folder of an experiment: every path and file name, in one place.  Imports nothing heavy, for the Snakefile."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rm_methods.config.variants import SAMPLES
from rm_methods.errors import UserError
from rm_methods.stored import score_report

TABLE_SUFFIXES = ("txt", "md", "tex", "csv")
FIGURE_SUFFIXES = ("png", "svg")
COMPARISON_FILES = (
    *(f"table.{suffix}" for suffix in TABLE_SUFFIXES),
    "contamination.csv",
    *(f"{stem}.{suffix}" for stem in ("comparison", "ranks", "reliability") for suffix in FIGURE_SUFFIXES),
)
TUNING_FILES = ("tuned.yaml", "table.txt", "table.md", "table.csv")
DIAGNOSTICS_TABLES = ("table.txt", "table.md", "table.csv", "table.tex")
DIAGNOSED_RUN_FILES = ("attention.parquet", "masking.parquet", "report.json")
DISTANCE_FILES = ("teacher.parquet", "teacher_maps.png")
DISTANCE_TABLES = ("teacher_distance.txt", "teacher_distance.md", "teacher_distance.csv", "teacher_distance.tex")
SUMMARY_RECORD = "comparison.json"

# Where each stage records the settings and the code that its results were made with, below the experiment's folder.
RECORDS = {
    "prepare": "data/made_with.json",
    "prepare_backbone": "data/backbone.made_with.json",
    "prepare_benchmark": "benchmarks/{benchmark}.made_with.json",
    "contamination": "benchmarks/{benchmark}.contamination.made_with.json",
    "train": "runs/{variant}/seed{seed}/made_with.json",
    "score": "scores/{variant}/seed{seed}/{benchmark}.made_with.json",
    "evaluate": "evaluation/{variant}/seed{seed}/made_with.json",
    "diagnose": "diagnostics/{variant}/seed{seed}/made_with.json",
    "diagnose_teacher": "diagnostics/{variant}/seed{seed}/teacher.made_with.json",
    "diagnose_summary": "diagnostics/made_with.json",
    "sft": "sft/made_with.json",
    "sample_pool": "pools/samples.made_with.json",
    "sample_references": "pools/references.made_with.json",
    "ppo": "ppo/{variant}/seed{seed}/made_with.json",
    "overoptimization": "overoptimization/made_with.json",
    "compare": "comparison/made_with.json",
    "html_report": "report.made_with.json",
    "tune": "tuning/made_with.json",
    "export": "tracking/made_with.json",
}


@dataclass(frozen=True)
class Layout:
    """Paths of an experiment's results.

    The names of variants, seeds and benchmarks may be wildcards of Snakemake, such as "{variant}".

    Attributes:
        folder: `<results>/<experiment>`, or a copy of it.
    """

    folder: Path

    @property
    def pairs(self) -> Path:
        """The prepared pairs."""
        return self.folder / "data" / "pairs.parquet"

    @property
    def pairs_report(self) -> Path:
        """Report on the rows of the data set."""
        return self.folder / "data" / "report.json"

    @property
    def backbone(self) -> Path:
        """Folder of the prepared backbone."""
        return self.folder / "data" / "backbone"

    @property
    def work(self) -> Path:
        """Folder of checkpoints and unfinished files."""
        return self.folder / "work"

    def items(self, name: str) -> Path:
        """Items of a benchmark or pool."""
        return self.folder / ("pools" if name == SAMPLES else "benchmarks") / f"{name}.parquet"

    def items_report(self, benchmark: str) -> Path:
        """Report on the rows of a benchmark."""
        return self.folder / "benchmarks" / f"{benchmark}.json"

    def contamination(self, benchmark: str) -> Path:
        """Overlap of a benchmark with the training pairs."""
        return self.folder / "benchmarks" / f"{benchmark}.contamination.json"

    def run(self, variant: str, seed: int | str) -> Path:
        """Folder of a training run."""
        return self.folder / "runs" / variant / f"seed{seed}"

    def model(self, variant: str, seed: int | str) -> Path:
        """Folder of a trained model, or of the description of a scorer."""
        return self.run(variant, seed) / "model"

    def training_log(self, variant: str, seed: int | str) -> Path:
        """Losses and other values by step."""
        return self.run(variant, seed) / "metrics.jsonl"

    def summary(self, variant: str, seed: int | str) -> Path:
        """The run card."""
        return self.run(variant, seed) / "summary.json"

    def scores(self, variant: str, seed: int | str, items: str) -> Path:
        """Score table of a run on a benchmark or pool."""
        return self.folder / "scores" / variant / f"seed{seed}" / f"{items}.parquet"

    def score_report(self, variant: str, seed: int | str, items: str) -> Path:
        """Report of the scoring, beside its score table."""
        return score_report(self.scores(variant, seed, items))

    def metrics(self, variant: str, seed: int | str) -> Path:
        """Metrics of a run on all benchmarks."""
        return self.folder / "evaluation" / variant / f"seed{seed}" / "metrics.json"

    def credits(self, variant: str, seed: int | str) -> Path:
        """Credits: the contribution of each item to each metric of a run."""
        return self.folder / "evaluation" / variant / f"seed{seed}" / "credits.parquet"

    def diagnosed_run(self, variant: str, seed: int | str) -> Path:
        """Folder of a run's diagnostics."""
        return self.folder / "diagnostics" / variant / f"seed{seed}"

    @property
    def diagnostics(self) -> Path:
        """Folder of the summary of all diagnostics."""
        return self.folder / "diagnostics"

    @property
    def fine_tuned(self) -> Path:
        """Folder of the fine-tuned policy: backbone/, policy/, metrics.jsonl, summary.json."""
        return self.folder / "sft"

    @property
    def references(self) -> Path:
        """Responses that PPO's rewards are centered and scaled on."""
        return self.folder / "pools" / "references.parquet"

    def ppo_run(self, variant: str, seed: int | str) -> Path:
        """Folder of a PPO run: policy/, metrics.jsonl, evaluation.parquet, summary.json."""
        return self.folder / "ppo" / variant / f"seed{seed}"

    @property
    def overoptimization(self) -> Path:
        """Folder of the summary of Best-of-N and PPO."""
        return self.folder / "overoptimization"

    @property
    def comparison(self) -> Path:
        """Folder of the comparison's tables and figures."""
        return self.folder / "comparison"

    @property
    def report(self) -> Path:
        """The report: one HTML page."""
        return self.folder / "report.html"

    @property
    def tuning(self) -> Path:
        """Folder of the tuned settings."""
        return self.folder / "tuning"

    @property
    def export(self) -> Path:
        """Record of the export to MLflow."""
        return self.folder / "tracking" / "export.json"

    @property
    def export_summary(self) -> Path:
        """Record of the runs in MLflow that sum up others, with the addresses of their pages."""
        return self.folder / "tracking" / SUMMARY_RECORD


def noise_figure_stem(benchmark: str, metric: str) -> str:
    """File name, without its suffix, of the figure of a metric against label noise."""
    return f"noise_{benchmark}_{metric}"


def pool_stem(pool: str) -> str:
    """Prefix of the names of a pool's files.

    Raises:
        UserError: the name of the pool cannot be part of a file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", pool):
        raise UserError(
            f"Pool name {pool!r} is not allowed; use letters, digits, '_', '-' and '.', and begin with a letter or "
            "digit."
        )
    return f"best_of_n_{pool}"


def best_of_n_files(pools: Sequence[str]) -> list[str]:
    """Names of everything that `summarize_best_of_n` writes for these pools."""
    per_pool = [f"{pool_stem(pool)}{suffix}" for pool in pools for suffix in (".png", ".svg", "_samples.md")]
    return [
        "best_of_n.csv",
        "best_of_n_runs.csv",
        *(f"best_of_n_table.{suffix}" for suffix in TABLE_SUFFIXES),
        *per_pool,
    ]


def ppo_files() -> list[str]:
    """Names of everything that `summarize_ppo` writes."""
    return ["ppo.csv", *(f"ppo_table.{suffix}" for suffix in TABLE_SUFFIXES), "ppo.png", "ppo.svg"]


def run_metrics(variant: str, seed: int) -> str:
    """Name of the file with the results of Best-of-N for one run, for the tracking store."""
    return f"runs/{variant}/seed{seed}.json"
