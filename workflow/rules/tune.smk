# The settings of every method that do best on the validation split, from the runs of a tuning grid.


rule tune:
    input:
        [LAYOUT.summary(variant, seed) for variant, seed in RUNS],
        asked=asked("tune"),
    output:
        report([LAYOUT.tuning / name for name in TUNING_FILES], category="Tuning"),
        made_with=made_with("tune"),
    log:
        f"{FOLDER}/logs/tune.log",
    params:
        config_file=config_file,
        experiment=experiment_folder,
        out=LAYOUT.tuning,
    message:
        "Select the settings of every method"
    shell:
        "rm-methods tune --config {params.config_file:q} --experiment {params.experiment:q} --out {params.out:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
