# One job per variant and seed.  Checkpoints lie undeclared in work/<run key>/, because Snakemake deletes declared outputs of a job
# that was killed; the job that runs next finds them and continues.  A job that is tried again (only profiles do that) asks for more memory.
from rm_methods.system.cluster import train_resource


rule train:
    input:
        pairs=rules.prepare.output.pairs,
        backbone=lambda wc: (
            rules.prepare_backbone.output.folder
            if EXPERIMENT.is_trained(wc.variant)
            else []
        ),
        required=lambda wc: [
            str(path)
            for paths in EXPERIMENT.required_runs(wc.variant, wc.seed).values()
            for path in paths
        ],
        asked=asked("train"),
    output:
        model=directory(f"{FOLDER}/runs/{{variant}}/seed{{seed}}/model"),
        metrics=f"{FOLDER}/runs/{{variant}}/seed{{seed}}/metrics.jsonl",
        summary=f"{FOLDER}/runs/{{variant}}/seed{{seed}}/summary.json",
        made_with=f"{FOLDER}/" + RECORDS["train"],
    log:
        f"{FOLDER}/logs/train/{{variant}}_seed{{seed}}.log",
    # Nearly everything else waits for trainings.
    priority: 1
    threads: config["resources"]["threads"]
    resources:
        mem_mb=lambda wc, attempt: attempt * config["resources"]["memory_mb"],
        runtime=config["resources"]["runtime_minutes"],
        gpu=train_resource(config, EXPERIMENT.is_trained, "gpu"),
        tasks=train_resource(config, EXPERIMENT.is_trained, "tasks"),
        # For jobs on several nodes only; None leaves a resource unset.
        nodes=train_resource(config, EXPERIMENT.is_trained, "nodes"),
        mpi=train_resource(config, EXPERIMENT.is_trained, "mpi"),
        gres=train_resource(config, EXPERIMENT.is_trained, "gres"),
        tasks_per_gpu=train_resource(config, EXPERIMENT.is_trained, "tasks_per_gpu"),
    params:
        out=lambda wc: f"{FOLDER}/runs/{wc.variant}/seed{wc.seed}",
        required=lambda wc: [
            word
            for key, paths in EXPERIMENT.required_runs(wc.variant, wc.seed).items()
            for path in paths
            for word in ("--required", f"{key}={path}")
        ],
    shell:
        "rm-methods train --config {CONFIG_FILE:q} --variant {wildcards.variant:q} --seed {wildcards.seed} --pairs {input.pairs:q}"
        " --backbone {rules.prepare_backbone.output.folder:q} --out {params.out:q} --work {FOLDER:q}/work {params.required:q} --threads {threads} > {log:q} 2>&1"
        " && cp {input.asked:q} {output.made_with:q}"
