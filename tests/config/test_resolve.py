import json
import re
from pathlib import Path

import pytest
import yaml

from rm_methods.config.resolve import (
    load_config,
    merge,
    reference_variant,
    resolve,
    runs,
    schema,
    workflow_config,
    write_resolved,
)
from rm_methods.config.variants import optimized_variants
from rm_methods.errors import ConfigError
from rm_methods.experiment.diagnosed_runs import diagnosed_runs
from rm_methods.experiment.experiment import Experiment
from rm_methods.methods.registry import load_method_card, method_names
from rm_methods.policies.sft import SFTSettings
from rm_methods.ppo.settings import PPOSettings
from rm_methods.scoring.scorer import ScoringSettings, scoring_settings
from tests.conftest import REPOSITORY, ppo_settings, sft_settings


def minimal(**sections):
    return {"experiment": "x", "data": {"dataset": "world"}, "methods": {"bradley_terry": {}}} | sections


def problems(config):
    with pytest.raises(ConfigError) as error:
        resolve(config, before_workflow=True)
    return error.value.problems


def test_defaults_are_filled_in_everywhere():
    config = resolve(minimal())
    assert config["training"]["epochs"] == 1
    assert config["backbone"]["tiny"]["layers"] == 4
    assert config["data"]["label_noise"] == {"rate": 0.0, "kind": "symmetric"}
    assert config["methods"]["bradley_terry"] == {
        "method": "bradley_terry",
        "settings": {"margin_scale": 0.0, "centering": 0.0},
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
        ({"training": {"pairs_per_step": 64.0}}, "training.pairs_per_step: is 64.0; expected a whole number"),
        ({"seeds": [0.0]}, "seeds.0: is 0.0; expected a whole number"),
        ({"methods": {"mine": "bradley_terry"}}, 'methods.mine: is "bradley_terry"; expected a mapping'),
        ({"methods": {"bradley_terry": 5}}, "methods.bradley_terry: is 5; expected a mapping"),
        ({"benchmarks": {"world": "root"}}, 'benchmarks.world: is "root"; expected a mapping'),
        ({"benchmarks": {"world": {"options": [1]}}}, "benchmarks.world.options: is [1]; expected a mapping"),
        (
            {"benchmarks": {"world": {"options": {"splits": ["idd"]}}}},
            "options.splits: 'idd' is not a split of world. Did you mean 'iid'",
        ),
        ({"benchmarks": {"world": {"root": "."}}}, "benchmarks.world.root: is not used"),
        ({"data": {"dataset": "world", "root": 4}}, "data.root: is 4; expected"),
        ({"backbone": {"chat_template": "absent.jinja"}}, "backbone.chat_template: no such file: 'absent.jinja'"),
        ({"tracking": {"uri": "./mlruns"}}, "tracking.uri: The MLflow address './mlruns' is a folder"),
        (
            {"data": {"dataset": "world", "options": {"annotator": {"skill": 0, "bias": 0}}}},
            "data.options.annotator: skill and bias are 0",
        ),
        (
            {"overoptimization": {"sft": {"responses": "mixed"}}},
            "overoptimization.sft.responses: 'mixed' writes responses of the controlled world within a limit of",
        ),
        (
            {
                "data": {"dataset": "world", "options": {"annotator": {}}},
                "benchmarks": {"world": {"options": {"splits": ["cue_reversed"]}}},
            },
            "benchmarks.world.options.splits: with these data.options the world has no split 'cue_reversed'",
        ),
        (
            {
                "tuning": {"enabled": True, "learning_rates": [1e-3]},
                "data": {"dataset": "world", "validation_fraction": 0.0, "options": {"validation_pairs": 0}},
            },
            "tuning.enabled: chooses on a validation split",
        ),
        (
            {"methods": {"cross_fitted": {}, "preference_strength": {}}, "seeds": [0, 2]},
            "methods.preference_strength.strengths: needs at least 2 seeds that differ modulo "
            "methods.cross_fitted.folds",
        ),
        (
            {"training": {"deepspeed": "zero3"}, "methods": {"meta_rm": {}}},
            "methods.meta_rm: 'meta_rm' trains with ZeRO stages 0, 1, 2 only",
        ),
        ({"seeds": []}, "seeds: is []; must not be empty"),
        ({"seeds": 3}, "seeds: is 3; expected a list of seeds, such as [0, 1, 2] for three runs of each method"),
        ({"methods": {}}, "methods: is {}; must not be empty"),
        ({"methods": ["bradley_terry"]}, "expected a mapping of variants to settings, such as `bradley_terry: {}`"),
        ({"methods": "every"}, 'methods: is "every"; the only text allowed is all'),
        ({"methods": {"random": {"a": 1}}}, "methods.random.a: unknown key. methods.random takes no keys."),
        ({"experiment": "my experiment"}, "that begins with a letter or digit, such as my_experiment."),
        ({"training": {"learning_rate": "1e-5"}}, 'is "1e-5"; expected a number, without quotation marks'),
        ({"training": {"epochs": 2.0}}, "training.epochs: is 2.0; expected a whole number, such as 2."),
        ({"training": {"adam_betas": [0.9]}}, "training.adam_betas: is [0.9]; must have at least 2 entries"),
        (
            {"diagnostics": {"benchmarks": ["world"]}},
            "'world' is not among the benchmarks. None is configured; add `world: {}` under `benchmarks:`.",
        ),
        (
            {"backbone": {"max_length": 256}, "training": {"max_length": 512}},
            "training.max_length: 512 is more than backbone.max_length = 256",
        ),
        ({"backbone": {"source": "package:not_here/x"}}, "backbone.source: the package 'not_here' is not installed in"),
        (
            {"methods": {"joint_encoder": {"source": "package:not.here"}}},
            "methods.joint_encoder.source: the package 'not.here' is not installed",
        ),
        ({"seeds": [2**32]}, "seeds.0: is 4294967296; must be at most 4294967295"),
        ({"seeds": [1, 1]}, "seeds: is [1, 1]; nothing may be listed twice"),
        ({"data": {"dataset": "world", "seed": 2**32}}, "data.seed: is 4294967296; must be at most"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate: is NaN; expected a finite number"),
        ({"methods": {"label_smoothing": {"smoothing": float("nan")}}}, "methods.label_smoothing.smoothing: is NaN"),
        ({"methods": {5: {"method": "bradley_terry"}}}, "methods.5: the name must be text, not a number"),
        ({"methods": {None: {}}}, "methods.None: the name must be text, not null"),
        ({"methods": {"bradley_terry\n": {}}}, 'methods: is "bradley_terry\\n"; expected a name of ASCII letters'),
        (
            {"methods": {"a/b": {"method": "bradley_terry"}}},
            'methods: is "a/b"; expected a name of ASCII letters, digits, `_` and `-` that begins with a letter or '
            "digit, such as a_b.",
        ),
        ({"methods": {"{a}": {"method": "bradley_terry"}}}, 'methods: is "{a}"; expected a name'),
        ({"methods": {"a" * 300: {"method": "bradley_terry"}}}, "must have at most 100 characters"),
        ({"experiment": "x" * 300}, "must have at most 100 characters"),
        ({"experiment": "x\n"}, "experiment: is "),
        ({"results": "a{b}"}, "results: 'a{b}' has the character '{'"),
        ({"results": "a\nb"}, "has the character '\\n'"),
        ({"results": "-r"}, "results: '-r' begins with a dash"),
        ({"results": "s3://bucket/x"}, "results: 's3://bucket/x' is an address"),
        ({"results": "a" * 300}, "results: is too long"),
        ({"results": "a/" * 2000}, "results: is too long"),
        ({"results": "a\0b"}, "results: the text holds a NUL character"),
        ({"results": "/dev/null"}, "results: '/dev/null' cannot be made: '/dev/null' is not a folder"),
        ({"data": {"dataset": "a" * 300}}, "data.dataset: no card is called"),
        ({"data": {"dataset": "world", "root": "a" * 300}}, "data.root: no such folder"),
        ({"benchmarks": {"hh_rlhf": {"root": "a" * 300}}}, "benchmarks.hh_rlhf.root: no such folder"),
        ({"training": {"deepspeed": "a" * 300}}, "training.deepspeed: "),
        (
            {"overoptimization": {"policy": {"chat_template": "absent.jinja"}}},
            "overoptimization.policy.chat_template: no such file",
        ),
        ({"seeds": ["0"]}, "seeds.0"),
    ],
)
def test_impossible_settings_are_refused(sections, expected):
    assert any(expected in problem for problem in problems(minimal(**sections)))


