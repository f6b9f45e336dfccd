"""WARM: one reward model whose weights are the mean of those of several.

    theta = (1/M) * sum over members of theta_i

Rame et al. 2024 (weight averaged reward models, arXiv 2401.12187).  It works if accuracy does not fall along the line
between the members' weights (linear mode connectivity), so the members start from one backbone and one head
(`warm_member`).  The run reports whether they are connected.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rm_methods.errors import UserError
from rm_methods.files import read_json, write_json
from rm_methods.methods.contract import CombinedMethod
from rm_methods.reward_models.backbones import load_tokenizer
from rm_methods.reward_models.model_folder import CHECKSUMS, MODEL_CARD, check_model_folder
from rm_methods.scoring.scorer import load_scorer, pair_rewards, scoring_settings

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def average_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean of one tensor of all members, fp32.

    A running mean, because the mean of equal tensors is then exact; a sum divided by M may round.
    """
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

    def left_out_scores(self, members_MR, combined_R, report):
        """The scores of the averages without one member, to first order in the distance of the weights.

        The average without member j is theta + (theta - theta_j) / (M - 1), so its score is about
        combined + (combined - member_j) / (M - 1).  It is exact for linear heads on frozen features.
        """
        return combined_R + (combined_R - members_MR) / (len(members_MR) - 1)


def check_members(members: Sequence[Path]) -> None:
    """Raise UserError unless all members have the same start, tokenizer, and names and shapes of weights.

    Otherwise the mean of their weights would be meaningless.
    """
    first_identity = _identity(members[0])
    for member in members[1:]:
        for name, value in _identity(member).items():
            if value != first_identity[name]:
                raise UserError(
                    f"warm: {member} and {members[0]} differ in their {name}, so the mean of their weights is "
                    f"meaningless ({_difference(first_identity[name], value)}). Average the seeds of one variant, "
                    "trained on one backbone from one probe."
                )


def _identity(member: Path) -> dict[str, Any]:
    """The facts that all members must share."""
    start = read_json(member.parent / "summary.json").get("report", {}).get("start_run_key")
    if start is None:
        raise UserError(
            f"warm: {member.parent / 'summary.json'} does not say where the member started; it is not a run of "
            "warm_member."
        )
    check_model_folder(member)
    shapes = {}
    for name, file in _weight_files(member).items():
        with safe_open(file, "pt") as stream:
            shapes[name] = list(stream.get_slice(name).get_shape())
    # The maximum length is arbitrary, because it is not part of the hash.
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
        if file.is_file() and file.suffix != ".safetensors" and file.name not in (CHECKSUMS, MODEL_CARD):
            shutil.copyfile(file, folder / file.name)
    write_json(folder / "config.json", read_json(folder / "config.json") | {"dtype": "float32"})
    files = [_weight_files(member) for member in members]
    squared = dict.fromkeys(combinations(range(len(members)), 2), 0.0)
    norm = 0.0
    for shard in sorted(set(files[0].values())):
        averaged = {}
        for name in (name for name, file in files[0].items() if file == shard):
            tensors = [_tensor(files_of_member[name], name) for files_of_member in files]
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
        name = f"member {k + 1} of {len(members)}" if k < len(members) else "average"
        rewards = pair_rewards(load_scorer(model, settings), pairs, f"{inputs.label}, {name}")
        accuracy.append(float((rewards[:, 0] > rewards[:, 1]).mean()))
    *member_accuracy, average = accuracy
    mean = sum(member_accuracy) / len(member_accuracy)
    return {
        "member_accuracy": member_accuracy,
        "mean_member_accuracy": mean,
        "accuracy_of_average": average,
        "connected": average >= mean,
    }
