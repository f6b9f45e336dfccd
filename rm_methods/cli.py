"""The command line: one verb per stage, used by the workflow and by hand.

Usage:
    rm-methods list methods
    rm-methods check --config my.yaml
    rm-methods score --model results/quickstart/runs/bradley_terry/seed0/model --data pairs.jsonl --out scores.parquet
    rm-methods evaluate --benchmark rm_bench --items items.parquet --scores scores.parquet

Heavy packages are imported inside the verbs, so that `rm-methods --help` answers at once.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys

import click

from rm_methods import __version__
from rm_methods.commands import plumbing, share, stages, use
from rm_methods.errors import UserError, shortened

_OBJECTS_BEFORE_COLLECTION = 10_000  # Python's default is 700
# Errors of the file system that reading a wrong path causes, too.
_ADVICE = {
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "Check the path: a part of it is a file.",
    errno.EISDIR: "Name a file in that folder.",
    errno.ENAMETOOLONG: "Check the path.",
}

# Heading of `rm-methods --help` -> its verbs, in the order of their use.
GROUPS = {
    "Use": use.VERBS,
    "Share a model": share.VERBS,
    "Stages of the workflow, by hand": stages.VERBS,
    "Plumbing (policies, and language models of the controlled world)": plumbing.VERBS,
}
_EXAMPLES = """\b
Examples:
  snakemake --cores 2                           run config/quickstart.yaml
  snakemake --cores 2 --configfile my.yaml      run another experiment
  rm-methods init --data my_pairs.jsonl         a configuration for your own pairs
  rm-methods check --config my.yaml             is this configuration right?
  rm-methods show bradley_terry                 a method and its settings
  rm-methods benchmark --model MODEL --benchmarks rm_bench,rewardbench2
  rm-methods score --model FOLDER --data pairs.jsonl --out scores.csv

\b
`rm-methods VERB --help` describes a verb."""


class _Cli(click.Group):
    """Prints a `UserError` as text and exits with status 2.  Other errors are bugs and keep their traceback."""

    def format_commands(self, context, formatter):
        """The verbs in groups, each with the whole first sentence of its description."""
        width = max(map(len, self.commands))
        for heading, verbs in GROUPS.items():
            rows = [(verb.name.ljust(width), verb.get_short_help_str(limit=10_000)) for verb in verbs]
            with formatter.section(heading):
                formatter.write_dl(rows)

    def invoke(self, context):
        try:
            return super().invoke(context)
        except UserError as error:
            click.echo(f"rm-methods: {shortened(str(error))}", err=True)
            sys.exit(2)
        except OSError as error:
            if error.errno is None:
                raise
            advice = _ADVICE.get(error.errno, "Check the path, and whether the disk works.")
            click.echo(f"rm-methods: {error.filename or 'file system'}: {error.strerror}. {advice}", err=True)
            sys.exit(2)


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXAMPLES)
@click.version_option(__version__)
def main():
    """Train, score, evaluate and compare reward models.  The workflow (`snakemake --cores N`) calls these verbs."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # Imports make hundreds of thousands of objects that stay. Searching them for garbage again and again, and once more
    # at the end, takes a quarter of the time that a short verb takes.
    gc.set_threshold(_OBJECTS_BEFORE_COLLECTION, 10, 10)
    atexit.register(gc.freeze)


for _verbs in GROUPS.values():
    for _command in _verbs:
        main.add_command(_command)


if __name__ == "__main__":
    main()
