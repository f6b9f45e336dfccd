"""Verbs of the workflow's stages, which also run by hand."""

from __future__ import annotations

import os
from pathlib import Path

import click

from rm_methods.commands.options import (
    FILE,
    FOLDER,
    benchmark_items,
    benchmarks_option,
    check_variant,
    checkpoints_option,
    config_option,
    experiment_option,
    find_methods,
    items_option,
    methods_option,
    named_folders,
    named_paths,
    seed_option,
    threads_option,
    variant_option,
)
from rm_methods.commands.verb import verb
from rm_methods.errors import UserError, nearest


@verb()
@config_option
@click.option("--pairs", required=True, type=FILE, help="Parquet file to write.")
@click.option("--report", required=True, type=FILE, help="JSON report to write.")
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


@verb("prepare-backbone")
@config_option
@click.option("--pairs", required=True, type=FILE, help="Prepared pairs; only a tiny backbone reads them.")
@click.option("--out", required=True, type=FOLDER, help="Folder to write.")
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


@verb("prepare-benchmark")
@config_option
@click.option("--benchmark", required=True, help="Name of the benchmark.")
@click.option("--pairs", type=FILE, help="Prepared pairs, for benchmarks that are made of them.")
@click.option("--items", required=True, type=FILE, help="Parquet file to write.")
@click.option("--report", required=True, type=FILE, help="JSON report to write.")
def prepare_benchmark(config_files, benchmark, pairs, items, report):
    """Convert a benchmark to a file of items to score."""
    from rm_methods.benchmarks.evaluation import prepare_items
    from rm_methods.config.resolve import load_config
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


@verb()
@click.option("--benchmark", required=True, help="Name of the benchmark.")
@click.option("--pairs", required=True, type=FILE, help="Prepared pairs; those of the split train count.")
@click.option("--items", required=True, type=FILE, help="Benchmark items.")
@click.option("--report", required=True, type=FILE, help="JSON report to write.")
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


