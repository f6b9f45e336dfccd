# The tables and figures of all runs; with several levels of label noise, also tables of each level and figures against noise.


rule compare:
    input:
        summaries=[LAYOUT.summary(variant, seed) for variant, seed in RUNS],
        metrics=[LAYOUT.metrics(variant, seed) for variant, seed in RUNS],
        contamination=[
            LAYOUT.contamination(name) for name in EXPERIMENT.compared_with_training()
        ],
        asked=asked("compare"),
    output:
        made_with=made_with("compare"),
        files=report(
            [LAYOUT.comparison / name for name in COMPARISON_FILES],
            category="Comparison",
        ),
        levels=[
            LAYOUT.comparison / level.folder / "table.txt"
            for level in noise_levels(config)
        ],
        noise=report(
            [
                LAYOUT.comparison / f"{noise_figure_stem(*metric)}.{suffix}"
                for metric in (EXPERIMENT.metrics() if config["noise_levels"] else ())
                for suffix in ("png", "svg")
            ],
            category="Comparison",
        ),
    log:
        f"{FOLDER}/logs/compare.log",
    params:
        config_file=config_file,
        experiment=experiment_folder,
        out=LAYOUT.comparison,
    message:
        "Compare all runs"
    shell:
        "rm-methods compare --config {params.config_file:q} --experiment {params.experiment:q} --out {params.out:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
