"""What every verb does with errors of the file system."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from rm_methods.errors import UserError

_WRITTEN = ("work", "out", "report", "metrics", "credits")  # options that name files or folders to write


class Verb(click.Command):
    """Explains a full or read-only disk, whichever library raised the error."""

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
