from pathlib import Path

import pytest
import yaml

from rm_methods.config.resolve import load_config, merge, reference_variant, resolve, runs, write_resolved
from rm_methods.config.variants import optimised_variants
from rm_methods.diagnostics.runs import diagnosed_runs
from rm_methods.errors import ConfigError
from rm_methods.experiment.experiment import Experiment
from tests.conftest import REPOSITORY


def minimal(**sections):
    return {"experiment": "x", "data": {"dataset": "world"}, "methods": {"bradley_terry": {}}} | sections


def problems(config):
    with pytest.raises(ConfigError) as error:
        resolve(config)
    return error.value.problems


def test_defaults_are_filled_in_everywhere():
    config = resolve(minimal())
    assert config["training"]["epochs"] == 1
    assert config["backbone"]["tiny"]["layers"] == 4
    assert config["data"]["label_noise"] == {"rate": 0.0, "kind": "symmetric"}
    assert config["methods"]["bradley_terry"] == {
        "method": "bradley_terry",
        "settings": {"margin_scale": 0.0, "centring": 0.0},
        "learning_rate": None,
        "lora": None,
        "label_noise": None,
        "tuned_from": None,
    }
    assert config["data"]["options"]["cue_agreement"] > 0.5


def test_resolving_twice_changes_nothing():
    once = resolve(minimal(benchmarks={"world": None}))
    assert resolve(once) == once


def test_all_problems_are_reported_at_once_with_key_paths():
    found = problems(
        minimal(
            experiment="../up",
            training={"epochs": 0, "learning_rat": 1e-5},
            methods={"bradly_terry": {}, "label_smoothing": {"smoothing": 0.5, "smothing": 0.1}, "own_name": {}},
            benchmarks={"rm_bnch": {}, "hh_rlhf": {"options": {"limt": 3}, "root": "/absent/folder"}},
            data={"dataset": "world", "options": {"cue_agreement": 2}},
        )
    )
    for expected in (
        "experiment:",
        "training.epochs: is 0; must be at least 1",
        "training.learning_rat: unknown key. Did you mean 'learning_rate'?",
        "methods.bradly_terry: unknown method 'bradly_terry'. Did you mean 'bradley_terry'?",
        "methods.own_name: unknown method 'own_name'",
        "methods.label_smoothing.smoothing: is 0.5; must be less than 0.5",
        "methods.label_smoothing.smothing: unknown key. Did you mean 'smoothing'?",
        "benchmarks.rm_bnch: unknown benchmark. Did you mean 'rm_bench'?",
        "benchmarks.hh_rlhf.options.limt: unknown option. Did you mean 'limit'?",
        "benchmarks.hh_rlhf.root: no such folder: '/absent/folder'",
        "data.options.cue_agreement",
    ):
        assert any(expected in problem for problem in found), f"{expected!r} not in {found}"


