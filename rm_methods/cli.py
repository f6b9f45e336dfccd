"""The command line: one verb per stage, used by the workflow and by hand.

Usage:
    rm-methods list methods
    rm-methods check --config my.yaml
    rm-methods score --model results/quickstart/runs/bradley_terry/seed0/model --data pairs.jsonl --out scores.parquet
    rm-methods evaluate --benchmark rm_bench --items items.parquet --scores scores.parquet

Heavy packages are imported inside the verbs, so that `rm-methods --help` answers at once.
"""

from __future__ import annotations

import atexit
import errno
import functools
import gc
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rm_methods import __version__
from rm_methods.errors import UserError, shortened

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_SEED = click.IntRange(min=0, max=2**32 - 1)
_config = click.option(
    "--config",
    "config_files",
    multiple=True,
    required=True,
    type=_FILE,
    help="Configuration file; repeatable, later files override earlier ones.",
)
_variant = click.option("--variant", required=True, help="Name of a variant: a key of `methods:`.")
_seed = click.option("--seed", required=True, type=_SEED, help="Seed of the run.")
_experiment = click.option(
    "--experiment", "folder", required=True, type=_FOLDER, help="Folder of the experiment's results."
)
_threads = click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads; 0 lets torch decide.")
_benchmarks = click.option("--benchmark", multiple=True, required=True, help="Name of a benchmark; repeatable.")
_items = click.option(
    "--items", multiple=True, required=True, type=_FILE, help="Benchmark items, one file per --benchmark."
)
_policy = click.option("--policy", required=True, type=_FOLDER, help="Policy folder.")
_checkpoints = click.option("--work", required=True, type=_FOLDER, help="Folder for checkpoints of unfinished runs.")
_samples = click.option("--work", required=True, type=_FOLDER, help="Folder for unfinished samples.")

_OBJECTS_BEFORE_COLLECTION = 10_000  # Python's default is 700
# Errors of the file system that reading a wrong path causes, too.
_ADVICE = {
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "Check the path: a part of it is a file.",
    errno.EISDIR: "Name a file in that folder.",
    errno.ENAMETOOLONG: "Check the path.",
}
_WRITTEN = ("work", "out", "report", "metrics", "credits")  # options that name files or folders to write


class _Verb(click.Command):
    """Explains a full or read-only disk, whichever library raised the error."""

    def invoke(self, context):
        try:
            return super().invoke(context)
        except Exception as error:
            from rm_methods.system.disk import disk_problem

            paths: list[Path] = []
            for name in _WRITTEN:
                value = context.params.get(name)
                paths += value if isinstance(value, tuple) else [value]
            if problem := disk_problem(error, dict.fromkeys(filter(None, paths))):
                raise UserError(problem) from error
            raise


# Heading of `rm-methods --help` -> its verbs, in the order of their use.
_GROUPS = {
    "Use": ("list", "show", "init", "check", "plan", "score", "benchmark", "compare", "power", "cancel"),
    "Stages of the workflow, by hand": (
        "prepare",
        "prepare-backbone",
        "prepare-benchmark",
        "contamination",
        "train",
        "evaluate",
        "tune",
        "diagnose",
        "diagnose-teacher",
        "diagnose-summary",
        "overoptimization",
        "track",
    ),
    "Plumbing (policies, and language models of the controlled world)": (
        "sft",
        "sample-pool",
        "sample-references",
        "ppo",
        "train-world-model",
    ),
}
_EXAMPLES = """\b
Examples:
  snakemake --cores 2                           run config/quickstart.yaml
  snakemake --cores 2 --configfile my.yaml      run another experiment
  rm-methods init --data my_pairs.jsonl         a configuration for your own pairs
  rm-methods check --config my.yaml             is this configuration right?
  rm-methods show bradley_terry                 a method and its settings
  rm-methods benchmark --model MODEL --benchmarks rm_bench,rewardbench2
  rm-methods score --model FOLDER --data pairs.jsonl --out scores.csv

\b
`rm-methods VERB --help` describes a verb."""


