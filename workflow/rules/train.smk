# One job for each variant and seed.  Checkpoints are undeclared files in work/<run key>/, because Snakemake deletes the
# declared outputs of a job that was killed.  The job that runs next finds them and continues.


rule train:
    input:
        pairs=LAYOUT.pairs,
        backbone=lambda wc: LAYOUT.backbone if EXPERIMENT.is_trained(wc.variant) else [],
        required=required_models,
        asked=asked("train"),
    output:
        model=directory(LAYOUT.model(VARIANT, SEED)),
        metrics=LAYOUT.training_log(VARIANT, SEED),
        summary=LAYOUT.summary(VARIANT, SEED),
        made_with=made_with("train"),
    log:
        f"{FOLDER}/logs/train/{{variant}}_seed{{seed}}.log",
    # Nearly everything else waits for trainings.
    priority: 1
    threads: config["resources"]["threads"]
    resources:
        mem_mb=memory,
        runtime=config["resources"]["runtime_minutes"],
        gpu=train_resource(config, EXPERIMENT.is_trained, "gpu"),
        tasks=train_resource(config, EXPERIMENT.is_trained, "tasks"),
        # For jobs on several nodes only; None leaves a resource unset.
        nodes=train_resource(config, EXPERIMENT.is_trained, "nodes"),
        mpi=train_resource(config, EXPERIMENT.is_trained, "mpi"),
        gres=train_resource(config, EXPERIMENT.is_trained, "gres"),
        tasks_per_gpu=train_resource(config, EXPERIMENT.is_trained, "tasks_per_gpu"),
    params:
        config_file=config_file,
        backbone=LAYOUT.backbone,
        out=lambda wc: LAYOUT.run(wc.variant, wc.seed),
        work=LAYOUT.work,
        required=required_options,
        action=train_or_set_up,
    message:
        "{params.action} {wildcards.variant}, seed {wildcards.seed}"
    shell:
        "rm-methods train --config {params.config_file:q} --variant {wildcards.variant:q} --seed {wildcards.seed}"
        " --pairs {input.pairs:q} --backbone {params.backbone:q} --out {params.out:q} --work {params.work:q}"
        " {params.required:q} --threads {threads} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
