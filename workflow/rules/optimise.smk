# Best-of-N and PPO: a policy, its stored samples, a policy optimised against each reward model, and a summary of all.


rule sft:
    input:
        pairs=rules.prepare.output.pairs,
        asked=asked("sft"),
    output:
        made_with=f"{FOLDER}/" + RECORDS["sft"],
        policy=directory(f"{FOLDER}/sft/policy"),
        metrics=f"{FOLDER}/sft/metrics.jsonl",
        summary=f"{FOLDER}/sft/summary.json",
    log:
        f"{FOLDER}/logs/sft.log",
    priority: 1
    threads: config["resources"]["threads"]
    resources:
        mem_mb=lambda wc, attempt: attempt * config["resources"]["memory_mb"],
        runtime=config["resources"]["runtime_minutes"],
        gpu=min(1, config["resources"]["gpus"]),
    params:
        out=f"{FOLDER}/sft",
    shell:
        "rm-methods sft --config {CONFIG_FILE:q} --pairs {input.pairs:q} --out {params.out:q} --work {FOLDER:q}/work --threads {threads} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule sample_pool:
    # The gold rewards of the candidates stand in it; reward models score it as they score a benchmark.
    input:
        policy=rules.sft.output.policy,
        pairs=rules.prepare.output.pairs,
        asked=asked("sample_pool"),
    output:
        made_with=f"{FOLDER}/" + RECORDS["sample_pool"],
        item_table=f"{FOLDER}/pools/samples.parquet",
        drawn=f"{FOLDER}/pools/samples_drawn.parquet",
        report=f"{FOLDER}/pools/samples.json",
    log:
        f"{FOLDER}/logs/sample_pool.log",
    threads: config["resources"]["threads"]
    resources:
        mem_mb=lambda wc, attempt: attempt * config["resources"]["memory_mb"],
        runtime=config["resources"]["runtime_minutes"],
        gpu=min(1, config["resources"]["gpus"]),
    shell:
        "rm-methods sample-pool --config {CONFIG_FILE:q} --policy {input.policy:q} --pairs {input.pairs:q} --items {output.item_table:q}"
        " --report {output.report:q} --work {FOLDER:q}/work --threads {threads} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule sample_references:
    input:
        policy=rules.sft.output.policy,
        pairs=rules.prepare.output.pairs,
        asked=asked("sample_references"),
    output:
        made_with=f"{FOLDER}/" + RECORDS["sample_references"],
        references=f"{FOLDER}/pools/references.parquet",
    log:
        f"{FOLDER}/logs/sample_references.log",
    threads: config["resources"]["threads"]
    resources:
        mem_mb=lambda wc, attempt: attempt * config["resources"]["memory_mb"],
        runtime=config["resources"]["runtime_minutes"],
        gpu=min(1, config["resources"]["gpus"]),
    shell:
        "rm-methods sample-references --config {CONFIG_FILE:q} --policy {input.policy:q} --pairs {input.pairs:q} --out {output.references:q}"
        " --work {FOLDER:q}/work --threads {threads} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule ppo:
    input:
        model=lambda wc: str(EXPERIMENT.model_of(wc.variant, wc.seed)),
        summary=lambda wc: str(
            EXPERIMENT.model_of(wc.variant, wc.seed).parent / "summary.json"
        ),
        policy=rules.sft.output.policy,
        pairs=rules.prepare.output.pairs,
        references=rules.sample_references.output.references,
        asked=asked("ppo"),
    output:
        made_with=f"{FOLDER}/" + RECORDS["ppo"],
        policy=directory(f"{FOLDER}/ppo/{{variant}}/seed{{seed}}/policy"),
        metrics=f"{FOLDER}/ppo/{{variant}}/seed{{seed}}/metrics.jsonl",
        evaluation=f"{FOLDER}/ppo/{{variant}}/seed{{seed}}/evaluation.parquet",
        summary=f"{FOLDER}/ppo/{{variant}}/seed{{seed}}/summary.json",
    log:
        f"{FOLDER}/logs/ppo/{{variant}}_seed{{seed}}.log",
    threads: config["resources"]["threads"]
    resources:
        mem_mb=lambda wc, attempt: attempt * config["resources"]["memory_mb"],
        runtime=config["resources"]["runtime_minutes"],
        gpu=config["overoptimization"]["ppo"]["processes"]
        * min(1, config["resources"]["gpus"]),
        # One task, which starts a rank for each GPU itself (see `train_resource`).
        tasks=0,
    params:
        out=lambda wc: f"{FOLDER}/ppo/{wc.variant}/seed{wc.seed}",
    shell:
        "rm-methods ppo --config {CONFIG_FILE:q} --variant {wildcards.variant:q} --seed {wildcards.seed} --model {input.model:q}"
        " --policy {input.policy:q} --pairs {input.pairs:q} --references {input.references:q} --out {params.out:q} --work {FOLDER:q}/work"
        " --threads {threads} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"


rule overoptimization:
    input:
        pools=[f"{FOLDER}/{EXPERIMENT.item_table(pool)}" for pool in EXPERIMENT.pools()],
        scores=[
            f"{FOLDER}/scores/{v}/seed{s}/{pool}.parquet"
            for v, s in EXPERIMENT.optimised_runs()
            for pool in EXPERIMENT.pools()
        ],
        policies=[
            f"{FOLDER}/ppo/{v}/seed{s}/evaluation.parquet"
            for v, s in EXPERIMENT.ppo_runs()
        ],
        asked=asked("overoptimization"),
    output:
        [
            f"{FOLDER}/overoptimization/{name}"
            for name in EXPERIMENT.overoptimization_files()
        ],
        made_with=f"{FOLDER}/" + RECORDS["overoptimization"],
    log:
        f"{FOLDER}/logs/overoptimization.log",
    params:
        out=f"{FOLDER}/overoptimization",
    shell:
        "rm-methods overoptimization --config {CONFIG_FILE:q} --experiment {FOLDER:q} --out {params.out:q} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
