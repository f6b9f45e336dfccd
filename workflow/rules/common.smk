# The configuration, the experiment, and what several rules need.
from functools import cache

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from rm_methods.config.resolve import workflow_config, write_resolved
from rm_methods.config.variants import noise_levels
from rm_methods.errors import UserError
from rm_methods.experiment.diagnosed_runs import (
    diagnosed_runs,
    figure_names,
    teachers,
)
from rm_methods.experiment.experiment import Experiment
from rm_methods.experiment.layout import (
    COMPARISON_FILES,
    DIAGNOSED_RUN_FILES,
    DIAGNOSTICS_TABLES,
    DISTANCE_FILES,
    DISTANCE_TABLES,
    RECORDS,
    TUNING_FILES,
    noise_figure_stem,
)
from rm_methods.experiment.made_with import asked_file
from rm_methods.system.cluster import train_resource
from rm_methods.system.run_lock import held_until_exit
from rm_methods.system.warm_start import start_servers
from rm_methods.tracking.pages import tracked_page

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
LAYOUT = EXPERIMENT.layout
FOLDER = str(EXPERIMENT.folder)
RUNS = EXPERIMENT.runs()
CONFIG_FILE = str(write_resolved(config))
VARIANT = "{variant}"
SEED = "{seed}"
BENCHMARK = "{benchmark}"
# With fewer jobs, a server's own start costs more than it saves.
JOBS_FOR_WARM_START = 4


@cache
def asked_of(stage, wildcards):
    # Jobs run in separate processes and must find the files of the main process.
    return asked_file(
        EXPERIMENT.folder,
        RECORDS[stage].format(**dict(wildcards)),
        EXPERIMENT.asked(stage, **dict(wildcards)),
        mark=workflow.is_main_process,
    )


def asked(stage):
    """The input function for the file with the settings and code of a job of a stage."""
    return lambda wildcards: asked_of(stage, tuple(sorted(wildcards.items())))


def made_with(stage):
    """The record of settings and code beside a result."""
    return f"{FOLDER}/{RECORDS[stage]}"


def memory(wildcards, attempt):
    """Main memory of a job in MB; a job that is tried again, which only profiles do, asks for more."""
    return attempt * config["resources"]["memory_mb"]


def options(name, values):
    """An option of the command line, once for each value."""
    return [word for value in values for word in (name, value)]


def config_file(wildcards, input):
    """The resolved configuration.

    Its name changes with every setting.  `input` is named so that Snakemake takes the parameter for a derived one: a change
    of it reruns nothing.
    """
    return CONFIG_FILE


def experiment_folder(wildcards, input):
    """The folder of the experiment's results."""
    return FOLDER


def train_or_set_up(wildcards, input):
    """What the train stage does with a variant; `input` makes it a derived parameter, see `config_file`."""
    return "Train" if EXPERIMENT.is_trained(wildcards.variant) else "Set up"


def required_models(wildcards):
    """Models of the runs that a run needs."""
    required = EXPERIMENT.required_runs(wildcards.variant, wildcards.seed)
    return [model for models in required.values() for model in models]


def required_options(wildcards):
    """The same, as options that name the setting for each."""
    required = EXPERIMENT.required_runs(wildcards.variant, wildcards.seed)
    return options(
        "--required",
        [f"{key}={model}" for key, models in required.items() for model in models],
    )


def member_scores(wildcards):
    """Score tables of the runs that a combined run is made of, on every benchmark."""
    return [
        LAYOUT.scores(variant, seed, name)
        for name in config["benchmarks"]
        for variant, seed in EXPERIMENT.member_runs(wildcards.variant)
    ]


def member_options(wildcards):
    """The same, as options that name the benchmark for each."""
    tables = [
        f"{name}={LAYOUT.scores(variant, seed, name)}"
        for name in config["benchmarks"]
        for variant, seed in EXPERIMENT.member_runs(wildcards.variant)
    ]
    return options("--member-scores", tables)


def diagnosed_files():
    """The files of every diagnosed run."""
    files = []
    for variant, seed in diagnosed_runs(config):
        distances = DISTANCE_FILES if teachers(config, variant) else ()
        files += [
            LAYOUT.diagnosed_run(variant, seed) / name
            for name in (*DIAGNOSED_RUN_FILES, *distances)
        ]
    return files


def diagnostics_tables():
    """Tables of the summary; those of distances only where a run has a teacher."""
    distances = (
        DISTANCE_TABLES if any(teachers(config, variant) for variant, _ in RUNS) else ()
    )
    return [LAYOUT.diagnostics / name for name in (*DIAGNOSTICS_TABLES, *distances)]


def final_files():
    """The final results of the workflow."""
    files = []
    if config["benchmarks"]:
        files.append(LAYOUT.comparison / "table.txt")
        files.append(LAYOUT.report)
        if config["tracking"]["enabled"]:
            files.append(LAYOUT.export)
    else:
        files += [LAYOUT.summary(variant, seed) for variant, seed in RUNS]
    if config["diagnostics"]["benchmarks"]:
        files.append(LAYOUT.diagnostics / "table.txt")
    if config["tuning"]["enabled"]:
        files.append(LAYOUT.tuning / "tuned.yaml")
    files += [
        LAYOUT.overoptimization / name for name in EXPERIMENT.overoptimization_files()
    ]
    return files


def hold_experiment():
    """Be the only workflow that writes into the experiment's folder."""
    try:
        held_until_exit(EXPERIMENT.folder)
    except UserError as error:
        raise WorkflowError(str(error))


def start_warm():
    """Fork jobs on this machine from a process that has imported torch; jobs on GPUs and on clusters start cold."""
    resources = config["resources"]
    jobs = len(list(workflow.dag.needrun_jobs()))
    if (
        resources["warm_start"]
        and not resources["gpus"]
        and workflow.local_exec
        and jobs >= JOBS_FOR_WARM_START
    ):
        start_servers({1, min(resources["threads"], workflow.cores)})


def schedule_without_polling():
    """Lift Snakemake's limit on jobs per second for jobs on this machine.

    Under it, each finished job makes the scheduler look once more per second at all ready jobs, until nothing is ready
    (Snakemake 9.27). After 100 jobs, that takes 40% of a core.
    """
    if workflow.local_exec:
        workflow.scheduler.job_rate_limiter = None


def say_what_is_done():
    """Count the results of earlier runs, because the progress counts only the jobs that are left."""
    count = sum(1 for _ in LAYOUT.folder.rglob("*made_with.json"))
    if count:
        jobs = "job" if count == 1 else "jobs"
        logger.info(
            f"{FOLDER} has the results of {count} finished {jobs}; those that are up to date stay."
        )


def print_tables():
    """Show the tables at the end."""
    for folder, names in (
        (LAYOUT.comparison, ["table.txt"]),
        (LAYOUT.overoptimization, ["best_of_n_table.txt", "ppo_table.txt"]),
    ):
        tables = [folder / name for name in names if (folder / name).exists()]
        if tables:
            texts = [table.read_text() for table in tables]
            print("\n" + "\n".join(texts) + f"\nTables and figures: {folder}/")
    if LAYOUT.report.exists():
        print(f"All on one page: {LAYOUT.report}")
    if page := tracked_page(LAYOUT.export_summary):
        print(f"Runs in MLflow: {page}")
