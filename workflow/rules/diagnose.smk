# Diagnostics of each trained run, then tables and figures of all of them.


rule diagnose:
    input:
        model=LAYOUT.model(VARIANT, SEED),
        item_tables=[LAYOUT.items(name) for name in config["diagnostics"]["benchmarks"]],
        asked=asked("diagnose"),
    output:
        made_with=made_with("diagnose"),
        files=[
            LAYOUT.diagnosed_run(VARIANT, SEED) / name for name in DIAGNOSED_RUN_FILES
        ],
    log:
        f"{FOLDER}/logs/diagnose/{{variant}}_seed{{seed}}.log",
    threads: config["resources"]["threads"]
    resources:
        mem_mb=memory,
        runtime=config["resources"]["runtime_minutes"],
        gpu=min(1, config["resources"]["gpus"]),
    params:
        config_file=config_file,
        benchmarks=options("--benchmark", config["diagnostics"]["benchmarks"]),
        item_tables=lambda wc, input: options("--items", input.item_tables),
        out=lambda wc: LAYOUT.diagnosed_run(wc.variant, wc.seed),
    message:
        "Diagnose {wildcards.variant}, seed {wildcards.seed}"
    shell:
        "rm-methods diagnose --config {params.config_file:q} --variant {wildcards.variant:q} --model {input.model:q}"
        " {params.benchmarks:q} {params.item_tables:q} --out {params.out:q} --threads {threads} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule diagnose_teacher:
    # The distance of a run's attention from its teacher's, or from that of every joint variant.
    input:
        model=LAYOUT.model(VARIANT, SEED),
        backbone=LAYOUT.backbone,
        item_tables=[LAYOUT.items(name) for name in config["diagnostics"]["benchmarks"]],
        teachers=lambda wc: [
            LAYOUT.model(name, wc.seed) for name in teachers(config, wc.variant)
        ],
        asked=asked("diagnose_teacher"),
    output:
        made_with=made_with("diagnose_teacher"),
        files=[LAYOUT.diagnosed_run(VARIANT, SEED) / name for name in DISTANCE_FILES],
    log:
        f"{FOLDER}/logs/diagnose_teacher/{{variant}}_seed{{seed}}.log",
    threads: config["resources"]["threads"]
    resources:
        mem_mb=memory,
        runtime=config["resources"]["runtime_minutes"],
        gpu=min(1, config["resources"]["gpus"]),
    params:
        config_file=config_file,
        benchmarks=options("--benchmark", config["diagnostics"]["benchmarks"]),
        item_tables=lambda wc, input: options("--items", input.item_tables),
        teachers=lambda wc: options(
            "--teacher",
            [
                f"{name}={LAYOUT.model(name, wc.seed)}"
                for name in teachers(config, wc.variant)
            ],
        ),
        out=lambda wc: LAYOUT.diagnosed_run(wc.variant, wc.seed),
    message:
        "Compare the attention of {wildcards.variant}, seed {wildcards.seed}, with its teacher's"
    shell:
        "rm-methods diagnose-teacher --config {params.config_file:q} --variant {wildcards.variant:q} --seed {wildcards.seed}"
        " --model {input.model:q} --backbone {input.backbone:q} {params.teachers:q} {params.benchmarks:q}"
        " {params.item_tables:q} --out {params.out:q} --threads {threads} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule diagnose_summary:
    input:
        diagnosed_files(),
        asked=asked("diagnose_summary"),
    output:
        report(diagnostics_tables(), category="Diagnostics"),
        report(
            [
                LAYOUT.diagnostics / f"{name}.{suffix}"
                for name in figure_names(config)
                for suffix in ("png", "svg")
            ],
            category="Diagnostics",
        ),
        made_with=made_with("diagnose_summary"),
    log:
        f"{FOLDER}/logs/diagnose_summary.log",
    params:
        config_file=config_file,
        experiment=experiment_folder,
        out=LAYOUT.diagnostics,
    message:
        "Summarize the diagnostics"
    shell:
        "rm-methods diagnose-summary --config {params.config_file:q} --experiment {params.experiment:q} --out {params.out:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
