import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.config.resolve import resolve
from rm_methods.contract_test.workbench import Workbench
from rm_methods.errors import ConfigError, UserError
from rm_methods.methods.bradley_terry import bradley_terry_loss
from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import load_method, load_method_card
from rm_methods.methods.rrm import PAIRS_PER_EXAMPLE, draw_others, misjudged, quotas, target_loss
from rm_methods.preferences.pair import make_pair
from rm_methods.scoring import scorer as scoring
from rm_methods.scoring.scorer import ScoringSettings, load_scorer
from tests.conftest import experiment_config, made_up_pairs


def method(**settings):
    return load_method("rrm", load_method_card("rrm").defaults() | settings)


def pair(prompt, chosen, rejected):
    return make_pair([{"role": "user", "content": prompt}], chosen, rejected, split="train", source="made up")


def plain_pairs(count):
    return [pair(f"prompt {i}", f"good {i}", f"bad {i}") for i in range(count)]


def augmented(pairs, tmp_path, seed=0, **settings):
    """(augmented pairs, counts)."""
    made = method(**settings)
    actual = list(made.transform_pairs(list(pairs), Inputs(seed, tmp_path)))
    assert actual[: len(pairs)] == list(pairs)
    return actual[len(pairs) :], made.report()


def responses_of(pairs):
    return {text: p.group for p in pairs for text in (p.chosen, p.rejected)}


def rewards(z):
    return torch.tensor([[z, 0.0]], dtype=torch.float64)


def test_loss_by_hand():
    both = target_loss(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([1.0, 0.5]))
    assert both.tolist() == pytest.approx(
        [math.log1p(math.exp(-1)), 0.5 * math.log1p(math.exp(-1)) + 0.5 * math.log1p(math.exp(1))], abs=1e-6
    )
    assert torch.equal(target_loss(rewards(0.7), torch.ones(1)), bradley_terry_loss(rewards(0.7)))


def test_a_neutral_pair_is_best_at_equal_rewards_in_either_order():
    half = torch.tensor([0.5])
    assert target_loss(rewards(0.0), half).item() == pytest.approx(math.log(2))
    assert target_loss(rewards(-1.3), half).item() == pytest.approx(target_loss(rewards(1.3), half).item())
    assert target_loss(rewards(0.3), half) > target_loss(rewards(0.0), half)


def test_an_example_gives_eight_non_contextual_and_six_neutral_pairs(tmp_path):
    pairs = plain_pairs(12)
    actual, report = augmented(pairs, tmp_path, augmented_per_pair=14)
    group = responses_of(pairs)
    for original in pairs:
        of_original = [p for p in actual if p.meta["original"] == original.pair_id]
        kinds = {kind: [p for p in of_original if p.meta["augmented"] == kind] for kind in PAIRS_PER_EXAMPLE}
        assert {kind: len(made) for kind, made in kinds.items()} == {"non_contextual": 8, "neutral": 6}
        assert all(p.prompt == original.prompt and p.group == original.group for p in of_original)
        foreign = {p.rejected for p in kinds["non_contextual"]}
        assert len(foreign) == 4
        assert len({group[text] for text in foreign} | {original.group}) == 3
        beats = {(p.chosen, p.rejected) for p in kinds["non_contextual"]}
        assert beats == {(a, b) for a in (original.chosen, original.rejected) for b in foreign}
        ties = [frozenset((p.chosen, p.rejected)) for p in kinds["neutral"]]
        assert len(set(ties)) == 6
        assert set().union(*ties) == foreign
        assert {p.target for p in kinds["non_contextual"]} == {1.0}
        assert {p.target for p in kinds["neutral"]} == {0.5}
    assert report["non_contextual_pairs"] == 96
    assert report["neutral_pairs"] == 72
    assert report["share_of_originals"] == pytest.approx(1 / 15, abs=1e-4)


def test_ids_are_unique_and_made_of_content(tmp_path):
    pairs = plain_pairs(12)
    actual, _ = augmented(pairs, tmp_path, augmented_per_pair=14)
    assert len({p.pair_id for p in [*pairs, *actual]}) == 12 * 15
    first = actual[0]
    assert first.pair_id == make_pair(first.prompt, first.chosen, first.rejected, split="x", source="y").pair_id


def test_neutral_pairs_stand_in_either_order_equally_often(tmp_path):
    pairs = plain_pairs(200)
    position = {text: 2 * i + k for i, p in enumerate(pairs) for k, text in enumerate((p.chosen, p.rejected))}
    actual, _ = augmented(pairs, tmp_path, augmented_per_pair=14)
    neutral = [p for p in actual if p.target == 0.5]
    share = np.mean([position[p.chosen] < position[p.rejected] for p in neutral])
    assert share == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(len(neutral)))


