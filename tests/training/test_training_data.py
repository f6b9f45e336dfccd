"""What a run learns from: labels with noise, and pairs that do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rm_methods.errors import DataError
from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import load_method
from rm_methods.preferences.pair import make_pair, read_pairs, write_pairs
from rm_methods.reward_models.backbones import prepare_backbone
from rm_methods.reward_models.pair_encoding import encode_pairs
from rm_methods.scoring.scorer import ScoringSettings, load_scorer, pair_rewards
from rm_methods.training.run import train
from rm_methods.training.training_data import apply_truncation_policy, training_data, training_pairs
from tests.conftest import experiment_config, made_up_pairs
from tests.training.test_trainer import run_files

NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('No system turn here') }}{% endif %}"
    "{{ '<' + m.role + '>' + m.content.split('</think>')[-1] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
SYSTEM = {"role": "system", "content": "Be kind."}


def test_a_level_of_noise_flips_the_same_pairs_for_every_variant_and_seed(prepared, tmp_path):
    config = experiment_config(
        tmp_path, noise_levels=[{"rate": 0.0}, {"rate": 0.25}], methods={"bradley_terry": {}, "label_smoothing": {}}
    )
    clean = read_pairs(prepared[0], splits=["train"])
    assert training_pairs(config, "bradley_terry", prepared[0])[0] == clean
    noisy, counts = training_pairs(config, "bradley_terry_noise25", prepared[0])
    assert counts["flipped"] == 12 == sum(pair.meta.get("flipped", False) for pair in noisy)
    assert [pair.pair_id for pair in noisy] == [pair.pair_id for pair in clean]
    assert training_pairs(config, "label_smoothing_noise25", prepared[0]) == (noisy, counts)


def test_truncation_policy_counts_what_it_drops(tokenizer):
    short = type(tokenizer)(tokenizer.tokenizer, 48)
    pairs = made_up_pairs(3)
    pairs[1] = replace(pairs[1], rejected="blue " * 100)
    same_start = "red " * 100
    pairs[2] = replace(pairs[2], chosen=same_start + "good", rejected=same_start + "bad")
    items = short.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs)
    kept, _, counts = apply_truncation_policy(pairs, items, "drop")
    assert kept == pairs[:1]
    assert counts["dropped_response_cut"] == 2
    kept, _, counts = apply_truncation_policy(pairs, items, "truncate")
    assert kept == pairs[:2]
    assert counts["dropped_equal"] == 1
    with pytest.raises(DataError, match=pairs[1].pair_id):
        apply_truncation_policy(pairs, items, "error")
    with pytest.raises(DataError, match=r"training\.max_length"):
        apply_truncation_policy(pairs[1:], items[1:], "drop")


def test_a_training_that_would_lose_most_pairs_does_not_start(tmp_path, capsys):
    pairs = made_up_pairs(12)
    for k in range(6):
        pairs[k] = replace(pairs[k], rejected="blue " * 300)
    config, file, backbone = plain_files(tmp_path, pairs)
    data = data_of(config, file, backbone)
    assert (data.offered, len(data.pairs), data.truncation["dropped_response_cut"]) == (12, 6, 6)
    warning = capsys.readouterr().err
    assert "WARNING: bradley_terry seed 0: 6 of 12 training pairs are left out" in warning
    assert "does not fit into backbone.max_length: 64 (training.overlong_pairs: drop)" in warning
    assert "training.overlong_pairs: truncate" in warning
    pairs[6] = replace(pairs[6], rejected="blue " * 300)
    write_pairs(pairs, file)
    with pytest.raises(DataError, match=r"7 of 12 .* backbone\.max_length: 64 .* Fewer than half .* does not start"):
        data_of(config, file, backbone)
    config["training"]["overlong_pairs"] = "truncate"
    assert len(data_of(config, file, backbone).pairs) == 12
    write_pairs(pairs[7:], file)
    assert len(data_of(config, file, backbone).pairs) == 5
    assert "WARNING" not in capsys.readouterr().err


def plain_files(folder, pairs):
    """A configuration, the prepared pairs' file, and a prepared backbone of 64 tokens."""
    config = experiment_config(folder, backbone={"max_length": 64})
    write_pairs(pairs, folder / "pairs.parquet")
    prepare_backbone(config["backbone"], pairs, folder / "backbone")
    return config, folder / "pairs.parquet", folder / "backbone"


def with_system(pair):
    return make_pair([SYSTEM, *pair.prompt], pair.chosen, pair.rejected, split=pair.split, source=pair.source)


def prepared_files(folder, template, pairs, **backbone):
    """A configuration, the prepared pairs' file, and the prepared backbone with a chat template."""
    folder.mkdir(exist_ok=True)
    (folder / "template.jinja").write_text(template)
    config = experiment_config(folder, backbone={"chat_template": str(folder / "template.jinja"), **backbone})
    write_pairs(pairs, folder / "pairs.parquet")
    record = prepare_backbone(config["backbone"], pairs, folder / "backbone")
    assert record["template"]["system_turn"] == (
        "merged" if backbone.get("refused_conversations") == "fold_system" else "refused"
    )
    return config, folder / "pairs.parquet", folder / "backbone"


