# Data, backbone and benchmarks, once for each experiment.


rule prepare:
    input:
        EXPERIMENT.data_sources(),
        asked=asked("prepare"),
    output:
        made_with=made_with("prepare"),
        pairs=LAYOUT.pairs,
        report=LAYOUT.pairs_report,
    log:
        f"{FOLDER}/logs/prepare.log",
    params:
        config_file=config_file,
    message:
        "Prepare the preference pairs"
    shell:
        "rm-methods prepare --config {params.config_file:q} --pairs {output.pairs:q} --report {output.report:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule prepare_backbone:
    # Only the tiny backbone reads the data: its tokenizer is trained on it.
    input:
        pairs=LAYOUT.pairs if config["backbone"]["source"] == "tiny" else [],
        asked=asked("prepare_backbone"),
    output:
        made_with=made_with("prepare_backbone"),
        folder=directory(LAYOUT.backbone),
    log:
        f"{FOLDER}/logs/prepare_backbone.log",
    resources:
        mem_mb=memory,
        runtime=config["resources"]["runtime_minutes"],
    params:
        config_file=config_file,
        pairs=LAYOUT.pairs,
    message:
        "Prepare the backbone"
    shell:
        "rm-methods prepare-backbone --config {params.config_file:q} --pairs {params.pairs:q} --out {output.folder:q}"
        " > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule prepare_benchmark:
    input:
        pairs=lambda wc: LAYOUT.pairs if EXPERIMENT.made_of_pairs(wc.benchmark) else [],
        sources=lambda wc: EXPERIMENT.benchmark_sources(wc.benchmark),
        asked=asked("prepare_benchmark"),
    output:
        made_with=made_with("prepare_benchmark"),
        item_table=LAYOUT.items(BENCHMARK),
        report=LAYOUT.items_report(BENCHMARK),
    log:
        f"{FOLDER}/logs/prepare_benchmark/{{benchmark}}.log",
    # Before the trainings, so that problems of a benchmark show in seconds.
    priority: 2
    params:
        config_file=config_file,
        pairs=LAYOUT.pairs,
    message:
        "Prepare benchmark {wildcards.benchmark}"
    shell:
        "rm-methods prepare-benchmark --config {params.config_file:q} --benchmark {wildcards.benchmark:q}"
        " --pairs {params.pairs:q} --items {output.item_table:q} --report {output.report:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule contamination:
    # Beside the items instead of in their job: other training pairs leave the items and their scores valid.
    input:
        pairs=LAYOUT.pairs,
        item_table=LAYOUT.items(BENCHMARK),
        asked=asked("contamination"),
    output:
        made_with=made_with("contamination"),
        report=LAYOUT.contamination(BENCHMARK),
    log:
        f"{FOLDER}/logs/contamination/{{benchmark}}.log",
    message:
        "Count the items of {wildcards.benchmark} that occur in the training pairs"
    shell:
        "rm-methods contamination --benchmark {wildcards.benchmark:q} --pairs {input.pairs:q}"
        " --items {input.item_table:q} --report {output.report:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
