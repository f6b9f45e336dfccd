# Each reward model scores each benchmark once; every metric is computed from the table.


rule score:
    input:
        model=LAYOUT.model(VARIANT, SEED),
        item_table=lambda wc: LAYOUT.items(wc.benchmark),
        asked=asked("score"),
    output:
        scores=LAYOUT.scores(VARIANT, SEED, BENCHMARK),
        made_with=made_with("score"),
    log:
        f"{FOLDER}/logs/score/{{variant}}_seed{{seed}}_{{benchmark}}.log",
    wildcard_constraints:
        benchmark="|".join([*config["benchmarks"], *EXPERIMENT.pools()]) or "none",
    threads: config["resources"]["threads"]
    resources:
        mem_mb=memory,
        runtime=config["resources"]["runtime_minutes"],
        gpu=lambda wc: (
            min(1, config["resources"]["gpus"])
            if EXPERIMENT.scores_with_a_model(wc.variant)
            else 0
        ),
    params:
        config_file=config_file,
    message:
        "Score {wildcards.benchmark} with {wildcards.variant}, seed {wildcards.seed}"
    shell:
        "rm-methods score --config {params.config_file:q} --model {input.model:q} --data {input.item_table:q}"
        " --out {output.scores:q} --threads {threads} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