def data_of(config, file, backbone):
    inputs = Inputs(
        0, file.parent, "bradley_terry seed 0", {key: config[key] for key in ("backbone", "training")}, backbone
    )
    return training_data(
        config,
        "bradley_terry",
        file,
        load_method("bradley_terry", config["methods"]["bradley_terry"]["settings"]),
        inputs,
    )


def test_pairs_that_the_template_refuses_are_named_and_counted(tmp_path):
    pairs = made_up_pairs(12)
    pairs[2], pairs[7] = with_system(pairs[2]), with_system(pairs[7])
    config, file, backbone = prepared_files(tmp_path, NO_SYSTEM, pairs)
    with pytest.raises(
        DataError, match=r"refuses 2 of 12 conv.*No system turn here\. Refused: pair .*fold_system"
    ) as caught:
        data_of(config, file, backbone)
    assert all(f"{pairs[k].pair_id} (made up)" in str(caught.value) for k in (2, 7))


def test_refused_pairs_are_dropped_and_counted_if_so_asked(tmp_path, capsys):
    pairs = made_up_pairs(12)
    pairs[2] = with_system(pairs[2])
    pairs[4] = replace(pairs[4], chosen=f"<think>What color?</think>{pairs[4].chosen}")
    pairs[5] = replace(pairs[5], chosen=f"<think>What color?</think>{pairs[5].rejected}")
    config, file, backbone = prepared_files(tmp_path, NO_SYSTEM, pairs, refused_conversations="drop")
    data = data_of(config, file, backbone)
    assert [pair.pair_id for pair in data.pairs] == [pair.pair_id for k, pair in enumerate(pairs) if k not in (2, 5)]
    template = {"dropped_refused": 1, "prompts_changed": 0, "responses_changed": 2}
    assert data.truncation == {
        "prompts_cut": 0, "responses_cut": 0, "dropped_response_cut": 0, "dropped_equal": 0, "dropped_same_tokens": 1,
        **template,
    }  # fmt: skip
    assert data.budget == 10
    assert (
        "pairs of 12: 1 refused and dropped, 2 with text of a response left out or changed" in capsys.readouterr().err
    )


def test_when_the_template_refuses_every_pair_nothing_is_dropped(tmp_path):
    config, file, backbone = prepared_files(
        tmp_path, NO_SYSTEM, [with_system(p) for p in made_up_pairs(3)], refused_conversations="drop"
    )
    with pytest.raises(DataError, match=r"refuses 3 of 3 .*system turn here\."):
        data_of(config, file, backbone)


def test_equal_tokens_in_every_pair_are_the_templates_fault_not_that_of_max_length(tmp_path):
    pairs = [replace(pair, rejected=f"<think>Guess.</think>{pair.chosen}") for pair in made_up_pairs(24)]
    config, file, backbone = prepared_files(tmp_path, NO_SYSTEM, pairs)
    with pytest.raises(DataError, match="gives chosen and rejected the same tokens in 24 of 24 pairs") as caught:
        data_of(config, file, backbone)
    assert "max_length" not in str(caught.value)


def test_pairs_without_a_refusal_cost_nothing(tokenizer):
    pairs = made_up_pairs(4)
    kept, items = encode_pairs(pairs, tokenizer, "error")
    assert kept == pairs
    assert [i.lengths for i in items] == [
        i.lengths for i in tokenizer.encode((p.prompt, (p.chosen, p.rejected)) for p in pairs)
    ]


@pytest.mark.parametrize("refused", ["drop", "fold_system"])
def test_a_run_and_its_model_treat_system_turns_as_the_configuration_says(tmp_path, refused):
    pairs = [*made_up_pairs(16), *made_up_pairs(6, seed=1, split="validation")]
    pairs[3], pairs[18] = with_system(pairs[3]), with_system(pairs[18])
    prepared = prepared_files(tmp_path, NO_SYSTEM, pairs, refused_conversations=refused)
    config = prepared[0]
    summary = train(config, "bradley_terry", 0, run_files((prepared[1], prepared[2], config), tmp_path / "run"))
    dropped = int(refused == "drop")
    assert summary["truncation"]["dropped_refused"] == dropped
    assert summary["metrics"]["validation_pairs"] == 6 - dropped
    assert summary["metrics"].get("validation_pairs_refused", 0) == dropped
    assert summary["backbone"]["prepared"]["template"]["system_turn"] == ("refused" if dropped else "merged")
    scorer = load_scorer(tmp_path / "run" / "model", ScoringSettings(max_length=256))
    if refused == "drop":
        with pytest.raises(DataError, match=f"refuses 1 of 22 .*Refused: item {pairs[3].pair_id}.*fold_system"):
            pair_rewards(scorer, [*pairs[:18], *pairs[19:], pairs[0]])
    else:
        by_hand = replace(
            pairs[3], prompt=[{"role": "user", "content": f"Be kind.\n\n{pairs[3].prompt[1]['content']}"}]
        )
        rewards = pair_rewards(scorer, [pairs[3], by_hand])
        assert rewards[0].tolist() == pytest.approx(rewards[1].tolist(), abs=1e-6)
