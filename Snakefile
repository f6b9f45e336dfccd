# One experiment: prepare -> train -> score -> evaluate -> optimize -> diagnose -> compare -> track
# (a tuning grid: prepare -> train -> tune).
#
#   snakemake --cores 2                                    the embedded default (config/quickstart.yaml)
#   snakemake --cores 2 --configfile config/smol.yaml      another experiment; later files override earlier ones
#   snakemake --cores 2 -n                                 what would run
#   snakemake --cores 2 --rerun-incomplete                 continue after a kill
#   snakemake --cores 1 track                              export pending runs to MLflow
#   snakemake --report report.html                         tables and figures as one page
#
# Rules only connect files to `rm-methods <verb>`.  Files decide what runs again: the input `asked` holds the settings and
# the hash of the code that a result depends on, and `made_with` is its copy beside the result
# (rm_methods/experiment/made_with.py).
from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"


wildcard_constraints:
    variant="|".join(config["methods"]),
    seed="[0-9]+",
    benchmark="|".join(config["benchmarks"]) or "none",


localrules:
    all,
    track,
    export,
    compare,
    html_report,
    overoptimization,
    diagnose_summary,
    tune,


rule all:
    default_target: True
    input:
        final_files(),


include: "workflow/rules/prepare.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/optimize.smk"
include: "workflow/rules/diagnose.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/tune.smk"
include: "workflow/rules/track.smk"


onstart:
    # A second Snakemake, started in another folder, would delete what the first one has just written.
    # Dry runs never get here.
    if workflow.is_main_process:
        hold_experiment()
        say_what_is_done()
        start_warm()
        schedule_without_polling()


onsuccess:
    print_tables()