def test_a_variant_can_use_a_method_under_a_name_of_its_own():
    config = resolve(minimal(methods={"centered": {"method": "bradley_terry", "centering": 0.01}}))
    assert config["methods"]["centered"]["method"] == "bradley_terry"
    assert config["methods"]["centered"]["settings"] == {"margin_scale": 0.0, "centering": 0.01}


def test_later_files_go_over_earlier_ones(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(minimal(training={"epochs": 3, "learning_rate": 0.1})))
    (tmp_path / "b.yaml").write_text("training: {epochs: 5}\nseeds: [4]\n")
    config = load_config([tmp_path / "a.yaml", tmp_path / "b.yaml"])
    assert (config["training"]["epochs"], config["training"]["learning_rate"], config["seeds"]) == (5, 0.1, [4])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((None, "cannot be read"), ("a: [", "not valid YAML"), ("- 1", "must have keys")),
        *(("", "has no keys"), ("# nothing", "has no keys"), ("text", "must have keys")),
    ],
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
            "overoptimization.sampling: PPO must sample from the policy itself",
        ),
        ({"ppo": {"seeds": [0, 7]}}, "overoptimization.ppo.seeds: 7 not among seeds: 0"),
        (
            {"variants": ["bradley_terry"], "ppo": {"variants": ["bradley_tery"]}},
            "overoptimization.ppo.variants: 'bradley_tery' is not among the optimized variants. Did you mean "
            "'bradley_terry'?",
        ),
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
        ({"gold": 3}, "overoptimization.gold: is 3; expected a mapping or text"),
        (
            {"policy": {"source": "a/b", "trust_remote_code": True}},
            "overoptimization.policy.trust_remote_code: is true; allowed: false",
        ),
        ({"policy": {"tiny": {"heads": 3}}}, "overoptimization.policy.tiny.hidden_size: 128 is not a multiple"),
    ],
)
def test_impossible_optimization_is_refused(section, says):
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


