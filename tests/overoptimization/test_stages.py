"""What the stages hand on from the configuration."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import rm_methods.overoptimization.gold as gold
import rm_methods.overoptimization.pools as pools
import rm_methods.overoptimization.summarize as summarize
import rm_methods.policies.sampling as sampling
import rm_methods.ppo.ranks as ppo_ranks
import rm_methods.ppo.trainer as ppo
import rm_methods.scoring.scorer as scorer
from rm_methods.errors import UserError
from rm_methods.experiment.experiment import Experiment
from rm_methods.overoptimization.draw import draw_pool, draw_references
from rm_methods.ppo.run import PpoJob, optimize
from rm_methods.preferences.pair import write_pairs
from tests.conftest import experiment_config, made_up_pairs

GOLD = {"source": "owner/gold", "revision": "abc123", "max_length": 2048}


@pytest.fixture
def config(tmp_path):
    section = {
        "gold": GOLD,
        "policy": {"source": "tiny", "attention": "eager"},
        "best_of_n": {"pools": ["samples"]},
        "ppo": {"enabled": True},
    }
    return experiment_config(tmp_path, overoptimization=section)


@pytest.fixture
def pairs_file(tmp_path):
    write_pairs([*made_up_pairs(4), *made_up_pairs(3, seed=1, split="test")], tmp_path / "pairs.parquet")
    return tmp_path / "pairs.parquet"


@pytest.fixture
def calls(monkeypatch):
    """(name, arguments, named arguments) of what the stages call, in order; nothing is computed."""
    calls = []

    def recorded(module, name, result):
        monkeypatch.setattr(module, name, lambda *given, **named: calls.append((name, given, named)) or result)

    recorded(ppo_ranks, "use_own_gpu", None)
    recorded(scorer, "load_scorer", SimpleNamespace())
    recorded(gold, "load_gold", None)
    recorded(sampling, "sample_pool", {})
    recorded(sampling, "policy_hash", "policy")
    recorded(sampling, "read_references", {})
    recorded(pools, "pool_from_samples", [])
    recorded(ppo, "train_ppo", {})
    return calls


def named(calls, name):
    return next(call for call in calls if call[0] == name)


def optimize_against(run_key, config, pairs_file, tmp_path, seed=0, references_text=""):
    """Run the PPO stage against a reward model whose training has this run key, with references of this text."""
    model, references = tmp_path / "run" / "model", tmp_path / "references.parquet"
    model.mkdir(parents=True, exist_ok=True)
    (model.parent / "summary.json").write_text(json.dumps({"run_key": run_key, "method": "bradley_terry"}))
    references.write_text(references_text)
    job = PpoJob(
        config=config,
        variant="bradley_terry",
        seed=seed,
        model=model,
        policy=tmp_path,
        pairs=pairs_file,
        references=references,
        out=tmp_path / "out",
        work=tmp_path / "work",
        threads=1,
    )
    return optimize(job)


@pytest.fixture
def optimized(config, pairs_file, calls, tmp_path):
    """The calls of a PPO stage."""
    optimize_against("key", config, pairs_file, tmp_path)
    return calls


def test_each_rank_takes_its_gpu_before_any_model_is_loaded(optimized):
    order = [name for name, *_ in optimized if name in ("use_own_gpu", "load_scorer", "load_gold", "train_ppo")]
    assert order == ["use_own_gpu", "load_scorer", "load_gold", "train_ppo"]


def test_ppo_scores_every_update_so_ensembles_stay_loaded(optimized):
    assert named(optimized, "load_scorer")[2]["keep_loaded"] is True
    assert named(optimized, "load_gold")[2]["keep_loaded"] is True


def test_a_damaged_ppo_run_is_refused_before_the_first_table_is_written(config, tmp_path, monkeypatch):
    monkeypatch.setattr(Experiment, "check_optimized", lambda *_: None)
    pools_read = []
    monkeypatch.setattr(summarize, "_pool_runs", lambda *given: pools_read.append(given))
    with pytest.raises(UserError, match="ppo/bradley_terry/seed0"):
        summarize.summarize(config, tmp_path / "results", tmp_path / "out")
    assert not pools_read
    assert not (tmp_path / "out").exists()


def test_references_of_other_pairs_are_named(config, pairs_file, calls, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "read_references", lambda *_: {"another prompt": ["a response"]})
    with pytest.raises(UserError, match=r"references\.parquet: 4 of the 4 training prompts of .*pairs\.parquet"):
        optimize_against("key", config, pairs_file, tmp_path)
    assert "train_ppo" not in [name for name, *_ in calls]


def test_checkpoints_against_another_training_of_the_reward_model_are_not_resumed(config, pairs_file, calls, tmp_path):
    for run_key in ("first", "second", "first"):
        optimize_against(run_key, config, pairs_file, tmp_path)
    optimize_against("first", config, pairs_file, tmp_path, references_text="other references")
    work = [named["work_folder"] for name, _, named in calls if name == "train_ppo"]
    assert work[0] == work[2]
    assert len(set(work)) == 3


def test_the_run_key_of_ppo_changes_with_seed_and_reward_model(config, pairs_file, calls, tmp_path, monkeypatch):
    summary = {"wall_seconds": 1.0, "evaluation": {"last": None, "best_gold": None}}
    monkeypatch.setattr(ppo, "train_ppo", lambda *given, **named: summary)
    written = [
        optimize_against(key, config, pairs_file, tmp_path, seed)
        for key, seed in (("a", 0), ("a", 1), ("b", 0), ("a", 0))
    ]
    keys = [summary["run_key"] for summary in written]
    assert keys[0] == keys[3]
    assert len(set(keys)) == 3


def test_gold_has_settings_of_its_own(optimized):
    _, given, options = named(optimized, "load_gold")
    assert given == ("owner/gold",)
    assert (options["revision"], options["max_length"], options["settings"].max_length) == ("abc123", 2048, 256)


def test_policies_are_read_with_the_attention_that_their_section_names(optimized, config, pairs_file, calls, tmp_path):
    # The reward models' backbone says sdpa.
    assert named(optimized, "train_ppo")[2]["attention"] == "eager"
    calls.clear()
    files = {"policy": tmp_path, "pairs": pairs_file, "work": tmp_path, "threads": 1}
    draw_references(config, out=tmp_path / "references.parquet", **files)
    assert named(calls, "sample_pool")[2]["attention"] == "eager"
    calls.clear()
    draw_pool(config, items=tmp_path / "items.parquet", report=tmp_path / "report.json", **files)
    assert named(calls, "sample_pool")[2]["attention"] == "eager"
    assert named(calls, "load_gold")[2]["keep_loaded"] is False


def test_a_rank_takes_the_gpu_of_its_number(monkeypatch):
    chosen = []
    monkeypatch.setattr(ppo_ranks.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ppo_ranks.torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    ppo_ranks.use_own_gpu()
    ppo_ranks.Ranks()
    assert chosen == [3, 3]
