"""Joint preference model on a causal decoder: reads `[prompt | first | second]` from left to right and prefers one.

    loss and preference as joint_encoder

After RLHFlow's pair-preference model (Dong et al. 2024, arXiv 2405.07863), which lets a causal language model answer
with a token for the better response.  Our choices: a scalar head at the row's last token instead of two tokens, and
both orders of each pair in every step.  The second response attends to the first, and the first never to the second;
over both orders, each attends to the other.
"""

from __future__ import annotations

from rm_methods.methods.joint_method import DecoderJointMethod


class Method(DecoderJointMethod):
    causal = True
