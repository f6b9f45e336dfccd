# Training writes files and knows no MLflow; this fills MLflow from the files.  A server that is down does not fail the workflow: the
# export is then recorded as pending, and `snakemake track` fills it in later.


rule export:
    input:
        metrics=rules.compare.input.metrics,
        summaries=rules.compare.input.summaries,
        further=rules.overoptimization.output if EXPERIMENT.is_optimised() else [],
        policies=[
            f"{FOLDER}/ppo/{v}/seed{s}/summary.json" for v, s in EXPERIMENT.ppo_runs()
        ],
        asked=asked("export"),
    output:
        made_with=f"{FOLDER}/" + RECORDS["export"],
        export=f"{FOLDER}/tracking/export.json",
    log:
        f"{FOLDER}/logs/track.log",
    shell:
        "rm-methods track --config {CONFIG_FILE:q} --experiment {FOLDER:q} --out {output.export:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule track:
    input:
        rules.export.output.export,
    log:
        f"{FOLDER}/logs/track_again.log",
    shell:
        "rm-methods track --config {CONFIG_FILE:q} --experiment {FOLDER:q} --out {input:q} 2>&1 | tee {log:q}"
