"""An experiment: its runs, what each result depends on, and whether stored results are those that it asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rm_methods.config.resolve import reference_variant, runs
from rm_methods.config.variants import SAMPLES, optimized_variants
from rm_methods.errors import DataError
from rm_methods.experiment.diagnosed_runs import diagnosed_runs, teachers
from rm_methods.experiment.layout import RECORDS, Layout, best_of_n_files, ppo_files, run_metrics
from rm_methods.experiment.made_with import check_all, differences, read_made
from rm_methods.files import file_hash, named_file_hash
from rm_methods.methods.registry import load_card
from rm_methods.stored import read_record, read_summary
from rm_methods.system.code_hash import code_hash
from rm_methods.system.deepspeed import own_file_hash
from rm_methods.system.provenance import key_of
from rm_methods.training.run_key import run_dependencies, training_code, training_settings

# Stages of the workflow whose code has another name in `rm_methods.system.code_hash.STAGES`.
_CODE_OF = {
    "prepare_backbone": "backbone",
    "prepare_benchmark": "items",
    "sample_pool": "sample",
    "sample_references": "sample",
    "export": "track",
}


class Experiment:
    """One experiment.

    Args:
        config: resolved configuration.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        self.folder = Path(config["results"]) / config["experiment"]
        self.layout = Layout(self.folder)
        self._hashed: str | None = None

    def runs(self) -> list[tuple[str, int]]:
        """(variant, seed) of every run."""
        return runs(self.config)

    def check_runs(self, folder: Path) -> None:
        """Refuse runs below `folder` that the configuration does not ask for; raises as `check_results`."""
        self.check_results(folder, ("prepare", [{}]), ("train", _named(self.runs())))

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
            key: [self.layout.model(other, s) for s in seeds[card.requires[key].get("seeds", "same")]]
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

    def data_settings(self) -> dict[str, Any]:
        """What the pairs depend on, beside their files: the section `data` and the data set's card."""
        from rm_methods.preferences.cards import dataset_card_file, list_dataset_cards

        name = self.config["data"]["dataset"]
        return {
            "data": self.config["data"],
            "card": file_hash(dataset_card_file(name)) if name in list_dataset_cards() else None,
        }

    def benchmark_sources(self, benchmark: str) -> list[str]:
        """Local files that a benchmark is made of."""
        from rm_methods.benchmarks.cards import load_benchmark_card

        root = self.config["benchmarks"][benchmark]["root"]
        if root is None:
            return []
        globs = load_benchmark_card(benchmark).files.values()
        return sorted({str(path) for glob in globs for path in Path(root).expanduser().glob(glob) if path.is_file()})

    def benchmark_settings(self, benchmark: str) -> dict[str, Any]:
        """What a benchmark's items depend on, beside their files: its section and its card."""
        from rm_methods.benchmarks.cards import benchmark_card_file

        return {"benchmark": self.config["benchmarks"][benchmark], "card": file_hash(benchmark_card_file(benchmark))}

    def backbone_settings(self) -> dict[str, Any]:
        """What the prepared backbone depends on: its section and the text of its chat template."""
        return {
            "backbone": self.config["backbone"],
            "chat_template": named_file_hash(self.config["backbone"]["chat_template"]),
        }

    def optimized_runs(self) -> list[tuple[str, int]]:
        """(variant, seed) of the runs that Best-of-N picks with."""
        wanted = optimized_variants(self.config)
        return [(variant, seed) for variant, seed in self.runs() if variant in wanted]

    def ppo_runs(self) -> list[tuple[str, int]]:
        """(variant, seed) of the runs that PPO optimizes against."""
        ppo = self.config["overoptimization"]["ppo"]
        if not ppo["enabled"]:
            return []
        # Every seed, also where the reward model has none: PPO itself is random.
        return [
            (variant, seed) for variant in dict(self.optimized_runs()) for seed in ppo["seeds"] or self.config["seeds"]
        ]

    def model_of(self, variant: str, seed: int | str) -> Path:
        """Model folder of the run that PPO with this seed optimizes against; all seeds share that of a variant without
        seeds."""
        return self.layout.model(variant, self._first_if_seed_free(variant, seed))

    def _first_if_seed_free(self, variant: str, seed: int | str) -> int | str:
        return self.config["seeds"][0] if self._method(variant).seed_free else seed

    def is_optimized(self) -> bool:
        """Whether there is any over-optimization to summarize."""
        return bool(self.pools()) or bool(self.ppo_runs())

    def pools(self) -> list[str]:
        """Names of the pools of Best-of-N."""
        return self.config["overoptimization"]["best_of_n"]["pools"]

    def policy_settings(self) -> dict[str, Any]:
        """The part of the configuration that the policy depends on."""
        settings = self.config["overoptimization"]
        policy = settings["policy"] or self.config["backbone"]
        longest = settings["sampling"]["max_prompt_tokens"]
        return {"policy": policy, "sft": settings["sft"], "max_prompt_tokens": longest, "seed": self.config["seeds"][0]}

    def pool_settings(self) -> dict[str, Any]:
        """The part of the configuration that the stored samples depend on, beside the policy."""
        settings = self.config["overoptimization"]
        asked = {key: value for key, value in settings["best_of_n"].items() if key != "pools"}
        shared = {key: settings[key] for key in ("sampling", "gold", "prompts")}
        return {"best_of_n": asked, **shared, **self._gold_scoring(), "seed": self.config["seeds"][0]}

    def reference_settings(self) -> dict[str, Any]:
        """The part of the configuration that the references depend on, beside the policy."""
        settings = self.config["overoptimization"]
        asked = {key: settings["ppo"][key] for key in ("train_prompts", "references_per_prompt")}
        drawn = {"batch_size": settings["best_of_n"]["batch_size"], "sampling": settings["sampling"]}
        return {**asked, **drawn, "seed": self.config["seeds"][0]}

    def diagnose_settings(self) -> dict[str, Any]:
        """The part of the configuration that the diagnostics of a run depend on, beside the model and the items."""
        measured = {key: value for key, value in self.config["diagnostics"].items() if key != "seeds"}
        return {"diagnostics": measured, "scoring": self.config["scoring"]}

    def ppo_settings(self) -> dict[str, Any]:
        """The part of the configuration that a PPO run depends on, beside the policy and the reward model."""
        settings = self.config["overoptimization"]
        of_a_run = {key: value for key, value in settings["ppo"].items() if key not in ("enabled", "seeds")}
        of_all = {key: settings[key] for key in ("sampling", "gold", "prompts")}
        return {"ppo": of_a_run, **of_all, **self._gold_scoring(), "deepspeed": own_file_hash(of_a_run["deepspeed"])}

    def _gold_scoring(self) -> dict[str, Any]:
        backbone = {key: self.config["backbone"][key] for key in ("max_length", "attention")}
        return {"scoring": self.config["scoring"], "backbone": backbone}

    def overoptimization_files(self) -> list[str]:
        """Names of the files of the over-optimization summary."""
        of_pools = (
            [*best_of_n_files(self.pools()), *(run_metrics(v, s) for v, s in self.optimized_runs())]
            if self.pools()
            else []
        )
        return [*of_pools, *(ppo_files() if self.ppo_runs() else [])]

    def made_of_pairs(self, benchmark: str) -> bool:
        """Whether a benchmark is made of the experiment's own prepared pairs."""
        from rm_methods.benchmarks.cards import load_benchmark_card

        return load_benchmark_card(benchmark).module == "prepared_splits"

    def metrics(self) -> list[tuple[str, str]]:
        """(benchmark, metric) of every column of the comparison table."""
        from rm_methods.benchmarks.cards import load_benchmark_card

        return [(name, metric) for name in self.config["benchmarks"] for metric in load_benchmark_card(name).columns]

    def columns(self) -> list:
        """Benchmarks, metrics and headings of the comparison table."""
        from rm_methods.benchmarks.cards import load_benchmark_card

        return [
            [name, list(map(list, load_benchmark_card(name).columns.items()))] for name in self.config["benchmarks"]
        ]

    def asked(self, stage: str, **of: Any) -> dict[str, Any]:
        """Settings and code that the results of a stage depend on, beside its input files.

        Args:
            of: variant, seed and benchmark, as far as the stage has them.
        """
        config, variant, runs = self.config, of.get("variant"), list(map(list, self.runs()))
        optimized = {
            "runs": list(map(list, self.optimized_runs())),
            "ppo": list(map(list, self.ppo_runs())),
            "pools": self.pools(),
        }
        summary = {"reference": reference_variant(config)}
        settings = {
            "prepare": self.data_settings,
            "prepare_backbone": self.backbone_settings,
            "prepare_benchmark": lambda: self.benchmark_settings(of["benchmark"]),
            "train": lambda: training_settings(config, variant),
            "score": lambda: {"scoring": config["scoring"]},
            "evaluate": lambda: {"benchmarks": list(config["benchmarks"])},
            "diagnose": self.diagnose_settings,
            "diagnose_teacher": self.diagnose_settings,
            "diagnose_summary": lambda: summary | {"diagnostics": config["diagnostics"], "runs": runs},
            "sft": self.policy_settings,
            "sample_pool": self.pool_settings,
            "sample_references": self.reference_settings,
            "ppo": self.ppo_settings,
            "overoptimization": lambda: summary | optimized,
            "compare": lambda: (
                summary | {"columns": self.columns(), "runs": runs, "noise_levels": config["noise_levels"]}
            ),
            "tune": lambda: {"tuning": config["tuning"], "runs": runs},
            "export": lambda: {"tracking": config["tracking"], "runs": runs, **optimized},
        }
        return {"settings": settings[stage](), "code": self.code(stage, variant, of.get("benchmark"))}

    def check_results(self, folder: Path, *stages: tuple[str, list[dict[str, Any]]]) -> None:
        """Refuse stored results that the configuration does not ask for.

        Args:
            folder: of the experiment's results.
            stages: name of a stage, and what it was run for (variant and seed, benchmark).  A result without a record
                of what it was made with (made by hand) passes, except a run: its key says what it depends on.

        Raises:
            DataError: names each result that differs, and in what.
        """
        outdated: dict[str, list[str]] = {}
        number = 0
        for stage, members in stages:
            for of in members:
                number += 1
                record = RECORDS[stage].format(**of)
                if stage == "train":
                    found = self._run_differences(folder, **of)
                else:
                    made = read_made(folder / record)
                    found = [] if made is None else list(differences(made, self.asked(stage, **of)))
                if found:
                    outdated[record.removesuffix("/made_with.json").removesuffix(".made_with.json")] = found
        check_all(outdated, number, folder)

    def _run_differences(self, folder: Path, variant: str, seed: int) -> list[str]:
        """In what a stored run differs from the one that the configuration asks for."""
        summary = read_summary(Layout(folder).summary(variant, seed))
        identity = {"variant": variant, "method": self.config["methods"][variant]["method"], "seed": seed}
        found = list(differences({key: summary[key] for key in identity}, identity))
        made = summary.get("depends_on")
        if made is None:
            return [*found, "it does not say what it was made with (an older release)"]
        if key_of(made) != summary["run_key"]:
            found.append("its summary.json was edited: run_key is not that of depends_on")
        required = {
            key: [folder / path.relative_to(self.folder) for path in paths]
            for key, paths in self.required_runs(variant, seed).items()
        }
        asked = run_dependencies(self.config, variant, seed, self._pairs_hash(folder) or made.get("pairs"), required)
        return [*found, *differences(made, asked)]

    def _pairs_hash(self, folder: Path) -> str | None:
        """Hash of the prepared pairs; None where the results were copied without them."""
        pairs = Layout(folder).pairs
        if self._hashed is None and pairs.exists():
            self._hashed = file_hash(pairs)
        return self._hashed

    def code(self, stage: str, variant: str | None = None, benchmark: str | None = None) -> str:
        """Hash of the code that the results of a stage depend on.

        Args:
            variant, benchmark: as far as the stage has them.
        """
        if stage == "train":
            return training_code(self.config, str(variant))
        return code_hash(_CODE_OF.get(stage, stage), *self._modules_by_name(stage, variant, benchmark))

    def _modules_by_name(self, stage: str, variant: str | None, benchmark: str | None) -> list[str]:
        """The modules that a stage loads by their name, because the configuration or a card names them."""
        from rm_methods.benchmarks.cards import load_benchmark_card
        from rm_methods.preferences.cards import card_for
        from rm_methods.preferences.readers import reader_module

        if stage == "prepare":
            card, _ = card_for(self.config["data"]["dataset"], self.config["data"]["root"])
            return [reader_module(card.reader)]
        if stage in ("prepare_benchmark", "evaluate"):
            names = [benchmark] if benchmark else self.config["benchmarks"]
            return [f"benchmarks.{load_benchmark_card(name).module}" for name in names]
        # The scorer of a method without weights is its method's code.
        if stage in ("score", "ppo") and not self.is_trained(str(variant)):
            return [self._method(str(variant)).module]
        return []

    def _method(self, variant: str):
        return load_card(self.config["methods"][variant]["method"])

    def check_evaluated(self, folder: Path) -> None:
        """Refuse runs, scores and evaluations below `folder` that the configuration does not ask for, or that were
        changed.

        Raises:
            DataError: names each result that differs, and in what.
        """
        self.check_results(folder, *self._of_runs(self.runs()), ("evaluate", _named(self.runs())))
        self._check_sources(folder)

    def check_ppo(self, folder: Path) -> None:
        """Refuse PPO runs below `folder` that the configuration does not ask for; raises as `check_results`."""
        self.check_results(folder, ("ppo", _named(self.ppo_runs())))

    def _check_sources(self, folder: Path) -> None:
        """Refuse metrics whose items or score tables are others by now (edited by hand, or made again).

        Raises:
            DataError: names the metrics and the table.
        """
        layout = Layout(folder)
        hashed: dict[Path, str] = {}
        for variant, seed in self.runs():
            metrics = layout.metrics(variant, seed)
            evaluated = read_record(metrics, "a metrics.json of a run", "evaluate")["benchmarks"]
            for benchmark, report in evaluated.items():
                tables = {
                    "items": layout.items(benchmark),
                    "scores": layout.scores(variant, seed, benchmark),
                }
                for name, expected in report.get("made_from", {}).items():
                    table = tables.get(name)
                    if table is None or not table.exists():
                        continue
                    if _hash_once(table, hashed) != expected:
                        raise DataError(
                            f"{table}: is not the table that {metrics} was computed from; it was changed since. "
                            "Run the evaluate stage again, or score again if you do not know what changed."
                        )

    def check_optimized(self, folder: Path) -> None:
        """Refuse runs, pools, scores and PPO runs below `folder` that the configuration does not ask for; raises as
        `check_results`."""
        trained = dict.fromkeys(
            [*self.optimized_runs(), *((v, self._first_if_seed_free(v, s)) for v, s in self.ppo_runs())]
        )
        pools = [name for name in self.pools() if name != SAMPLES]
        self.check_results(
            folder,
            ("train", _named(trained)),
            ("sft", [{}]),
            ("sample_pool", [{}] if SAMPLES in self.pools() else []),
            ("prepare_benchmark", [{"benchmark": name} for name in pools]),
            ("score", [of | {"benchmark": name} for of in _named(self.optimized_runs()) for name in self.pools()]),
            ("ppo", _named(self.ppo_runs())),
        )

    def check_diagnosed(self, folder: Path) -> None:
        """Refuse runs and diagnostics below `folder` that the configuration does not ask for; raises as
        `check_results`."""
        diagnosed = diagnosed_runs(self.config)
        compared = [(variant, seed) for variant, seed in diagnosed if teachers(self.config, variant)]
        stages = (("train", diagnosed), ("diagnose", diagnosed), ("diagnose_teacher", compared))
        self.check_results(folder, *((stage, _named(members)) for stage, members in stages))

    def _of_runs(self, runs: list[tuple[str, int]]) -> list[tuple[str, list[dict[str, Any]]]]:
        """The stages of runs up to their scores on the benchmarks, for `check_results`."""
        scores = [of | {"benchmark": name} for of in _named(runs) for name in self.config["benchmarks"]]
        benchmarks = [{"benchmark": name} for name in self.config["benchmarks"]]
        return [("prepare", [{}]), ("train", _named(runs)), ("prepare_benchmark", benchmarks), ("score", scores)]


def _hash_once(table: Path, hashed: dict[Path, str]) -> str:
    if table not in hashed:
        hashed[table] = file_hash(table)
    return hashed[table]


def _named(runs: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    return [{"variant": variant, "seed": seed} for variant, seed in runs]
