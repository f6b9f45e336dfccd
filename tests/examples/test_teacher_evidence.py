"""The evidence example: maps whose ratios are known by hand, sentences found where the world says, every layer and
head in the table."""

from __future__ import annotations

import numpy as np
import pytest

from rm_methods.interaction.teacher_maps import PairAlignments
from rm_methods.preferences.world import generate
from rm_methods.reward_models.joint_reader import pair_text
from rm_methods.training.run import RunFiles, train
from tests.conftest import experiment_config
from tests.examples.conftest import load_example


@pytest.fixture(scope="module")
def evidence():
    return load_example("teacher_evidence")


def marks(**places):
    """Ten groups."""
    found = {name: np.zeros(10, dtype=bool) for name in ("prompt", "chosen", "rejected", "cue")}
    for name, own in places.items():
        found[name][own] = True
    return found


def test_ratios_by_hand(evidence):
    """Rows 4 and 5 look at group 0 only, all others evenly; two of ten groups are each response's evidence."""
    map_GG = np.full((10, 10), 0.1)
    map_GG[4:6] = np.eye(10)[0]
    found = evidence.attention_ratios(map_GG, marks(prompt=[0], chosen=[4, 5], rejected=[8, 9], cue=[9]))
    assert found[evidence.TARGETS[0]] == [pytest.approx((1.0, 0.1)), pytest.approx((0.1, 0.1))]
    assert found[evidence.TARGETS[1]] == [pytest.approx((0.0, 0.2)), pytest.approx((0.2, 0.2))]
    assert found[evidence.TARGETS[2]] == [pytest.approx((0.0, 0.2)), pytest.approx((0.2, 0.2))]
    assert found[evidence.TARGETS[3]] == [pytest.approx((0.08, 0.1))]


def test_a_pair_without_evidence_in_a_response_has_no_ratio_for_it(evidence):
    found = evidence.attention_ratios(np.full((10, 10), 0.1), marks(prompt=[0], chosen=[4]))
    assert {target: len(values) for target, values in found.items()} == {evidence.TARGETS[0]: 1, evidence.TARGETS[2]: 1}


def test_marked_groups_are_the_words_of_the_sentences(evidence, tokenizer):
    pair = next(p for p in generate(train_pairs=1) if p.split == "cue_neutral" and p.meta["evidence_rejected"])
    (item,) = tokenizer.encode([(pair.prompt, (pair.chosen, pair.rejected))])
    (aligned,) = PairAlignments([item], tokenizer).pairs
    text = pair_text(tokenizer, item)
    marked = evidence.evidence_groups(pair, text, aligned)
    for name, segment in (("chosen", 1), ("rejected", 2)):
        spans = [
            span
            for g, span in zip(aligned.student, text.student.spans.tolist(), strict=True)
            if g >= 0 and marked[name][g]
        ]
        sentences = [getattr(pair, name)[start:stop] for start, stop in pair.meta[f"evidence_{name}"]]
        covered = "".join(text.segments[segment][start:stop] for start, stop in spans)
        assert covered.replace(" ", "") == "".join(sorted(sentences, key=getattr(pair, name).find)).replace(" ", "")


def test_the_table_has_every_layer_and_head(evidence, prepared, tmp_path, capsys):
    config = experiment_config(tmp_path, methods={"joint_encoder": {"epochs": 0, "masked_language_epochs": 0}})
    files = RunFiles(
        *prepared[:2], tmp_path / "model", tmp_path / "metrics.jsonl", tmp_path / "summary.json", tmp_path / "work"
    )
    train(config, "joint_encoder", 0, files)
    capsys.readouterr()
    evidence.main(["--teacher", str(tmp_path / "model"), "--backbone", str(prepared[1]), "--pairs", "4"])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(row[1].strip(), row[2].strip()) for row in rows] == [
        (str(layer), head) for layer in (1, 2) for head in ("all", *"1234")
    ]
    ratios = np.array([[float(cell) for cell in row[3:7]] for row in rows])
    # Random weights: attention is nearly even.
    assert np.all((ratios > 0.7) & (ratios < 1.4))
