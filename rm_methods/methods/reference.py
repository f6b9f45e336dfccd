"""Log-probabilities of the training pairs under the weights that training starts from, computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from rm_methods.methods.contract import Inputs
from rm_methods.reward_models.batching import plan_steps
from rm_methods.reward_models.layouts import SequenceBatch, lay_out
from rm_methods.reward_models.model import RewardModel
from rm_methods.reward_models.tokenization import TokenizedItem
from rm_methods.system.ranks import gathered, rank_and_ranks


@torch.no_grad()
def reference_log_probabilities(
    model: RewardModel,
    inputs: Inputs,
    log_probabilities: Callable[[Sequence[TokenizedItem], SequenceBatch], torch.Tensor],
) -> torch.Tensor:
    """Log-probabilities of both responses of every training pair, fp32 [pairs, 2], on the CPU.

    Ranks share the work.  `build` comes before a checkpoint is loaded, so a resumed run gets the same numbers.

    Args:
        model: with the starting weights, whole; in evaluation mode while this runs.
        inputs: of `build`.
        log_probabilities: fp32 [items, 2] of the items of a batch.
    """
    training = inputs.config["training"]
    layout = model.layout(training["layout"])
    rank, ranks = rank_and_ranks()
    (step,) = plan_steps(
        inputs.items,
        steps=1,
        pairs_per_step=len(inputs.items),
        tokens_per_microbatch=training["tokens_per_microbatch"],
        seed=0,
        ranks=ranks,
        layout=layout,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    home = next(model.parameters()).device
    was_training = model.training
    model.eval().to(device)
    sums: dict[int, list[float]] = {}
    for micro_batch in step.ranks[rank]:
        items = [inputs.items[i] for i in micro_batch.indices]
        batch = lay_out(items, layout, inputs.reader.pad_id).to(device)
        sums |= dict(zip(micro_batch.indices, log_probabilities(items, batch).tolist(), strict=True))
    model.train(was_training).to(home)
    of_all_ranks = {index: value for part in gathered(sums) for index, value in part.items()}
    return torch.tensor([of_all_ranks[k] for k in range(len(inputs.items))])
