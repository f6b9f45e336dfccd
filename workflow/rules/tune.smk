# The settings of every method that do best on the validation split, from the runs of a tuning grid.


rule tune:
    input:
        [f"{FOLDER}/runs/{v}/seed{s}/summary.json" for v, s in RUNS],
        asked=asked("tune"),
    output:
        [
            f"{FOLDER}/tuning/{name}"
            for name in ("tuned.yaml", "table.txt", "table.md", "table.csv")
        ],
        made_with=f"{FOLDER}/" + RECORDS["tune"],
    log:
        f"{FOLDER}/logs/tune.log",
    params:
        out=f"{FOLDER}/tuning",
    shell:
        "rm-methods tune --config {CONFIG_FILE:q} --experiment {FOLDER:q} --out {params.out:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
