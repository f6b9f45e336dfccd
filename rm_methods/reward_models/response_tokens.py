"""The tokens of the responses alone, the same whatever the layout of a batch, for methods that look at length or surface of a response."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rm_methods.reward_models.tokenization import ChatTokenizer, TokenizedItem

_AT_ONCE = 2000  # items tokenised in one call: bounds the memory that lists of Python integers take


def response_tokens(items: Sequence[TokenizedItem], reader: ChatTokenizer) -> list[tuple[np.ndarray, ...]]:
    """Token ids (int32) of each response of each item: what truncation left of its text, without prompt and chat template.

    The texts are tokenised alone.  Cutting the items' sequences behind the shared prompt would count prompt tokens into
    the response wherever the prompt was cut differently for the two responses.
    """
    found = []
    for start in range(0, len(items), _AT_ONCE):
        part = items[start : start + _AT_ONCE]
        texts = [conversation[-1]["content"] for item in part for conversation in item.conversations]
        ids = iter(
            reader.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else ()
        )
        found += [tuple(np.asarray(next(ids), dtype=np.int32) for _ in item.conversations) for item in part]
    return found