@verb()
@config_option
@variant_option
@seed_option
@click.option("--pairs", required=True, type=FILE, help="Prepared pairs.")
@click.option("--backbone", required=True, type=FOLDER, help="Prepared backbone folder.")
@click.option("--out", required=True, type=FOLDER, help="Run folder to write: model/, metrics.jsonl and summary.json.")
@checkpoints_option
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
    check_variant(config, variant)
    files = RunFiles(
        pairs=pairs,
        backbone=backbone,
        model=out / "model",
        metrics=out / "metrics.jsonl",
        summary=out / "summary.json",
        work=work,
        required=named_folders("--required", required),
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


@verb()
@benchmarks_option
@items_option
@click.option("--scores", multiple=True, required=True, type=FILE, help="Score table, one file per --benchmark.")
@click.option(
    "--member-scores",
    multiple=True,
    help="BENCHMARK=TABLE: score table of a member of a combined run; one for each member, in its order.",
)
@click.option("--summary", type=FILE, default=None, help="summary.json of the run; gives its variant and seed.")
@click.option("--metrics", type=FILE, default=None, help="JSON file of metrics to write.")
@click.option(
    "--credits", type=FILE, default=None, help="Parquet file to write: the credit of each item in each metric."
)
@methods_option
def evaluate(benchmark, items, scores, member_scores, summary, metrics, credits, method_folders):
    """Compute the metrics of score tables.

    With the score tables of its members, a combined run (an ensemble, WARM) also gets its metrics without each of them.
    """
    import tempfile

    from rm_methods.benchmarks.evaluation import evaluate_run
    from rm_methods.files import check_outputs
    from rm_methods.listing import metrics_text
    from rm_methods.methods.members import members_of
    from rm_methods.stored import read_summary

    find_methods(method_folders)
    if not len(benchmark) == len(items) == len(scores):
        raise UserError("Give as many --items and --scores as --benchmark.")
    outputs = {option: [path] for option, path in (("--metrics", metrics), ("--credits", credits)) if path}
    tables = named_paths(
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


@verb()
@config_option
@experiment_option
@click.option("--out", required=True, type=FOLDER, help="Folder to write the table and tuned.yaml to.")
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


@verb()
@config_option
@variant_option
@click.option("--model", required=True, type=FOLDER, help="Reward-model folder of the run.")
@benchmarks_option
@items_option
@click.option(
    "--out", required=True, type=FOLDER, help="Folder for attention.parquet, masking.parquet and report.json."
)
@threads_option
def diagnose(config_files, variant, model, benchmark, items, out, threads):
    """Measure what a trained reward model attends to.

    Writes attention by position, and accuracy with the start of the text hidden.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.diagnostics.diagnose import diagnose as run

    config = load_config(config_files)
    check_variant(config, variant)
    report = run(config, variant, benchmark_items(benchmark, items), model, out, threads)
    for name, counts in report["benchmarks"].items():
        click.echo(f"{name}: " + ", ".join(f"{key} {count}" for key, count in counts.items()))


@verb("diagnose-teacher")
@config_option
@variant_option
@seed_option
@click.option("--model", required=True, type=FOLDER, help="Reward-model folder of the run.")
@click.option("--backbone", required=True, type=FOLDER, help="Prepared backbone folder that the training started from.")
@click.option(
    "--teacher", multiple=True, required=True, help="VARIANT=FOLDER: model folder of a joint variant's run; repeatable."
)
@benchmarks_option
@items_option
@click.option("--out", required=True, type=FOLDER, help="Folder for teacher.parquet and teacher_maps.png.")
@threads_option
def diagnose_teacher(config_files, variant, seed, model, backbone, teacher, benchmark, items, out, threads):
    """Compare a run's attention with a teacher's.

    The teacher is a joint model.  Measures the distance before and after the run's training.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.diagnostics.teacher_distance import diagnose_teacher_distance

    config = load_config(config_files)
    check_variant(config, variant)
    folders = {"model": model, "backbone": backbone}
    benchmarks = benchmark_items(benchmark, items)
    teachers = named_folders("--teacher", teacher)
    for name, models in teachers.items():
        if len(models) > 1:
            raise UserError(f"--teacher {name}: given {len(models)} times; give each teacher once.")
    teacher_models = {name: models[0] for name, models in teachers.items()}
    click.echo(diagnose_teacher_distance(config, variant, seed, benchmarks, folders, teacher_models, out, threads))


@verb("diagnose-summary")
@config_option
@experiment_option
@click.option("--out", required=True, type=FOLDER, help="Folder to write tables and figures to.")
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


@verb()
@config_option
@experiment_option
@click.option("--out", required=True, type=FOLDER, help="Folder to write tables, figures and pages to.")
def overoptimization(config_files, folder, out):
    """Summarize Best-of-N and PPO of all runs.

    Writes tables, figures and pages of samples.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.overoptimization.summarize import summarize

    click.echo(summarize(load_config(config_files), folder, out))


@verb()
@config_option
@experiment_option
@click.option(
    "--out",
    required=True,
    type=FILE,
    help="JSON file to write: records of all exports.  Each run also gets a record beside it.",
)
def track(config_files, folder, out):
    """Export finished runs to MLflow.

    You can repeat this: nothing is stored twice, and pending runs are added.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.experiment.experiment import Experiment
    from rm_methods.files import write_json
    from rm_methods.tracking.export import experiment_export, export_experiment

    config = load_config(config_files)
    export = experiment_export(Experiment(config), folder)
    result = export_experiment(export, out.parent, config["tracking"]["uri"])
    write_json(out, result.runs)
    pending = result.pending
    n_stored = len(result.runs) - sum(record["status"] == "pending" for record in result.runs)
    click.echo(f"{n_stored} of {len(result.runs)} runs are in MLflow ({result.summary['comparison']['tracking_uri']}).")
    if result.summary["not_compared"]:
        click.echo(f"No comparison is in MLflow: {result.summary['not_compared']}.", err=True)
    if "pages" in result.summary:
        click.echo(f"Runs: {result.summary['pages']['how_to_open']}")
    if pending:
        click.echo(
            f"Pending: {len(pending)} ({pending[0]['reason']}). Run `snakemake --cores 1 track` when it is solved.",
            err=True,
        )


# In the order of their use, as `rm-methods --help` lists them.
VERBS = (
    prepare,
    prepare_backbone,
    prepare_benchmark,
    contamination,
    train,
    evaluate,
    tune,
    diagnose,
    diagnose_teacher,
    diagnose_summary,
    overoptimization,
    track,
)
