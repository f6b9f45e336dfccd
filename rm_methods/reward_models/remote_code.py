"""Code that comes with a model (`auto_map` in its config.json) is never run.

A trained model is a plain folder that every later stage, and any server, loads without code of anyone's.  With such code that cannot be: it
would have to be trusted again wherever the folder is read, and a folder of a type that transformers knows would be trained with its own
class and scored with another.  So every load says `trust_remote_code=False`, which also keeps transformers from asking at a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rm_methods.errors import UserError


@contextmanager
def refusal_explained(source: str) -> Iterator[None]:
    """Turns the refusal of transformers to run the code of `source` (a folder or hub id) into a UserError that says what to do."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"{source}: this model needs code that comes with it (auto_map in config.json or tokenizer_config.json), which is never run. "
            "Use a model whose class is part of transformers; if this one has such a class, name its model_type and leave auto_map out."
        ) from error
