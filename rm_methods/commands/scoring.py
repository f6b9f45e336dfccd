"""Verbs that score: files, or whole benchmarks."""

from __future__ import annotations

from pathlib import Path

import click

from rm_methods.commands.options import (
    FILE,
    FOLDER,
    complete_benchmarks,
    complete_data,
    config_files_option,
    external_model_options,
    find_methods,
    methods_option,
    named_paths,
    reader_option,
    reader_options,
    reader_options_in_errors,
    threads_option,
)
from rm_methods.commands.verb import verb
from rm_methods.errors import UserError


def _precision_option(default: str | None):
    return click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16"]),
        default=default,
        show_default=True,
        help="Precision of the backbone; the head is always fp32.",
    )


def _tokens_per_batch_option(default: int | None):
    return click.option(
        "--tokens-per-batch",
        type=click.IntRange(min=32),
        default=default,
        show_default=True,
        help="Largest number of tokens in one forward pass.",
    )


@verb()
@click.option("--model", required=True, type=FOLDER, help="Reward-model folder, or folder with a scorer.json.")
@click.option(
    "--data",
    multiple=True,
    required=True,
    shell_complete=complete_data,
    help="File of benchmark items or preference pairs, or name of a benchmark or dataset; repeatable.",
)
@click.option(
    "--out",
    multiple=True,
    required=True,
    type=FILE,
    help="Score table to write, one per --data; .parquet, .csv or .jsonl.",
)
@click.option("--root", type=FOLDER, default=None, help="Folder with the files of a benchmark or dataset.")
@config_files_option("Configuration with the scoring settings and the reader's options; repeatable.")
@reader_option
@threads_option
@click.option(
    "--max-length",
    type=click.IntRange(min=32),
    default=None,
    help="Longest sequence in tokens; default that of --config, of the model's experiment, or the model's limit.",
)
@click.option(
    "--protocol",
    type=click.Choice(["counted", "strict"]),
    default=None,
    help="Too long a text is cut and counted (default), or gets no score.",
)
@_precision_option(default=None)
@click.option(
    "--layout",
    type=click.Choice(["auto", "packed", "plain"]),
    default=None,
    help="Batch layout: packed has each prompt once, plain pads.",
)
@click.option("--attention", default=None, help="Attention of transformers: auto, sdpa, eager, flash_attention_2.")
@_tokens_per_batch_option(default=None)
@click.option(
    "--bf16-in-batches",
    is_flag=True,
    default=None,
    help="Use batches in bf16, too: faster, but scores depend on the batch.",
)
@click.option("--strict", is_flag=True, help="Fail if any row cannot be scored.")
@methods_option
@external_model_options
def score(model, data, out, root, config_files, reader, strict, method_folders, model_options, **options):
    """Score responses with a reward model.

    Writes a score table for each --data.  Prints a report on the rows and the accuracy, and stores it beside the table.
    """
    from dataclasses import replace

    from rm_methods.config.resolve import load_config
    from rm_methods.preferences.cards import configured_reader_options
    from rm_methods.scoring.model_source import default_length, evaluated_length
    from rm_methods.scoring.score import score_files
    from rm_methods.scoring.scorer import ScoringSettings, scoring_settings

    if len(data) != len(out):
        raise UserError(f"{len(data)} --data but {len(out)} --out were given; give one --out for each --data.")
    configured_options = {}
    if config_files:
        config = load_config(config_files, methods=method_folders)
        configured = scoring_settings(config)
        length_reason = "backbone.max_length of --config"
        if (recorded := evaluated_length(model)) is not None and recorded != configured.max_length:
            # The configuration counts, because the workflow scores again after a change of it.
            length_reason += f"; the model's experiment used {recorded}, so its table may differ"
        configured_options = configured_reader_options(config["data"])
    else:
        find_methods(method_folders)
        max_length, length_reason = default_length(model, ScoringSettings.max_length)
        configured = ScoringSettings(max_length=max_length)
    if options["max_length"] is not None:
        length_reason = "--max-length"
    settings = replace(configured, **{name: value for name, value in options.items() if value is not None})
    jobs = list(zip(data, out, strict=True))
    with reader_options_in_errors(config_files):
        reports = score_files(
            model,
            jobs,
            root,
            settings,
            strict,
            also_read=config_files,
            model_options=model_options,
            reader_options=reader_options(reader),
            configured_options=configured_options,
            length_reason=length_reason,
        )
    click.echo("\n\n".join(reports))


@verb()
@click.option("--model", required=True, help="Reward-model folder, or id of the Hugging Face hub.")
@click.option("--revision", default=None, help="Commit of a hub id.")
@click.option(
    "--benchmarks",
    "names",
    multiple=True,
    required=True,
    shell_complete=complete_benchmarks,
    help="Names of benchmarks, separated by commas or blanks: rewardbench2,rm_bench.",
)
@click.option(
    "--root", "roots", multiple=True, help="NAME=FOLDER with the public files; without it, from the hub; repeatable."
)
@click.option("--limit", type=click.IntRange(min=1), default=None, help="At most this many items of each subset.")
@click.option(
    "--training-data",
    multiple=True,
    help="File of preference pairs that the model was trained on, to count the items that occur in it; repeatable.",
)
@click.option("--out", type=FOLDER, default=None, help="Folder to write; default results/benchmark/<model>.")
@threads_option
@click.option(
    "--max-length", type=click.IntRange(min=32), default=None, help="Longest sequence in tokens; default the model's."
)
@_precision_option(default="fp32")
@_tokens_per_batch_option(default=4096)
@click.option(
    "--protocol",
    type=click.Choice(["counted", "official", "strict"]),
    default="counted",
    show_default=True,
    help="Too long a text is cut and counted; cut as the official script does; or gets no score.",
)
@methods_option
@external_model_options
def benchmark(
    model,
    revision,
    names,
    roots,
    limit,
    training_data,
    out,
    threads,
    max_length,
    protocol,
    method_folders,
    model_options,
    **settings,
):
    """Score a reward model on benchmarks, without an experiment.

    Prints a table for each benchmark, beside rules that do not read the text.  A stopped command continues.
    """
    from rm_methods.leaderboard.model_run import Target, run_model
    from rm_methods.scoring.scorer import ScoringSettings

    find_methods(method_folders)
    folders = named_paths("--root", roots, "rm_bench=data/rm_bench")
    wanted = [name.strip() for text in names for name in text.split(",") if name.strip()]
    if unused := [name for name in folders if name not in wanted]:
        raise UserError(f"--root {unused[0]}=...: this benchmark is not among --benchmarks {','.join(wanted)}.")
    options = {} if limit is None else {"limit": limit}
    targets = [Target(name, folders[name][-1] if name in folders else None, options) for name in wanted]
    out = out or Path("results/benchmark") / model.rstrip("/").replace("/", "--").lstrip(".-")
    click.echo(
        run_model(
            model,
            targets,
            out,
            ScoringSettings(threads=threads, protocol="counted" if protocol == "official" else protocol, **settings),
            official=protocol == "official",
            revision=revision,
            max_length=max_length,
            options=model_options,
            training_data=training_data,
        ),
        nl=False,
    )
    click.echo(f"\nTables and scores: {out}")