def test_missing_sections_are_named():
    assert any("data" in p for p in problems({"experiment": "x", "methods": {"bradley_terry": {}}}))
    assert any("methods" in p for p in problems({"experiment": "x", "data": {"dataset": "world"}}))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"backbone": {"tiny": {"hidden_size": 30, "heads": 4}}}, "backbone.tiny.hidden_size: 30 is not a multiple"),
        ({"backbone": {"tiny": {"heads": 4, "key_value_heads": 3}}}, "backbone.tiny.key_value_heads"),
        ({"backbone": {"attention": "eager"}, "training": {"layout": "packed"}}, "training.layout"),
        ({"backbone": {"attention": "flash_attention_2"}, "scoring": {"layout": "packed"}}, "scoring.layout"),
        ({"training": {"pairs_per_step": 1, "processes": 2}}, "training.pairs_per_step: 1 is fewer"),
        ({"backbone": {"trust_remote_code": True}}, "backbone.trust_remote_code: is true; allowed: false"),
        (
            {"comparison": {"reference": "bradley_tery"}},
            "comparison.reference: 'bradley_tery' is not among the methods. Did you mean",
        ),
        ({"data": {"dataset": "absent.jsonl"}}, "no file or folder absent.jsonl"),
        ({"training": {"deepspeed": "zero9"}}, "training.deepspeed: 'zero9' is neither"),
        ({"overoptimization": {"ppo": {"deepspeed": "zero9"}}}, "overoptimization.ppo.deepspeed: 'zero9' is neither"),
        (
            {"overoptimization": {"ppo": {"deepspeed": "zero0"}}},
            "overoptimization.ppo.deepspeed: 'zero0' is stage 0, which cuts nothing",
        ),
        (
            {"overoptimization": {"ppo": {"processes": 4, "batch_size": 2}}},
            "overoptimization.ppo.processes: 4 is more than",
        ),
        ({"training": {"pairs_per_step": 64.0}}, "training.pairs_per_step: is 64.0; expected integer"),
        ({"seeds": [0.0]}, "seeds.0: is 0.0; expected integer"),
        ({"methods": {"mine": "bradley_terry"}}, 'methods.mine: is "bradley_terry"; expected object'),
        ({"methods": {"bradley_terry": 5}}, "methods.bradley_terry: is 5; expected object"),
        ({"benchmarks": {"world": "root"}}, 'benchmarks.world: is "root"; expected object'),
        ({"benchmarks": {"world": {"options": [1]}}}, "benchmarks.world.options: is [1]; expected object"),
        (
            {"benchmarks": {"world": {"options": {"splits": ["idd"]}}}},
            "options.splits: 'idd' is not a split of world. Did you mean 'iid'",
        ),
        ({"benchmarks": {"world": {"root": "."}}}, "benchmarks.world.root: is not used"),
        ({"data": {"dataset": "world", "root": 4}}, "data.root: is 4; expected"),
        ({"backbone": {"chat_template": "absent.jinja"}}, "backbone.chat_template: no such file: 'absent.jinja'"),
        ({"tracking": {"uri": "./mlruns"}}, "tracking.uri: The MLflow address './mlruns' is a folder"),
        (
            {
                "tuning": {"enabled": True, "learning_rates": [1e-3]},
                "data": {"dataset": "world", "validation_fraction": 0.0, "options": {"validation_pairs": 0}},
            },
            "tuning.enabled: chooses on a validation split",
        ),
        (
            {"methods": {"cross_fitted": {}, "preference_strength": {}}, "seeds": [0, 2]},
            "methods.preference_strength.strengths: needs at least 2 seeds that differ modulo methods.cross_fitted.folds",
        ),
        (
            {"training": {"deepspeed": "zero3"}, "methods": {"meta_rm": {}}},
            "methods.meta_rm: 'meta_rm' trains with ZeRO stages 0, 1, 2 only",
        ),
        ({"seeds": []}, "seeds"),
        ({"seeds": ["0"]}, "seeds.0"),
    ],
)
def test_impossible_settings_are_refused(sections, expected):
    assert any(expected in problem for problem in problems(minimal(**sections)))


def test_a_variant_can_use_a_method_under_a_name_of_its_own():
    config = resolve(minimal(methods={"centred": {"method": "bradley_terry", "centring": 0.01}}))
    assert config["methods"]["centred"]["method"] == "bradley_terry"
    assert config["methods"]["centred"]["settings"] == {"margin_scale": 0.0, "centring": 0.01}


def test_later_files_go_over_earlier_ones(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(minimal(training={"epochs": 3, "learning_rate": 0.1})))
    (tmp_path / "b.yaml").write_text("training: {epochs: 5}\nseeds: [4]\n")
    config = load_config([tmp_path / "a.yaml", tmp_path / "b.yaml"])
    assert (config["training"]["epochs"], config["training"]["learning_rate"], config["seeds"]) == (5, 0.1, [4])


@pytest.mark.parametrize(
    ("text", "expected"), [(None, "cannot be read"), ("a: [", "not valid YAML"), ("- 1", "must be a mapping")]
)
def test_unreadable_files_are_named(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=expected) as error:
        load_config([tmp_path / "c.yaml"])
    assert "c.yaml" in str(error.value)


def test_seed_free_variants_run_once():
    config = resolve(minimal(methods={"bradley_terry": {}, "longest": None}, seeds=[3, 5]))
    assert runs(config) == [("bradley_terry", 3), ("bradley_terry", 5), ("longest", 3)]


def test_reference_is_bradley_terry_or_the_first_trained_variant():
    assert (
        reference_variant(resolve(minimal(methods={"longest": {}, "label_smoothing": {}, "bradley_terry": {}})))
        == "bradley_terry"
    )
    assert reference_variant(resolve(minimal(methods={"longest": {}, "label_smoothing": {}}))) == "label_smoothing"


