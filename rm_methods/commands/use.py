"""Verbs that people use: cards, configurations, comparisons, reports."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from rm_methods.commands.contract import test_method
from rm_methods.commands.options import (
    CONFIG_HELP,
    FILE,
    FOLDER,
    INPUT,
    INPUT_FILE,
    PATH,
    complete_methods,
    config_files_option,
    config_option,
    experiment_option,
    find_methods,
    methods_option,
    reader_option,
    reader_options,
    reader_options_in_errors,
)
from rm_methods.commands.scoring import benchmark, score
from rm_methods.commands.verb import verb
from rm_methods.errors import UserError

_stored_config_option = config_files_option("Configuration file; repeatable; default: the one stored in the folder.")


@verb("list")
@click.argument("what", type=click.Choice(["methods", "benchmarks", "datasets"]))
@methods_option
def list_cards(what, method_folders):
    """List methods, benchmarks or datasets.

    A configuration names them.
    """
    from rm_methods.listing import listing

    find_methods(method_folders)
    click.echo(listing(what))
    if what == "methods":
        # Not on stdout, so that a pipe gets one line a method.
        click.echo("`rm-methods show METHOD` describes one of them, with its settings.", err=True)


@verb()
@click.argument("method", shell_complete=complete_methods)
@methods_option
def show(method, method_folders):
    """Describe a method: source, cost, and every setting.

    Also prints lines of YAML to copy into a configuration.
    """
    from rm_methods.listing import method_page
    from rm_methods.methods.registry import user_code_problems

    find_methods(method_folders)
    click.echo(method_page(method))
    for problem in user_code_problems(method):
        click.echo(f"WARNING: {problem}", err=True)


@verb()
@click.option(
    "--data",
    required=True,
    multiple=True,
    type=INPUT,
    help="File of preference pairs, or folder with train.*, validation.* and test.*; repeatable: a mixture.",
)
@click.option(
    "--test", type=INPUT_FILE, default=None, help="File of test pairs; default: a share of the prompts of --data."
)
@click.option(
    "--backbone",
    default=None,
    help="Folder or hub id of the model to train, or tiny; default: the best that needs no network.",
)
@click.option("--out", type=FILE, default=None, help="File to write; default: the name of --data with .yaml.")
@reader_option
@click.option("--force", is_flag=True, help="Overwrite the file.")
def init(data, test, backbone, out, reader, force):
    """Write a configuration for your own pairs.

    Prints what was read.  The configuration compares methods on held-out pairs, and runs without a change.
    """
    from rm_methods.config.starter import write_starter

    values = reader_options(reader)
    with reader_options_in_errors():
        text = write_starter(data, out, test=test, backbone=backbone, options=values, force=force)
    click.echo(text)


@verb()
@config_option
@methods_option
@click.option("--full", is_flag=True, help="Print the configuration with all defaults instead, as YAML.")
def check(config_files, method_folders, full):
    """Check a configuration: say OK and what would run, or list all its mistakes.

    With --full, prints the configuration with all defaults.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.listing import configuration_text, remarks
    from rm_methods.yaml_files import yaml_text

    config = load_config(config_files, methods=method_folders, before_workflow=True)
    source = ", ".join(map(str, config_files))
    if full:
        click.echo(yaml_text(config), nl=False)
    else:
        click.echo(f"OK: {source}: {configuration_text(config)}")
        click.echo("Not checked: the contents of the data, which the workflow reads first.")
    _warn(remarks(config))


def _warn(remarks: Sequence[str]) -> None:
    """Remarks on a configuration, on stderr."""
    for remark in remarks:
        click.echo(f"WARNING: {remark}", err=True)


