"""Continues from a checkpoint, even if another number of ranks wrote it.

Without DeepSpeed, or with its stage 0, a checkpoint holds the whole state of the optimizer and fits any number of
ranks.  ZeRO cuts the state into one part for each rank.  For another number of ranks, DeepSpeed's converter joins the
parts once, in a folder beside them ("universal checkpoint").
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError

_CONVERTER = "deepspeed.checkpoint.ds_to_universal"


def without_world_size(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with one rank.

    It names the folder of checkpoints, so that a run with another number of ranks finds them.
    """
    return config | {"training": config["training"] | {"processes": 1}}


def ranks_of(checkpoint: Path) -> int | None:
    """Number of ranks that share the optimizer's state; None if it is whole."""
    return len(list(checkpoint.glob("global_step*/*_optim_states.pt"))) or None


def restore_settings(optimizer, weight_decays: Sequence[float]) -> None:
    """Repair an optimizer with several groups of weights after a universal checkpoint of ZeRO-3 was loaded.

    DeepSpeed 0.19 (`load_hp_checkpoint_state_from_checkpoint_dir_stage3`) gives all groups the settings of the first
    one.  It also gives all parts of the weights one shared step counter, which then counts once for each part.

    Args:
        optimizer: torch's optimizer inside DeepSpeed's.
        weight_decays: of each group.
    """
    for group, weight_decay in zip(optimizer.param_groups, weight_decays, strict=True):
        group["weight_decay"] = weight_decay
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"].clone()


def fitted_to(checkpoint: Path | None, ranks: int) -> bool:
    """Make a checkpoint loadable by this number of ranks; called on one rank.

    Returns:
        Whether to load it as a universal checkpoint.

    Raises:
        UserError: another number of ranks wrote it, and it cannot be converted; the checkpoint is unchanged.
    """
    if checkpoint is None:
        return False
    written_by = ranks_of(checkpoint)
    if written_by in (None, ranks):
        return False
    if (checkpoint / "latest_universal").exists():
        return True
    source = checkpoint / (checkpoint / "latest").read_text(encoding="utf-8").strip()
    target = Path(f"{source}_universal")
    shutil.rmtree(target, ignore_errors=True)  # the rest of a killed converter
    print(f"{checkpoint}: written by {written_by} ranks; converting it for {ranks}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", _CONVERTER, "--input_folder", source, "--output_folder", target]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(target, ignore_errors=True)
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"{checkpoint} was written by {written_by} ranks, and DeepSpeed could not convert it for {ranks} "
            f"({reason}). Continue with {written_by} ranks (training.processes x resources.nodes, or "
            "overoptimization.ppo.processes), or move the folder away to begin anew; it was not changed."
        )
    return True
