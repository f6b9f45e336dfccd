"""Verbs of policies, and of the language models of the controlled world."""

from __future__ import annotations

import click

from rm_methods.commands.options import (
    FILE,
    FOLDER,
    check_variant,
    checkpoints_option,
    config_option,
    counts_text,
    policy_option,
    samples_option,
    seed_option,
    threads_option,
    variant_option,
)
from rm_methods.commands.verb import verb


@verb()
@config_option
@click.option("--pairs", required=True, type=FILE, help="Prepared pairs.")
@click.option(
    "--out", required=True, type=FOLDER, help="Folder to write: backbone/, policy/, metrics.jsonl, summary.json."
)
@checkpoints_option
@threads_option
def sft(config_files, pairs, out, work, threads):
    """Fine-tune the policy that Best-of-N and PPO start from."""
    from rm_methods.config.resolve import load_config
    from rm_methods.policies.make_policy import make_policy

    summary = make_policy(load_config(config_files), pairs, out, work, threads)
    click.echo(counts_text({name: summary[name] for name in ("examples", "prompts_cut", "responses_cut")}))


@verb("sample-pool")
@config_option
@policy_option
@click.option("--pairs", required=True, type=FILE, help="Prepared pairs; the policy answers their prompts.")
@click.option("--items", required=True, type=FILE, help="File to write: the responses with their gold rewards.")
@click.option("--report", required=True, type=FILE, help="JSON report to write.")
@samples_option
@threads_option
def sample_pool(config_files, policy, pairs, items, report, work, threads):
    """Sample the responses that Best-of-N selects from."""
    from rm_methods.config.resolve import load_config
    from rm_methods.files import check_outputs
    from rm_methods.overoptimization.draw import draw_pool

    check_outputs({"--items": [items], "--report": [report]}, {"--config": config_files, "--pairs": [pairs]})
    config = load_config(config_files)
    counts = draw_pool(config, policy=policy, pairs=pairs, items=items, report=report, work=work, threads=threads)
    click.echo(counts_text(counts))


@verb("sample-references")
@config_option
@policy_option
@click.option("--pairs", required=True, type=FILE, help="Prepared pairs; the policy answers their training prompts.")
@click.option("--out", required=True, type=FILE, help="Parquet file to write.")
@samples_option
@threads_option
def sample_references(config_files, policy, pairs, out, work, threads):
    """Sample the responses that scale PPO's rewards.

    PPO centers and scales rewards by the scores of these responses.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.overoptimization.draw import draw_references

    config = load_config(config_files)
    click.echo(counts_text(draw_references(config, policy=policy, pairs=pairs, out=out, work=work, threads=threads)))


@verb()
@config_option
@variant_option
@seed_option
@click.option("--model", required=True, type=FOLDER, help="Reward-model folder of the run.")
@policy_option
@click.option("--pairs", required=True, type=FILE, help="Prepared pairs; the policy answers their prompts.")
@click.option("--references", required=True, type=FILE, help="Responses from `rm-methods sample-references`.")
@click.option(
    "--out",
    required=True,
    type=FOLDER,
    help="Folder to write: policy/, metrics.jsonl, evaluation.parquet, summary.json.",
)
@checkpoints_option
@threads_option
def ppo(config_files, variant, seed, model, policy, pairs, references, out, work, threads):
    """Optimize a policy against a reward model with PPO.

    Also records the gold reward of the policy.
    """
    from rm_methods.config.resolve import load_config
    from rm_methods.ppo.run import PpoJob, optimize

    config = load_config(config_files)
    check_variant(config, variant)
    job = PpoJob(
        config=config,
        variant=variant,
        seed=seed,
        model=model,
        policy=policy,
        pairs=pairs,
        references=references,
        out=out,
        work=work,
        threads=threads,
    )
    optimize(job)


@verb("train-world-model")
@seed_option
@click.option("--out", required=True, type=FOLDER, help="Folder to write: a language model, and training.json.")
@checkpoints_option
@click.option("--set", "changes", multiple=True, help="SETTING=NUMBER, such as hidden_size=128; repeatable.")
@click.option(
    "--start",
    type=FOLDER,
    default=None,
    help="Folder of an earlier training to start from; a joint model starts from the package's causal one.",
)
@click.option(
    "--kind",
    type=click.Choice(["causal", "joint"]),
    default="causal",
    show_default=True,
    help="causal predicts each token; joint reads two responses in both directions, and predicts the reaction to each.",
)
@threads_option
def train_world_model(seed, out, work, changes, start, kind, threads):
    """Train a language model of the controlled world.

    It learns to compare a response with its prompt, from conversations without preferences.  The package has the
    weights of three: backbone.source = world and world_weak, and joint_bidirectional.start = world_joint.
    """
    from rm_methods.policies.world_model import WorldModelSettings
    from rm_methods.policies.world_model import train_world_model as run

    record = run(WorldModelSettings.changed(changes, kind), seed, out, work, threads=threads, start=start, kind=kind)
    if kind == "causal":
        share = record["probe"][-1]["accuracy_by_layer"][-1]
        click.echo(f"{record['parameters']} parameters. The probe tells the better response in {100 * share:.1f}%.")
    else:
        last = record["reactions"][-1]
        click.echo(
            f"{record['parameters']} parameters. It is right about {100 * last['named_right']:.1f}% of the responses "
            f"(flawed or not), and ranks {100 * last['ordered_right']:.1f}% of the pairs right."
        )


# In the order of their use, as `rm-methods --help` lists them.
VERBS = (
    sft,
    sample_pool,
    sample_references,
    ppo,
    train_world_model,
)