class _Cli(click.Group):
    """Prints a `UserError` as text and exits with status 2.  Other errors are bugs and keep their traceback."""

    command_class = _Verb

    def format_commands(self, context, formatter):
        """The verbs in groups, each with the whole first sentence of its description."""
        ungrouped = [name for name in self.commands if all(name not in names for names in _GROUPS.values())]
        width = max(map(len, self.commands))
        for heading, names in (*_GROUPS.items(), ("Other", ungrouped)):
            rows = [(name.ljust(width), self.commands[name].get_short_help_str(limit=10_000)) for name in names]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)

    def invoke(self, context):
        try:
            return super().invoke(context)
        except UserError as error:
            click.echo(f"rm-methods: {shortened(str(error))}", err=True)
            sys.exit(2)
        except OSError as error:
            if error.errno is None:
                raise
            advice = _ADVICE.get(error.errno, "Check the path, and whether the disk works.")
            click.echo(f"rm-methods: {error.filename or 'file system'}: {error.strerror}. {advice}", err=True)
            sys.exit(2)


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXAMPLES)
@click.version_option(__version__)
def main():
    """Train, score, evaluate and compare reward models.  The workflow (`snakemake --cores N`) calls these verbs."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # Imports make hundreds of thousands of objects that stay. Searching them for garbage again and again, and once more
    # at the end, takes a quarter of the time that a short verb takes.
    gc.set_threshold(_OBJECTS_BEFORE_COLLECTION, 10, 10)
    atexit.register(gc.freeze)


@main.command("list")
@click.argument("what", type=click.Choice(["methods", "benchmarks", "datasets"]))
def list_cards(what):
    """List methods, benchmarks or datasets.

    A configuration names them.
    """
    from rm_methods.listing import listing

    click.echo(listing(what))
    if what == "methods":
        # Not on stdout, so that a pipe gets one line a method.
        click.echo("`rm-methods show METHOD` describes one of them, with its settings.", err=True)


@main.command()
@click.argument("method")
def show(method):
    """Describe a method: source, cost, and every setting.

    Also prints lines of YAML to copy into a configuration.
    """
    from rm_methods.listing import method_page

    click.echo(method_page(method))


@main.command()
@_config
@click.option("--full", is_flag=True, help="Print the configuration with all defaults instead, as YAML.")
def check(config_files, full):
    """Check a configuration: say OK and what would run, or list all its mistakes.

    With --full, prints the configuration with all defaults.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.listing import configuration_text
    from rm_methods.yaml_files import yaml_text

    config = load_config(config_files, before_workflow=True)
    source = ", ".join(map(str, config_files))
    if full:
        click.echo(yaml_text(config), nl=False)
    else:
        click.echo(f"OK: {source}: {configuration_text(config)}")


@main.command()
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="File of preference pairs, or folder with train.*, validation.* and test.*.",
)
@click.option("--test", type=_FILE, default=None, help="File of test pairs; default: a share of the prompts of --data.")
@click.option(
    "--backbone",
    default=None,
    help="Folder or hub id of the model to train, or tiny; default: the best that needs no network.",
)
@click.option("--out", type=_FILE, default=None, help="File to write; default: the name of --data with .yaml.")
@click.option(
    "--option", "options", multiple=True, help="NAME=VALUE of the reader, such as chosen_field=better; repeatable."
)
@click.option("--force", is_flag=True, help="Overwrite the file.")
def init(data, test, backbone, out, options, force):
    """Write a configuration for your own pairs.

    Prints what was read.  The configuration compares methods on held-out pairs, and runs without a change.
    """
    from yaml import YAMLError

    from rm_methods.config.starter import write_starter
    from rm_methods.yaml_files import parse_yaml

    values = {}
    for option in options:
        name, separator, text = option.partition("=")
        if not separator:
            raise UserError(f"--option {option}: write NAME=VALUE, for instance chosen_field=better.")
        try:
            values[name] = parse_yaml(text)[0]
        except YAMLError:
            values[name] = text
    click.echo(write_starter(data, out, test=test, backbone=backbone, options=values, force=force))


@main.command()
@_config
@click.option(
    "--gpu",
    default="h100",
    show_default=True,
    help="GPU type to assume: a100, h100, h200 or b200.",
)
@click.option(
    "--utilization",
    type=float,
    default=0.4,
    show_default=True,
    help="Share of the GPU's peak speed that training reaches.",
)
@click.option(
    "--pairs", type=click.IntRange(min=1), default=None, help="Number of training pairs, if none are prepared."
)
@click.option("--prompt-tokens", type=float, default=None, help="Mean tokens of a prompt, if no pairs are prepared.")
@click.option(
    "--response-tokens", type=float, default=None, help="Mean tokens of a response, if no pairs are prepared."
)
@click.option(
    "--responses", type=click.IntRange(min=1), default=None, help="Number of responses scored per benchmark and run."
)
@click.option("--shape", default=None, help="Size of the backbone to assume: 135M, 1B, 8B or 70B.")
def plan(config_files, **options):
    """Estimate the cost of an experiment before it runs.

    Prints jobs, GPU-hours, memory and disk.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.planning import plan as planning
    from rm_methods.planning.plan_text import plan_text

    config = load_config(config_files)
    assumptions = planning.make_assumptions(
        config, {name: value for name, value in options.items() if value is not None}
    )
    plans = planning.plan(config, assumptions)
    click.echo(plan_text(config, plans, assumptions, planning.job_counts(config_files)))


@main.command()
@_config
@click.option("--pairs", required=True, type=_FILE, help="Parquet file to write.")
@click.option("--report", required=True, type=_FILE, help="JSON report to write.")
def prepare(config_files, pairs, report):
    """Read, clean and split the preference data.

    Also balances lengths and flips labels, if the configuration asks for it.
    """
    from rm_methods.config.conflicts import needed_splits
    from rm_methods.config.resolve import load_config
    from rm_methods.files import check_outputs
    from rm_methods.preferences.prepare import describe
    from rm_methods.preferences.prepare import prepare as run

    check_outputs({"--pairs": [pairs], "--report": [report]}, {"--config": config_files})

    config = load_config(config_files)
    click.echo(describe(run(config["data"], pairs, report, needed_splits(config))))


@main.command("prepare-backbone")
@_config
@click.option("--pairs", required=True, type=_FILE, help="Prepared pairs; only a tiny backbone reads them.")
@click.option("--out", required=True, type=_FOLDER, help="Folder to write.")
def prepare_backbone(config_files, pairs, out):
    """Prepare the backbone that training starts from.

    Stores its tokenizer, chat template and configuration.  Converts or creates the model if needed.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.preferences.pair import read_pairs
    from rm_methods.reward_models.backbones import prepare_backbone as run
    from rm_methods.yaml_files import yaml_text

    backbone = load_config(config_files)["backbone"]
    record = run(backbone, read_pairs(pairs, ["train"]) if backbone["source"] == "tiny" else [], out)
    click.echo(yaml_text(record), nl=False)