@verb()
@config_option
@click.option(
    "--gpu",
    default=None,
    help="GPU type to assume: a100, h100, h200 or b200; default: CPUs if resources.gpus is 0, else h100.",
)
@click.option("--cores", type=click.IntRange(min=1), default=None, help="CPU cores to assume; default: all of them.")
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
def plan(config_files, cores, **options):
    """Estimate the cost of an experiment before it runs.

    Prints jobs, wall time on CPUs or GPU-hours, memory and disk.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.listing import remarks
    from rm_methods.planning import plan as planning
    from rm_methods.planning.cpu_text import cores_of_this_machine, cpu_plan_text
    from rm_methods.planning.plan_text import plan_text

    config = load_config(config_files)
    given = {name: value for name, value in options.items() if value is not None}
    _warn(remarks(config))
    if cores and "gpu" in given:
        raise UserError("--cores plans for CPUs and --gpu for GPUs; give one of them.")
    assumptions = planning.make_assumptions(config, given)
    if cores or ("gpu" not in given and config["resources"]["gpus"] == 0):
        click.echo(cpu_plan_text(config, config_files, assumptions, given, cores or cores_of_this_machine()))
        return
    plans = planning.plan(config, assumptions)
    click.echo(plan_text(config, plans, assumptions, planning.job_counts(config_files)))


@verb()
@click.argument("folders", nargs=-1, type=PATH)
@config_files_option(CONFIG_HELP)
@click.option("--experiment", "folder", type=FOLDER, help="Folder of the experiment's results.")
@click.option(
    "--out", type=FOLDER, help="Folder to write tables and figures to; of several FOLDERS: default beside the first."
)
@click.option("--reference", help="Of several FOLDERS: variant that the others are compared with.")
@click.option("--benchmark", multiple=True, help="Of several FOLDERS: benchmark to compare on; repeatable.")
@click.option("--same-data", is_flag=True, help="Of several FOLDERS: fail if the training data differ.")
@methods_option
def compare(folders, config_files, folder, out, reference, benchmark, same_data, method_folders):
    """Compare all runs of an experiment, or of several FOLDERS.

    Writes tables and figures.  One experiment needs --config, --experiment and --out.  Two or more FOLDERS of results
    need no configuration; they are refused if they were not measured alike.  A folder may be a bundle, too.
    """
    from tempfile import TemporaryDirectory

    from rm_methods.bundle.archive import unpacked_folders
    from rm_methods.comparison.contamination import contamination_of
    from rm_methods.comparison.folders import compare_folders
    from rm_methods.comparison.noise import compare_configured
    from rm_methods.comparison.runs import compared_columns
    from rm_methods.config.resolve import load_config
    from rm_methods.experiment.evaluated_runs import evaluated_runs
    from rm_methods.experiment.experiment import Experiment

    if folders:
        if config_files or folder:
            raise UserError("Name FOLDERS, or --config and --experiment, but not both.")
        find_methods(method_folders)
        out = out or folders[0].resolve().parent / "_".join(["comparison", *map(_stem, folders)])
        with TemporaryDirectory() as scratch:
            unpacked = unpacked_folders(folders, Path(scratch))
            result = compare_folders(unpacked, out, reference=reference, benchmarks=benchmark, same_data=same_data)
        click.echo(result.text)
        click.echo(f"Written to {result.files['table.txt'].parent}.", err=True)
        return
    given = {"--config": config_files, "--experiment": folder, "--out": out}
    if missing := [name for name, value in given.items() if not value]:
        raise UserError(f"{', '.join(missing)} missing. Give --config, --experiment and --out, or two or more FOLDERS.")
    if reference or benchmark or same_data:
        raise UserError("--reference, --benchmark and --same-data are for several FOLDERS; the configuration has them.")
    config = load_config(config_files, methods=method_folders)
    experiment = Experiment(config)
    runs = evaluated_runs(experiment, folder)
    columns = compared_columns(config, runs)
    result = compare_configured(config, runs, columns, out, contamination_of(experiment, folder))
    click.echo(result.text)


@verb()
@experiment_option
@click.option("--out", type=FILE, default=None, help="Archive to write; default: <experiment>.zip beside the folder.")
def bundle(folder, out):
    """Pack the results of a finished experiment into one archive.

    Configuration, run cards, score tables, tables, figures and checksums; no weights.  `rm-methods verify` checks it.
    """
    from rm_methods.bundle.archive import write_bundle

    out = out or folder.resolve().parent / f"{folder.resolve().name}.zip"
    manifest = write_bundle(folder, out)
    click.echo(f"{out}: {len(manifest.files)} files, {out.stat().st_size / 1e6:.1f} MB.")
    for name, license_text in manifest.masked.items():
        click.echo(f"Without the texts of {name}: license {license_text}")


@verb()
@click.argument("bundle_file", metavar="BUNDLE", type=FILE)
def verify(bundle_file):
    """Compute the tables and figures of a bundle again.

    Needs no GPU and no network.  Names each number that differs, and exits with status 1 if one does.
    """
    from rm_methods.bundle.verify import verify as run

    result = run(bundle_file)
    click.echo(result.text)
    if result.differences:
        sys.exit(1)


@verb()
@experiment_option
@_stored_config_option
@click.option("--out", type=FILE, default=None, help="HTML file to write; default: report.html in the folder.")
def report(folder, config_files, out):
    """Write the report of an experiment: one HTML page, which needs no network.

    Verdict, table, figures, protocol, and how to run it again.  Of an unfinished experiment, it shows what is there.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.experiment.layout import Layout
    from rm_methods.html_report.page import write_report
    from rm_methods.html_report.stored_results import newest_config

    config = load_config(config_files) if config_files else newest_config(folder)
    click.echo(write_report(config, folder, out or Layout(folder).report))


@verb()
@experiment_option
@_stored_config_option
@click.option(
    "--difference",
    type=click.FloatRange(min=0, max=100, min_open=True),
    default=5,
    show_default=True,
    help="Difference to see, in points.",
)
@click.option("--rivals", type=click.IntRange(min=1), help="Number of methods to test; default: as in the pilot.")
@click.option("--reference", help="Variant to compare with; default: that of the configuration.")
@click.option("--out", type=FOLDER, help="Folder to write to; default: power/ of the experiment's folder.")
@methods_option
def power(folder, config_files, difference, rivals, reference, out, method_folders):
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
        config = load_config(config_files, methods=method_folders)
        files = evaluated_runs(Experiment(config), folder)
        columns = compared_columns(config, files)
    else:
        find_methods(method_folders)
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


@verb()
@click.option(
    "--folder",
    type=FOLDER,
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


def _stem(results: Path) -> str:
    """The name of a folder of results, or of a bundle without its suffix."""
    return results.stem if results.suffix == ".zip" else results.resolve().name


# In the order of their use, as `rm-methods --help` lists them.
VERBS = (
    list_cards,
    show,
    test_method,
    init,
    check,
    plan,
    score,
    benchmark,
    compare,
    report,
    bundle,
    verify,
    power,
    cancel,
)