def test_all_variants_with_a_scalar_reward_are_optimized_unless_named():
    config = {
        "experiment": "x",
        "data": {"dataset": "world"},
        "methods": {"bradley_terry": {}, "joint_encoder": {}, "longest": {}},
    }
    assert optimized_variants(resolve(config)) == ["bradley_terry"]
    assert optimized_variants(resolve(config | {"overoptimization": {"variants": ["longest"]}})) == ["longest"]


def test_optimization_on_several_levels_of_noise_is_refused():
    config = {
        "experiment": "x",
        "data": {"dataset": "world"},
        "methods": {"bradley_terry": {}},
        "noise_levels": [{"rate": 0.0}, {"rate": 0.2}],
    }
    with pytest.raises(ConfigError, match="overoptimization: not with noise_levels"):
        resolve(config | {"overoptimization": {"best_of_n": {"pools": ["samples"]}}})


def test_some_runs_can_be_diagnosed_without_changing_what_a_run_depends_on():
    config = {"experiment": "x", "seeds": [4, 5], "data": {"dataset": "world"}, "benchmarks": {"world": {}}}
    config["methods"] = {"bradley_terry": {}, "focal": {}}
    every, some = (
        resolve(config | {"diagnostics": {"benchmarks": ["world"], "seeds": seeds}}) for seeds in (None, [5])
    )
    assert diagnosed_runs(every) == [("bradley_terry", 4), ("bradley_terry", 5), ("focal", 4), ("focal", 5)]
    assert diagnosed_runs(some) == [("bradley_terry", 5), ("focal", 5)]
    assert Experiment(some).diagnose_settings() == Experiment(every).diagnose_settings()
    one = resolve(config | {"diagnostics": {"benchmarks": ["world"], "variants": ["bradley_terry"], "seeds": [5]}})
    assert diagnosed_runs(one) == [("bradley_terry", 5)]
    assert Experiment(one).diagnose_settings() == Experiment(every).diagnose_settings()
    message = r"diagnostics\.variants: 'ensemble' is not among the trained variants"
    with pytest.raises(ConfigError, match=message):
        resolve(config | {"diagnostics": {"benchmarks": ["world"], "variants": ["ensemble"]}})
    with pytest.raises(ConfigError, match=r"diagnostics\.seeds: 3 not among seeds: 4, 5"):
        resolve(config | {"diagnostics": {"benchmarks": ["world"], "seeds": [3, 4]}})


