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
    output:
        f"{FOLDER}/tracking/export.json",
    log:
        f"{FOLDER}/logs/track.log",
    params:
        settings=canonical_json(config["tracking"]),
        code=code_hash("track"),
    shell:
        "rm-methods track --config {CONFIG_FILE:q} --experiment {FOLDER:q} --out {output:q} > {log:q} 2>&1"


rule track:
    input:
        rules.export.output,
    log:
        f"{FOLDER}/logs/track_again.log",
    shell:
        "rm-methods track --config {CONFIG_FILE:q} --experiment {FOLDER:q} --out {input:q} 2>&1 | tee {log:q}"
