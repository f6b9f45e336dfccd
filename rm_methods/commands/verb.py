"""What every verb does: several values after one option, and errors of the file system."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import click

from rm_methods.errors import UserError

_WRITTEN = ("work", "out", "report", "metrics", "credits")  # options that name files or folders to write


class Verb(click.Command):
    """Takes several values after a repeatable option, as Snakemake does: `--config a.yaml b.yaml`.

    Explains a full or read-only disk, whichever library raised the error.
    """

    def parse_args(self, context, args):
        return super().parse_args(context, self._with_repeated_options(args))

    def _with_repeated_options(self, arguments: Sequence[str]) -> list[str]:
        """The arguments with a repeatable option before each of its values.

        A verb that also takes words without an option keeps them: a word behind an option's value may be one of those.
        """
        if any(isinstance(parameter, click.Argument) for parameter in self.params):
            return list(arguments)
        options = {
            name: parameter
            for parameter in self.params
            if isinstance(parameter, click.Option)
            for name in parameter.opts
        }
        expanded: list[str] = []
        repeatable = ""
        value_follows = False
        for index, word in enumerate(arguments):
            if word == "--" and not value_follows:
                return expanded + list(arguments[index:])
            if value_follows:
                value_follows = False
            elif word.startswith("-"):
                name, equals, _ = word.partition("=")
                option = options.get(name)
                repeatable = name if option is not None and option.multiple else ""
                value_follows = option is not None and not option.is_flag and not equals
            elif repeatable:
                expanded.append(repeatable)
            expanded.append(word)
        return expanded

    def invoke(self, context):
        try:
            return super().invoke(context)
        except Exception as error:
            from rm_methods.system.disk import disk_problem

            paths: list[Path] = []
            for name in _WRITTEN:
                value = context.params.get(name)
                paths += value if isinstance(value, tuple) else [value]
            if problem := disk_problem(error, dict.fromkeys(filter(None, paths))):
                raise UserError(problem) from error
            raise


verb = functools.partial(click.command, cls=Verb)
