"""The properties that every method must have: one check each, with a sentence on what is wrong and what to do.

A check takes the workbench and the name of a method.  It returns None, or why the property does not apply.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.contract_test.ranks import losses_on_ranks
from rm_methods.contract_test.workbench import Workbench
from rm_methods.errors import UserError
from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import load_method_card
from rm_methods.preferences.pair import read_pairs
from rm_methods.reward_models.backbones import load_tokenizer
from rm_methods.reward_models.layouts import lay_out
from rm_methods.scoring.scorer import ScoringSettings, load_scorer
from rm_methods.training.loss_check import check_loss
from rm_methods.training.trainer import RewardTrainer

_SIX = 6  # pairs of the checks that train nothing
_TOKENS_OF_A_CUT = 120  # about two pairs in a micro-batch
_CHECKPOINT_EVERY = 3  # steps
_STOPPED_AT = 4
_SETTINGS = ScoringSettings(max_length=256, threads=1)


class ContractError(UserError):
    """A method does not have a property; the text says what was seen and what to do."""


@dataclass(frozen=True)
class Property:
    """One property.

    Attributes:
        name: a word.
        text: what holds, in one sentence without a period.
        kinds: of the methods that must have it.
        check: the check.
        needed: without it, no other property can be checked.
        slow: takes half a minute.
    """

    name: str
    text: str
    kinds: tuple[str, ...]
    check: Callable[[Workbench, str], str | None]
    needed: bool = False
    slow: bool = False


class _Stopped(BaseException):
    """Ends a training as a kill would."""


def loss_is_right(bench: Workbench, name: str) -> None:
    """`loss` returns a `Loss` as the contract says, with finite numbers and a gradient."""
    method, model, batches = bench.micro_batches(name, _SIX)
    (batch,) = batches
    loss = method.loss(model, batch)
    n_pairs = len(batch.pair_ids)
    check_loss(loss, n_pairs, method)
    for term, values in {"per_pair": loss.per_pair, **loss.terms}.items():
        if not torch.isfinite(values).all():
            raise ContractError(
                f"`{term}` of an untrained model is {_numbers(values)}. Guard divisions and logarithms, and use stable "
                "functions such as softplus and logsigmoid."
            )
    if loss.per_pair.dtype != torch.float32:
        dtype = str(loss.per_pair.dtype).removeprefix("torch.")
        raise ContractError(f"`Loss.per_pair` is {dtype}; compute it in fp32, for instance with float().")
    total = loss.per_pair.sum()
    (total if loss.micro_batch is None else total + loss.micro_batch.sum()).backward()
    gradients = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    if not any(bool((gradient != 0).any()) for gradient in gradients.values()):
        raise ContractError(
            "The gradient of the loss is zero for every weight of the model, so nothing would be trained. Compute the "
            "loss from `model(batch).rewards`."
        )
    for key, gradient in gradients.items():
        if not torch.isfinite(gradient).all():
            raise ContractError(
                f"The gradient of {key} is not finite, though the loss is. Where a branch of torch.where or a square "
                "root at 0 is not finite, clamp its argument before."
            )


def pairs_are_pure(bench: Workbench, name: str) -> None:
    """`transform_pairs` is a function of its arguments and changes none."""
    data = bench.data(name)
    before = list(data.train)
    given = list(data.train)
    inputs = Inputs(5, bench.new_folder(name), name, bench.config, data.backbone, bench.required(name))
    first = list(bench.method(name).transform_pairs(given, inputs))
    if given != before:
        raise ContractError("`transform_pairs` changed the list that it was given. Return a new list instead.")
    texts: dict[str, tuple[str, str, str]] = {}
    for pair in first:
        content = (str(pair.prompt), pair.chosen, pair.rejected)
        if texts.setdefault(pair.pair_id, content) != content:
            raise ContractError(
                f"`transform_pairs` gave two pairs with different texts the pair_id {pair.pair_id}, so nothing could "
                "be kept for each pair. Make a pair with other texts by `rm_methods.preferences.pair.make_pair`, which "
                "computes its id; `dataclasses.replace` keeps the old one."
            )
    if first != list(bench.method(name).transform_pairs(given, inputs)):
        raise ContractError(
            "`transform_pairs` gave other pairs for the same arguments, so ranks and resumed runs would train on "
            "others. Draw random numbers from `np.random.default_rng(inputs.seed)` inside it."
        )


def layouts_agree(bench: Workbench, name: str) -> None:
    """Both layouts of a batch give each pair the same loss."""
    packed, plain = (_losses_by_pair(bench, name, layout=layout) for layout in ("packed", "plain"))
    if differing := _first_difference(packed, plain):
        raise ContractError(
            f"The loss of {differing[0]} is {differing[1]:.6g} in the packed layout and {differing[2]:.6g} in the "
            "plain one. Use what `model(batch)` returns, and the positions that the batch names, instead of positions "
            "in its rows: a packed row holds both responses, a plain one is padded."
        )


def micro_batches_agree(bench: Workbench, name: str) -> str | None:
    """The loss of a pair does not depend on the pairs beside it."""
    if bench.method(name).depends_on_cut:
        return "the method says `depends_on_cut`"
    whole = _losses_by_pair(bench, name)
    cut = _losses_by_pair(bench, name, tokens=_TOKENS_OF_A_CUT)
    if differing := _first_difference(whole, cut):
        raise ContractError(
            f"The loss of {differing[0]} is {differing[1]:.6g} in one micro-batch with all pairs and "
            f"{differing[2]:.6g} in a smaller one, so the result would depend on memory and on the number of GPUs. Let "
            "the loss of a pair depend on this pair only (no mean over the batch, no random numbers). If the method "
            "compares pairs on purpose, set `depends_on_cut = True`."
        )
    return None


def training_works(bench: Workbench, name: str) -> None:
    """The loss decreases in training, and the right weights move."""
    run = bench.trained(name)
    first, last = (sum(row["loss"] for row in rows) / len(rows) for rows in (run.log[:6], run.log[-6:]))
    if not last < first:
        raise ContractError(
            f"The mean loss of the first epoch is {first:.4f}, that of the last of six {last:.4f}; it must decrease. "
            "Check the formula, and that nothing that grows is added to it."
        )
    _check_sign(bench, name)
    method, model, _ = bench.micro_batches(name)
    start, end = model.classifier.state_dict(), load_file(run.folder / "model" / "model.safetensors")
    for key, weights in end.items():
        if key not in start:  # a language-model head, which the export adds to a policy
            continue
        moved = not torch.equal(start[key], weights)
        if moved and method.is_frozen(key):
            raise ContractError(f"{key} was trained, though `is_frozen` names it. Switch its gradient off in `build`.")
        if not moved and not method.is_frozen(key):
            raise ContractError(
                f"{key} was not trained. If that is right, name it in `is_frozen`; otherwise let the loss depend on it."
            )


def _check_sign(bench: Workbench, name: str) -> None:
    """The loss falls, summed over all pairs, if chosen responses gain reward and rejected ones lose it.

    The accuracy after training would not show it: a method may take out of the reward what explains the labels of small
    data, such as length.
    """
    method, model, batches = bench.micro_batches(name)
    outputs: list[Any] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        if getattr(output, "rewards", None) is not None and output.rewards.requires_grad:
            output.rewards.retain_grad()
            outputs.append(output)

    handle = model.register_forward_hook(keep)
    sum(method.loss(model, batch).per_pair.sum() for batch in batches).backward()
    handle.remove()
    slopes = [output.rewards.grad for output in outputs if output.rewards.grad is not None]
    if slopes and sum(float((slope[:, 0] - slope[:, 1]).sum()) for slope in slopes) > 0:
        raise ContractError(
            "The loss rises if chosen responses gain reward and rejected ones lose it. Check the sign of the loss: "
            "rewards[:, 0] belongs to the chosen response, rewards[:, 1] to the rejected one."
        )


def resumed_equals_whole(bench: Workbench, name: str) -> None:
    """A run that was stopped and continued has the weights of the uninterrupted one."""
    whole = bench.run(name, checkpoint_every_steps=_CHECKPOINT_EVERY)
    folder = bench.new_folder(name)
    try:
        with _stopped_in_step(_STOPPED_AT):
            bench.run(name, folder=folder, checkpoint_every_steps=_CHECKPOINT_EVERY)
        raise AssertionError("The training was not stopped.")
    except _Stopped:
        resumed = bench.run(name, folder=folder, checkpoint_every_steps=_CHECKPOINT_EVERY)
    ours, theirs = (load_file(run.folder / "model" / "model.safetensors") for run in (whole, resumed))
    for key in ours:
        if not torch.equal(ours[key], theirs[key]):
            difference = float((ours[key] - theirs[key]).abs().max())
            raise ContractError(
                f"After a kill and a restart, {key} differs from the uninterrupted run by up to {difference:.2g}. Keep "
                "what changes during training in modules or buffers that `build` attaches to the model (they are in "
                "checkpoints), not in attributes of the method, and draw random numbers from seeds."
            )


def saved_equals_loaded(bench: Workbench, name: str) -> None:
    """The exported folder gives the scores of the trained model, also when it is exported again."""
    run = bench.trained(name)
    data = bench.data(name)
    pairs = data.train[:5]
    items = _items(pairs)
    scorer: Any = load_scorer(run.folder / "model", _SETTINGS)
    loaded = _scores(scorer, items)
    again = bench.new_folder(name)
    bench.method(name).export(scorer.model, again)
    scorer.tokenizer.tokenizer.save_pretrained(again)
    if not torch.equal(_scores(load_scorer(again, _SETTINGS), items), loaded):
        raise ContractError(
            "Exporting the loaded model again changes its scores. Let `export` write all that the scores depend on."
        )
    if not loaded.std() > 0:
        raise ContractError("The trained model gives all responses one score. Check what `export` writes.")
    if load_method_card(name).kind == "trained":
        encoded = load_tokenizer(data.backbone, 256).encode((p.prompt, (p.chosen, p.rejected)) for p in pairs)
        with torch.inference_mode():
            in_memory = scorer.model(lay_out(encoded, "packed", 0)).rewards
        if not torch.allclose(in_memory, loaded, atol=1e-5, rtol=0):
            raise ContractError(
                f"Scoring gives other rewards than the model in memory, by up to "
                f"{float((in_memory - loaded).abs().max()):.2g}. Check what `reader` and `export` write."
            )


def ranks_agree(bench: Workbench, name: str) -> None:
    """Two processes learn what one learns."""
    one, two = (losses_on_ranks(bench, name, ranks) for ranks in (1, 2))
    if not len(one) == len(two) > 0:
        raise ContractError(f"One process took {len(one)} steps, two took {len(two)}.")
    if bench.method(name).depends_on_cut:
        if not all(map(math.isfinite, two)):
            raise ContractError("On two processes, the loss is not finite.")
        return
    for step, (ours, theirs) in enumerate(zip(one, two, strict=True), start=1):
        if abs(ours - theirs) > 1e-3:
            raise ContractError(
                f"In step {step}, the loss is {ours:.4f} on one process and {theirs:.4f} on two. Let nothing depend on "
                "the rank or on the pairs of one micro-batch."
            )


def combination_scores(bench: Workbench, name: str) -> None:
    """A combined method trains nothing, and gives the same scores each time."""
    runs = [bench.run(name) for _ in range(2)]
    summary = runs[0].summary
    if runs[0].log or summary["cost"]["optimizer_steps"]:
        raise ContractError("The method trained something; a combined method only combines runs.")
    accuracy = summary["metrics"]["validation_accuracy"]
    if not 0 <= accuracy <= 1:
        raise ContractError(f"The validation accuracy is {accuracy}; check what `combine` writes.")
    items = _items(bench.data(name).train[:5])
    first, second = (_scores(load_scorer(run.folder / "model", _SETTINGS), items) for run in runs)
    if not torch.equal(first, second):
        raise ContractError("Combining again gives other scores. Draw random numbers from `inputs.seed`.")
    if len(first.unique()) != first.numel():
        raise ContractError("Some responses with different texts have one score. Check what `combine` writes.")
    members = np.random.default_rng(0).normal(size=(2, 7))
    left_out = bench.method(name).left_out_scores(members, members.mean(axis=0), summary["report"])
    if left_out is not None and not (left_out.shape == members.shape and np.isfinite(left_out).all()):
        raise ContractError(f"`left_out_scores` must give finite numbers of shape {list(members.shape)}, or None.")


def blind_scores(bench: Workbench, name: str) -> None:
    """A content-blind method gives finite, reproducible scores, and depends on the seed as its card says."""
    pairs = bench.data(name).train
    scores = [_fitted(bench, name, pairs).score(pair.prompt, pair.chosen, 0) for pair in pairs]
    if wrong := [score for score in scores if not isinstance(score, float) or not abs(score) < 1e9]:
        raise ContractError(f"`score` returned {wrong[0]!r}; expected a finite float.")
    method = _fitted(bench, name, pairs)
    if scores != [method.score(pair.prompt, pair.chosen, 0) for pair in pairs]:
        raise ContractError(
            "The same texts got other scores. A score depends on its arguments and on `fitted` only; draw random "
            "numbers from the seed and the text."
        )
    if method.score(pairs[0].prompt, "", 0) != method.score(pairs[0].prompt, "", 0):
        raise ContractError("The empty response got two scores.")
    differs = scores != [method.score(pair.prompt, pair.chosen, 1) for pair in pairs]
    if differs == load_method_card(name).seed_free:
        said = "seed_free: true" if differs else "seed_free: false (the default)"
        raise ContractError(
            f"The scores {'depend' if differs else 'do not depend'} on the seed, but the card says {said}. Correct the "
            "card."
        )


def blind_run_stores_its_fit(bench: Workbench, name: str) -> None:
    """A run of a content-blind method stores what it learned, and scores with it."""
    run = bench.run(name)
    data = bench.data(name)
    items = _items(data.train[:5])
    method = _fitted(bench, name, read_pairs(data.file, splits=["train"]))
    stored = [row.score for row in load_scorer(run.folder / "model", ScoringSettings()).score(items)]
    if stored != [method.score(item.prompt, text, 0) for item in items for text in item.responses]:
        raise ContractError("A stored run gives other scores. Let `fit` return all that `score` needs, as JSON values.")
    if run.log or run.summary.get("report", {}) != method.fitted:
        raise ContractError("The summary of the run does not hold what `fit` returned.")


_TRAINED = ("trained", "joint")

PROPERTIES = (
    Property("loss", "one finite loss per pair, with a gradient", _TRAINED, loss_is_right, needed=True),
    Property("pairs", "transform_pairs is pure and seeded", _TRAINED, pairs_are_pure),
    Property("layouts", "packed and plain batches give the same losses", _TRAINED, layouts_agree),
    Property("micro-batches", "a pair's loss does not depend on its neighbors", _TRAINED, micro_batches_agree),
    Property("training", "the loss decreases and every trainable weight moves", _TRAINED, training_works),
    Property("resume", "a resumed run equals the uninterrupted one", _TRAINED, resumed_equals_whole),
    Property("export", "scores survive saving and loading", _TRAINED, saved_equals_loaded),
    Property("ranks", "two processes learn what one learns", _TRAINED, ranks_agree, slow=True),
    Property("combination", "scores come from the members, without training", ("combined",), combination_scores),
    Property("scores", "finite, reproducible, and seeded as the card says", ("content_blind",), blind_scores),
    Property("fit", "a run stores its fit and scores with it", ("content_blind",), blind_run_stores_its_fit),
)


def properties_of(name: str) -> tuple[Property, ...]:
    """The properties that a method must have."""
    kind = load_method_card(name).kind
    return tuple(entry for entry in PROPERTIES if kind in entry.kinds)


def _losses_by_pair(bench: Workbench, name: str, **how: Any) -> dict[str, float]:
    method, model, batches = bench.micro_batches(name, _SIX, **how)
    model.eval()
    losses: dict[str, float] = {}
    for batch in batches:
        losses |= zip(batch.pair_ids, method.loss(model, batch).per_pair.tolist(), strict=True)
    return losses


def _first_difference(first: dict[str, float], second: dict[str, float]) -> tuple[str, float, float] | None:
    """A pair whose losses differ by more than rounding, with both."""
    for pair_id, loss in first.items():
        if not math.isclose(loss, second[pair_id], rel_tol=1e-6, abs_tol=1e-5):
            return f"pair {pair_id}", loss, second[pair_id]
    return None


def _items(pairs: list[Any]) -> list[BenchmarkItem]:
    return [BenchmarkItem(pair.pair_id, "s", pair.prompt, [pair.chosen, pair.rejected], 0) for pair in pairs]


def _scores(scorer: Any, items: list[BenchmarkItem]) -> torch.Tensor:
    """Scores [items, 2] of both responses."""
    return torch.tensor([row.score for row in scorer.score(items)]).view(len(items), 2)


def _fitted(bench: Workbench, name: str, pairs: list[Any]) -> Any:
    """The content-blind method, fitted on pairs, as a run stores it and a scorer loads it."""
    method = bench.method(name)
    method.fitted = json.loads(json.dumps(method.fit(pairs)))
    return method


@contextmanager
def _stopped_in_step(step: int) -> Iterator[None]:
    original = RewardTrainer.training_step

    def stops(self, *args, **kwargs):
        if self.state.global_step == step:
            raise _Stopped
        return original(self, *args, **kwargs)

    with patch.object(RewardTrainer, "training_step", stops):
        yield


def _numbers(values: torch.Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.flatten()[:4].tolist())