def test_ppo_runs_every_seed_also_where_the_reward_model_has_none():
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
    one = Experiment(
        resolve(config | {"overoptimization": {"prompts": "iid", "ppo": {"enabled": True, "variants": ["ensemble"]}}})
    )
    assert one.ppo_runs() == [("ensemble", 4), ("ensemble", 5)]
    assert one.ppo_settings() == experiment.ppo_settings()
    assert one.optimized_runs() == experiment.optimized_runs()
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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": {}}, "methods.bradley_terry.method: is {}; allowed: "),
        ({"settings": {"centering": 0.1}}, "methods.bradley_terry.settings: missing margin_scale"),
        ({"settings": {"centering": "x", "margin_scale": 0.0}}, 'methods.bradley_terry.settings.centering: is "x"'),
        ({"learning_rate": -1.0}, "methods.bradley_terry.learning_rate"),
        ({"lora": {"rank": 0}}, "methods.bradley_terry.lora.rank: is 0"),
        ({"label_noise": {"rate": 2}}, "methods.bradley_terry.label_noise"),
        ({"tuned_from": 3}, "methods.bradley_terry.tuned_from: is 3"),
    ],
)
def test_a_resolved_configuration_that_was_edited_is_checked_again(change, says):
    config = resolve(minimal())
    config["methods"]["bradley_terry"] |= change
    assert any(problem.startswith(says) for problem in problems(config)), problems(config)


def test_all_problems_of_writing_and_of_meaning_are_reported_at_once(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "experiment: x\nmethods: {bradley_terry: {}, 5: {}}\ndata: {dataset: world}\nseeds: [010]\n"
    )
    (tmp_path / "b.yaml").write_text(
        "training:\n  epochs: 1\n  epochs: 0\n  learning_rate: .inf\ndata: {root: $ABSENT_VARIABLE}\n"
    )
    with pytest.raises(ConfigError) as error:
        load_config([tmp_path / "a.yaml", tmp_path / "b.yaml"])
    for expected in (
        "seeds.0: 010 on line 4 of",
        "methods.5: the name must be text",
        "training.epochs: written twice, on lines 2 and 3 of",
        "training.epochs: is 0; must be at least 1",
        "training.learning_rate: is infinite",
        "data.root: '$ABSENT_VARIABLE' names the environment variable 'ABSENT_VARIABLE', which is not set",
    ):
        assert any(problem.startswith(expected) for problem in error.value.problems), (
            f"{expected!r} not in {error.value.problems}"
        )


def test_every_problem_is_one_line_whatever_the_user_wrote():
    (problem,) = problems(minimal(data={"dataset": "a\nb\x1b[31m"}))
    assert "a\\nb\\x1b[31m" in problem
    assert problem.isprintable()


def test_duplicate_keys_of_tuned_settings_are_refused(tmp_path):
    (tmp_path / "tuned.yaml").write_text("settings:\n  bradley_terry: {centering: 0.1,\n    centering: 0.2}\n")
    (problem,) = problems(minimal(tuned=str(tmp_path / "tuned.yaml")))
    assert "settings.bradley_terry.centering: written twice, on lines 2 and 3" in problem


