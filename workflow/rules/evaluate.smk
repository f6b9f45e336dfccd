# Metrics and the credit of each item, of one run on all its benchmarks.


rule evaluate:
    input:
        summary=LAYOUT.summary(VARIANT, SEED),
        item_tables=[LAYOUT.items(name) for name in config["benchmarks"]],
        scores=[LAYOUT.scores(VARIANT, SEED, name) for name in config["benchmarks"]],
        member_scores=member_scores,
        asked=asked("evaluate"),
    output:
        metrics=LAYOUT.metrics(VARIANT, SEED),
        credits=LAYOUT.credits(VARIANT, SEED),
        made_with=made_with("evaluate"),
    log:
        f"{FOLDER}/logs/evaluate/{{variant}}_seed{{seed}}.log",
    params:
        benchmarks=options("--benchmark", config["benchmarks"]),
        item_tables=lambda wc, input: options("--items", input.item_tables),
        scores=lambda wc, input: options("--scores", input.scores),
        member_scores=member_options,
        methods=lambda wc, input: options("--methods", config["methods_path"]),
    message:
        "Evaluate {wildcards.variant}, seed {wildcards.seed}"
    shell:
        "rm-methods evaluate {params.benchmarks:q} {params.item_tables:q} {params.scores:q} {params.member_scores:q}"
        " --summary {input.summary:q} {params.methods:q}"
        " --metrics {output.metrics:q} --credits {output.credits:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
