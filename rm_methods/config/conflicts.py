"""Conflicts between settings that are each allowed; for a configuration whose keys and types are right.

Imports nothing heavy: the Snakefile resolves the configuration in every job.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rm_methods.config.validation_conflicts import validation_conflicts
from rm_methods.config.variants import SAMPLES, names_without_noise, noise_suffix, optimized_variants
from rm_methods.errors import UserError, nearest
from rm_methods.methods import registry
from rm_methods.preferences.data_sources import DataSource, data_sources, dataset_name
from rm_methods.system.deepspeed import zero_settings

_LONGEST_VARIANT = 150  # of 255 bytes of a file name; seed and benchmark join it
_LONGEST_FOLDER = 255  # bytes of a name on all common file systems
_LONGEST_RESULTS = 3000  # of 4096 bytes of a path


def conflicts(config: dict[str, Any]) -> list[str]:
    """One sentence for each, with its key path and what to change."""
    problems: list[str] = []
    backbone = config["backbone"]
    training = config["training"]
    problems += _name_conflicts(config)
    problems += _backbone_conflicts(backbone, "backbone")
    for section in ("training", "scoring"):
        if backbone["attention"] not in ("auto", "sdpa") and config[section]["layout"] == "packed":
            problems.append(
                f"{section}.layout: 'packed' needs backbone.attention 'auto' or 'sdpa'; otherwise use 'auto' or 'plain'"
            )
    problems += _rank_conflicts(config)
    if training["trained_layers"]:
        problems += [
            f"methods.{variant}: lora and training.trained_layers: {training['trained_layers']} exclude each other; "
            "set one of them to null"
            for variant, entry in config["methods"].items()
            if entry["lora"] and registry.load_method_card(entry["method"]).kind == "trained"
        ]
    elif config["resources"]["state_folder"]:
        problems.append(
            "resources.state_folder: only with training.trained_layers, which freezes the layers whose states it stores"
        )
    try:
        stage = zero_settings(training["deepspeed"])["stage"]
        for variant, entry in config["methods"].items():
            stages = registry.load_method_card(entry["method"]).zero_stages
            if stage not in stages:
                allowed = ", ".join(map(str, stages))
                problems.append(
                    f"methods.{variant}: '{entry['method']}' trains with ZeRO stages {allowed} only, but "
                    f"training.deepspeed '{training['deepspeed']}' is stage {stage}; leave the method out, or use "
                    "another stage"
                )
    except UserError as error:
        problems.append(f"training.deepspeed: {error}")
    for name in sorted({entry["method"] for entry in config["methods"].values()}):
        problems += registry.user_code_problems(name)
    problems += _length_conflicts(config)
    problems += _missing_requirements(config)
    problems += _missing_data(config)
    problems += _unnamed_models(config)
    problems += _axis_conflicts(config)
    problems += _data_conflicts(config)
    problems += validation_conflicts(config)
    if config["tracking"]["live"] and not config["tracking"]["enabled"]:
        problems.append(
            "tracking.live: true, but tracking.enabled is false, so no export would complete the live runs; set "
            "enabled to true, or live to false"
        )
    problems += _diagnostics_conflicts(config)
    problems += _overoptimization_conflicts(config)
    reference = config["comparison"]["reference"]
    names = names_without_noise(config)
    if reference and reference not in names:
        problems.append(f"comparison.reference: '{reference}' is not among the methods. {nearest(reference, names)}")
    return problems


def workflow_problems(config: Mapping[str, Any]) -> list[str]:
    """Problems of a whole workflow that do not concern a single verb: a folder that cannot be written, or an unusable
    address of MLflow."""
    from rm_methods.system.tracking_address import resolve_uri

    problems = _results_problems(config["results"], config["experiment"])
    problems += _missing_splits(config)
    if config["tracking"]["enabled"]:
        try:
            resolve_uri(config["tracking"]["uri"])
        except UserError as error:
            problems.append(f"tracking.uri: {error}")
    return problems


def needed_splits(config: Mapping[str, Any]) -> dict[str, str]:
    """The splits of the prepared pairs that benchmarks are made of, each with the benchmark."""
    from rm_methods.benchmarks.cards import load_benchmark_card

    return {
        split: name
        for name, entry in config["benchmarks"].items()
        if load_benchmark_card(name).module == "prepared_splits"
        for split in entry["options"]["splits"]
    }


def _missing_splits(config: Mapping[str, Any]) -> list[str]:
    """Benchmarks that are made of a split of the pairs, where the data set surely has no such split.

    A single file is read, because a column may name splits. That is quick for a file with the split, and only a file
    without it is read to its end.
    """
    from rm_methods.preferences.prepare import missing_split_remedy
    from rm_methods.preferences.split_search import lacks_split

    data = config["data"]
    problems = []
    for split, benchmark in needed_splits(config).items():
        if lacks_split(data, split):
            named = "no source of data.sources" if "sources" in data else f"data.dataset '{data['dataset']}'"
            lack = "has it" if "sources" in data else "has none"
            problems.append(
                f"benchmarks.{benchmark}: is made of the split {split}, but {named} {lack}. "
                f"{missing_split_remedy(split)}"
            )
    return problems


def _results_problems(results: str, experiment: str) -> list[str]:
    """Problems of the folder of results: Snakemake reads braces as wildcards, and commands read a dash as an option."""
    where = f"results: '{results}'"
    if wrong := sorted(set(re.findall(r"[{}\x00-\x1f\x7f]", results))):
        return [
            f"results: {results!r} has the character {wrong[0]!r}, which the workflow does not allow in paths; choose "
            "another folder"
        ]
    if results.startswith("-"):
        return [
            f"{where} begins with a dash, so commands would read it as an option; write the folder from the root on"
        ]
    if re.match(r"[a-z][a-z0-9+.-]+://", results):
        return [f"{where} is an address; name a local folder"]
    folder = (Path(results) / experiment).absolute()
    if len(os.fsencode(folder)) > _LONGEST_RESULTS or any(
        len(os.fsencode(part)) > _LONGEST_FOLDER for part in folder.parts
    ):
        return [
            f"results: is too long: at most {_LONGEST_FOLDER} bytes for a folder and {_LONGEST_RESULTS} for the path "
            "from the root on, with the experiment's name"
        ]
    exists = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not os.path.isdir(exists):
        return [f"{where} cannot be made: '{exists}' is not a folder"]
    if not os.access(exists, os.W_OK | os.X_OK):
        return [f"{where} cannot be written: '{exists}' is read-only for you; choose another folder"]
    return []


def _name_conflicts(config: Mapping[str, Any]) -> list[str]:
    """Names of variants that axes made too long for a file."""
    return [
        f"methods.{variant}: with the suffixes of the axes, the name has {len(variant)} characters; at most "
        f"{_LONGEST_VARIANT} fit into file names"
        for variant in config["methods"]
        if len(variant) > _LONGEST_VARIANT
    ]


def _backbone_conflicts(backbone: Mapping[str, Any], where: str) -> list[str]:
    """Missing files, and sizes of a tiny backbone that no model can have."""
    problems = _package_problem(backbone["source"], f"{where}.source")
    tiny = backbone["tiny"]
    if backbone["chat_template"] and not os.path.isfile(backbone["chat_template"]):
        problems.append(f"{where}.chat_template: no such file: '{backbone['chat_template']}' (looked in {Path.cwd()})")
    if backbone["source"] == "tiny":
        if tiny["hidden_size"] % tiny["heads"]:
            problems.append(
                f"{where}.tiny.hidden_size: {tiny['hidden_size']} is not a multiple of {where}.tiny.heads = "
                f"{tiny['heads']}"
            )
        if tiny["heads"] % tiny["key_value_heads"]:
            problems.append(
                f"{where}.tiny.key_value_heads: {tiny['key_value_heads']} does not divide {where}.tiny.heads = "
                f"{tiny['heads']}"
            )
        if backbone["gguf_file"]:
            problems.append(
                f"{where}.gguf_file: set, but {where}.source is 'tiny'; name the folder or package that holds the file"
            )
    return problems


def _length_conflicts(config: Mapping[str, Any]) -> list[str]:
    """Training on longer texts than scoring reads."""
    trained, scored = config["training"]["max_length"], config["backbone"]["max_length"]
    if trained is None or trained <= scored:
        return []
    return [
        f"training.max_length: {trained} is more than backbone.max_length = {scored}, to which texts are cut when they "
        f"are scored; set training.max_length to at most {scored}, or raise backbone.max_length"
    ]


def _package_problem(source: str, where: str) -> list[str]:
    """Whether `package:<name>` names a package that is not installed.

    The weights themselves are looked for when the backbone is prepared.
    """
    if not source.startswith("package:"):
        return []
    package = source.removeprefix("package:").partition("/")[0]
    # A dotted name would import its parents.
    if package.isidentifier() and importlib.util.find_spec(package) is not None:
        return []
    return [
        f"{where}: the package '{package}' is not installed in {sys.prefix}; install it (`make setup` installs those "
        "of config/smol.yaml), or name a hub id or a local folder"
    ]


def _rank_conflicts(config: dict[str, Any]) -> list[str]:
    """Numbers of ranks that do not fit the pairs of a step or the GPUs."""
    problems = []
    processes = config["training"]["processes"]
    pairs = config["training"]["pairs_per_step"]
    resources = config["resources"]
    if pairs < processes:
        problems.append(f"training.pairs_per_step: {pairs} is fewer than training.processes = {processes}")
    elif pairs < (ranks := processes * resources["nodes"]):
        problems.append(
            f"training.pairs_per_step: {pairs} is fewer than the {ranks} ranks of training.processes = {processes} on "
            f"each of resources.nodes = {resources['nodes']}"
        )
    if resources["gpus"] not in (0, processes):
        problems.append(
            f"resources.gpus: {resources['gpus']}, but training.processes: {processes}; both are per node and a rank "
            "drives one GPU, so set them alike (or gpus: 0 for training on CPUs)"
        )
    return problems


def _missing_requirements(config: dict[str, Any]) -> list[str]:
    """Missing files, and required variants that are missing, of another kind, or without enough seeds."""
    problems: list[str] = []
    methods = config["methods"]
    for variant, entry in methods.items():
        card = registry.load_method_card(entry["method"])
        for name in card.files_named(entry["settings"]):
            if not os.path.isfile(name):
                problems.append(f"methods.{variant}: no such file: '{name}' (looked in {Path.cwd()})")
        for key, value in entry["settings"].items():
            if card.settings[key].get("format") == "path" and isinstance(value, str):
                problems += _package_problem(value, f"methods.{variant}.{key}")
        for key, named in card.required_variants(entry["settings"]).items():
            need = card.requires[key]
            fits = [name for name, other in methods.items() if _fulfils(other, need) and name != variant]
            if named not in fits:
                cards = [name for name in registry.method_names() if _fulfils({"method": name}, need)]
                what = f"of method '{need['method']}'" if "method" in need else f"of kind '{need['kind']}'"
                problems.append(
                    f"methods.{variant}.{key}: '{named}' is not a variant {what} under `methods:`. "
                    f"{nearest(named, [*fits, *need.get('builtin', [])])} Methods to choose from: {', '.join(cards)}; "
                    f"add one, for instance `{named if named in cards else cards[0]}: {{}}`"
                )
            seeds = set(config["seeds"] if need.get("seeds", "same") == "all" else config["seeds"][:1])
            if "modulo" in need and named in fits:
                seeds = {seed % methods[named]["settings"][need["modulo"]] for seed in seeds}
            if len(seeds) < need.get("at_least", 1):
                differ = f" that differ modulo methods.{named}.{need['modulo']}" if "modulo" in need else ""
                problems.append(
                    f"methods.{variant}.{key}: needs at least {need['at_least']} seeds{differ}, but seeds is "
                    f"{config['seeds']}; add seeds"
                )
    return problems


def _missing_data(config: Mapping[str, Any]) -> list[str]:
    """Methods that know something about one data set, on another one."""
    sources = data_sources(config["data"])
    is_world = len(sources) == 1 and _is_world(sources[0])
    has_annotators = is_world and sources[0].options["annotator"] is not None
    problems = []
    for variant, entry in config["methods"].items():
        card = registry.load_method_card(entry["method"])
        needed = card.data_needed(entry["settings"])
        settings = "" if card.data else " with these settings"
        if needed is not None and not is_world:
            problems.append(
                f"methods.{variant}: '{entry['method']}'{settings} needs the controlled world, but data.dataset is "
                f"'{dataset_name(config['data'])}'; leave the method out"
            )
        elif needed == "world with annotators" and not has_annotators:
            problems.append(
                f"methods.{variant}: '{entry['method']}'{settings} needs annotators; set data.options.annotator, or "
                "leave the method out"
            )
    return problems


def _unnamed_models(config: Mapping[str, Any]) -> list[str]:
    """External rows that name no model, or a folder that does not exist."""
    problems = []
    for variant, entry in config["methods"].items():
        if registry.load_method_card(entry["method"]).kind != "external":
            continue
        model = entry["settings"].get("model")
        if not model:
            problems.append(f"methods.{variant}: no model is named; set model to a folder or a hub id")
        elif model.startswith(("/", ".", "~")) and not Path(model).is_dir():
            problems.append(f"methods.{variant}.model: '{model}': no such folder")
    return problems


def _fulfils(entry: Mapping[str, Any], need: Mapping[str, Any]) -> bool:
    return (
        registry.load_method_card(entry["method"]).kind == need["kind"]
        and need.get("method", entry["method"]) == entry["method"]
    )


def _axis_conflicts(config: dict[str, Any]) -> list[str]:
    """Noise levels and the tuning grid."""
    problems = []
    levels = [noise_suffix(level) for level in config["noise_levels"]]
    if repeated := sorted({level for level in levels if levels.count(level) > 1}):
        problems.append(f"noise_levels: '{repeated[0] or 'rate 0'}' occurs more than once; keep each level once")
    if levels and config["data"]["label_noise"]["rate"]:
        problems.append(
            "data.label_noise.rate: would be added to every one of noise_levels; set it to 0, or leave noise_levels "
            "empty"
        )
    if levels and config["tuning"]["enabled"]:
        problems.append(
            "tuning.enabled: a grid is tuned on one level of noise; leave noise_levels empty and set data.label_noise"
        )
    if config["tuning"]["enabled"]:
        # Tuned settings are stored by method, so a method can have only one grid.
        grids = Counter(entry["method"] for entry in config["methods"].values() if not entry["tuned_from"])
        problems += [
            f"tuning.enabled: {count} variants of the method '{method}', but tuned settings belong to a method; keep "
            "one of them"
            for method, count in grids.items()
            if count > 1 and registry.load_method_card(method).kind == "trained"
        ]
    return problems


def _data_conflicts(config: dict[str, Any]) -> list[str]:
    """Splits that a stage needs and that the data set cannot have."""
    from rm_methods.preferences import world
    from rm_methods.preferences.cards import card_of

    problems: list[str] = []
    splits: tuple[str, ...] = ()
    data = config["data"]
    optimization = config["overoptimization"]
    if "train" in data["length_balanced_splits"]:
        problems.append(
            "data.length_balanced_splits: names evaluation splits only; set data.length_balance: true for train"
        )
    sources = data_sources(data)
    is_world = len(sources) == 1 and _is_world(sources[0])
    has_validation = False
    for source in sources:
        if not _is_world(source):
            # A file of pairs may have a column of splits, and a reader may define splits, so only prepare can tell.
            card, _ = card_of(source)
            has_validation |= not card.splits or bool(card.splits.keys() & {"validation", "by_instruction", ""})
            continue
        has_validation |= source.options["validation_pairs"] > 0
        problems += [f"{source.where}.options.{problem}" for problem in world.conflicts(source.options)]
        splits = world.splits_of(source.options)
        if "world" in config["benchmarks"]:
            problems += [
                f"benchmarks.world.options.splits: with these data.options the world has no split '{split}'; use some "
                f"of {', '.join(splits[2:])}"
                for split in config["benchmarks"]["world"]["options"]["splits"]
                if split not in splits
            ]
    if data["validation_fraction"] + data["test_fraction"] >= 1:
        problems.append(
            "data.test_fraction: with validation_fraction it takes everything; together they must be less than 1"
        )
    if data["test"] is not None:
        problems += _test_file_conflicts(data, sources)
    if config["tuning"]["enabled"] and not has_validation and not data["validation_fraction"]:
        problems.append(
            "tuning.enabled: chooses on a validation split, but the data set has none; set data.validation_fraction "
            "above 0"
        )
    has_limit = is_world and optimization["sampling"]["max_sentences"] is not None
    if optimization["sft"]["responses"] == "mixed" and not has_limit:
        problems.append(
            "overoptimization.sft.responses: 'mixed' writes responses of the controlled world within a limit of "
            "sentences; set overoptimization.sampling.max_sentences, or use both or chosen"
        )
    samples = SAMPLES in optimization["best_of_n"]["pools"] or optimization["ppo"]["enabled"]
    if samples and is_world and optimization["prompts"] not in splits:
        problems.append(
            f"overoptimization.prompts: the controlled world has no split '{optimization['prompts']}'; use one of "
            f"{', '.join(splits)}"
        )
    return problems


def _is_world(source: DataSource) -> bool:
    from rm_methods.preferences.cards import card_of

    return card_of(source)[0].reader == "world"


def _test_file_conflicts(data: Mapping[str, Any], sources: Sequence[DataSource]) -> list[str]:
    """A second source of the test split beside `data.test`."""
    from rm_methods.preferences.cards import card_of
    from rm_methods.preferences.file_rows import files_of_card

    problems = []
    test = data["test"]
    if data["test_fraction"] > 0:
        problems.append(
            f"data.test_fraction: is {data['test_fraction']}, but data.test names '{test}', which is the test split; "
            "set test_fraction to 0, or remove data.test"
        )
    for source in sources:
        card, root = card_of(source)
        files = files_of_card(card, root) if root is not None and "" in card.splits else []
        if Path(test).resolve() in map(Path.resolve, files):
            problems.append(
                f"data.test: '{test}' is the file of {source.where}.dataset, so its pairs would not be trained on; "
                "name another file, or set data.test_fraction"
            )
        # In a folder, each split is optional, so only prepare can tell.
        if "test" in card.splits and not card.splits["test"].optional:
            problems.append(
                f"data.test: the data set '{source.dataset}' has a test split, and '{test}' would be a second one; "
                "remove data.test"
            )
    return problems


def _diagnostics_conflicts(config: dict[str, Any]) -> list[str]:
    diagnosed = config["diagnostics"]["benchmarks"]
    problems = [
        f"diagnostics.benchmarks: '{name}' is not among the benchmarks. {_nearest_benchmark(name, config)}"
        for name in diagnosed
        if name not in config["benchmarks"]
    ]
    problems += _unknown_seeds(config, config["diagnostics"]["seeds"], "diagnostics.seeds")
    trained = [
        name
        for name, entry in config["methods"].items()
        if registry.load_method_card(entry["method"]).kind == "trained"
    ]
    problems += [
        f"diagnostics.variants: '{name}' is not among the trained variants. {nearest(name, trained)}"
        for name in config["diagnostics"]["variants"] or []
        if name not in trained
    ]
    if diagnosed and config["backbone"]["attention"] not in ("auto", "sdpa"):
        attention = config["backbone"]["attention"]
        problems.append(
            f"diagnostics.benchmarks: needs backbone.attention 'auto' or 'sdpa', not '{attention}'; or leave it empty"
        )
    cards = [registry.load_method_card(entry["method"]) for entry in config["methods"].values()]
    if diagnosed and not any(card.kind == "trained" and card.scalar_reward for card in cards):
        problems.append(
            "diagnostics.benchmarks: no method is a trained one with a scalar reward; add one, or leave it empty"
        )
    return problems


def _nearest_benchmark(name: str, config: Mapping[str, Any]) -> str:
    if not config["benchmarks"]:
        return f"None is configured; add `{name}: {{}}` under `benchmarks:`."
    return nearest(name, config["benchmarks"])


def _unknown_seeds(config: dict[str, Any], some: list[int] | None, where: str) -> list[str]:
    unknown = sorted(set(some or []) - set(config["seeds"]))
    return (
        [f"{where}: {', '.join(map(str, unknown))} not among seeds: {', '.join(map(str, config['seeds']))}"]
        if unknown
        else []
    )


def _overoptimization_conflicts(config: dict[str, Any]) -> list[str]:
    from rm_methods.benchmarks.cards import list_benchmark_cards, load_benchmark_card

    problems: list[str] = []
    where = "overoptimization"
    settings = config["overoptimization"]
    methods = config["methods"]
    pools = settings["best_of_n"]["pools"]
    ppo = settings["ppo"]
    for name in settings["variants"] or []:
        if name not in methods:
            problems.append(f"{where}.variants: '{name}' is not among the methods. {nearest(name, methods)}")
        elif not registry.load_method_card(methods[name]["method"]).scalar_reward:
            problems.append(
                f"{where}.variants: '{name}' compares responses and gives a single one no reward; leave it out"
            )
    cards = [load_benchmark_card(name) for name in config["benchmarks"] if name in list_benchmark_cards()]
    allowed_pools = [SAMPLES, *(card.name for card in cards if card.has_gold)]
    problems += [
        f"{where}.best_of_n.pools: '{name}' is neither '{SAMPLES}' nor a benchmark with gold values under "
        f"`benchmarks:`. {nearest(name, allowed_pools)}"
        for name in pools
        if name not in allowed_pools
    ]
    if (pools or ppo["enabled"]) and not optimized_variants(config):
        problems.append(f"{where}: no variant gives a scalar reward; add a trained reward-model method")
    if SAMPLES in pools or ppo["enabled"]:
        problems += _policy_conflicts(config)
    if config["noise_levels"] and (pools or ppo["enabled"]):
        problems.append(f"{where}: not with noise_levels; set data.label_noise to one level")
    if settings["policy"]:
        problems += _backbone_conflicts(settings["policy"], f"{where}.policy")
    if ppo["enabled"] and (settings["sampling"]["temperature"], settings["sampling"]["top_p"]) != (1, 1):
        problems.append(f"{where}.sampling: PPO must sample from the policy itself; set temperature and top_p to 1")
    problems += _unknown_seeds(config, ppo["seeds"], f"{where}.ppo.seeds")
    problems += [
        f"{where}.ppo.variants: '{name}' is not among the optimized variants. "
        f"{nearest(name, optimized_variants(config))}"
        for name in ppo["variants"] or []
        if name not in optimized_variants(config)
    ]
    for name in ("minibatches", "processes"):
        if ppo[name] > ppo["batch_size"]:
            problems.append(
                f"{where}.ppo.{name}: {ppo[name]} is more than overoptimization.ppo.batch_size = {ppo['batch_size']}"
            )
    try:
        if ppo["deepspeed"] and zero_settings(ppo["deepspeed"])["stage"] == 0:
            problems.append(
                f"{where}.ppo.deepspeed: '{ppo['deepspeed']}' is stage 0, which cuts nothing; use null, or stage 1, 2 "
                "or 3"
            )
    except UserError as error:
        problems.append(f"{where}.ppo.deepspeed: {error}")
    return problems


def _policy_conflicts(config: Mapping[str, Any]) -> list[str]:
    """Problems of sampling from a policy and of its gold rewards."""
    problems: list[str] = []
    where = "overoptimization"
    gold = config["overoptimization"]["gold"]
    if gold["source"] == "world":
        dataset = dataset_name(config["data"])
        if dataset != "world":
            problems.append(
                f"{where}.gold: 'world' knows the controlled world only, but data.dataset is '{dataset}'; name a "
                "reward model"
            )
        set_keys = [key for key in ("revision", "max_length") if gold[key] is not None]
        problems += [
            f"{where}.gold.{key}: is {gold[key]!r}, but 'world' is computed from the whole text; leave it out"
            for key in set_keys
        ]
    elif "/" not in gold["source"] and not os.path.isdir(gold["source"]):
        problems.append(
            f"{where}.gold: '{gold['source']}' is neither 'world', nor a folder here, nor a hub id (owner/name)"
        )
    return problems
