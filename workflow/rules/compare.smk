# One table and one figure of all runs.


rule compare:
    input:
        summaries=[f"{FOLDER}/runs/{v}/seed{s}/summary.json" for v, s in RUNS],
        metrics=[f"{FOLDER}/evaluation/{v}/seed{s}/metrics.json" for v, s in RUNS],
        asked=asked("compare"),
    output:
        made_with=f"{FOLDER}/" + RECORDS["compare"],
        text=f"{FOLDER}/comparison/table.txt",
        markdown=f"{FOLDER}/comparison/table.md",
        csv=f"{FOLDER}/comparison/table.csv",
        latex=f"{FOLDER}/comparison/table.tex",
        figure=f"{FOLDER}/comparison/comparison.png",
        vector=f"{FOLDER}/comparison/comparison.svg",
        levels=[
            f"{FOLDER}/comparison/{level.folder}/table.txt"
            for level in noise_levels(config)
        ],
        noise=[
            f"{FOLDER}/comparison/{figure_stem(*metric)}.{suffix}"
            for metric in (EXPERIMENT.metrics() if config["noise_levels"] else ())
            for suffix in ("png", "svg")
        ],
    log:
        f"{FOLDER}/logs/compare.log",
    params:
        out=f"{FOLDER}/comparison",
    shell:
        "rm-methods compare --config {CONFIG_FILE:q} --experiment {FOLDER:q} --out {params.out:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