@main.command("prepare-benchmark")
@_config
@click.option("--benchmark", required=True, help="Name of the benchmark.")
@click.option("--pairs", type=_FILE, help="Prepared pairs, for benchmarks that are made of them.")
@click.option("--items", required=True, type=_FILE, help="Parquet file to write.")
@click.option("--report", required=True, type=_FILE, help="JSON report to write.")
def prepare_benchmark(config_files, benchmark, pairs, items, report):
    """Convert a benchmark to a file of items to score."""
    from rm_methods.benchmarks.evaluation import prepare_items
    from rm_methods.config.resolve import load_config
    from rm_methods.errors import nearest
    from rm_methods.files import check_outputs
    from rm_methods.listing import preparation_text

    entries = load_config(config_files)["benchmarks"]
    if benchmark not in entries:
        raise UserError(
            f"'{benchmark}' is not among the benchmarks of the configuration. {nearest(benchmark, entries)}"
        )
    check_outputs(
        {"--items": [items], "--report": [report]}, {"--config": config_files, "--pairs": [pairs] if pairs else []}
    )
    click.echo(preparation_text(prepare_items(benchmark, entries[benchmark], pairs, items, report)))


@main.command()
@click.option("--benchmark", required=True, help="Name of the benchmark.")
@click.option("--pairs", required=True, type=_FILE, help="Prepared pairs; those of the split train count.")
@click.option("--items", required=True, type=_FILE, help="Benchmark items.")
@click.option("--report", required=True, type=_FILE, help="JSON report to write.")
def contamination(benchmark, pairs, items, report):
    """Count the benchmark items whose texts occur in the training pairs.

    Equal prompts, equal prompts with an equal response, and shared n-grams of 13 words.
    """
    from rm_methods.benchmarks.cards import load_benchmark_card
    from rm_methods.benchmarks.contamination import write_contamination
    from rm_methods.benchmarks.contamination_report import contamination_note
    from rm_methods.files import check_outputs

    check_outputs({"--report": [report]}, {"--pairs": [pairs], "--items": [items]})
    card = load_benchmark_card(benchmark)  # refuses a name that is misspelled
    click.echo(contamination_note(write_contamination(card.name, items, pairs, report)))


@main.command("train-world-model")
@_seed
@click.option("--out", required=True, type=_FOLDER, help="Folder to write: a language model, and training.json.")
@_checkpoints
@click.option("--set", "changes", multiple=True, help="SETTING=NUMBER, such as hidden_size=128; repeatable.")
@click.option(
    "--start",
    type=_FOLDER,
    default=None,
    help="Folder of an earlier training to start from; a joint model starts from the package's causal one.",
)
@click.option(
    "--kind",
    type=click.Choice(["causal", "joint"]),
    default="causal",
    show_default=True,
    help="causal predicts each token; joint reads two responses in both directions, and predicts the reaction to each.",
)
@_threads
def train_world_model(seed, out, work, changes, start, kind, threads):
    """Train a language model of the controlled world.

    It learns to compare a response with its prompt, from conversations without preferences.  The package has the
    weights of three: backbone.source = world and world_weak, and joint_bidirectional.start = world_joint.
    """
    from rm_methods.policies.world_model import WorldModelSettings
    from rm_methods.policies.world_model import train_world_model as run

    record = run(WorldModelSettings.changed(changes, kind), seed, out, work, threads=threads, start=start, kind=kind)
    if kind == "causal":
        share = record["probe"][-1]["accuracy_by_layer"][-1]
        click.echo(f"{record['parameters']} parameters. The probe tells the better response in {100 * share:.1f}%.")
    else:
        last = record["reactions"][-1]
        click.echo(
            f"{record['parameters']} parameters. It is right about {100 * last['named_right']:.1f}% of the responses "
            f"(flawed or not), and ranks {100 * last['ordered_right']:.1f}% of the pairs right."
        )


