"""WARM: one reward model whose weights are the mean of those of several.

    theta = (1/M) * sum over members of theta_i

Rame et al. 2024 (weight averaged reward models, arXiv 2401.12187).  It works where the members' weights can be joined by a line along
which the accuracy does not fall (linear mode connectivity), hence members from one backbone and one head (`warm_member`); whether
they could is reported.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rm_methods.errors import UserError
from rm_methods.files import read_json, write_json
from rm_methods.methods.contract import CombinedMethod
from rm_methods.reward_models.backbones import load_tokenizer
from rm_methods.reward_models.model_folder import CHECKSUMS, check_model_folder
from rm_methods.scoring.scorer import load_scorer, pair_rewards, scoring_settings

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def average_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean of one tensor of all members, fp32.  A running mean: equal tensors give exactly themselves, a sum divided by M need not."""
    mean = tensors[0].float()
    for count, tensor in enumerate(tensors[1:], start=2):
        mean = mean + (tensor.float() - mean) / count
    return mean


class Method(CombinedMethod):
    def combine(self, pairs, inputs, folder):
        members = [Path(member) for member in inputs.required["members"]]
        check_members(members)
        squared, norm = average_folders(members, folder)
        report = {
            "members": [str(Path(*member.parts[-3:-1])) for member in members],
            # Relative to the norm of the average: how far apart the members are.
            "weight_distances": {f"{a}-{b}": (value / norm) ** 0.5 for (a, b), value in squared.items()},
        }
        return report | (_connectivity(members, folder, pairs, inputs) if pairs else {})


def check_members(members: Sequence[Path]) -> None:
    """Raise UserError unless all members have the same start, tokenizer, and names and shapes of weights: no others can be averaged."""
    known = [_what_must_agree(member) for member in members]
    for member, own in zip(members[1:], known[1:], strict=True):
        for what, value in own.items():
            if value != known[0][what]:
                raise UserError(
                    f"warm: {member} and {members[0]} differ in their {what}, so the mean of their weights means nothing "
                    f"({_difference(known[0][what], value)}). Average the seeds of one variant, trained on one backbone from one probe."
                )


def _what_must_agree(member: Path) -> dict:
    start = read_json(member.parent / "summary.json").get("report", {}).get("start_run_key")
    if start is None:
        raise UserError(
            f"warm: {member.parent / 'summary.json'} does not say what the member started from; it is no run of warm_member."
        )
    check_model_folder(member)
    shapes = {}
    for name, file in _weight_files(member).items():
        with safe_open(file, "pt") as stream:
            shapes[name] = list(stream.get_slice(name).get_shape())
    # Any length will do: it is no part of the hash.
    return {"shapes": shapes, "tokenizer": load_tokenizer(member, 8).hash(), "start": start}


def _difference(first, other) -> str:
    if isinstance(first, dict):
        name = next(name for name in sorted(first.keys() | other.keys()) if first.get(name) != other.get(name))
        first, other = f"{name} is {first.get(name)}", f"{name} is {other.get(name)}"
    return f"{other} against {first}"


def average_folders(members: Sequence[Path], folder: Path) -> tuple[dict[tuple[int, int], float], float]:
    """Write the average of saved reward models into `folder`, one weight at a time.

    Returns:
        Squared distance of every two members' weights, by their positions, and the squared norm of the average.
    """
    for file in sorted(members[0].iterdir()):
        if file.is_file() and file.suffix != ".safetensors" and file.name != CHECKSUMS:
            shutil.copyfile(file, folder / file.name)
    write_json(folder / "config.json", read_json(folder / "config.json") | {"dtype": "float32"})
    files = [_weight_files(member) for member in members]
    squared, norm = dict.fromkeys(combinations(range(len(members)), 2), 0.0), 0.0
    for shard in sorted(set(files[0].values())):
        averaged = {}
        for name in (name for name, file in files[0].items() if file == shard):
            tensors = [_tensor(own[name], name) for own in files]
            averaged[name] = average_of(tensors)
            norm += float(averaged[name].double().square().sum())
            for a, b in squared:
                squared[a, b] += float((tensors[a].double() - tensors[b].double()).square().sum())
        save_file(averaged, folder / shard.name, metadata={"format": "pt"})
    return squared, norm


def _weight_files(member: Path) -> dict[str, Path]:
    """The safetensors file that holds each weight of a saved model, which may be cut into shards."""
    if (member / _INDEX).exists():
        return {name: member / file for name, file in read_json(member / _INDEX)["weight_map"].items()}
    with safe_open(member / _WEIGHTS, "pt") as stream:
        return dict.fromkeys(stream.keys(), member / _WEIGHTS)


def _tensor(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, "pt") as stream:
        return stream.get_tensor(name)


def _connectivity(members: Sequence[Path], folder: Path, pairs, inputs) -> dict:
    """Validation accuracy of each member and of their average, on the same pairs with the same settings."""
    settings = scoring_settings(inputs.config)
    accuracy = []
    for k, model in enumerate([*members, folder]):
        what = f"member {k + 1} of {len(members)}" if k < len(members) else "average"
        rewards = pair_rewards(load_scorer(model, settings), pairs, f"{inputs.label}, {what}")
        accuracy.append(float((rewards[:, 0] > rewards[:, 1]).mean()))
    *own, average = accuracy
    mean = sum(own) / len(own)
    return {
        "member_accuracy": own,
        "mean_member_accuracy": mean,
        "accuracy_of_average": average,
        "connected": average >= mean,
    }
