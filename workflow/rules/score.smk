# Each reward model scores each benchmark once; every metric is computed from the table.


rule score:
    input:
        model=rules.train.output.model,
        item_table=lambda wc: f"{FOLDER}/{EXPERIMENT.item_table(wc.benchmark)}",
        asked=asked("score"),
    output:
        scores=f"{FOLDER}/scores/{{variant}}/seed{{seed}}/{{benchmark}}.parquet",
        made_with=f"{FOLDER}/" + RECORDS["score"],
    log:
        f"{FOLDER}/logs/score/{{variant}}_seed{{seed}}_{{benchmark}}.log",
    wildcard_constraints:
        benchmark="|".join([*config["benchmarks"], *EXPERIMENT.pools()]) or "none",
    threads: config["resources"]["threads"]
    resources:
        mem_mb=lambda wc, attempt: attempt * config["resources"]["memory_mb"],
        runtime=config["resources"]["runtime_minutes"],
        gpu=lambda wc: (
            min(1, config["resources"]["gpus"])
            if EXPERIMENT.scores_with_a_model(wc.variant)
            else 0
        ),
    shell:
        "rm-methods score --config {CONFIG_FILE:q} --model {input.model:q} --data {input.item_table:q} --out {output.scores:q}"
        " --threads {threads} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