@main.command()
@_config
@_variant
@_seed
@click.option("--pairs", required=True, type=_FILE, help="Prepared pairs.")
@click.option("--backbone", required=True, type=_FOLDER, help="Prepared backbone folder.")
@click.option("--out", required=True, type=_FOLDER, help="Run folder to write: model/, metrics.jsonl and summary.json.")
@_checkpoints
@click.option(
    "--required",
    multiple=True,
    help="SETTING=FOLDER, for a setting that names another variant: model folder of a run of it; repeatable.",
)
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="CPU threads, shared by the ranks; 0 lets torch decide."
)
def train(config_files, variant, seed, pairs, backbone, out, work, required, threads):
    """Train one variant with one seed.

    An interrupted run continues from its last complete checkpoint.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.listing import training_text
    from rm_methods.training.run import RunFiles
    from rm_methods.training.run import train as run

    config = load_config(config_files)
    _check_variant(config, variant)
    files = RunFiles(
        pairs=pairs,
        backbone=backbone,
        model=out / "model",
        metrics=out / "metrics.jsonl",
        summary=out / "summary.json",
        work=work,
        required=_named_folders("--required", required),
    )
    observer = None
    if config["tracking"]["live"]:
        from rm_methods.files import file_hash
        from rm_methods.tracking.live import live_metrics
        from rm_methods.training.run_key import run_key

        observer = live_metrics(
            config,
            variant,
            seed,
            files.model,
            run_key=lambda: run_key(config, variant, seed, file_hash(pairs), files.required),
        )
    summary = run(config, variant, seed, files, threads=threads, observer=observer)
    if "RANK" not in os.environ:  # in a launched run, the launcher prints this
        click.echo(training_text(summary))


def _model_options(command):
    """Options for reward models from elsewhere, collected in `model_options`."""

    @functools.wraps(command)
    def with_options(chat_template, label, reference, trust_remote_code, **arguments):
        from rm_methods.scoring.model_options import ModelOptions

        options = ModelOptions(chat_template, label, reference, trust_remote_code)
        return command(model_options=options, **arguments)

    for option in (
        click.option(
            "--trust-remote-code", is_flag=True, help="Run the Python code that comes with the model; read it before."
        ),
        click.option(
            "--reference",
            default=None,
            help="Reference of a policy trained by DPO, whose implicit reward is scored: folder, hub id, or none.",
        ),
        click.option(
            "--label", default=None, help="Name or number of the output that is the reward, if the head has several."
        ),
        click.option(
            "--chat-template", type=_FILE, default=None, help="Jinja file, in place of the tokenizer's chat template."
        ),
    ):
        with_options = option(with_options)
    return with_options


@main.command()
@click.option("--model", required=True, type=_FOLDER, help="Reward-model folder, or folder with a scorer.json.")
@click.option(
    "--data",
    multiple=True,
    required=True,
    help="File of benchmark items or preference pairs, or name of a benchmark or dataset; repeatable.",
)
@click.option(
    "--out",
    multiple=True,
    required=True,
    type=_FILE,
    help="Score table to write, one per --data; .parquet, .csv or .jsonl.",
)
@click.option("--root", type=_FOLDER, default=None, help="Folder with the files of a benchmark or dataset.")
@click.option(
    "--config", "config_files", multiple=True, type=_FILE, help="Configuration with the scoring settings; repeatable."
)
@_threads
@click.option(
    "--max-length",
    type=click.IntRange(min=32),
    default=None,
    help="Longest sequence in tokens; default that of --config, or the model's.",
)
@click.option(
    "--protocol",
    type=click.Choice(["counted", "strict"]),
    default=None,
    help="Too long a text is cut and counted (default), or gets no score.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default=None,
    help="Precision of the backbone; the head is always fp32.",
)
@click.option(
    "--layout",
    type=click.Choice(["auto", "packed", "plain"]),
    default=None,
    help="Batch layout: packed has each prompt once, plain pads.",
)
@click.option("--attention", default=None, help="Attention of transformers: auto, sdpa, eager, flash_attention_2.")
@click.option(
    "--tokens-per-batch",
    type=click.IntRange(min=32),
    default=None,
    help="Largest number of tokens in one forward pass.",
)
@click.option(
    "--bf16-in-batches",
    is_flag=True,
    default=None,
    help="Use batches in bf16, too: faster, but scores depend on the batch.",
)
@click.option("--strict", is_flag=True, help="Fail if any row cannot be scored.")
@_model_options
def score(model, data, out, root, config_files, strict, model_options, **options):
    """Score responses with a reward model.

    Writes a score table for each --data.  Prints a report on the rows and the accuracy, and stores it beside the table.
    """
    from dataclasses import replace

    from rm_methods.config.resolve import load_config
    from rm_methods.scoring.model_source import own_length
    from rm_methods.scoring.score import score_files
    from rm_methods.scoring.scorer import ScoringSettings, scoring_settings

    if len(data) != len(out):
        raise UserError(f"{len(data)} --data but {len(out)} --out were given; give one --out for each --data.")
    if config_files:
        configured = scoring_settings(load_config(config_files))
    else:
        configured = ScoringSettings(max_length=own_length(model) or ScoringSettings.max_length)
    settings = replace(configured, **{name: value for name, value in options.items() if value is not None})
    jobs = list(zip(data, out, strict=True))
    reports = score_files(model, jobs, root, settings, strict, also_read=config_files, model_options=model_options)
    click.echo("\n\n".join(reports))


@main.command()
@click.option("--model", required=True, help="Reward-model folder, or id of the Hugging Face hub.")
@click.option("--revision", default=None, help="Commit of a hub id.")
@click.option(
    "--benchmarks", "names", required=True, help="Names of benchmarks, separated by commas: rewardbench2,rm_bench."
)
@click.option(
    "--root", "roots", multiple=True, help="NAME=FOLDER with the public files; without it, from the hub; repeatable."
)
@click.option("--limit", type=click.IntRange(min=1), default=None, help="At most this many items of each subset.")
@click.option(
    "--training-data",
    multiple=True,
    help="File of preference pairs that the model was trained on, to count the items that occur in it; repeatable.",
)
@click.option("--out", type=_FOLDER, default=None, help="Folder to write; default results/benchmark/<model>.")
@_threads
@click.option(
    "--max-length", type=click.IntRange(min=32), default=None, help="Longest sequence in tokens; default the model's."
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Precision of the backbone; the head is always fp32.",
)
@click.option(
    "--tokens-per-batch",
    type=click.IntRange(min=32),
    default=4096,
    show_default=True,
    help="Largest number of tokens in one forward pass.",
)
@click.option(
    "--protocol",
    type=click.Choice(["counted", "official", "strict"]),
    default="counted",
    show_default=True,
    help="Too long a text is cut and counted; cut as the official script does; or gets no score.",
)
@_model_options
def benchmark(
    model, revision, names, roots, limit, training_data, out, threads, max_length, protocol, model_options, **settings
):
    """Score a reward model on benchmarks, without an experiment.

    Prints a table for each benchmark, beside rules that do not read the text.  A stopped command continues.
    """
    from rm_methods.leaderboard.model_run import Target, run_model
    from rm_methods.scoring.scorer import ScoringSettings

    folders = _named_paths("--root", roots, "rm_bench=data/rm_bench")
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unused := [name for name in folders if name not in wanted]:
        raise UserError(f"--root {unused[0]}=...: this benchmark is not among --benchmarks {','.join(wanted)}.")
    options = {} if limit is None else {"limit": limit}
    targets = [Target(name, folders[name][-1] if name in folders else None, options) for name in wanted]
    out = out or Path("results/benchmark") / model.rstrip("/").replace("/", "--").lstrip(".-")
    click.echo(
        run_model(
            model,
            targets,
            out,
            ScoringSettings(threads=threads, protocol="counted" if protocol == "official" else protocol, **settings),
            official=protocol == "official",
            revision=revision,
            max_length=max_length,
            options=model_options,
            training_data=training_data,
        ),
        nl=False,
    )
    click.echo(f"\nTables and scores: {out}")


@main.command()
@_benchmarks
@_items
@click.option("--scores", multiple=True, required=True, type=_FILE, help="Score table, one file per --benchmark.")
@click.option(
    "--member-scores",
    multiple=True,
    help="BENCHMARK=TABLE: score table of a member of a combined run; one for each member, in its order.",
)
@click.option("--summary", type=_FILE, default=None, help="summary.json of the run; gives its variant and seed.")
@click.option("--metrics", type=_FILE, default=None, help="JSON file of metrics to write.")
@click.option(
    "--credits", type=_FILE, default=None, help="Parquet file to write: the credit of each item in each metric."
)
def evaluate(benchmark, items, scores, member_scores, summary, metrics, credits):
    """Compute the metrics of score tables.

    With the score tables of its members, a combined run (an ensemble, WARM) also gets its metrics without each of them.
    """
    import tempfile

    from rm_methods.benchmarks.evaluation import evaluate_run
    from rm_methods.errors import nearest
    from rm_methods.files import check_outputs
    from rm_methods.listing import metrics_text
    from rm_methods.methods.members import members_of
    from rm_methods.stored import read_summary

    if not len(benchmark) == len(items) == len(scores):
        raise UserError("Give as many --items and --scores as --benchmark.")
    outputs = {option: [path] for option, path in (("--metrics", metrics), ("--credits", credits)) if path}
    tables = _named_paths(
        "--member-scores", member_scores, "rm_bench=results/x/scores/bradley_terry/seed0/rm_bench.parquet"
    )
    inputs = {"--items": items, "--scores": scores, "--summary": [summary] if summary else []}
    check_outputs(outputs, inputs | {"--member-scores": [path for paths in tables.values() for path in paths]})
    identity = read_summary(summary) if summary else {"variant": None, "method": None, "seed": None, "run_key": None}
    if unknown := [name for name in tables if name not in benchmark]:
        raise UserError(f"--member-scores {unknown[0]}=...: {nearest(unknown[0], benchmark)}")
    if tables and not summary:
        raise UserError("--member-scores needs --summary, which says what the run is made of.")
    members = members_of(identity, tables) if tables else None
    with tempfile.TemporaryDirectory() as scratch:
        result = evaluate_run(
            list(zip(benchmark, items, scores, strict=True)),
            identity,
            metrics or Path(scratch) / "metrics.json",
            credits or Path(scratch) / "credits.parquet",
            members,
        )
    click.echo(metrics_text(result))


@main.command()
@_config
@_variant
@click.option("--model", required=True, type=_FOLDER, help="Reward-model folder of the run.")
@_benchmarks
@_items
@click.option(
    "--out", required=True, type=_FOLDER, help="Folder for attention.parquet, masking.parquet and report.json."
)
@_threads
def diagnose(config_files, variant, model, benchmark, items, out, threads):
    """Measure what a trained reward model attends to.

    Writes attention by position, and accuracy with the start of the text hidden.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.diagnostics.diagnose import diagnose as run

    config = load_config(config_files)
    _check_variant(config, variant)
    report = run(config, variant, _benchmark_items(benchmark, items), model, out, threads)
    for name, counts in report["benchmarks"].items():
        click.echo(f"{name}: " + ", ".join(f"{key} {count}" for key, count in counts.items()))


