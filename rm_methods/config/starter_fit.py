"""How the training pairs of a first configuration fit into the `max_length` that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rm_methods.errors import UserError
from rm_methods.preferences.pair import PreferencePair

if TYPE_CHECKING:
    from rm_methods.reward_models.tokenization import ChatTokenizer, TokenizedItem

BYTES_PER_TOKEN = 3  # if the tokenizer cannot be read; in English text, most have more
_COUNTED_PAIRS = 2000  # more would take minutes, and change little
_FEW = 0.05  # a share of the training pairs that may be left out


@dataclass(frozen=True)
class Fit:
    """The training pairs and a longest sequence.

    Attributes:
        pairs: training pairs.
        overlong: those with a response that alone does not fit.
        prompts_cut: those with a prompt that is cut at its start.
        is_estimate: whether the numbers are of a part of the pairs, or of another tokenizer than that of the training.
    """

    pairs: int
    overlong: int
    prompts_cut: int
    is_estimate: bool

    @property
    def policy(self) -> str:
        """`training.overlong_pairs`: few pairs are dropped; of many, the responses are cut."""
        return "drop" if self.overlong <= _FEW * self.pairs else "truncate"

    @property
    def used(self) -> int:
        """Pairs that a method trains on."""
        return self.pairs - self.overlong if self.policy == "drop" else self.pairs

    def remarks(self, max_length: int) -> list[str]:
        """What is cut and left out, a sentence each."""
        about = "about " if self.is_estimate else ""
        lines = []
        if self.overlong and self.policy == "drop":
            lines.append(
                f"{about}{self.overlong:,} of {self.pairs:,} training pairs are left out: a response does not fit into "
                f"max_length {max_length:,}."
            )
        elif self.overlong:
            lines.append(
                f"{about}{self.overlong:,} of {self.pairs:,} training pairs have a response longer than max_length "
                f"{max_length:,}. Its end is cut."
            )
        if self.prompts_cut:
            lines.append(
                f"{about}{self.prompts_cut:,} of {self.pairs:,} training pairs have a prompt cut at its start."
            )
        return [line[0].upper() + line[1:] for line in lines]


def fit_of(pairs: Sequence[PreferencePair], tokenizer: Any | None, max_length: int, *, is_estimate: bool) -> Fit:
    """Count the training pairs that do not fit.

    Args:
        tokenizer: of the backbone; None: tokens are estimated from bytes.
        max_length: longest sequence in tokens.
        is_estimate: whether the tokenizer is another one than that of the training.
    """
    stride = max(1, -(-len(pairs) // _COUNTED_PAIRS))
    sample = pairs[::stride]
    if tokenizer is None:
        limit = max_length * BYTES_PER_TOKEN
        responses = [max(len(pair.chosen.encode()), len(pair.rejected.encode())) for pair in sample]
        overlong = sum(size > limit for size in responses)
        whole = [bytes_of_prompt(pair) + size for pair, size in zip(sample, responses, strict=True)]
        prompts_cut = sum(size > limit for size in whole)
    else:
        overlong, prompts_cut = _counted(sample, tokenizer, max_length)
    scale = len(pairs) / max(1, len(sample))
    return Fit(
        pairs=len(pairs),
        overlong=round(overlong * scale),
        prompts_cut=round(prompts_cut * scale),
        is_estimate=is_estimate or stride > 1 or tokenizer is None,
    )


def _counted(pairs: Sequence[PreferencePair], tokenizer: Any, max_length: int) -> tuple[int, int]:
    from rm_methods.reward_models.pair_encoding import reason_to_drop
    from rm_methods.reward_models.tokenization import ChatTokenizer

    items = items_of(pairs, ChatTokenizer(tokenizer, max_length))
    overlong = sum(reason_to_drop(item, "drop") == "dropped_response_cut" for item in items)
    return overlong, sum(any(item.prompt_cut) for item in items)


def items_of(pairs: Sequence[PreferencePair], reader: ChatTokenizer) -> list[TokenizedItem]:
    """The pairs in tokens.

    Raises:
        UserError: the chat template refuses some; names their rows.
    """
    from rm_methods.reward_models.tokenization import RefusedConversations

    try:
        return reader.encode((pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs)
    except RefusedConversations as error:
        names = [f"{pair.file}, row {pair.row}" for pair in pairs]
        remedy = (
            "Name a --backbone whose chat template takes such conversations (tiny does), or leave them out of --data."
        )
        raise UserError(error.naming(names, remedy)) from None


def bytes_of_prompt(pair: PreferencePair) -> int:
    """Length of a prompt's texts in UTF-8."""
    return sum(len(message["content"].encode()) for message in pair.prompt)