def test_every_key_that_is_a_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FILES", str(tmp_path))
    for name in ("pairs.jsonl", "test.jsonl", "chat.jinja", "zero.json"):
        (tmp_path / name).write_text("{}")
    config = resolve(
        minimal(
            results="~/results",
            data={"dataset": "pairs.jsonl", "root": "$FILES", "test": "$FILES/test.jsonl"},
            backbone={"source": "${FILES}/model", "chat_template": "~/chat.jinja"},
            methods={"joint_encoder": {"source": "~/encoder"}, "bradley_terry": {}},
            training={"deepspeed": "~/zero.json"},
            benchmarks={"hh_rlhf": {"root": "~"}},
            overoptimization={"gold": "$FILES/gold", "policy": {"source": "~/policy"}, "ppo": {"enabled": False}},
            tracking={"uri": "sqlite:///~/mlflow.db"},
        ),
        before_workflow=True,
    )
    here = str(tmp_path)
    assert config["results"] == f"{here}/results"
    assert config["data"]["root"] == here
    assert config["data"]["test"] == f"{here}/test.jsonl"
    assert (config["backbone"]["source"], config["backbone"]["chat_template"]) == (
        f"{here}/model",
        f"{here}/chat.jinja",
    )
    assert config["methods"]["joint_encoder"]["settings"]["source"] == f"{here}/encoder"
    assert config["training"]["deepspeed"] == f"{here}/zero.json"
    assert config["benchmarks"]["hh_rlhf"]["root"] == here
    assert config["overoptimization"]["gold"]["source"] == f"{here}/gold"
    assert config["overoptimization"]["policy"]["source"] == f"{here}/policy"
    assert config["tracking"]["uri"] == f"sqlite:///{here}/mlflow.db"
    assert resolve(config) == config


def test_every_setting_that_names_a_file_or_folder_says_so():
    """A setting whose description speaks of a file, folder or path is expanded; the others are texts, lists or
    numbers."""

    def walk(fragment, where):
        for key, part in {**fragment.get("properties", {}), "*": fragment.get("additionalProperties")}.items():
            if isinstance(part, dict):
                yield f"{where}{key}", part
                yield from walk(part, f"{where}{key}.")

    settings = dict(walk(schema(), ""))
    for name in method_names():
        settings |= {f"{name}.{key}": fragment for key, fragment in load_method_card(name).settings.items()}
    for name, fragment in settings.items():
        text = fragment.get("description", "").lower()
        names_path = re.search(r"\b(folder|file|path of|json file)\b", text) and "string" in fragment.get("type", ())
        assert not names_path or "format" in fragment, f"{name} has no format"


def test_folders_for_results_are_checked_for_a_workflow_only(tmp_path):
    (tmp_path / "file").write_text("")
    config = minimal(results=str(tmp_path / "file" / "results"))
    assert resolve(config)["results"] == config["results"]
    assert problems(config) == [f"results: '{config['results']}' cannot be made: '{tmp_path / 'file'}' is not a folder"]


def test_a_read_only_folder_for_results_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("rm_methods.config.conflicts.os.access", lambda path, mode: Path(path) != tmp_path)
    assert "is read-only for you" in problems(minimal(results=str(tmp_path / "results")))[0]


def test_a_workflow_reads_the_files_itself_and_keeps_what_the_command_line_gives(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "experiment: x\ndata: {dataset: world}\nmethods: {bradley_terry: {}}\ntraining: {learning_rate: 1e-4}\n"
    )
    given = ["seeds=[3, 4]", "training={epochs: 5}", "experiment=other name"]
    with pytest.raises(ConfigError, match="other name"):
        workflow_config([tmp_path / "a.yaml"], given, default="absent.yaml")
    config = workflow_config([tmp_path / "a.yaml"], given[:2], default="absent.yaml")
    expected = {"seeds": [3, 4], "training": {"epochs": 5}}
    assert config == load_config([tmp_path / "a.yaml"], [expected])
    assert (config["training"]["epochs"], config["training"]["learning_rate"]) == (5, 1e-4)
    with pytest.raises(ConfigError, match="written twice"):
        workflow_config([tmp_path / "a.yaml"], ["training={epochs: 5, epochs: 6}"], default="absent.yaml")
    assert workflow_config([], ["seeds=[7]"], default=tmp_path / "a.yaml")["seeds"] == [7]


def data_section(data):
    return resolve({"experiment": "x", "data": data, "methods": {"longest": {}}})["data"]


def test_all_problems_of_the_section_come_at_once():
    with pytest.raises(ConfigError) as caught:
        data_section(
            {
                "dataset": 3,
                "sed": 1,
                "validation_fraction": 1.0,
                "max_pairs": {"train": 0},
                "length_balance": "yes",
                "label_noise": {"rate": 0.5, "kind": "symetric", "rat": 1},
            }
        )
    text = str(caught.value)
    assert len(caught.value.problems) == 8
    for expected in (
        "data.dataset: is 3; expected text",
        "data.sed: unknown key. Did you mean 'seed'?",
        "data.validation_fraction: is 1.0; must be less than 1",
        "data.max_pairs.train: is 0; must be at least 1",
        'data.length_balance: is "yes"; expected true or false',
        "data.label_noise.rate: is 0.5; must be less than 0.5",
        'data.label_noise.kind: is "symetric"; allowed: symmetric, length',
        "data.label_noise.rat: unknown key. Did you mean 'rate'?",
    ):
        assert expected in text


