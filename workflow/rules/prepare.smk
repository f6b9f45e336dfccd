# Data, backbone and benchmarks, once per experiment.


rule prepare:
    input:
        EXPERIMENT.data_sources(),
        asked=asked("prepare"),
    output:
        made_with=f"{FOLDER}/" + RECORDS["prepare"],
        pairs=f"{FOLDER}/data/pairs.parquet",
        report=f"{FOLDER}/data/report.json",
    log:
        f"{FOLDER}/logs/prepare.log",
    shell:
        "rm-methods prepare --config {CONFIG_FILE:q} --pairs {output.pairs:q} --report {output.report:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule prepare_backbone:
    # Only the tiny backbone looks at the data: its tokenizer is trained on it.
    input:
        pairs=(
            rules.prepare.output.pairs
            if config["backbone"]["source"] == "tiny"
            else []
        ),
        asked=asked("prepare_backbone"),
    output:
        made_with=f"{FOLDER}/" + RECORDS["prepare_backbone"],
        folder=directory(f"{FOLDER}/data/backbone"),
    log:
        f"{FOLDER}/logs/prepare_backbone.log",
    resources:
        mem_mb=lambda wc, attempt: attempt * config["resources"]["memory_mb"],
        runtime=config["resources"]["runtime_minutes"],
    shell:
        "rm-methods prepare-backbone --config {CONFIG_FILE:q} --pairs {rules.prepare.output.pairs:q} --out {output.folder:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule prepare_benchmark:
    input:
        pairs=lambda wc: (
            rules.prepare.output.pairs
            if EXPERIMENT.made_of_pairs(wc.benchmark)
            else []
        ),
        sources=lambda wc: EXPERIMENT.benchmark_sources(wc.benchmark),
        asked=asked("prepare_benchmark"),
    output:
        made_with=f"{FOLDER}/" + RECORDS["prepare_benchmark"],
        item_table=f"{FOLDER}/benchmarks/{{benchmark}}.parquet",
        report=f"{FOLDER}/benchmarks/{{benchmark}}.json",
    log:
        f"{FOLDER}/logs/prepare_benchmark/{{benchmark}}.log",
    # Before the trainings: what is wrong with a benchmark shows in seconds.
    priority: 2
    shell:
        "rm-methods prepare-benchmark --config {CONFIG_FILE:q} --benchmark {wildcards.benchmark:q} --pairs {rules.prepare.output.pairs:q}"
        " --items {output.item_table:q} --report {output.report:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
