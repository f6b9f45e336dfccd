# Training writes files and knows no MLflow; this fills MLflow from the files.  A server that is down does not fail the
# workflow: the export is then recorded as pending, and `snakemake track` fills it in later.


rule export:
    input:
        metrics=[LAYOUT.metrics(variant, seed) for variant, seed in RUNS],
        summaries=[LAYOUT.summary(variant, seed) for variant, seed in RUNS],
        comparison=LAYOUT.comparison / "table.csv",
        page=LAYOUT.report,
        further=rules.overoptimization.output if EXPERIMENT.is_optimized() else [],
        policies=[
            LAYOUT.ppo_run(variant, seed) / "summary.json"
            for variant, seed in EXPERIMENT.ppo_runs()
        ],
        asked=asked("export"),
    output:
        made_with=made_with("export"),
        export=LAYOUT.export,
    log:
        f"{FOLDER}/logs/track.log",
    params:
        config_file=config_file,
        experiment=experiment_folder,
    message:
        "Export the runs to MLflow"
    shell:
        "rm-methods track --config {params.config_file:q} --experiment {params.experiment:q} --out {output.export:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule track:
    input:
        LAYOUT.export,
    log:
        f"{FOLDER}/logs/track_again.log",
    params:
        config_file=config_file,
        experiment=experiment_folder,
    message:
        "Export pending runs to MLflow"
    shell:
        "rm-methods track --config {params.config_file:q} --experiment {params.experiment:q} --out {input:q} 2>&1 | tee {log:q}"