def test_fractions_must_leave_something_for_train():
    with pytest.raises(ConfigError, match="together they must be less than 1"):
        data_section({"dataset": "hh_rlhf", "validation_fraction": 0.5, "test_fraction": 0.5})


def test_defaults_are_filled_in():
    assert data_section({"dataset": "hh_rlhf", "label_noise": {"rate": 0.1}}) == {
        "dataset": "hh_rlhf",
        "root": None,
        "test": None,
        "options": {"subsets": None},
        "seed": 0,
        "validation_fraction": 0.1,
        "test_fraction": 0.0,
        "max_pairs": {},
        "max_characters": {},
        "length_balance": False,
        "length_balanced_splits": [],
        "label_noise": {"rate": 0.1, "kind": "symmetric"},
    }


# Limits that only the schema knows.
@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"sampling": {"max_new_tokens": 0}}, "overoptimization.sampling.max_new_tokens: is 0; must be at least 1"),
        ({"sampling": {"temperature": -1.0}}, "overoptimization.sampling.temperature: is -1.0; must be at least 0"),
        ({"sampling": {"top_p": 0.0}}, "overoptimization.sampling.top_p: is 0.0; must be more than 0"),
        ({"sampling": {"top_p": 1.5}}, "overoptimization.sampling.top_p: is 1.5; must be at most 1"),
        ({"sft": {"epoch": 1}}, "overoptimization.sft.epoch: unknown key. Did you mean 'epochs'?"),
        ({"sft": {"responses": "rejected"}}, 'overoptimization.sft.responses: is "rejected"; allowed: both, chosen'),
        ({"sft": {"learning_rate": 0}}, "overoptimization.sft.learning_rate: is 0; must be more than 0"),
        ({"ppo": {"kl_coeficient": 1}}, "overoptimization.ppo.kl_coeficient: unknown key. Did you mean"),
        (
            {"ppo": {"transform": "contrastve"}},
            'overoptimization.ppo.transform: is "contrastve"; allowed: none, contrastive',
        ),
        ({"ppo": {"updates": 0}}, "overoptimization.ppo.updates: is 0; must be at least 1"),
        ({"ppo": {"gamma": 1.5}}, "overoptimization.ppo.gamma: is 1.5; must be at most 1"),
        ({"ppo": {"kl_target": 0}}, "overoptimization.ppo.kl_target: is 0; must be more than 0"),
    ],
)
def test_settings_beyond_their_limits_are_refused(section, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve(minimal(overoptimization=section))


def test_settings_take_the_defaults_of_the_schema():
    config = resolve(minimal())
    assert SFTSettings.of_experiment(config) == sft_settings()
    assert PPOSettings.of_experiment(config) == ppo_settings()
    # A model is scored without a configuration, too.
    assert scoring_settings(config) == ScoringSettings()


@pytest.mark.parametrize(
    ("annotator", "present", "absent"), [(None, "cue_reversed", "cue_on_worse"), ({}, "cue_on_worse", "cue_reversed")]
)
def test_the_benchmark_of_the_world_has_the_splits_of_the_experiment(annotator, present, absent):
    data = {"dataset": "world", "options": {"annotator": annotator}}
    splits = resolve(minimal(data=data, benchmarks={"world": None}))["benchmarks"]["world"]["options"]["splits"]
    assert present in splits
    assert absent not in splits
    assert "train" not in splits


def test_splits_that_the_user_names_stay():
    benchmarks = {"world": {"options": {"splits": ["cue_neutral"]}}}
    data = {"dataset": "world", "options": {"annotator": {}}}
    resolved = resolve(minimal(data=data, benchmarks=benchmarks))
    assert resolved["benchmarks"]["world"]["options"]["splits"] == ["cue_neutral"]
    assert resolve(resolved) == resolved


def one_file(tmp_path, *rows):
    """A file of pairs and a configuration with the benchmark heldout on it."""
    file = tmp_path / "pairs.jsonl"
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    file.write_text("".join(json.dumps(pair | row) + "\n" for row in rows))
    return file, minimal(data={"dataset": str(file)}, benchmarks={"heldout": {}})


def test_heldout_without_a_test_split_is_refused_with_the_sentence_that_mends_it(tmp_path):
    _, config = one_file(tmp_path, {}, {"split": "train"})
    (problem,) = problems(config)
    assert problem.startswith("benchmarks.heldout: is made of the split test, but data.dataset")
    assert "Set data.test_fraction above 0, such as test_fraction: 0.1" in problem
    assert "data.test" in problem
    resolve(config)  # a single verb may do without
    for mended in ({"test_fraction": 0.5}, {"test": str(tmp_path / "test.jsonl")}):
        (tmp_path / "test.jsonl").write_text("{}")
        resolve(config | {"data": config["data"] | mended}, before_workflow=True)
    _, with_column = one_file(tmp_path, {}, {"split": "test"})
    resolve(with_column, before_workflow=True)


def test_heldout_validation_without_such_a_split_is_refused(tmp_path):
    _, config = one_file(tmp_path, {}, {"split": "test"})
    config["data"]["validation_fraction"] = 0.0
    config["benchmarks"]["heldout"] = {"options": {"splits": ["test", "validation"]}}
    (problem,) = problems(config)
    assert "the split validation" in problem
    assert "Set data.validation_fraction above 0" in problem


def test_the_file_of_test_pairs_is_checked(tmp_path):
    file, config = one_file(tmp_path, {})
    (tmp_path / "test.txt").write_text("")
    (tmp_path / "test.jsonl").write_text("{}")

    def problem_with(**data):
        (problem,) = problems(config | {"data": config["data"] | data})
        return problem

    assert "data.test: no such file: 'nowhere.jsonl' (looked in" in problem_with(test="nowhere.jsonl")
    assert "data.test: is a folder" in problem_with(test=str(tmp_path))
    assert "data.test: " in problem_with(test=str(tmp_path / "test.txt"))
    assert "unknown format" in problem_with(test=str(tmp_path / "test.txt"))
    assert "is the file of data.dataset" in problem_with(test=str(file))
    assert "data.test_fraction: is 0.2, but data.test names" in problem_with(
        test=str(tmp_path / "test.jsonl"), test_fraction=0.2
    )
    assert "has a test split" in problem_with(dataset="hh_rlhf", test=str(tmp_path / "test.jsonl"))
    assert "data.test" in problem_with(test=5)


@pytest.mark.parametrize(
    ("section", "text"),
    [
        (("training", "learning_rate"), "training: {learning_rate: 1e-5}"),
        (("tuning", "learning_rates"), "tuning: {learning_rates: [1e-5]}"),
        (("methods", "bradley_terry", "learning_rate"), "methods: {bradley_terry: {learning_rate: 1e-5}}"),
        (("methods", "bradley_terry", "settings", "centering"), "methods: {bradley_terry: {centering: 1e-5}}"),
        (("overoptimization", "sft", "learning_rate"), "overoptimization: {sft: {learning_rate: 1e-5}}"),
        (("data", "options", "cue_agreement"), "data: {dataset: world, options: {cue_agreement: 1e-5}}"),
    ],
)
def test_a_number_may_have_an_exponent_without_a_point(tmp_path, section, text):
    """YAML 1.1 reads it as text."""
    base = "experiment: x\ndata: {dataset: world}\nmethods: {bradley_terry: {}}\n"
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "c.yaml").write_text(text)
    value = load_config([tmp_path / "base.yaml", tmp_path / "c.yaml"])
    for key in section:
        value = value[key]
    assert value in (1e-5, [1e-5])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file has no keys; a configuration needs at least `experiment`, `data` and `methods`"),
        ("# nothing\n", "the file has no keys"),
        ("- a\n", "such as `experiment: my_name`; it is a list"),
        ("hello\n", "such as `experiment: my_name`; it is text"),
        ("3\n", "such as `experiment: my_name`; it is a whole number"),
        ("a: 1\na: 2\n", "a: written twice, on lines 1 and 2 of"),
    ],
)
def test_a_file_that_is_no_configuration_is_described_in_plain_words(tmp_path, text, problem):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config([tmp_path / "c.yaml"])
    assert problem in str(error.value)


