"""The files of an experiment: one place that knows the folder layout, for the workflow and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_methods.config.resolve import runs
from rm_methods.config.variants import SAMPLES, optimised_variants
from rm_methods.errors import UserError
from rm_methods.files import canonical_json, file_hash, named_file_hash
from rm_methods.methods.registry import load_card
from rm_methods.system.deepspeed import own_file_hash
from rm_methods.system.provenance import code_hash


class Experiment:
    """Paths below `<results>/<experiment>/` (see docs/architecture.md).

    Args:
        config: resolved configuration.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        self.folder = Path(config["results"]) / config["experiment"]

    def runs(self) -> list[tuple[str, int]]:
        """(variant, seed) of every run."""
        return runs(self.config)

    def is_trained(self, variant: str) -> bool:
        """Whether a variant's weights are trained (and so need the backbone, and a GPU where there is one)."""
        return self._method(variant).has_weights

    def scores_with_a_model(self, variant: str) -> bool:
        """Whether scoring loads a model (and takes a GPU where there is one)."""
        return self._method(variant).kind != "content_blind"

    def required_runs(self, variant: str, seed: int | str) -> dict[str, list[Path]]:
        """Model folders of the runs that this one needs, by the setting that names their variant."""
        card, everywhere = self._method(variant), self.config["seeds"]
        seeds = {"same": [seed], "first": everywhere[:1], "all": everywhere}
        return {
            key: [
                self.folder / "runs" / other / f"seed{s}" / "model"
                for s in seeds[card.requires[key].get("seeds", "same")]
            ]
            for key, other in card.required_variants(self.config["methods"][variant]["settings"]).items()
        }

    def data_sources(self) -> list[str]:
        """Local files that the pairs are made of; none for data of the hub or of a generator."""
        from rm_methods.preferences.cards import card_for
        from rm_methods.preferences.file_rows import find_files

        data = self.config["data"]
        card, root = card_for(data["dataset"], data["root"])
        if root is None:
            return []
        return sorted({str(path) for source in card.splits.values() for path in find_files(root, source)})

    def data_settings(self) -> str:
        """What the pairs depend on, beside their files, as one text: the section `data` and the data set's card."""
        from rm_methods.preferences.cards import card_file, list_cards

        name = self.config["data"]["dataset"]
        return canonical_json([self.config["data"], file_hash(card_file(name)) if name in list_cards() else None])

    def benchmark_sources(self, benchmark: str) -> list[str]:
        """Local files that a benchmark is made of."""
        from rm_methods.benchmarks.cards import load_card as load_benchmark_card

        root = self.config["benchmarks"][benchmark]["root"]
        if root is None:
            return []
        globs = load_benchmark_card(benchmark).files.values()
        return sorted({str(path) for glob in globs for path in Path(root).expanduser().glob(glob) if path.is_file()})

    def benchmark_settings(self, benchmark: str) -> str:
        """What a benchmark's items depend on, beside their files, as one text: its section and its card."""
        from rm_methods.benchmarks.cards import card_file

        return canonical_json([self.config["benchmarks"][benchmark], file_hash(card_file(benchmark))])

    def backbone_settings(self) -> str:
        """What the prepared backbone depends on, as one text: its section and the text of its chat template."""
        return canonical_json([self.config["backbone"], named_file_hash(self.config["backbone"]["chat_template"])])

    def optimised_runs(self) -> list[tuple[str, int]]:
        """(variant, seed) of the runs that Best-of-N picks with."""
        wanted = optimised_variants(self.config)
        return [(variant, seed) for variant, seed in self.runs() if variant in wanted]

    def ppo_runs(self) -> list[tuple[str, int]]:
        """(variant, seed) of the runs that PPO optimises against."""
        ppo = self.config["overoptimization"]["ppo"]
        if not ppo["enabled"]:
            return []
        # Every seed, also where the reward model has none: PPO itself is random.
        return [
            (variant, seed) for variant in dict(self.optimised_runs()) for seed in ppo["seeds"] or self.config["seeds"]
        ]

    def model_of(self, variant: str, seed: int | str) -> Path:
        """Model folder of the run that PPO with this seed optimises against; all seeds share that of a variant without seeds."""
        own = self.config["seeds"][0] if self._method(variant).seed_free else seed
        return self.folder / "runs" / variant / f"seed{own}" / "model"

    def is_optimised(self) -> bool:
        """Whether there is any over-optimisation to summarise."""
        return bool(self.pools()) or bool(self.ppo_runs())

    def pools(self) -> list[str]:
        """Names of the pools of Best-of-N."""
        return self.config["overoptimization"]["best_of_n"]["pools"]

    def policy_settings(self) -> list:
        """The part of the configuration that the policy depends on."""
        settings = self.config["overoptimization"]
        policy = settings["policy"] or self.config["backbone"]
        return [policy, settings["sft"], settings["sampling"]["max_prompt_tokens"], self.config["seeds"][0]]

    def pool_settings(self) -> list:
        """The part of the configuration that the stored samples depend on, beside the policy."""
        settings = self.config["overoptimization"]
        asked = {key: value for key, value in settings["best_of_n"].items() if key != "pools"}
        gold = [settings["gold"], self._gold_scoring()]
        return [asked, settings["sampling"], gold, settings["prompts"], self.config["seeds"][0]]

    def reference_settings(self) -> list:
        """The part of the configuration that the references depend on, beside the policy."""
        settings = self.config["overoptimization"]
        asked = [settings["ppo"][key] for key in ("train_prompts", "references_per_prompt")]
        return [*asked, settings["best_of_n"]["batch_size"], settings["sampling"], self.config["seeds"][0]]

    def diagnose_settings(self) -> list:
        """The part of the configuration that the diagnostics of a run depend on, beside the model and the items."""
        return [
            {key: value for key, value in self.config["diagnostics"].items() if key != "seeds"},
            self.config["scoring"],
        ]

    def ppo_settings(self) -> list:
        """The part of the configuration that a PPO run depends on, beside the policy and the reward model."""
        settings = self.config["overoptimization"]
        of_a_run = {key: value for key, value in settings["ppo"].items() if key not in ("enabled", "seeds")}
        of_all = [settings[key] for key in ("sampling", "gold", "prompts")]
        return [of_a_run, *of_all, self._gold_scoring(), own_file_hash(of_a_run["deepspeed"])]

    def _gold_scoring(self) -> list:
        return [self.config["scoring"], self.config["backbone"]["max_length"], self.config["backbone"]["attention"]]

    def ppo_code(self, variant: str) -> str:
        """Hash of the code that a PPO run depends on; a scorer without a model is its method's code."""
        return code_hash("ppo", *([] if self.is_trained(variant) else map(str, self._method(variant).files())))

    def overoptimization_files(self) -> list[str]:
        """Names of the files of the over-optimisation summary."""
        from rm_methods.overoptimization.outputs import best_of_n_files, ppo_files, run_metrics

        of_pools = (
            [*best_of_n_files(self.pools()), *(run_metrics(v, s) for v, s in self.optimised_runs())]
            if self.pools()
            else []
        )
        return [*of_pools, *(ppo_files() if self.ppo_runs() else [])]

    def item_table(self, name: str) -> Path:
        """Items of a benchmark or pool, below the experiment's folder."""
        return Path("pools" if name == SAMPLES else "benchmarks") / f"{name}.parquet"

    def made_of_pairs(self, benchmark: str) -> bool:
        """Whether a benchmark is made of the experiment's own prepared pairs."""
        from rm_methods.benchmarks.cards import load_card as load_benchmark_card

        return load_benchmark_card(benchmark).module == "prepared_splits"

    def metrics(self) -> list[tuple[str, str]]:
        """(benchmark, metric) of every column of the comparison table."""
        from rm_methods.benchmarks.cards import load_card as load_benchmark_card

        return [(name, metric) for name in self.config["benchmarks"] for metric in load_benchmark_card(name).columns]

    def columns(self) -> str:
        """Benchmarks, metrics and headings of the comparison table, as one text."""
        from rm_methods.benchmarks.cards import load_card as load_benchmark_card

        return canonical_json(
            [[name, list(load_benchmark_card(name).columns.items())] for name in self.config["benchmarks"]]
        )

    def train_settings(self, variant: str) -> str:
        """The part of the configuration that a training run depends on, as one text."""
        method, training = self.config["methods"][variant], self.config["training"]
        trained = [self.backbone_settings(), training, own_file_hash(training["deepspeed"])]
        files = [named_file_hash(name) for name in self._method(variant).files_named(method["settings"])]
        return canonical_json([method, *files, *(trained if self.is_trained(variant) else [])])

    def train_code(self, variant: str) -> str:
        """Hash of the code that a training run depends on: that of its method and of nothing else's."""
        return code_hash("train", *map(str, self._method(variant).files()))

    def score_code(self, variant: str) -> str:
        """Hash of the code that scoring depends on; a content-blind scorer is its method's code."""
        return (
            code_hash("score")
            if self.is_trained(variant)
            else code_hash("score", *map(str, self._method(variant).files()))
        )

    def _method(self, variant: str):
        return load_card(self.config["methods"][variant]["method"])

    def evaluated_runs(self, folder: Path | None = None) -> list:
        """The files that the comparison reads, one entry per run.

        Raises:
            UserError: a run is not finished.
        """
        from rm_methods.comparison.runs import RunFiles

        folder = folder or self.folder
        files = [
            RunFiles(
                summary=folder / "runs" / variant / f"seed{seed}" / "summary.json",
                metrics=folder / "evaluation" / variant / f"seed{seed}" / "metrics.json",
                credits=folder / "evaluation" / variant / f"seed{seed}" / "credits.parquet",
            )
            for variant, seed in self.runs()
        ]
        missing = [str(path) for run in files for path in (run.summary, run.metrics, run.credits) if not path.exists()]
        if missing:
            raise UserError(
                f"{len(missing)} files of the experiment are missing, the first is {missing[0]}. Run snakemake first."
            )
        return files

    def exports(self, folder: Path | None = None) -> list:
        """What the tracking stage exports, one entry per run."""
        from rm_methods.overoptimization.outputs import run_metrics
        from rm_methods.tracking.export import RunExport
        from rm_methods.tracking.records import RunFiles

        name = self.config["tracking"]["experiment"] or self.config["experiment"]
        folder, exports = folder or self.folder, []
        picked = set(self.optimised_runs()) if self.pools() else set()
        for key, run in zip(self.runs(), self.evaluated_runs(folder), strict=True):
            trained = run.summary.parent
            further = folder / "overoptimization" / run_metrics(*key) if key in picked else None
            exports.append(
                RunExport(
                    RunFiles(run.summary, run.metrics, trained / "metrics.jsonl", trained / "model", further), name
                )
            )
        for variant, seed in self.ppo_runs():
            done = folder / "ppo" / variant / f"seed{seed}"
            files = RunFiles(done / "summary.json", None, done / "metrics.jsonl", done / "policy", purpose="ppo")
            exports.append(RunExport(files, name))
        return exports


def comparison_columns(config: Mapping[str, Any]) -> list:
    """The columns of the comparison table: for each benchmark of the configuration, those that its card names."""
    from rm_methods.benchmarks.cards import load_card as load_benchmark_card
    from rm_methods.comparison.result import Column

    columns = []
    for name in config["benchmarks"]:
        card = load_benchmark_card(name)
        for metric, heading in card.columns.items():
            columns.append(Column(benchmark=name, metric=metric, heading=heading, chance=card.chance))
    return columns