@main.command("diagnose-teacher")
@_config
@_variant
@_seed
@click.option("--model", required=True, type=_FOLDER, help="Reward-model folder of the run.")
@click.option(
    "--backbone", required=True, type=_FOLDER, help="Prepared backbone folder that the training started from."
)
@click.option(
    "--teacher", multiple=True, required=True, help="VARIANT=FOLDER: model folder of a joint variant's run; repeatable."
)
@_benchmarks
@_items
@click.option("--out", required=True, type=_FOLDER, help="Folder for teacher.parquet and teacher_maps.png.")
@_threads
def diagnose_teacher(config_files, variant, seed, model, backbone, teacher, benchmark, items, out, threads):
    """Compare a run's attention with a teacher's.

    The teacher is a joint model.  Measures the distance before and after the run's training.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.diagnostics.teacher_distance import diagnose_teacher_distance

    config = load_config(config_files)
    _check_variant(config, variant)
    folders = {"model": model, "backbone": backbone}
    benchmarks = _benchmark_items(benchmark, items)
    teachers = _named_folders("--teacher", teacher)
    for name, models in teachers.items():
        if len(models) > 1:
            raise UserError(f"--teacher {name}: given {len(models)} times; give each teacher once.")
    teacher_models = {name: models[0] for name, models in teachers.items()}
    click.echo(diagnose_teacher_distance(config, variant, seed, benchmarks, folders, teacher_models, out, threads))


@main.command("diagnose-summary")
@_config
@_experiment
@click.option("--out", required=True, type=_FOLDER, help="Folder to write tables and figures to.")
def diagnose_summary(config_files, folder, out):
    """Summarize the diagnostics of all runs.

    Writes tables and figures.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.diagnostics.summary import write_summary
    from rm_methods.experiment.experiment import Experiment

    config = load_config(config_files)
    Experiment(config).check_diagnosed(folder)
    click.echo(write_summary(config, folder, out))