def test_every_pattern_of_the_schema_is_explained_in_words():
    """A regular expression tells users nothing; one that allows a single text is quoted as that text."""

    def unexplained(part, path=""):
        if isinstance(part, list):
            return [hit for inside in part for hit in unexplained(inside, path)]
        if not isinstance(part, dict):
            return []
        pattern = part.get("pattern")
        bare = isinstance(pattern, str) and "patternWords" not in part and not re.fullmatch(r"\^[\w-]+\$", pattern)
        inner = [hit for key, inside in part.items() for hit in unexplained(inside, f"{path}.{key}")]
        return [path, *inner] if bare else inner

    assert unexplained(schema()) == []
    assert unexplained({"items": {"pattern": "^[a-z]+$"}}) == [".items"]


def test_training_may_read_as_much_as_scoring():
    assert resolve(minimal(backbone={"max_length": 256}, training={"max_length": 256}))


def written(folder, *texts):
    """Files with these texts, in order."""
    files = [folder / f"{number}.yaml" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    return files


BASE = """
experiment: x
data: {dataset: world}
methods: {bradley_terry: {centering: 0.01}, longest: {}, label_smoothing: {}}
benchmarks: {world: {}, rm_bench: {}}
training: {lora: {rank: 4}}
"""


@pytest.mark.parametrize(
    ("over", "methods"),
    [
        ("methods: {hinge: {}}", ["bradley_terry", "longest", "label_smoothing", "hinge"]),
        ("methods!: {hinge: {}}", ["hinge"]),
        ("methods: {longest!: null, hinge: {}}", ["bradley_terry", "label_smoothing", "hinge"]),
        ("methods: {longest!: }", ["bradley_terry", "label_smoothing"]),
        # Without the mark, nothing means the defaults.
        ("methods: {longest: }", ["bradley_terry", "longest", "label_smoothing"]),
    ],
)
def test_a_later_file_replaces_and_removes_with_a_mark(tmp_path, over, methods):
    assert list(load_config(written(tmp_path, BASE, over))["methods"]) == methods


def test_the_mark_works_for_every_key(tmp_path):
    over = "methods: {bradley_terry!: {margin_scale: 0.5}}\nbenchmarks!: {world: {}}\ntraining: {lora!: {alpha: 8}}\n"
    config = load_config(written(tmp_path, BASE, over))
    assert config["methods"]["bradley_terry"]["settings"] == {"margin_scale": 0.5, "centering": 0.0}
    assert list(config["benchmarks"]) == ["world"]
    assert (config["training"]["lora"]["rank"], config["training"]["lora"]["alpha"]) == (16, 8)
    assert load_config(written(tmp_path, BASE, "training: {lora!: null}"))["training"]["lora"] is None
    marked = load_config(written(tmp_path, BASE.replace("methods:", "methods!:")))
    assert list(marked["methods"]) == ["bradley_terry", "longest", "label_smoothing"]
    assigned = workflow_config(written(tmp_path, BASE), ["methods={longest!: null}", "methods={hinge: {}}"], "none")
    assert list(assigned["methods"]) == ["bradley_terry", "label_smoothing", "hinge"]


@pytest.mark.parametrize(
    ("over", "problem"),
    [
        (
            "methods: {longst!: null}",
            "methods.longst!: null removes nothing, because no earlier file has it. Did you mean 'longest'?",
        ),
        ("methods: {longest!: {}, longest: {}}", "methods.longest: written with and without `!`; keep one"),
        ("methods!: {longest!: null}", "methods.longest!: null removes nothing"),
        ("training: {epoch!: 3}", "training.epoch: unknown key. Did you mean 'epochs'?"),
        ("data!: null", "top level: missing data. Write, for example, `data: {dataset: world}`."),
        (
            "data!: null\nexperiment!: null",
            "top level: missing experiment, data. Write, for example, `experiment: my_experiment` and "
            "`data: {dataset: world}`.",
        ),
    ],
)
def test_a_mark_without_effect_is_a_problem(tmp_path, over, problem):
    with pytest.raises(ConfigError) as error:
        load_config(written(tmp_path, BASE, over))
    assert problem in str(error.value)
