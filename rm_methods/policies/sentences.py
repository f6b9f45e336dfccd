"""A limit of sentences for the responses of a policy.

Like the limit of tokens, it cuts what is sampled: no token follows the last allowed sentence, not even an end token.
So every token of a response was drawn from the policy, and its probability needs no correction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import torch

from rm_methods.policies.policy import Policy

_ENDS = ".!?\n"


def completed_sentences(text: str) -> int:
    """Number of sentences that have ended: with ".", "!", "?" or a line break, after at least one letter or digit.

    The header of a list is one, as in the controlled world's budget; its bullets are none.

    >>> completed_sentences("**Summary**\\n- It has a red color.\\n- I hope")
    2
    """
    return sum(re.search(r"\w", part) is not None for part in re.split(f"[{_ENDS}]", text)[:-1])


class SentenceLimit:
    """A stopping criterion for the `generate` of transformers: a row stops with the end of its last allowed sentence.

    Args:
        most: sentences of a response.
        shape: rows, and columns of the prompts.

    Attributes:
        reached: bool [B], rows with `most` sentences.
        lengths: int64 [B], their tokens; beyond every response for the others.
    """

    def __init__(self, policy: Policy, most: int, shape: Sequence[int]):
        device = policy.model.device
        self.policy = policy
        self.most = most
        self.columns = shape[1]
        self.ends = sentence_ends(policy.tokenizer).to(device)
        self.reached = torch.zeros(shape[0], dtype=torch.bool, device=device)
        self.lengths = torch.full((shape[0],), torch.iinfo(torch.long).max, device=device)

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        """bool [B], whether each row stops here; input_ids: int64 [B, P + T], prompts and what was sampled so far."""
        may_end = torch.isin(input_ids[:, -1], self.ends) & ~self.reached
        for row in may_end.nonzero()[:, 0].tolist():
            response = input_ids[row, self.columns :].tolist()
            if completed_sentences(self.policy.decode(response)) >= self.most:
                self.reached[row] = True
                self.lengths[row] = len(response)
        return self.reached


@lru_cache(maxsize=4)
def sentence_ends(tokenizer) -> torch.Tensor:
    """Ids of the tokens whose text can end a sentence, int64."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return torch.tensor([token for token, text in enumerate(texts) if set(text) & set(_ENDS)], dtype=torch.long)
