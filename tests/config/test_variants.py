import pytest

from rm_methods.config.resolve import reference_variant, resolve, runs
from rm_methods.config.variants import noise_levels
from rm_methods.errors import ConfigError
from rm_methods.experiment.experiment import Experiment

LEVELS = [{"rate": 0.0}, {"rate": 0.2}, {"rate": 0.25, "kind": "length"}]


def configuration(**sections):
    return {
        "experiment": "x",
        "seeds": [3, 5],
        "data": {"dataset": "world"},
        "methods": {"bradley_terry": {}},
    } | sections


def test_every_method_that_learns_stands_on_every_level_and_the_others_once():
    config = resolve(configuration(methods={"bradley_terry": {}, "longest": {}}, noise_levels=LEVELS))
    assert list(config["methods"]) == [
        "bradley_terry",
        "longest",
        "bradley_terry_noise20",
        "bradley_terry_length_noise25",
    ]
    assert config["methods"]["bradley_terry_length_noise25"]["label_noise"] == {"rate": 0.25, "kind": "length"}
    assert len(runs(config)) == 3 * 2 + 1
    assert resolve(config) == config


def test_what_a_variant_requires_is_on_its_own_level():
    methods = {
        "student": {"method": "interaction_distillation", "teacher": "mine"},
        "mine": {"method": "joint_encoder"},
    }
    config = resolve(configuration(methods=methods, noise_levels=LEVELS))
    assert config["methods"]["student_noise20"]["settings"]["teacher"] == "mine_noise20"
    (folder,) = Experiment(config).required_runs("student_noise20", 5)["teacher"]
    assert folder.parts[-3:] == ("mine_noise20", "seed5", "model")


def test_a_builtin_teacher_has_no_level():
    methods = {"student": {"method": "interaction_distillation", "teacher": "uniform"}}
    config = resolve(configuration(methods=methods, noise_levels=LEVELS))
    assert config["methods"]["student_noise20"]["settings"]["teacher"] == "uniform"


def test_levels_know_their_variants_by_the_name_without_noise():
    config = resolve(configuration(methods={"bradley_terry": {}, "longest": {}}, noise_levels=LEVELS))
    none, flips, longer = noise_levels(config)
    assert none.variants == {"bradley_terry": "bradley_terry", "longest": "longest"}
    assert flips.variants == {"bradley_terry_noise20": "bradley_terry", "longest": "longest"}
    assert [level.heading for level in (none, flips, longer)] == ["0% flips", "20% flips", "25% flips to longer"]
    assert len({level.folder for level in (none, flips, longer)}) == 3


def test_the_reference_is_named_without_noise_even_where_every_level_has_some():
    config = configuration(methods={"label_smoothing": {}, "bradley_terry": {}}, noise_levels=LEVELS[1:])
    assert reference_variant(resolve(config)) == "bradley_terry"
    assert reference_variant(resolve(config | {"comparison": {"reference": "label_smoothing"}})) == "label_smoothing"
    with pytest.raises(ConfigError, match=r"comparison\.reference: 'label_smothing'"):
        resolve(config | {"comparison": {"reference": "label_smothing"}})


def test_the_grid_is_a_star_around_each_method():
    tuning = {"enabled": True, "learning_rates": [1e-3, 7e-3]}
    config = resolve(configuration(methods={"label_smoothing": {"smoothing": 0.1}, "longest": {}}, tuning=tuning))
    grid = config["methods"]
    values = [value for value in (0.05, 0.1, 0.2) if value != 0.1]
    assert len(grid) == 1 + 2 + len(values)
    assert {entry["tuned_from"] for name, entry in grid.items() if name != "label_smoothing"} == {"label_smoothing"}
    assert grid["label_smoothing_lr0p001"]["learning_rate"] == 1e-3
    assert grid["label_smoothing_lr0p001"]["settings"] == {"smoothing": 0.1}
    assert grid["label_smoothing_smoothing_0p2"]["settings"] == {"smoothing": 0.2}
    assert grid["label_smoothing_smoothing_0p2"]["learning_rate"] is None
    assert resolve(config) == config


@pytest.mark.parametrize(
    ("own", "common", "tried"), [({"learning_rate": 5e-3}, 1e-2, {"1e-3", "1e-2"}), ({}, 1e-2, {"1e-3", "5e-3"})]
)
def test_a_learning_rate_that_a_variant_has_already_is_not_trained_twice(own, common, tried):
    tuning = {"enabled": True, "learning_rates": [1e-3, 5e-3, 1e-2], "knobs": False}
    config = resolve(configuration(methods={"bradley_terry": own}, training={"learning_rate": common}, tuning=tuning))
    assert {entry["learning_rate"] for name, entry in config["methods"].items() if name != "bradley_terry"} == {
        float(t) for t in tried
    }