@pytest.mark.parametrize(("each", "non_contextual"), [(1, 57), (3, 171), (7, 400), (13, 742)])
def test_both_kinds_are_drawn_in_proportion(tmp_path, each, non_contextual):
    # 8 / 14 of 100 * each.
    actual, report = augmented(plain_pairs(100), tmp_path, augmented_per_pair=each)
    assert Counter(p.meta["original"] for p in actual).most_common()[-1][1] == each
    assert len(actual) == 100 * each
    assert report["non_contextual_pairs"] == non_contextual
    assert report["share_of_originals"] == pytest.approx(1 / (1 + each), abs=1e-4)


def test_without_neutral_pairs_there_are_none(tmp_path):
    actual, report = augmented(plain_pairs(9), tmp_path, augmented_per_pair=8, neutral=False)
    assert len(actual) == 72
    assert report["neutral_pairs"] == 0
    assert report["candidate_pairs"] == 72
    with pytest.raises(UserError, match=r"rrm\.augmented_per_pair: 9 .* 1 to 8"):
        augmented(plain_pairs(9), tmp_path, augmented_per_pair=9, neutral=False)


def test_seeds_decide_and_nothing_else_does(tmp_path):
    pairs = plain_pairs(30)
    before = list(pairs)
    first, again, other = (augmented(pairs, tmp_path, seed=seed, augmented_per_pair=3)[0] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert pairs == before


@given(st.lists(st.integers(0, 8), min_size=1, max_size=50), st.integers(0, 5))
@settings(max_examples=200)
def test_others_are_of_other_groups_and_everyone_is_drawn_twice(groups, seed):
    names = [f"group {g}" for g in groups]
    if len(names) < 3 * max(Counter(names).values()):
        with pytest.raises(UserError, match="none may have more than a third"):
            draw_others(names, np.random.default_rng(seed))
        return
    others = draw_others(names, np.random.default_rng(seed))
    assert all(len({names[i], names[j], names[k]}) == 3 for i, (j, k) in enumerate(others))
    for column in zip(*others, strict=True):
        assert sorted(column) == list(range(len(names)))


@given(st.integers(1, 60), st.integers(1, 14))
def test_quotas_never_ask_for_more_than_there_is(count, each):
    numbers = quotas(count, each, 8 / 14)
    assert len(numbers) == count
    assert all(0 <= n <= 8 and 0 <= each - n <= 6 for n in numbers)
    assert sum(numbers) == math.floor(count * each * 8 / 14 + 1e-9)


@pytest.mark.parametrize("prompts", [["a", "b"], ["a", "A ", "b", "c"]])
def test_too_few_prompts_are_refused(tmp_path, prompts):
    # "a" and "A " fall into one group, which has half of the pairs.
    pairs = [pair(prompt, f"good {i}", f"bad {i}") for i, prompt in enumerate(prompts)]
    with pytest.raises(UserError, match=rf"{len({p.group for p in pairs})} prompts in {len(pairs)} training pairs"):
        augmented(pairs, tmp_path)


def test_equal_texts_are_left_out_and_counted(tmp_path):
    # Both foreign rejected responses are the own one: 2 foreign texts are left, so 4 and 1 candidates of 8 and 6 for
    # each example.
    pairs = [pair(f"prompt {i}", f"good {i}", "No.") for i in range(3)]
    actual, report = augmented(pairs, tmp_path, augmented_per_pair=14)
    assert report["candidate_pairs"] == len(actual) == 3 * 5
    assert report["candidates_left_out_equal_texts"] == 3 * 9
    assert all(p.chosen != p.rejected for p in actual)
    assert all("No." not in (p.chosen, p.rejected) for p in actual if p.target == 0.5)
    # A text that another pair of the same prompt has is not foreign either.
    same = [pair("prompt 0", "yes", "no"), pair("prompt 0", "maybe", "no"), *plain_pairs(9)[1:]]
    same[4] = pair("prompt 3", "maybe", "bad 3")
    for seed in range(20):
        actual, _ = augmented(same, tmp_path, seed=seed, augmented_per_pair=14)
        assert not [p for p in actual if p.meta["original"] == same[0].pair_id and "maybe" in (p.chosen, p.rejected)]


def test_pairs_that_two_examples_of_a_prompt_share_are_drawn_once(tmp_path):
    # Whomever they draw, both examples of prompt 0 make "yes" beat "sure".
    pairs = [
        pair("prompt 0", "yes", "no"),
        pair("prompt 0", "yes", "never"),
        *(pair(f"prompt {i}", f"good {i}", "sure") for i in range(1, 5)),
    ]
    actual, report = augmented(pairs, tmp_path, augmented_per_pair=14)
    contents = Counter((p.group, frozenset((p.chosen, p.rejected))) for p in actual)
    assert set(contents.values()) == {1}
    assert contents[pairs[0].group, frozenset(("yes", "sure"))] == 1
    assert report["repeated_pairs_left_out"] == 1
    assert len(actual) == report["candidate_pairs"] - 1


def test_what_is_misjudged_by_hand():
    # sigmoid(1) = 0.731, sigmoid(2) = 0.881, sigmoid(-1) = 0.269
    values = [2.0, 1.0, 0.0]
    assert misjudged(values, [(0, 1), (0, 2), (1, 0)], 1.0, 0.2) == ((0, 1), (1, 0))
    assert misjudged(values, [(0, 1), (0, 2), (1, 0)], 0.5, 0.25) == ((0, 2),)
    assert misjudged([1000.0, -1000.0], [(0, 1), (1, 0)], 1.0, 1.0) == ((1, 0),)


@pytest.fixture
def filtering(prepared, reward_model, tokenizer, tmp_path):
    """Inputs with a filtering model of random weights, whose rewards are spread out."""
    with torch.no_grad():
        reward_model.classifier.score.weight *= 40
    reward_model.save(tmp_path / "filter" / "model")
    tokenizer.tokenizer.save_pretrained(tmp_path / "filter" / "model")
    return Inputs(
        0,
        tmp_path / "work",
        config=prepared[2],
        backbone=prepared[1],
        required={"filter": [tmp_path / "filter" / "model"]},
    )


def test_the_filter_keeps_what_its_model_gets_wrong(filtering, pairs):
    made, all_made = method(filter="bradley_terry", augmented_per_pair=14), method(augmented_per_pair=14)
    kept = list(made.transform_pairs(list(pairs), filtering))[len(pairs) :]
    everything = list(all_made.transform_pairs(list(pairs), filtering))[len(pairs) :]
    items = [BenchmarkItem(str(i), "", p.prompt, [p.chosen, p.rejected], 0) for i, p in enumerate(everything)]
    rows = load_scorer(filtering.required["filter"][0], ScoringSettings(max_length=256)).score(items)
    z = torch.tensor([row.score for row in rows]).view(-1, 2) @ torch.tensor([1.0, -1.0])
    missed = (torch.sigmoid(z) - torch.tensor([p.target for p in everything])).abs()
    assert ((missed - 0.2).abs() > 1e-4).all()
    expected = {
        (p.meta["original"], frozenset((p.chosen, p.rejected)))
        for p, m in zip(everything, missed, strict=True)
        if m >= 0.2
    }
    assert {(p.meta["original"], frozenset((p.chosen, p.rejected))) for p in kept} == expected
    assert 0.1 < len(kept) / len(everything) < 0.9
    report = made.report()
    assert (
        report["candidates_filtered_out"] == report["candidate_pairs"] - len(kept) - report["repeated_pairs_left_out"]
    )
    assert report["candidates_filtered_out"] > 0


def test_a_resumed_run_filters_by_the_same_rewards(filtering, pairs, monkeypatch):
    first = method(filter="bradley_terry").transform_pairs(list(pairs), filtering)
    monkeypatch.setattr(scoring, "load_scorer", lambda *_: pytest.fail("the rewards were computed again"))
    assert method(filter="bradley_terry").transform_pairs(list(pairs), filtering) == first


def test_the_filter_is_another_variant(tmp_path):
    config = experiment_config(tmp_path, methods={"bradley_terry": {}, "rrm": {"filter": "bradley_terry"}})
    assert load_method_card("rrm").required_variants(config["methods"]["rrm"]["settings"]) == {
        "filter": "bradley_terry"
    }
    assert load_method_card("rrm").required_variants(load_method_card("rrm").defaults()) == {}
    with pytest.raises(ConfigError, match=r"methods\.rrm\.filter"):
        resolve(experiment_config(tmp_path) | {"methods": {"rrm": {"filter": "bradley_tery"}}})


@pytest.mark.parametrize("wrong", [{"augmented_per_pair": 0}, {"augmented_per_pair": 15}, {"filter_threshold": 1.5}])
def test_impossible_settings_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"methods.rrm.{next(iter(wrong))}"):
        resolve(experiment_config(tmp_path) | {"methods": {"rrm": wrong}})


def test_the_number_of_steps_stays_while_the_pairs_grow(tmp_path):
    summary = Workbench(tmp_path / "work").run("rrm").summary
    assert summary["cost"]["optimizer_steps"] == 6  # 48 pairs, 8 a step
    assert summary["cost"]["pairs_seen"] == 48
    assert summary["report"]["original_pairs"] == 48
    assert 40 < summary["report"]["non_contextual_pairs"] + summary["report"]["neutral_pairs"] <= 48


def test_made_up_data_has_equal_texts_and_still_works(tmp_path):
    # Few colors, so that many responses are word for word the same.
    actual, report = augmented(made_up_pairs(30), tmp_path, augmented_per_pair=14)
    assert report["candidates_left_out_equal_texts"] > 0
    assert len(actual) == report["candidate_pairs"] - report["repeated_pairs_left_out"]