@main.command()
@click.argument("folders", nargs=-1, type=_FOLDER)
@click.option(
    "--config",
    "config_files",
    multiple=True,
    type=_FILE,
    help="Configuration file; repeatable, later files override earlier ones.",
)
@click.option("--experiment", "folder", type=_FOLDER, help="Folder of the experiment's results.")
@click.option(
    "--out", type=_FOLDER, help="Folder to write tables and figures to; of several FOLDERS: default beside the first."
)
@click.option("--reference", help="Of several FOLDERS: variant that the others are compared with.")
@click.option("--benchmark", multiple=True, help="Of several FOLDERS: benchmark to compare on; repeatable.")
@click.option("--same-data", is_flag=True, help="Of several FOLDERS: fail if the training data differ.")
def compare(folders, config_files, folder, out, reference, benchmark, same_data):
    """Compare all runs of an experiment, or of several FOLDERS.

    Writes tables and figures.  One experiment needs --config, --experiment and --out.  Two or more FOLDERS of results
    need no configuration; they are refused if they were not measured alike.
    """
    from rm_methods.comparison.compare import compare as run
    from rm_methods.comparison.contamination import contamination_of
    from rm_methods.comparison.folders import compare_folders
    from rm_methods.comparison.noise import compare_across_noise
    from rm_methods.comparison.runs import compared_columns
    from rm_methods.config.resolve import load_config, reference_variant
    from rm_methods.config.variants import noise_levels
    from rm_methods.experiment.evaluated_runs import evaluated_runs
    from rm_methods.experiment.experiment import Experiment

    if folders:
        if config_files or folder:
            raise UserError("Name FOLDERS, or --config and --experiment, but not both.")
        result = compare_folders(folders, out, reference=reference, benchmarks=benchmark, same_data=same_data)
        click.echo(result.text)
        click.echo(f"Written to {result.files['table.txt'].parent}.", err=True)
        return
    given = {"--config": config_files, "--experiment": folder, "--out": out}
    if missing := [name for name, value in given.items() if not value]:
        raise UserError(f"{', '.join(missing)} missing. Give --config, --experiment and --out, or two or more FOLDERS.")
    if reference or benchmark or same_data:
        raise UserError("--reference, --benchmark and --same-data are for several FOLDERS; the configuration has them.")
    config = load_config(config_files)
    experiment = Experiment(config)
    runs = evaluated_runs(experiment, folder)
    columns = compared_columns(config)
    reference = reference_variant(config)
    correction = config["comparison"]["correction"]
    overlaps = contamination_of(experiment, folder)
    if levels := noise_levels(config):
        result = compare_across_noise(runs, columns, reference, levels, out, correction, contamination=overlaps)
    else:
        result = run(runs, columns, reference, out, correction, contamination=overlaps)
    click.echo(result.text)


