"""With exact labels, a reward model from scratch learns the cue of the controlled world before the evidence."""

from __future__ import annotations

import pytest

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.config.resolve import resolve
from rm_methods.preferences.pair import read_pairs
from rm_methods.preferences.prepare import prepare
from rm_methods.reward_models.backbones import prepare_backbone
from rm_methods.scoring.scorer import ScoringSettings, load_scorer
from rm_methods.training.run import RunFiles, train

EXPERIMENT = {
    "experiment": "from_scratch",
    "data": {"dataset": "world", "options": {"train_pairs": 2500, "test_pairs": 400}},
    "backbone": {
        "source": "tiny",
        "max_length": 512,
        "tiny": {
            "hidden_size": 64, "intermediate_size": 96, "layers": 2, "heads": 4, "key_value_heads": 4,
            "vocabulary_size": 1024, "initializer_range": 0.2,
        },
    },
    "training": {
        "epochs": 4, "pairs_per_step": 32, "learning_rate": 5e-3, "weight_decay": 0.5, "adam_betas": [0.9, 0.98],
        "warmup_fraction": 0.03, "tokens_per_microbatch": 4096, "precision": "fp32",
    },
    "methods": {"bradley_terry": {}},
}  # fmt: skip


@pytest.mark.slow
def test_bradley_terry_is_good_on_iid_and_much_worse_where_the_cue_lies(tmp_path):
    config = resolve(EXPERIMENT)
    files = RunFiles(
        tmp_path / "pairs.parquet",
        tmp_path / "backbone",
        tmp_path / "model",
        tmp_path / "m.jsonl",
        tmp_path / "s.json",
        tmp_path / "work",
    )
    prepare(config["data"], files.pairs, tmp_path / "report.json")
    prepare_backbone(config["backbone"], read_pairs(files.pairs, ["train"]), files.backbone)
    train(config, "bradley_terry", 0, files, threads=1)
    accuracy = {}
    scorer = load_scorer(files.model, ScoringSettings(max_length=512, threads=1))
    for split in ("iid", "cue_neutral", "cue_reversed"):
        items = [
            BenchmarkItem(p.pair_id, split, p.prompt, [p.chosen, p.rejected], 0)
            for p in read_pairs(files.pairs, [split])
        ]
        scores = [row.score for row in scorer.score(items)]
        accuracy[split] = sum(
            chosen > rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)
        ) / len(items)
    assert accuracy["iid"] > 0.82, accuracy
    assert accuracy["iid"] - accuracy["cue_reversed"] >= 0.10, accuracy
    assert accuracy["iid"] > accuracy["cue_neutral"] > accuracy["cue_reversed"], accuracy
