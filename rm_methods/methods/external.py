"""A reward model from elsewhere as a row of an experiment: nothing is trained, and all pairs and benchmarks are scored.

It is read as `rm-methods benchmark --model` reads it (rm_methods.scoring.published).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.methods.contract import ExternalMethod
from rm_methods.scoring.adapters import folders_of_weights
from rm_methods.scoring.model_options import ModelOptions
from rm_methods.scoring.model_source import model_folder, weights_record


class Method(ExternalMethod):
    def describe(self) -> dict[str, Any]:
        """The folder of the model, what identifies its weights, and how it is read."""
        settings = self.settings
        if not settings["model"]:
            raise UserError("external: no model is named. Set model to a folder or a hub id.")
        options = ModelOptions.of(settings)
        folder = model_folder(
            settings["model"], settings["revision"], what="external: model", code=options.trust_remote_code
        )
        folder = folder.resolve()
        if not folder.is_dir():
            raise UserError(f"external: model = '{settings['model']}': no such folder.")
        weights = {str(part.resolve()): weights_record(part) for part in folders_of_weights(folder, options)}
        record: dict[str, Any] = {"model": str(folder), "weights": weights, **options.record()}
        if options.chat_template is not None:
            record["chat_template"] = str(Path(options.chat_template).resolve())
        return record