@main.command()
@_experiment
@click.option(
    "--config",
    "config_files",
    multiple=True,
    type=_FILE,
    help="Configuration file; repeatable; default: the one stored in the folder.",
)
@click.option(
    "--difference",
    type=click.FloatRange(min=0, max=100, min_open=True),
    default=5,
    show_default=True,
    help="Difference to see, in points.",
)
@click.option("--rivals", type=click.IntRange(min=1), help="Number of methods to test; default: as in the pilot.")
@click.option("--reference", help="Variant to compare with; default: that of the configuration.")
@click.option("--out", type=_FOLDER, help="Folder to write to; default: power/ of the experiment's folder.")
def power(folder, config_files, difference, rivals, reference, out):
    """Plan seeds and items from a finished pilot.

    Prints the differences that other numbers of seeds and items could show.  Writes tables and a figure.
    """
    from rm_methods.comparison.power import power as plan_study
    from rm_methods.comparison.runs import compared_columns, read_runs, recorded_columns
    from rm_methods.config.resolve import load_config, reference_variant
    from rm_methods.config.variants import noise_levels
    from rm_methods.experiment.evaluated_runs import evaluated_runs
    from rm_methods.experiment.experiment import Experiment
    from rm_methods.experiment.stored_experiment import stored_experiment

    if config_files:
        config = load_config(config_files)
        files = evaluated_runs(Experiment(config), folder)
        columns = compared_columns(config)
    else:
        stored = stored_experiment(folder)
        config = stored.config
        files = list(stored.runs)
        columns = recorded_columns(config, files)
    runs = read_runs(files, columns)
    if levels := noise_levels(config):
        names = [name for level in levels if reference in level.variants for name in level.variants]
        if not names:
            raise UserError(
                "The experiment has several levels of label noise. Name the variant to compare with, whose level then "
                f"counts: --reference, one of {', '.join(config['methods'])}."
            )
        runs = [run for run in runs if run.variant in names]
    result = plan_study(
        runs,
        columns,
        reference or reference_variant(config),
        out or folder / "power",
        difference=difference / 100,
        rivals=rivals,
        correction=config["comparison"]["correction"],
    )
    click.echo(result.text)


@main.command()
@_config
@_experiment
@click.option("--out", required=True, type=_FOLDER, help="Folder to write the table and tuned.yaml to.")
def tune(config_files, folder, out):
    """Select the best settings of each method from a grid.

    Selects learning rate and main setting by validation accuracy.
    """
    from rm_methods.comparison.tuning import tune as run
    from rm_methods.config.resolve import load_config
    from rm_methods.experiment.experiment import Experiment

    config = load_config(config_files)
    if config["tuning"]["enabled"]:
        Experiment(config).check_runs(folder)
    click.echo(run(config, folder, out))


@main.command()
@_config
@_experiment
@click.option(
    "--out",
    required=True,
    type=_FILE,
    help="JSON file to write: records of all exports.  Each run also gets a record beside it.",
)
def track(config_files, folder, out):
    """Export finished runs to MLflow.

    You can repeat this: nothing is stored twice, and pending runs are added.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.experiment.experiment import Experiment
    from rm_methods.files import write_json
    from rm_methods.tracking.export import export_experiment, run_exports

    config = load_config(config_files)
    records = export_experiment(run_exports(Experiment(config), folder), out.parent, config["tracking"]["uri"])
    write_json(out, records)
    pending = [record for record in records if record["status"] == "pending"]
    click.echo(
        f"{len(records) - len(pending)} of {len(records)} runs are in MLflow "
        f"({records[0]['tracking_uri'] if records else '-'})."
    )
    if pending:
        click.echo(
            f"Pending: {len(pending)} ({pending[0]['reason']}). Run `snakemake --cores 1 track` when it is solved.",
            err=True,
        )


@main.command()
@_config
@click.option("--pairs", required=True, type=_FILE, help="Prepared pairs.")
@click.option(
    "--out", required=True, type=_FOLDER, help="Folder to write: backbone/, policy/, metrics.jsonl, summary.json."
)
@_checkpoints
@_threads
def sft(config_files, pairs, out, work, threads):
    """Fine-tune the policy that Best-of-N and PPO start from."""
    from rm_methods.config.resolve import load_config
    from rm_methods.policies.make_policy import make_policy

    summary = make_policy(load_config(config_files), pairs, out, work, threads)
    click.echo(_counts({name: summary[name] for name in ("examples", "prompts_cut", "responses_cut")}))


@main.command("sample-pool")
@_config
@_policy
@click.option("--pairs", required=True, type=_FILE, help="Prepared pairs; the policy answers their prompts.")
@click.option("--items", required=True, type=_FILE, help="File to write: the responses with their gold rewards.")
@click.option("--report", required=True, type=_FILE, help="JSON report to write.")
@_samples
@_threads
def sample_pool(config_files, policy, pairs, items, report, work, threads):
    """Sample the responses that Best-of-N selects from."""
    from rm_methods.config.resolve import load_config
    from rm_methods.files import check_outputs
    from rm_methods.overoptimization.draw import draw_pool

    check_outputs({"--items": [items], "--report": [report]}, {"--config": config_files, "--pairs": [pairs]})
    config = load_config(config_files)
    counts = draw_pool(config, policy=policy, pairs=pairs, items=items, report=report, work=work, threads=threads)
    click.echo(_counts(counts))


@main.command("sample-references")
@_config
@_policy
@click.option("--pairs", required=True, type=_FILE, help="Prepared pairs; the policy answers their training prompts.")
@click.option("--out", required=True, type=_FILE, help="Parquet file to write.")
@_samples
@_threads
def sample_references(config_files, policy, pairs, out, work, threads):
    """Sample the responses that scale PPO's rewards.

    PPO centers and scales rewards by the scores of these responses.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.overoptimization.draw import draw_references

    config = load_config(config_files)
    click.echo(_counts(draw_references(config, policy=policy, pairs=pairs, out=out, work=work, threads=threads)))


