# One experiment: prepare -> train -> score -> evaluate -> optimise -> diagnose -> compare -> track (a tuning grid: -> train -> tune).
#
#   snakemake --cores 2                                        the embedded default (config/quickstart.yaml)
#   snakemake --cores 2 --configfile config/smol.yaml          another experiment; several files go over each other, left to right
#   snakemake --cores 2 -n                                     what would run
#   snakemake --cores 2 --rerun-incomplete                     continue after a kill
#   snakemake --cores 1 track                                  export to MLflow what could not be exported before
#
# Rules only wire files to `rm-methods <verb>`.  What runs again is decided by files: the input `asked` holds the part of the configuration
# and the hash of the code that a result depends on, and `made_with` is its copy beside the result (rm_methods/experiment/made_with.py).
from functools import cache

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from rm_methods.config.resolve import workflow_config, write_resolved
from rm_methods.diagnostics.runs import (
    DISTANCE_FILES,
    DISTANCE_TABLES,
    RUN_FILES,
    TABLES,
    diagnosed_runs,
    figure_names,
    teachers,
)
from rm_methods.errors import UserError
from rm_methods.experiment.experiment import RECORDS, Experiment
from rm_methods.experiment.made_with import asked_file
from rm_methods.system.run_lock import held_until_exit
from rm_methods.config.variants import figure_stem, noise_levels

min_version("9.0")

try:
    # Not a `configfile:` statement: Snakemake would merge the default into the file that the user names.
    config = workflow_config(
        workflow.overwrite_configfiles,
        workflow.config_settings.config_args,
        default="config/quickstart.yaml",
    )
except UserError as error:
    raise WorkflowError(str(error))

EXPERIMENT = Experiment(config)
FOLDER = str(EXPERIMENT.folder)
RUNS = EXPERIMENT.runs()
CONFIG_FILE = str(write_resolved(config))


@cache
def asked_of(stage, of):
    # Jobs of their own processes must find what the main process left.
    return asked_file(
        EXPERIMENT.folder,
        RECORDS[stage].format(**dict(of)),
        EXPERIMENT.asked(stage, **dict(of)),
        mark=workflow.is_main_process,
    )


def asked(stage):
    """The input function that gives the file with what a job of a stage is asked for."""
    return lambda wildcards: asked_of(stage, tuple(sorted(wildcards.items())))


wildcard_constraints:
    variant="|".join(config["methods"]),
    seed="[0-9]+",
    benchmark="|".join(config["benchmarks"]) or "none",


localrules:
    all,
    track,
    export,
    compare,
    overoptimization,
    diagnose_summary,
    tune,


rule all:
    default_target: True
    input:
        f"{FOLDER}/comparison/table.txt"
        if config["benchmarks"]
        else [f"{FOLDER}/runs/{v}/seed{s}/summary.json" for v, s in RUNS],
        f"{FOLDER}/tracking/export.json"
        if config["tracking"]["enabled"] and config["benchmarks"]
        else [],
        f"{FOLDER}/diagnostics/table.txt" if config["diagnostics"]["benchmarks"] else [],
        f"{FOLDER}/tuning/tuned.yaml" if config["tuning"]["enabled"] else [],
        [
            f"{FOLDER}/overoptimization/{name}"
            for name in EXPERIMENT.overoptimization_files()
        ],


for stage in (
    "prepare",
    "train",
    "score",
    "evaluate",
    "optimise",
    "diagnose",
    "compare",
    "tune",
    "track",
):

    include: f"workflow/rules/{stage}.smk"


onstart:
    # A second Snakemake, started in another folder, would delete what the first one has just written.  Dry runs never get here.
    if workflow.is_main_process:
        try:
            held_until_exit(EXPERIMENT.folder)
        except UserError as error:
            raise WorkflowError(str(error))


onsuccess:
    from pathlib import Path

    for stage, names in (
        ("comparison", ["table.txt"]),
        ("overoptimization", ["best_of_n_table.txt", "ppo_table.txt"]),
    ):
        tables = [Path(FOLDER) / stage / name for name in names]
        if texts := [table.read_text() for table in tables if table.exists()]:
            print(
                "\n" + "\n".join(texts) + f"\nTables and figures: {FOLDER}/{stage}/"
            )
