# Best-of-N and PPO: a policy, its stored samples, a policy optimized against each reward model, and a summary of all.


rule sft:
    input:
        pairs=LAYOUT.pairs,
        asked=asked("sft"),
    output:
        made_with=made_with("sft"),
        policy=directory(LAYOUT.fine_tuned / "policy"),
        metrics=LAYOUT.fine_tuned / "metrics.jsonl",
        summary=LAYOUT.fine_tuned / "summary.json",
    log:
        f"{FOLDER}/logs/sft.log",
    priority: 1
    threads: config["resources"]["threads"]
    resources:
        mem_mb=memory,
        runtime=config["resources"]["runtime_minutes"],
        gpu=min(1, config["resources"]["gpus"]),
    params:
        config_file=config_file,
        out=LAYOUT.fine_tuned,
        work=LAYOUT.work,
    message:
        "Fine-tune the policy"
    shell:
        "rm-methods sft --config {params.config_file:q} --pairs {input.pairs:q} --out {params.out:q} --work {params.work:q}"
        " --threads {threads} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule sample_pool:
    # The items hold the gold rewards of the candidates; reward models score them as they score a benchmark.
    input:
        policy=rules.sft.output.policy,
        pairs=LAYOUT.pairs,
        asked=asked("sample_pool"),
    output:
        made_with=made_with("sample_pool"),
        item_table=LAYOUT.items("samples"),
        drawn=f"{FOLDER}/pools/samples_drawn.parquet",
        report=f"{FOLDER}/pools/samples.json",
    log:
        f"{FOLDER}/logs/sample_pool.log",
    threads: config["resources"]["threads"]
    resources:
        mem_mb=memory,
        runtime=config["resources"]["runtime_minutes"],
        gpu=min(1, config["resources"]["gpus"]),
    params:
        config_file=config_file,
        work=LAYOUT.work,
    message:
        "Sample the candidates of Best-of-N"
    shell:
        "rm-methods sample-pool --config {params.config_file:q} --policy {input.policy:q} --pairs {input.pairs:q}"
        " --items {output.item_table:q} --report {output.report:q} --work {params.work:q} --threads {threads}"
        " > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule sample_references:
    input:
        policy=rules.sft.output.policy,
        pairs=LAYOUT.pairs,
        asked=asked("sample_references"),
    output:
        made_with=made_with("sample_references"),
        references=LAYOUT.references,
    log:
        f"{FOLDER}/logs/sample_references.log",
    threads: config["resources"]["threads"]
    resources:
        mem_mb=memory,
        runtime=config["resources"]["runtime_minutes"],
        gpu=min(1, config["resources"]["gpus"]),
    params:
        config_file=config_file,
        work=LAYOUT.work,
    message:
        "Sample the references of PPO"
    shell:
        "rm-methods sample-references --config {params.config_file:q} --policy {input.policy:q} --pairs {input.pairs:q}"
        " --out {output.references:q} --work {params.work:q} --threads {threads} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule ppo:
    input:
        model=lambda wc: EXPERIMENT.model_of(wc.variant, wc.seed),
        summary=lambda wc: EXPERIMENT.model_of(wc.variant, wc.seed).with_name(
            "summary.json"
        ),
        policy=rules.sft.output.policy,
        pairs=LAYOUT.pairs,
        references=LAYOUT.references,
        asked=asked("ppo"),
    output:
        made_with=made_with("ppo"),
        policy=directory(LAYOUT.ppo_run(VARIANT, SEED) / "policy"),
        metrics=LAYOUT.ppo_run(VARIANT, SEED) / "metrics.jsonl",
        evaluation=LAYOUT.ppo_run(VARIANT, SEED) / "evaluation.parquet",
        summary=LAYOUT.ppo_run(VARIANT, SEED) / "summary.json",
    log:
        f"{FOLDER}/logs/ppo/{{variant}}_seed{{seed}}.log",
    threads: config["resources"]["threads"]
    resources:
        mem_mb=memory,
        runtime=config["resources"]["runtime_minutes"],
        gpu=config["overoptimization"]["ppo"]["processes"]
        * min(1, config["resources"]["gpus"]),
        # One task, which starts a rank for each GPU itself (see `train_resource`).
        tasks=0,
    params:
        config_file=config_file,
        out=lambda wc: LAYOUT.ppo_run(wc.variant, wc.seed),
        work=LAYOUT.work,
    message:
        "Optimize the policy against {wildcards.variant}, seed {wildcards.seed}"
    shell:
        "rm-methods ppo --config {params.config_file:q} --variant {wildcards.variant:q} --seed {wildcards.seed}"
        " --model {input.model:q} --policy {input.policy:q} --pairs {input.pairs:q} --references {input.references:q}"
        " --out {params.out:q} --work {params.work:q} --threads {threads} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule overoptimization:
    input:
        pools=[LAYOUT.items(pool) for pool in EXPERIMENT.pools()],
        scores=[
            LAYOUT.scores(variant, seed, pool)
            for variant, seed in dict.fromkeys(
                [*EXPERIMENT.optimized_runs(), *EXPERIMENT.optimized_members()]
            )
            for pool in EXPERIMENT.pools()
        ],
        policies=[
            LAYOUT.ppo_run(variant, seed) / "evaluation.parquet"
            for variant, seed in EXPERIMENT.ppo_runs()
        ],
        asked=asked("overoptimization"),
    output:
        report(
            [
                LAYOUT.overoptimization / name
                for name in EXPERIMENT.overoptimization_files()
            ],
            category="Over-optimization",
        ),
        made_with=made_with("overoptimization"),
    log:
        f"{FOLDER}/logs/overoptimization.log",
    params:
        config_file=config_file,
        experiment=experiment_folder,
        out=LAYOUT.overoptimization,
    message:
        "Summarize Best-of-N and PPO"
    shell:
        "rm-methods overoptimization --config {params.config_file:q} --experiment {params.experiment:q} --out {params.out:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