@main.command()
@_config
@_variant
@_seed
@click.option("--model", required=True, type=_FOLDER, help="Reward-model folder of the run.")
@_policy
@click.option("--pairs", required=True, type=_FILE, help="Prepared pairs; the policy answers their prompts.")
@click.option("--references", required=True, type=_FILE, help="Responses from `rm-methods sample-references`.")
@click.option(
    "--out",
    required=True,
    type=_FOLDER,
    help="Folder to write: policy/, metrics.jsonl, evaluation.parquet, summary.json.",
)
@_checkpoints
@_threads
def ppo(config_files, variant, seed, model, policy, pairs, references, out, work, threads):
    """Optimize a policy against a reward model with PPO.

    Also records the gold reward of the policy.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.ppo.run import PpoJob, optimize

    config = load_config(config_files)
    _check_variant(config, variant)
    job = PpoJob(
        config=config,
        variant=variant,
        seed=seed,
        model=model,
        policy=policy,
        pairs=pairs,
        references=references,
        out=out,
        work=work,
        threads=threads,
    )
    optimize(job)


@main.command()
@_config
@_experiment
@click.option("--out", required=True, type=_FOLDER, help="Folder to write tables, figures and pages to.")
def overoptimization(config_files, folder, out):
    """Summarize Best-of-N and PPO of all runs.

    Writes tables, figures and pages of samples.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.overoptimization.summarize import summarize

    click.echo(summarize(load_config(config_files), folder, out))


@main.command()
@click.option(
    "--folder",
    type=_FOLDER,
    default=Path("."),
    help="Only jobs that were submitted from this folder; default: the current folder.",
)
@click.option("--everywhere", is_flag=True, help="All your jobs with the prefix, from any folder.")
@click.option(
    "--prefix", default="rm-methods", show_default=True, help="Job-name prefix of the profile (slurm-jobname-prefix)."
)
@click.option("--list", "only_list", is_flag=True, help="Only list the jobs.")
def cancel(folder, everywhere, prefix, only_list):
    """Cancel the Slurm jobs of a killed workflow.

    Waits until they are gone.
    """
    from rm_methods.system import cluster

    folder = None if everywhere else folder
    jobs = cluster.queued_jobs(prefix, folder) if only_list else cluster.cancel(folder, prefix)
    where = "anywhere" if folder is None else f"submitted from {folder.resolve()}"
    if not jobs:
        click.echo(f"No {prefix} jobs {where} in Slurm's queue.")
        return
    click.echo(f"{len(jobs)} {prefix} jobs {where}{'' if only_list else ', canceled'}:\n{cluster.describe(jobs)}")
    if not only_list:
        click.echo(
            "Next: snakemake --unlock, then start the workflow again with --rerun-incomplete. Runs continue from their "
            "checkpoints."
        )


def _check_variant(config: Mapping[str, Any], variant: str) -> None:
    """Refuse a variant that the configuration does not have."""
    from rm_methods.errors import nearest

    if variant not in config["methods"]:
        raise UserError(f"Unknown variant '{variant}'. {nearest(variant, config['methods'])}")


def _benchmark_items(benchmarks: Sequence[str], items: Sequence[Path]) -> list[tuple[str, Path]]:
    """The benchmarks, each with its file of items."""
    if len(benchmarks) != len(items):
        raise UserError(
            f"{len(benchmarks)} --benchmark but {len(items)} --items were given; give one --items for each --benchmark."
        )
    return list(zip(benchmarks, items, strict=True))


def _counts(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in counts.items())


def _named_folders(option: str, texts: tuple[str, ...]) -> dict[str, list[Path]]:
    """NAME=FOLDER options as a mapping; a name may have several folders."""
    return _named_paths(option, texts, "teacher=results/x/runs/joint_encoder/seed0/model")


def _named_paths(option: str, texts: tuple[str, ...], example: str) -> dict[str, list[Path]]:
    """NAME=PATH options as a mapping; a name may have several paths."""
    if wrong := [text for text in texts if "=" not in text]:
        raise UserError(f"{option} {wrong[0]}: write NAME=PATH, for instance {example}.")
    paths: dict[str, list[Path]] = {}
    for name, path in (text.split("=", 1) for text in texts):
        paths.setdefault(name, []).append(Path(path))
    return paths


if __name__ == "__main__":
    main()