def test_a_grid_without_knobs_has_learning_rates_only():
    tuning = {"enabled": True, "learning_rates": [1e-3], "knobs": False}
    assert set(resolve(configuration(methods={"label_smoothing": {}}, tuning=tuning))["methods"]) == {
        "label_smoothing",
        "label_smoothing_lr0p001",
    }


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"noise_levels": [{"rate": 0.2}, {"rate": 0.2}]}, "noise_levels: '_noise20' occurs more than once"),
        ({"noise_levels": [{"rate": 0.5}]}, "noise_levels.0.rate: is 0.5; must be less than 0.5"),
        (
            {"noise_levels": LEVELS, "data": {"dataset": "world", "label_noise": {"rate": 0.1}}},
            "data.label_noise.rate: would be added",
        ),
        ({"noise_levels": LEVELS, "tuning": {"enabled": True}}, "tuning.enabled: a grid is tuned on one level"),
        (
            {
                "methods": {"x": {"method": "hinge"}, "x_noise20": {"method": "bradley_terry"}},
                "noise_levels": LEVELS[:2],
            },
            "methods.x_noise20: noise_levels gives this name to another variant",
        ),
        (
            {
                "methods": {"x": {"method": "hinge"}, "x_lr0p001": {"method": "bradley_terry"}},
                "tuning": {"enabled": True, "learning_rates": [1e-3]},
            },
            "methods.x_lr0p001: tuning gives this name to another variant",
        ),
        (
            {"methods": {"a": {"method": "hinge"}, "b": {"method": "hinge"}}, "tuning": {"enabled": True}},
            "tuning.enabled: 2 variants of the method 'hinge'",
        ),
        (
            {"methods": {"bradley_terry": {"learning_rate": -1.0}}},
            "methods.bradley_terry.learning_rate: is -1.0; must be more than 0",
        ),
        ({"methods": "everything"}, "methods: "),
    ],
)
def test_impossible_axes_are_refused(sections, says):
    with pytest.raises(ConfigError) as error:
        resolve(configuration(**sections))
    assert says in str(error.value)


def test_all_means_every_method_but_computed_and_external_rows_and_controls():
    from rm_methods.methods.registry import load_method_card, method_names

    computed = {name for name in method_names() if load_method_card(name).kind == "computed"}
    controls = {name for name in method_names() if load_method_card(name).control}
    external = {name for name in method_names() if load_method_card(name).kind == "external"}
    assert computed == {"annotator", "cue_only", "gold"}
    assert controls == {"cue_removed", "label_control"}
    every = set(resolve(configuration(methods="all", seeds=[3, 4]))["methods"])
    assert every == set(method_names()) - computed - external - controls


def test_tuned_settings_go_below_those_of_the_configuration(tmp_path):
    file = tmp_path / "tuned.yaml"
    file.write_text(
        "settings:\n  label_smoothing: {smoothing: 0.2, learning_rate: 0.001}\n  bradley_terry: {learning_rate: "
        "0.002}\n"
    )
    methods = {"label_smoothing": {}, "own": {"method": "label_smoothing", "smoothing": 0.05}}
    config = resolve(configuration(methods=methods, tuned=str(file)))
    assert config["methods"]["label_smoothing"]["settings"] == {"smoothing": 0.2}
    assert config["methods"]["own"]["settings"] == {"smoothing": 0.05}
    assert config["methods"]["own"]["learning_rate"] == 1e-3
    assert list(config["methods"]) == ["label_smoothing", "own"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("a: [", "not valid YAML: line 2"),
        ("a: 1", "has no `settings:`"),
        ("settings: {label_smothing: {}}", "unknown method 'label_smothing'"),
        ("settings: {label_smoothing: {smothing: 1}}", "methods.label_smoothing.smothing: unknown key"),
    ],
)
def test_bad_files_of_tuned_settings_are_named(tmp_path, text, says):
    file = tmp_path / "tuned.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as error:
        resolve(configuration(methods={"label_smoothing": {}}, tuned=str(file)))
    assert says in str(error.value)


def test_too_few_seeds_for_what_needs_all_of_them_are_refused(monkeypatch):
    from rm_methods.methods import registry

    card = registry.load_method_card("label_smoothing")
    needy = {"smoothing": {"kind": "trained", "seeds": "all", "at_least": 2, "builtin": []}}
    settings = {"smoothing": {"default": "bradley_terry", "description": "x"}}
    changed = registry.MethodCard(**(vars(card) | {"requires": needy, "settings": settings}))
    original = registry.load_method_card
    monkeypatch.setattr(
        registry, "load_method_card", lambda name: changed if name == "label_smoothing" else original(name)
    )
    with pytest.raises(ConfigError, match="needs at least 2 seeds, but seeds is \\[3\\]"):
        resolve(configuration(methods={"label_smoothing": {}, "bradley_terry": {}}, seeds=[3]))
