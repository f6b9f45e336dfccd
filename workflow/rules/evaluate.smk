# Metrics and per-item credits of one run on all its benchmarks.


rule evaluate:
    input:
        summary=rules.train.output.summary,
        item_tables=expand(
            rules.prepare_benchmark.output.item_table, benchmark=config["benchmarks"]
        ),
        scores=expand(
            rules.score.output.scores,
            benchmark=config["benchmarks"],
            allow_missing=True,
        ),
        asked=asked("evaluate"),
    output:
        metrics=f"{FOLDER}/evaluation/{{variant}}/seed{{seed}}/metrics.json",
        credits=f"{FOLDER}/evaluation/{{variant}}/seed{{seed}}/credits.parquet",
        made_with=f"{FOLDER}/" + RECORDS["evaluate"],
    log:
        f"{FOLDER}/logs/evaluate/{{variant}}_seed{{seed}}.log",
    params:
        benchmark_options=[
            option for name in config["benchmarks"] for option in ("--benchmark", name)
        ],
        item_options=lambda wc, input: [
            option for path in input.item_tables for option in ("--items", path)
        ],
        score_options=lambda wc, input: [
            option for path in input.scores for option in ("--scores", path)
        ],
    shell:
        "rm-methods evaluate {params.benchmark_options:q} {params.item_options:q} {params.score_options:q} --summary {input.summary:q}"
        " --metrics {output.metrics:q} --credits {output.credits:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
