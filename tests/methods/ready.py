"""A method and its model as training makes them, with one micro-batch."""

from __future__ import annotations

import torch

from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.reward_models.layouts import PairBatch, lay_out


def ready_to_train(prepared, tokenizer, pairs, folder, name, layout="packed", **settings):
    """(method, model, micro-batch of all pairs, tokenized pairs)."""
    method = load_method(name, load_method_card(name).defaults() | settings)
    config = {"backbone": prepared[2]["backbone"], "training": prepared[2]["training"]}
    items = tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs)
    inputs = Inputs(
        seed=0,
        work_folder=folder / "work",
        label=name,
        config=config,
        backbone=prepared[1],
        pairs=method.transform_pairs(pairs, Inputs(0, folder)),
        items=items,
        reader=tokenizer,
    )
    model = method.model(pairs, tokenizer, inputs)
    model.layout(layout)
    method.build(model, inputs)
    batch = PairBatch(
        **vars(lay_out(items, layout, tokenizer.pad_id)),
        margin=torch.zeros(len(pairs)),
        pair_ids=tuple(p.pair_id for p in pairs),
    )
    return method, model, batch, items
