# What each trained run looks at, then tables and figures of all of them.


rule diagnose:
    input:
        model=rules.train.output.model,
        item_tables=expand(
            rules.prepare_benchmark.output.item_table,
            benchmark=config["diagnostics"]["benchmarks"],
        ),
        asked=asked("diagnose"),
    output:
        made_with=f"{FOLDER}/" + RECORDS["diagnose"],
        attention=f"{FOLDER}/diagnostics/{{variant}}/seed{{seed}}/attention.parquet",
        masking=f"{FOLDER}/diagnostics/{{variant}}/seed{{seed}}/masking.parquet",
        report=f"{FOLDER}/diagnostics/{{variant}}/seed{{seed}}/report.json",
    log:
        f"{FOLDER}/logs/diagnose/{{variant}}_seed{{seed}}.log",
    threads: config["resources"]["threads"]
    resources:
        mem_mb=lambda wc, attempt: attempt * config["resources"]["memory_mb"],
        runtime=config["resources"]["runtime_minutes"],
        gpu=min(1, config["resources"]["gpus"]),
    params:
        benchmark_options=[
            option
            for name in config["diagnostics"]["benchmarks"]
            for option in ("--benchmark", name)
        ],
        item_options=lambda wc, input: [
            option for path in input.item_tables for option in ("--items", path)
        ],
        out=lambda wc: f"{FOLDER}/diagnostics/{wc.variant}/seed{wc.seed}",
    shell:
        "rm-methods diagnose --config {CONFIG_FILE:q} --variant {wildcards.variant:q} --model {input.model:q} {params.benchmark_options:q}"
        " {params.item_options:q} --out {params.out:q} --threads {threads} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule diagnose_teacher:
    # How far a run's attention is from its teacher's, or from that of every joint variant.
    input:
        model=rules.train.output.model,
        backbone=rules.prepare_backbone.output.folder,
        item_tables=rules.diagnose.input.item_tables,
        teachers=lambda wc: expand(
            f"{FOLDER}/runs/{{teacher}}/seed{wc.seed}/model",
            teacher=teachers(config, wc.variant),
        ),
        asked=asked("diagnose_teacher"),
    output:
        made_with=f"{FOLDER}/" + RECORDS["diagnose_teacher"],
        distances=f"{FOLDER}/diagnostics/{{variant}}/seed{{seed}}/teacher.parquet",
        maps=f"{FOLDER}/diagnostics/{{variant}}/seed{{seed}}/teacher_maps.png",
    log:
        f"{FOLDER}/logs/diagnose_teacher/{{variant}}_seed{{seed}}.log",
    threads: config["resources"]["threads"]
    resources:
        mem_mb=lambda wc, attempt: attempt * config["resources"]["memory_mb"],
        runtime=config["resources"]["runtime_minutes"],
        gpu=min(1, config["resources"]["gpus"]),
    params:
        benchmark_options=rules.diagnose.params.benchmark_options,
        item_options=rules.diagnose.params.item_options,
        teacher_options=lambda wc: [
            word
            for name in teachers(config, wc.variant)
            for word in (
                "--teacher",
                f"{name}={FOLDER}/runs/{name}/seed{wc.seed}/model",
            )
        ],
        out=rules.diagnose.params.out,
    shell:
        "rm-methods diagnose-teacher --config {CONFIG_FILE:q} --variant {wildcards.variant:q} --seed {wildcards.seed} --model {input.model:q}"
        " --backbone {input.backbone:q} {params.teacher_options:q} {params.benchmark_options:q} {params.item_options:q}"
        " --out {params.out:q} --threads {threads} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule diagnose_summary:
    input:
        [
            f"{FOLDER}/diagnostics/{v}/seed{s}/{name}"
            for v, s in diagnosed_runs(config)
            for name in (*RUN_FILES, *(DISTANCE_FILES if teachers(config, v) else ()))
        ],
        asked=asked("diagnose_summary"),
    output:
        [
            f"{FOLDER}/diagnostics/{name}"
            for name in (
                *TABLES,
                *(
                    DISTANCE_TABLES
                    if any(teachers(config, v) for v, _ in RUNS)
                    else ()
                ),
            )
        ],
        [
            f"{FOLDER}/diagnostics/{name}.{suffix}"
            for name in figure_names(config)
            for suffix in ("png", "svg")
        ],
        made_with=f"{FOLDER}/" + RECORDS["diagnose_summary"],
    log:
        f"{FOLDER}/logs/diagnose_summary.log",
    params:
        out=f"{FOLDER}/diagnostics",
    shell:
        "rm-methods diagnose-summary --config {CONFIG_FILE:q} --experiment {FOLDER:q} --out {params.out:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
