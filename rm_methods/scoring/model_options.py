"""What a user says about a reward model from elsewhere that its folder does not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.files import check_regular


@dataclass(frozen=True)
class ModelOptions:
    """How to read a published model.

    Attributes:
        chat_template: Jinja file, in place of the tokenizer's template.
        label: name or number of the output that is the reward, if the head has several.
        reference: folder or hub id of the reference of a policy trained by DPO, or "none".  The model is then a
            causal language model, and the score its implicit reward.
        trust_remote_code: run the Python code that comes with the model.
    """

    chat_template: Path | None = None
    label: str | None = None
    reference: str | None = None
    trust_remote_code: bool = False

    def template(self) -> str | None:
        """The text of the chat template.

        Raises:
            UserError: the file cannot be read.
        """
        if self.chat_template is None:
            return None
        check_regular(self.chat_template)
        try:
            return self.chat_template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"chat_template {str(self.chat_template)!r} cannot be read ({error}).") from None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> ModelOptions:
        """The options in a record, such as `scorer.json` of an external model; other keys are left."""
        template = record.get("chat_template")
        return cls(
            chat_template=None if template is None else Path(template),
            label=record.get("label"),
            reference=record.get("reference"),
            trust_remote_code=bool(record.get("trust_remote_code", False)),
        )

    def record(self) -> dict[str, str | bool]:
        """The options that are not the defaults, for the report."""
        record: dict[str, str | bool] = {}
        if self.chat_template is not None:
            record["chat_template"] = str(self.chat_template)
        if self.label is not None:
            record["label"] = self.label
        if self.reference is not None:
            record["reference"] = self.reference
        if self.trust_remote_code:
            record["trust_remote_code"] = True
        return record