def test_the_resolved_configuration_is_kept_under_its_hash_and_loads_again(tmp_path):
    config = resolve(minimal(results=str(tmp_path)))
    path = write_resolved(config)
    assert load_config([path]) == config
    other = write_resolved(resolve(minimal(results=str(tmp_path), seeds=[7])))
    assert other != path
    assert path.exists()


def test_merging_leaves_its_arguments_alone():
    base = {"a": {"b": 1}}
    assert merge(base, {"a": {"c": [2]}}) == {"a": {"b": 1, "c": [2]}}
    assert base == {"a": {"b": 1}}


@pytest.mark.parametrize("path", sorted(Path(REPOSITORY / "config").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_resolve(path, monkeypatch, tmp_path):
    content = yaml.safe_load(path.read_text())
    # Local roots are the user's; here only the keys and values are checked.
    content.get("data", {}).pop("root", None)
    for entry in (content.get("benchmarks") or {}).values():
        (entry or {}).pop("root", None)
    assert resolve(content)["experiment"] == path.stem


def test_every_key_of_the_schema_is_described():
    from rm_methods.config.resolve import schema

    def walk(fragment, where):
        for key, part in fragment.get("properties", {}).items():
            assert "description" in part or key == "data", f"{where}{key} has no description"
            walk(part, f"{where}{key}.")

    walk(schema(), "")


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (
            {"variants": ["bradley_tery"]},
            "overoptimization.variants: 'bradley_tery' is not among the methods. Did you mean 'bradley_terry'?",
        ),
        ({"variants": ["joint_encoder"]}, "overoptimization.variants: 'joint_encoder' compares responses"),
        (
            {"best_of_n": {"pools": ["world"]}},
            "overoptimization.best_of_n.pools: 'world' is neither 'samples' nor a benchmark with gold values",
        ),
        ({"best_of_n": {"samples": 1}}, "overoptimization.best_of_n.samples: is 1; must be at least 2"),
        (
            {"ppo": {"enabled": True}, "sampling": {"top_p": 0.9}},
            "overoptimization.sampling: PPO learns from what the policy itself would write",
        ),
        ({"ppo": {"seeds": [0, 7]}}, "overoptimization.ppo.seeds: 7 not among seeds: 0"),
        (
            {"ppo": {"minibatches": 64}},
            "overoptimization.ppo.minibatches: 64 is more than overoptimization.ppo.batch_size = 32",
        ),
        (
            {"best_of_n": {"pools": ["samples"]}},
            "overoptimization.prompts: the controlled world has no split 'test'; use one of train",
        ),
        ({"ppo": {"transform": "sqrt"}}, "overoptimization.ppo.transform: "),
        (
            {"ppo": {"enabled": True}, "gold": "recorded"},
            "overoptimization.gold: 'recorded' is neither 'world', nor a folder here",
        ),
        (
            {"ppo": {"enabled": True}, "gold": {"max_length": 64}},
            "overoptimization.gold.max_length: is 64, but 'world' is computed",
        ),
        ({"gold": {"sorce": "world"}}, "overoptimization.gold.sorce: unknown key. Did you mean 'source'?"),
        ({"gold": 3}, "overoptimization.gold: is 3; expected object or string"),
        (
            {"policy": {"source": "a/b", "trust_remote_code": True}},
            "overoptimization.policy.trust_remote_code: is true; allowed: false",
        ),
        ({"policy": {"tiny": {"heads": 3}}}, "overoptimization.policy.tiny.hidden_size: 128 is not a multiple"),
    ],
)
def test_impossible_optimisation_is_refused(section, says):
    config = {
        "experiment": "x",
        "data": {"dataset": "world"},
        "methods": {"bradley_terry": {}, "joint_encoder": {}},
        "benchmarks": {"world": {}},
    }
    with pytest.raises(ConfigError) as error:
        resolve(config | {"overoptimization": section})
    assert says in str(error.value)


@pytest.mark.parametrize("written", ["owner/gold", {"source": "owner/gold"}])
def test_gold_is_a_source_or_a_source_with_settings(written):
    config = {"experiment": "x", "data": {"dataset": "world"}, "methods": {"bradley_terry": {}}}
    gold = resolve(config | {"overoptimization": {"gold": written}})["overoptimization"]["gold"]
    assert gold == {"source": "owner/gold", "revision": None, "max_length": None}
    assert resolve(config)["overoptimization"]["gold"]["source"] == "world"


