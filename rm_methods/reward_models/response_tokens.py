"""The tokens of the responses alone, independent of the layout of a batch, for methods that use length or wording."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rm_methods.preferences.tool_calls import readable
from rm_methods.reward_models.tokenization import ChatTokenizer, TokenizedItem

_AT_ONCE = 2000  # items tokenized in one call: bounds the memory that lists of Python integers take


def response_tokens(items: Sequence[TokenizedItem], reader: ChatTokenizer) -> list[tuple[np.ndarray, ...]]:
    """Token ids (int32) of the text that truncation left of each response, without prompt and chat template.

    The texts are tokenized alone, calls as JSON.  Cutting the items' sequences behind the shared prompt would count
    prompt tokens into the response wherever the prompt was cut differently for the two responses.
    """
    tokens: list[tuple[np.ndarray, ...]] = []
    for start in range(0, len(items), _AT_ONCE):
        part = items[start : start + _AT_ONCE]
        texts = [readable(conversation[-1]["content"]) for item in part for conversation in item.conversations]
        if not texts:
            tokens += [()] * len(part)
            continue
        encoding = reader.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        position = 0
        for item in part:
            ids = encoding["input_ids"][position : position + len(item.conversations)]
            tokens.append(tuple(np.asarray(ids_of_text, dtype=np.int32) for ids_of_text in ids))
            position += len(item.conversations)
    return tokens
