"""An experiment: its runs, the dependencies of each result, and checks that stored results fit the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rm_methods.benchmarks.members import member_table
from rm_methods.config.resolve import reference_variant, runs
from rm_methods.config.variants import SAMPLES, optimized_variants
from rm_methods.errors import DataError
from rm_methods.experiment.diagnosed_runs import diagnosed_runs, teachers
from rm_methods.experiment.layout import RECORDS, Layout, best_of_n_files, ppo_files, run_metrics
from rm_methods.experiment.made_with import differences, read_made, refuse_outdated
from rm_methods.files import content_hash, file_hash, named_file_hash
from rm_methods.methods.registry import MethodCard, load_method_card
from rm_methods.preferences.data_sources import data_sources
from rm_methods.stored import read_metrics, read_record, read_summary
from rm_methods.system.code_hash import code_hash
from rm_methods.system.deepspeed import custom_file_hash
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


# A result that a stage makes: name of the stage, and the wildcards in its path (variant, seed, benchmark).
Job = tuple[str, dict[str, Any]]


class Experiment:
    """One experiment.

    Args:
        config: resolved configuration.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        self.folder = Path(config["results"]) / config["experiment"]
        self.layout = Layout(self.folder)
        self._hashes: dict[Path, str] = {}
        self._cards: dict[str, MethodCard] = {}

    def runs(self) -> list[tuple[str, int]]:
        """(variant, seed) of every run."""
        return runs(self.config)

    def check_runs(self, folder: Path) -> None:
        """Refuse runs below `folder` that the configuration does not ask for; raises as `check_results`."""
        self.check_results(folder, [("prepare", {}), *_run_jobs("train", self.runs())])

    def is_trained(self, variant: str) -> bool:
        """Whether a variant's weights are trained, so that it needs the backbone, and a GPU if the machine has one."""
        return self._method(variant).has_weights

    def scores_with_a_model(self, variant: str) -> bool:
        """Whether scoring loads a model, which uses a GPU if the machine has one."""
        return not self._method(variant).without_model

    def required_runs(self, variant: str, seed: int | str) -> dict[str, list[Path]]:
        """Model folders of the runs that this one needs, by the setting that names their variant."""
        card = self._method(variant)
        all_seeds = self.config["seeds"]
        seeds = {"same": [seed], "first": all_seeds[:1], "all": all_seeds}
        required = card.required_variants(self.config["methods"][variant]["settings"])
        models = {}
        for setting, required_variant in required.items():
            needed_seeds = seeds[card.requires[setting].get("seeds", "same")]
            models[setting] = [self.layout.model(required_variant, needed_seed) for needed_seed in needed_seeds]
        return models

    def member_runs(self, variant: str) -> list[tuple[str, int]]:
        """(variant, seed) of the runs that a combined variant is made of; none for other variants.

        The list is also empty if several settings name runs of all seeds, because it is not clear which to leave out.
        """
        card = self._method(variant)
        if card.kind != "combined":
            return []
        required = card.required_variants(self.config["methods"][variant]["settings"])
        names = [name for setting, name in required.items() if card.requires[setting].get("seeds") == "all"]
        return [(names[0], seed) for seed in self.config["seeds"]] if len(names) == 1 else []

    def data_sources(self) -> list[str]:
        """Local files that the pairs are made of; none for data of the hub or of a generator."""
        from rm_methods.preferences.cards import card_of
        from rm_methods.preferences.file_rows import files_of_card

        data = self.config["data"]
        files = {data["test"]} if data["test"] else set()
        for source in data_sources(data):
            card, root = card_of(source)
            if root is not None:
                files |= set(map(str, files_of_card(card, root)))
        return sorted(files)

    def has_prepared_pairs(self) -> bool:
        """Whether the pairs that this configuration asks for are prepared; those without a record count as such."""
        if not self.layout.pairs.exists():
            return False
        made = read_made(self.folder / RECORDS["prepare"])
        return made is None or not any(differences(made["settings"], self.data_settings()))

    def data_settings(self) -> dict[str, Any]:
        """The settings that the pairs depend on: the section `data` and the cards of its data sets."""
        from rm_methods.preferences.cards import dataset_card_file, list_dataset_cards

        data = self.config["data"]
        names = [source.dataset for source in data_sources(data)]
        hashes = [file_hash(dataset_card_file(name)) if name in list_dataset_cards() else None for name in names]
        return {"data": data} | ({"cards": hashes} if "sources" in data else {"card": hashes[0]})

    def benchmark_sources(self, benchmark: str) -> list[str]:
        """Local files that a benchmark is made of."""
        from rm_methods.benchmarks.cards import load_benchmark_card

        root = self.config["benchmarks"][benchmark]["root"]
        if root is None:
            return []
        globs = load_benchmark_card(benchmark).files.values()
        return sorted({str(path) for glob in globs for path in Path(root).expanduser().glob(glob) if path.is_file()})

    def benchmark_settings(self, benchmark: str) -> dict[str, Any]:
        """The settings that a benchmark's items depend on: its section and its card."""
        from rm_methods.benchmarks.cards import benchmark_card_file

        return {"benchmark": self.config["benchmarks"][benchmark], "card": file_hash(benchmark_card_file(benchmark))}

    def backbone_settings(self) -> dict[str, Any]:
        """The settings that the prepared backbone depends on: its section and the text of its chat template."""
        return {
            "backbone": self.config["backbone"],
            "chat_template": named_file_hash(self.config["backbone"]["chat_template"]),
        }

    def optimized_runs(self) -> list[tuple[str, int]]:
        """(variant, seed) of the runs that Best-of-N picks with."""
        variants = optimized_variants(self.config)
        return [(variant, seed) for variant, seed in self.runs() if variant in variants]

    def optimized_members(self) -> list[tuple[str, int]]:
        """(variant, seed) of the runs that the combined ones among `optimized_runs` are made of."""
        runs = [run for variant in dict(self.optimized_runs()) for run in self.member_runs(variant)]
        return list(dict.fromkeys(runs))

    def ppo_runs(self) -> list[tuple[str, int]]:
        """(variant, seed) of the runs that PPO optimizes against."""
        ppo = self.config["overoptimization"]["ppo"]
        if not ppo["enabled"]:
            return []
        # Every seed, even if the reward model has none, because PPO is random.
        variants = [variant for variant in dict(self.optimized_runs()) if variant in (ppo["variants"] or [variant])]
        return [(variant, seed) for variant in variants for seed in ppo["seeds"] or self.config["seeds"]]

    def model_of(self, variant: str, seed: int | str) -> Path:
        """Model folder of the run that PPO with this seed optimizes against.

        All seeds of PPO share the model of a variant without seeds.
        """
        return self.layout.model(variant, self.config["seeds"][0] if self._method(variant).seed_free else seed)

    def is_optimized(self) -> bool:
        """Whether the experiment has any over-optimization to summarize."""
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
        best_of_n = {key: value for key, value in settings["best_of_n"].items() if key != "pools"}
        shared = {key: settings[key] for key in ("sampling", "gold", "prompts")}
        return {"best_of_n": best_of_n, **shared, **self._gold_scoring(), "seed": self.config["seeds"][0]}

    def reference_settings(self) -> dict[str, Any]:
        """The part of the configuration that the references depend on, beside the policy."""
        settings = self.config["overoptimization"]
        counts = {key: settings["ppo"][key] for key in ("train_prompts", "references_per_prompt")}
        sampling = {"batch_size": settings["best_of_n"]["batch_size"], "sampling": settings["sampling"]}
        return {**counts, **sampling, "seed": self.config["seeds"][0]}

    def diagnose_settings(self) -> dict[str, Any]:
        """The part of the configuration that the diagnostics of a run depend on, beside the model and the items."""
        section = self.config["diagnostics"]
        measured = {key: value for key, value in section.items() if key not in ("seeds", "variants")}
        return {"diagnostics": measured, "scoring": self.config["scoring"]}

    def ppo_settings(self) -> dict[str, Any]:
        """The part of the configuration that a PPO run depends on, beside the policy and the reward model."""
        settings = self.config["overoptimization"]
        ppo = {key: value for key, value in settings["ppo"].items() if key not in ("enabled", "seeds", "variants")}
        judged = {key: settings[key] for key in ("sampling", "gold", "prompts")}
        return {"ppo": ppo, **judged, **self._gold_scoring(), "deepspeed": custom_file_hash(ppo["deepspeed"])}

    def _gold_scoring(self) -> dict[str, Any]:
        backbone = {key: self.config["backbone"][key] for key in ("max_length", "attention")}
        return {"scoring": self.config["scoring"], "backbone": backbone}

    def overoptimization_files(self) -> list[str]:
        """Names of the files of the over-optimization summary."""
        names: list[str] = []
        if self.pools():
            names += best_of_n_files(self.pools())
            names += [run_metrics(variant, seed) for variant, seed in self.optimized_runs()]
        if self.ppo_runs():
            names += ppo_files()
        return names

    def made_of_pairs(self, benchmark: str) -> bool:
        """Whether a benchmark is made of the experiment's prepared pairs."""
        from rm_methods.benchmarks.cards import load_benchmark_card

        return load_benchmark_card(benchmark).module == "prepared_splits"

    def overlaps_by_design(self, benchmark: str) -> bool:
        """Whether one generator makes both the training pairs and the items, so that they repeat its phrases.

        A data set is generated if its card names no source of a split; so is a mixture with such a source.
        """
        from rm_methods.preferences.cards import list_dataset_cards, load_dataset_card

        is_generated = any(
            source.dataset in list_dataset_cards() and not load_dataset_card(source.dataset).splits
            for source in data_sources(self.config["data"])
        )
        return is_generated and self.made_of_pairs(benchmark)

    def compared_with_training(self) -> list[str]:
        """Names of the benchmarks whose overlap with the training pairs is counted."""
        return [name for name in self.config["benchmarks"] if not self.overlaps_by_design(name)]

    def metrics(self) -> list[tuple[str, str]]:
        """(benchmark, metric) of every column of the comparison table."""
        from rm_methods.benchmarks.cards import load_benchmark_card

        return [
            (name, metric)
            for name, entry in self.config["benchmarks"].items()
            for metric in load_benchmark_card(name).columns_with(entry["options"])
        ]

    def columns(self) -> list[list[Any]]:
        """Benchmarks, metrics and headings of the comparison table."""
        from rm_methods.benchmarks.cards import load_benchmark_card

        columns = []
        for name, entry in self.config["benchmarks"].items():
            headings = load_benchmark_card(name).columns_with(entry["options"])
            columns.append([name, [[metric, heading] for metric, heading in headings.items()]])
        return columns

    def asked(
        self, stage: str, variant: str | None = None, seed: int | str | None = None, benchmark: str | None = None
    ) -> dict[str, Any]:
        """Settings and code that the results of a stage depend on, beside its input files.

        Args:
            variant, seed, benchmark: as far as the stage has them.  Only the run itself depends on the seed.
        """
        settings = self._asked_settings(stage, variant or "", benchmark or "")
        return {"settings": settings, "code": self.code(stage, variant, benchmark)}

    def _asked_settings(self, stage: str, variant: str, benchmark: str) -> dict[str, Any]:
        """The part of the configuration that the results of a stage depend on."""
        if stage == "prepare":
            return self.data_settings()
        if stage == "prepare_backbone":
            return self.backbone_settings()
        if stage == "prepare_benchmark":
            return self.benchmark_settings(benchmark)
        if stage == "contamination":
            return {"benchmark": benchmark}
        if stage == "train":
            return training_settings(self.config, variant)
        if stage == "score":
            return {"scoring": self.config["scoring"]}
        if stage == "evaluate":
            return {"benchmarks": list(self.config["benchmarks"])}
        if stage in ("diagnose", "diagnose_teacher"):
            return self.diagnose_settings()
        if stage == "sft":
            return self.policy_settings()
        if stage == "sample_pool":
            return self.pool_settings()
        if stage == "sample_references":
            return self.reference_settings()
        if stage == "ppo":
            return self.ppo_settings()
        # The other stages read several runs.
        runs = _lists(self.runs())
        reference = {"reference": reference_variant(self.config)}
        optimized = {"runs": _lists(self.optimized_runs()), "ppo": _lists(self.ppo_runs()), "pools": self.pools()}
        if stage == "diagnose_summary":
            return reference | {"diagnostics": self.config["diagnostics"], "runs": runs}
        if stage == "overoptimization":
            return reference | optimized
        if stage == "compare":
            return reference | {
                "columns": self.columns(),
                "runs": runs,
                "noise_levels": self.config["noise_levels"],
            }
        if stage == "html_report":
            return {"configuration": content_hash(self.config)}
        if stage == "tune":
            return {"tuning": self.config["tuning"], "runs": runs}
        if stage == "export":
            tracking = {key: value for key, value in self.config["tracking"].items() if key != "live"}
            return {"tracking": tracking, "runs": runs, "optimized": optimized}
        raise ValueError(f"unknown stage {stage!r}")

    def check_results(self, folder: Path, jobs: Iterable[Job]) -> None:
        """Refuse stored results that the configuration does not ask for, or that were changed since.

        A result without a record of its settings and code (made by hand) passes, except a run, whose key is a hash of
        its dependencies.

        Args:
            folder: of the experiment's results.
            jobs: the results to check.

        Raises:
            DataError: names each result that differs, and in what.
        """
        jobs = list(jobs)
        outdated: dict[str, list[str]] = {}
        for stage, wildcards in jobs:
            record = RECORDS[stage].format(**wildcards)
            if stage == "train":
                differing = self._run_differences(folder, **wildcards)
            else:
                made = read_made(folder / record)
                differing = [] if made is None else list(differences(made, self.asked(stage, **wildcards)))
            if stage == "score":
                differing += self._score_differences(folder, **wildcards)
            if stage == "ppo":
                differing += self._ppo_differences(folder, **wildcards)
            if differing:
                outdated[record.removesuffix("/made_with.json").removesuffix(".made_with.json")] = differing
        refuse_outdated(outdated, len(jobs), folder)

    def _run_differences(self, folder: Path, variant: str, seed: int) -> list[str]:
        """Differences of a stored run from the one that the configuration asks for."""
        summary = read_summary(Layout(folder).summary(variant, seed))
        identity = {"variant": variant, "method": self.config["methods"][variant]["method"], "seed": seed}
        stored = {"variant": summary["variant"], "method": summary["method"], "seed": summary["seed"]}
        differing = list(differences(stored, identity))
        made = summary.get("depends_on")
        if made is None:
            return [*differing, "it has no record of its settings and code (an older release)"]
        if key_of(made) != summary["run_key"]:
            differing.append("its summary.json was edited: run_key is not that of depends_on")
        required = {
            key: [folder / path.relative_to(self.folder) for path in paths]
            for key, paths in self.required_runs(variant, seed).items()
        }
        pairs = Layout(folder).pairs
        # The results may have been copied without the prepared pairs.
        pairs_hash = self._hash(pairs) if pairs.exists() else made.get("pairs", "")
        dependencies = run_dependencies(self.config, variant, seed, pairs_hash, required)
        return [*differing, *differences(made, dependencies)]

    def _score_differences(self, folder: Path, variant: str, seed: int, benchmark: str) -> list[str]:
        """Whether a score table or its items were changed since the scoring."""
        layout = Layout(folder)
        report = layout.score_report(variant, seed, benchmark)
        if not report.exists():
            return []
        recorded = read_record(report, "a report of scores", "score").get("hashes", {})
        items = layout.items(benchmark)
        scores = layout.scores(variant, seed, benchmark)
        changed = []
        if "items" in recorded and items.exists() and self._items_hash(items) != recorded["items"]:
            changed.append(f"{items} was changed since it was scored")
        if "scores" in recorded and scores.exists() and self._hash(scores) != recorded["scores"]:
            changed.append(f"{scores} was changed since it was written")
        return changed

    def _ppo_differences(self, folder: Path, variant: str, seed: int) -> list[str]:
        """Whether a PPO run optimized against another run of the reward model than the stored one."""
        source = Layout(folder).ppo_run(variant, seed) / "summary.json"
        model = folder / self.model_of(variant, seed).relative_to(self.folder)
        run = model.with_name("summary.json")
        if not source.exists() or not run.exists():
            return []
        optimized_key = read_record(source, "a summary.json of a PPO run", "ppo").get("reward_model")
        run_key = read_summary(run)["run_key"]
        if optimized_key in (None, run_key):
            return []
        return [f"its reward model has the run key {optimized_key}, {run} has {run_key}"]

    def _hash(self, file: Path) -> str:
        """Hash of a file's content, computed once."""
        if file not in self._hashes:
            self._hashes[file] = file_hash(file)
        return self._hashes[file]

    def _items_hash(self, file: Path) -> str:
        """Hash of a file of items, computed once; of masked items, that of the original."""
        from rm_methods.benchmarks.items_hash import items_hash

        if file not in self._hashes:
            self._hashes[file] = items_hash(file)
        return self._hashes[file]

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
        from rm_methods.preferences.cards import card_of
        from rm_methods.preferences.readers import reader_module

        if stage == "prepare":
            readers = {card_of(source)[0].reader for source in data_sources(self.config["data"])}
            readers |= {"preference_rows"} if self.config["data"]["test"] else set()
            return [reader_module(reader) for reader in sorted(readers)]
        if stage in ("prepare_benchmark", "evaluate"):
            names = [benchmark] if benchmark else self.config["benchmarks"]
            modules = [self._benchmark_modules[name] for name in names]
            return [*modules, *self._left_out_modules([str(variant)])] if stage == "evaluate" else modules
        if stage == "overoptimization":
            return self._left_out_modules(dict(self.optimized_runs()))
        # The scorer of a method without weights is its method's code.
        if stage in ("score", "ppo") and not self.is_trained(str(variant)):
            return [self._method(str(variant)).module]
        return []

    @cached_property
    def _benchmark_modules(self) -> dict[str, str]:
        """The module of each benchmark; every evaluation of an experiment depends on all of them."""
        from rm_methods.benchmarks.cards import load_benchmark_card

        return {name: f"benchmarks.{load_benchmark_card(name).module}" for name in self.config["benchmarks"]}

    def _left_out_modules(self, variants: Iterable[str]) -> list[str]:
        """The code that says what scores of combined variants would be without a member."""
        combined = [self._method(variant).module for variant in variants if self.member_runs(variant)]
        return ["methods.members", *combined] if combined else []

    def _method(self, variant: str) -> MethodCard:
        """The card of a variant's method, looked up once: a workflow asks several times for each of its jobs."""
        if variant not in self._cards:
            self._cards[variant] = load_method_card(self.config["methods"][variant]["method"])
        return self._cards[variant]

    def check_evaluated(self, folder: Path) -> None:
        """Refuse runs, scores and evaluations below `folder` that the configuration does not ask for, or that were
        changed.

        Raises:
            DataError: names each result that differs, and in what.
        """
        jobs: list[Job] = [("prepare", {})]
        jobs += _run_jobs("train", self.runs())
        jobs += _item_jobs("prepare_benchmark", self.config["benchmarks"])
        jobs += _item_jobs("contamination", self.compared_with_training())
        jobs += _score_jobs(self.runs(), self.config["benchmarks"])
        jobs += _run_jobs("evaluate", self.runs())
        self.check_results(folder, jobs)
        self.check_sources(folder)

    def check_ppo(self, folder: Path) -> None:
        """Refuse PPO runs below `folder` that the configuration does not ask for; raises as `check_results`."""
        self.check_results(folder, _run_jobs("ppo", self.ppo_runs()))

    def check_sources(self, folder: Path, finished: Sequence[tuple[str, int]] | None = None) -> None:
        """Refuse metrics whose items or score tables were changed since (edited by hand, or made again).

        Args:
            finished: (variant, seed) of the runs to check; None for all.

        Raises:
            DataError: names the metrics and the table.
        """
        layout = Layout(folder)
        for variant, seed in self.runs() if finished is None else finished:
            metrics = layout.metrics(variant, seed)
            evaluated = read_metrics(metrics)["benchmarks"]
            for benchmark, report in evaluated.items():
                tables = {
                    "items": layout.items(benchmark),
                    "scores": layout.scores(variant, seed, benchmark),
                }
                for member, member_seed in self.member_runs(variant):
                    tables[member_table(member_seed)] = layout.scores(member, member_seed, benchmark)
                for name, recorded in report.get("made_from", {}).items():
                    table = tables.get(name)
                    if table is None or not table.exists():
                        continue
                    if (self._items_hash(table) if name == "items" else self._hash(table)) != recorded:
                        raise DataError(
                            f"{table}: is not the table that {metrics} was computed from; it was changed since. "
                            "Run the evaluate stage again, or score again if you do not know what changed."
                        )

    def check_optimized(self, folder: Path) -> None:
        """Refuse runs, pools, scores and PPO runs below `folder` that the configuration does not ask for, or that were
        changed; raises as `check_results`."""
        scored = dict.fromkeys([*self.optimized_runs(), *self.optimized_members()])
        trained = dict(scored)
        for variant, seed in self.ppo_runs():
            first_seed = self.config["seeds"][0]
            trained[variant, first_seed if self._method(variant).seed_free else seed] = None
        jobs = [*_run_jobs("train", trained), ("sft", {})]
        if SAMPLES in self.pools():
            jobs.append(("sample_pool", {}))
        jobs += _item_jobs("prepare_benchmark", [name for name in self.pools() if name != SAMPLES])
        jobs += _score_jobs(scored, self.pools())
        jobs += _run_jobs("ppo", self.ppo_runs())
        self.check_results(folder, jobs)

    def check_diagnosed(self, folder: Path) -> None:
        """Refuse runs and diagnostics below `folder` that the configuration does not ask for; raises as
        `check_results`."""
        diagnosed = diagnosed_runs(self.config)
        compared = [(variant, seed) for variant, seed in diagnosed if teachers(self.config, variant)]
        jobs = _run_jobs("train", diagnosed)
        jobs += _run_jobs("diagnose", diagnosed)
        jobs += _run_jobs("diagnose_teacher", compared)
        self.check_results(folder, jobs)


def _run_jobs(stage: str, runs: Iterable[tuple[str, int]]) -> list[Job]:
    return [(stage, {"variant": variant, "seed": seed}) for variant, seed in runs]


def _item_jobs(stage: str, names: Iterable[str]) -> list[Job]:
    return [(stage, {"benchmark": name}) for name in names]


def _score_jobs(runs: Iterable[tuple[str, int]], names: Iterable[str]) -> list[Job]:
    """The score jobs of runs on benchmarks or pools."""
    names = list(names)
    return [
        ("score", {"variant": variant, "seed": seed, "benchmark": name}) for variant, seed in runs for name in names
    ]


def _lists(runs: Iterable[tuple[str, int]]) -> list[list[Any]]:
    """Runs in the form that JSON gives back."""
    return [[variant, seed] for variant, seed in runs]