def test_exact_gold_is_refused_outside_the_controlled_world():
    config = {"experiment": "x", "data": {"dataset": "hh_rlhf"}, "methods": {"bradley_terry": {}}}
    with pytest.raises(ConfigError, match=r"overoptimization\.gold: 'world' knows the controlled world only"):
        resolve(config | {"overoptimization": {"best_of_n": {"pools": ["samples"]}}})


def test_all_variants_with_a_scalar_reward_are_optimised_unless_named():
    config = {
        "experiment": "x",
        "data": {"dataset": "world"},
        "methods": {"bradley_terry": {}, "joint_encoder": {}, "longest": {}},
    }
    assert optimised_variants(resolve(config)) == ["bradley_terry"]
    assert optimised_variants(resolve(config | {"overoptimization": {"variants": ["longest"]}})) == ["longest"]


def test_optimisation_on_several_levels_of_noise_is_refused():
    config = {
        "experiment": "x",
        "data": {"dataset": "world"},
        "methods": {"bradley_terry": {}},
        "noise_levels": [{"rate": 0.0}, {"rate": 0.2}],
    }
    with pytest.raises(ConfigError, match="overoptimization: not with noise_levels"):
        resolve(config | {"overoptimization": {"best_of_n": {"pools": ["samples"]}}})


def test_some_seeds_can_be_diagnosed_without_changing_what_a_run_depends_on():
    config = {"experiment": "x", "seeds": [4, 5], "data": {"dataset": "world"}, "methods": {"bradley_terry": {}}}
    config["benchmarks"] = {"world": {}}
    every, some = (
        resolve(config | {"diagnostics": {"benchmarks": ["world"], "seeds": seeds}}) for seeds in (None, [5])
    )
    assert diagnosed_runs(every) == [("bradley_terry", 4), ("bradley_terry", 5)]
    assert diagnosed_runs(some) == [("bradley_terry", 5)]
    assert Experiment(some).diagnose_settings() == Experiment(every).diagnose_settings()
    with pytest.raises(ConfigError, match=r"diagnostics\.seeds: 3 not among seeds: 4, 5"):
        resolve(config | {"diagnostics": {"benchmarks": ["world"], "seeds": [3, 4]}})


def test_ppo_goes_over_every_seed_also_where_the_reward_model_has_none():
    config = {
        "experiment": "x",
        "seeds": [4, 5],
        "data": {"dataset": "world"},
        "methods": {"bradley_terry": {}, "ensemble": {}},
    }
    experiment = Experiment(resolve(config | {"overoptimization": {"prompts": "iid", "ppo": {"enabled": True}}}))
    assert experiment.ppo_runs() == [("bradley_terry", 4), ("bradley_terry", 5), ("ensemble", 4), ("ensemble", 5)]
    assert experiment.model_of("ensemble", 5).parts[-2:] == ("seed4", "model")
    some = Experiment(
        resolve(config | {"overoptimization": {"prompts": "iid", "ppo": {"enabled": True, "seeds": [5]}}})
    )
    assert some.ppo_runs() == [("bradley_terry", 5), ("ensemble", 5)]
    assert some.ppo_settings() == experiment.ppo_settings()
    assert experiment.model_of("bradley_terry", 5).parts[-2:] == ("seed5", "model")


@pytest.mark.parametrize(
    "change",
    [
        {"overoptimization": {"gold": {"source": "owner/other"}}},
        {"overoptimization": {"gold": {"source": "owner/gold", "max_length": 64}}},
        {"scoring": {"precision": "bf16"}},
        {"backbone": {"max_length": 128}},
        {"backbone": {"attention": "eager"}},
    ],
)
def test_samples_and_ppo_runs_depend_on_the_gold_and_on_how_it_scores(change):
    """A pool stores the gold reward of its samples, so another gold makes another pool."""
    config = {"experiment": "x", "data": {"dataset": "world"}, "methods": {"bradley_terry": {}}}
    config["overoptimization"] = {"gold": {"source": "owner/gold"}}
    before, after = (Experiment(resolve(config | further)) for further in ({}, change))
    assert before.pool_settings() != after.pool_settings()
    assert before.ppo_settings() != after.ppo_settings()
