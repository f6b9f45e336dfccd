"""The steps after reading, on generated pairs: what each promises holds for any data and any seed."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_methods.errors import ConfigError
from rm_methods.preferences.balance import balance_length
from rm_methods.preferences.noise import flip_labels
from rm_methods.preferences.pair import make_pair, read_pairs, write_pairs
from rm_methods.preferences.splits import (
    cap_pairs,
    check_groups,
    drop_duplicates,
    drop_leaks,
    seeded_order,
    share_chosen_longer,
    split_train,
    summarize_splits,
)


def pair(prompt="Q?", chosen="good answer", rejected="bad", split="train", source="s", **other):
    return make_pair([{"role": "user", "content": prompt}], chosen, rejected, split=split, source=source, **other)


answers = st.text("ab", min_size=1, max_size=4)
pairs_lists = st.lists(
    st.builds(
        pair,
        prompt=st.sampled_from(["a?", "b?", "c?", "A?", "b ?", "d?"]),
        chosen=answers,
        rejected=answers,
        split=st.sampled_from(["train", "validation", "test", "hard"]),
        source=st.sampled_from(["x", "y", "z"]),
    ),
    max_size=40,
)
seeds = st.integers(0, 5)


def unique(pairs):
    return drop_duplicates([p for p in pairs if p.chosen != p.rejected])[0]


# Duplicates


def test_one_copy_of_a_pair_is_kept_and_contradictions_go():
    same, other = pair(), pair("R?")
    swapped = pair("R?", chosen="bad", rejected="good answer")
    kept, counts = drop_duplicates([same, other, same, swapped, other])
    assert kept == [same]
    assert counts == {"exact": 1, "contradictory": 3}


def test_the_copy_in_an_evaluation_split_is_the_one_kept():
    train, validation, test = pair(), pair(split="validation"), pair(split="test")
    assert drop_duplicates([train, test, validation])[0] == [test]
    assert drop_duplicates([train, validation])[0] == [validation]


def test_one_prompt_with_other_answers_is_no_duplicate():
    pairs = [pair(rejected="bad"), pair(rejected="worse"), pair(chosen="bad", rejected="worse")]
    assert drop_duplicates(pairs)[0] == pairs


@given(pairs_lists)
def test_after_cleaning_ids_are_unique_and_nothing_is_contradicted(pairs):
    kept, counts = drop_duplicates(pairs)
    assert len({p.pair_id for p in kept}) == len(kept) == len(pairs) - counts["exact"] - counts["contradictory"]
    labels = {(p.prompt[0]["content"], p.chosen, p.rejected) for p in kept if p.chosen != p.rejected}
    assert not labels & {(prompt, rejected, chosen) for prompt, chosen, rejected in labels}


# Splits


@given(pairs_lists, st.floats(0, 0.5), st.floats(0, 0.49), seeds)
def test_no_split_cuts_a_group(pairs, validation, test, seed):
    kept, _ = drop_leaks(split_train(unique(pairs), validation, test, seed))
    groups = {split: {p.group for p in kept if p.split == split} for split in ("train", "validation", "test", "hard")}
    assert not groups["train"] & (groups["validation"] | groups["test"] | groups["hard"])
    assert not groups["validation"] & (groups["test"] | groups["hard"])
    check_groups(kept)


def test_a_leaked_group_stays_in_the_evaluation_split_and_is_counted():
    pairs = [
        pair("a?"),
        pair(" A? ", chosen="x"),
        pair("a?", split="test", chosen="y"),
        pair("b?"),
        pair("c?", split="validation"),
    ]
    kept, counts = drop_leaks([*pairs, pair("c?", split="hard", chosen="z")])
    assert [(p.prompt[0]["content"], p.split) for p in kept] == [("a?", "test"), ("b?", "train"), ("c?", "hard")]
    assert counts == {"groups": 2, "train_pairs": 2, "validation_pairs": 1}


def test_two_test_splits_may_share_a_group():
    pairs = [pair(split="iid"), pair(split="cue_reversed", chosen="x")]
    assert drop_leaks(pairs) == (pairs, {"groups": 0})


def test_the_group_check_finds_a_cut_group():
    with pytest.raises(AssertionError, match="train"):
        check_groups([pair(), pair(split="test", chosen="x")])


def test_fractions_are_met_and_only_for_splits_the_source_lacks():
    pairs = [pair(f"question {number}?") for number in range(4000)]
    counts = Counter(p.split for p in split_train(pairs, 0.1, 0.2, seed=0))
    # standard errors of the shares: 0.005 and 0.006
    assert counts["validation"] / 4000 == pytest.approx(0.1, abs=0.02)
    assert counts["test"] / 4000 == pytest.approx(0.2, abs=0.025)
    with_test = [*pairs, pair("own test", split="test")]
    assert Counter(p.split for p in split_train(with_test, 0.1, 0.2, seed=0))["test"] == 1
    assert {p.split for p in split_train(pairs, 0.0, 0.0, seed=0)} == {"train"}


def test_adding_rows_moves_no_group_and_the_seed_does():
    pairs = [pair(f"question {number}?") for number in range(300)]
    places = {p.group: p.split for p in split_train(pairs[:200], 0.2, 0.2, seed=1)}
    more = {p.group: p.split for p in split_train(pairs[::-1], 0.2, 0.2, seed=1)}
    assert places.items() <= more.items()
    assert places != {p.group: p.split for p in split_train(pairs[:200], 0.2, 0.2, seed=2)}


@given(pairs_lists, seeds)
def test_the_seeded_order_does_not_depend_on_the_order_of_the_files(pairs, seed):
    pairs = unique(pairs)
    assert seeded_order(pairs, seed, "order") == seeded_order(pairs[::-1], seed, "order")
    assert sorted(p.pair_id for p in seeded_order(pairs, seed, "order")) == sorted(p.pair_id for p in pairs)


def test_the_seeded_order_mixes_the_sources_and_changes_with_seed_and_purpose():
    pairs = [pair(f"{number}?", source="first" if number < 100 else "second") for number in range(200)]
    ordered = seeded_order(pairs, 0, "order")
    assert 30 < sum(p.source == "first" for p in ordered[:100]) < 70
    assert ordered != seeded_order(pairs, 1, "order")
    assert ordered != seeded_order(pairs, 0, "noise")


# Length


@given(pairs_lists, seeds)
def test_the_longer_answer_is_chosen_in_exactly_half_after_balancing(pairs, seed):
    pairs = unique(pairs)
    kept = balance_length(pairs, seed)
    longer = sum(len(p.chosen) > len(p.rejected) for p in pairs)
    shorter = sum(len(p.chosen) < len(p.rejected) for p in pairs)
    assert (
        sum(len(p.chosen) > len(p.rejected) for p in kept)
        == sum(len(p.chosen) < len(p.rejected) for p in kept)
        == len(kept) / 2
    )
    assert len(kept) == 2 * min(longer, shorter)
    assert kept == [p for p in pairs if p in kept]
    assert share_chosen_longer(kept) in (None, 0.5)


@given(pairs_lists, seeds)
def test_what_the_balance_keeps_does_not_depend_on_the_order_of_the_files(pairs, seed):
    pairs = unique(pairs)
    assert balance_length(pairs[::-1], seed) == balance_length(pairs, seed)[::-1]


def test_the_seed_decides_which_pairs_the_balance_keeps():
    longer = [pair(f"{number}?", "long answer", "short") for number in range(60)]
    shorter = [pair(f"{number}!", "short", "long answer") for number in range(20)]
    kept = [balance_length([*longer, *shorter], seed) for seed in (0, 1, 0)]
    assert kept[0] == kept[2] != kept[1]


def test_each_source_is_balanced_in_itself_where_it_can_be():
    def of(source, longer, shorter):
        first = [pair(f"{source}{number}?", "long answer", "short", source=source) for number in range(longer)]
        return first + [pair(f"{source}{number}!", "short", "long answer", source=source) for number in range(shorter)]

    kept = balance_length([*of("x", 50, 10), *of("y", 20, 5), *of("z", 1, 3)], seed=0)
    table = Counter((p.source, len(p.chosen) > len(p.rejected)) for p in kept)
    # z has 2 pairs fewer with the longer chosen than it needs: they come from x and y, so that the whole is exact
    assert (table["x", False], table["y", False], table["z", False], table["z", True]) == (10, 5, 3, 1)
    assert table["x", True] + table["y", True] == 17
    assert table["x", True] >= 10
    assert table["y", True] >= 5


def test_equal_lengths_count_half_in_the_share_of_longer():
    assert share_chosen_longer([pair(chosen="aa", rejected="b"), pair(chosen="a", rejected="b")]) == 0.75
    assert share_chosen_longer([pair(chosen="a", rejected="bb")]) == 0.0


def test_a_cap_takes_the_first_pairs_and_can_keep_the_balance():
    longer = [pair(f"{number}?", "long answer", "short") for number in range(6)]
    shorter = [pair(f"{number}!", "short", "long answer") for number in range(6)]
    pairs = [*longer, *shorter]
    assert cap_pairs(pairs, 3) == longer[:3]
    assert cap_pairs(pairs, None) == cap_pairs(pairs, 12) == pairs
    assert cap_pairs(pairs, 5, keep_balance=True) == [*longer[:2], *shorter[:2]]


# Noise


@given(pairs_lists, st.floats(0, 0.5, exclude_max=True), st.sampled_from(["symmetric", "length"]), seeds)
def test_exactly_the_rounded_share_is_flipped_and_marked(pairs, rate, kind, seed):
    pairs = unique(pairs)
    noisy, counts = flip_labels(pairs, rate, kind, seed)
    assert [p.pair_id for p in noisy] == [p.pair_id for p in pairs]
    flipped = [(before, after) for before, after in zip(pairs, noisy, strict=True) if after.meta.get("flipped")]
    assert len(flipped) == counts["flipped"] == round(rate * len(pairs))
    assert all((after.chosen, after.rejected) == (before.rejected, before.chosen) for before, after in flipped)
    assert all(before == after for before, after in zip(pairs, noisy, strict=True) if not after.meta.get("flipped"))


@given(pairs_lists, st.sampled_from(["symmetric", "length"]), seeds)
def test_a_lower_rate_flips_some_of_what_a_higher_rate_flips(pairs, kind, seed):
    low, high = ({p.pair_id for p in flip_labels(unique(pairs), rate, kind, seed)[0] if p.meta} for rate in (0.15, 0.4))
    assert low <= high


def test_length_noise_prefers_the_longer_answer_first_and_says_when_it_cannot():
    longer = [pair(f"{number}?", "long answer", "short") for number in range(70)]
    shorter = [pair(f"{number}!", "short", "long answer") for number in range(20)]
    equal = [pair(f"{number}.", "same", "size") for number in range(10)]
    pairs = [*longer, *shorter, *equal]
    noisy, counts = flip_labels(pairs, 0.2, "length", seed=0)
    assert counts == {"flipped": 20, "to_longer": 20, "to_shorter": 0, "same_length": 0}
    assert share_chosen_longer(noisy) == 0.95
    assert flip_labels(pairs, 0.45, "length", seed=0)[1] == {
        "flipped": 45,
        "to_longer": 20,
        "to_shorter": 15,
        "same_length": 10,
    }


def test_symmetric_noise_is_blind_to_length():
    pairs = [pair(f"{number}", "long answer", "short") for number in range(500)] + [
        pair(f"{n}!", "a", "bb") for n in range(500)
    ]
    counts = flip_labels(pairs, 0.4, "symmetric", seed=0)[1]
    # hypergeometric: 200 expected, standard deviation 7.7
    assert counts["to_longer"] + counts["to_shorter"] == 400
    assert 165 < counts["to_longer"] < 235


def test_a_pair_that_the_reader_had_flipped_is_turned_back():
    pairs = [pair(meta={"flipped": True}), pair("R?", meta={"flipped": True})]
    noisy, _ = flip_labels(pairs, 0.49, "symmetric", seed=0)
    assert Counter(p.meta["flipped"] for p in noisy) == {True: 1, False: 1}


@pytest.mark.parametrize("rate", [0.5, 0.9, -0.1, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ConfigError, match=r"data\.label_noise\.rate: is .*less than 0\.5"):
        flip_labels([pair()], rate, "symmetric", seed=0)


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'symmetric'"):
        flip_labels([pair()], 0.1, "symetric", seed=0)


# Files and the summary


@given(pairs=pairs_lists)
def test_pairs_survive_parquet(tmp_path_factory, pairs):
    pairs = [replace(p, strength=0.1, meta={"flipped": True, "ä": [1, None]}) for p in pairs]
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    write_pairs(pairs, path)
    assert read_pairs(path) == pairs


def test_the_summary_counts_by_hand():
    pairs = [
        pair("ab", "cccc", "d"),
        pair("AB", "e", "ff", source="t", meta={"flipped": True}),
        pair("x", "yy", "zz", split="iid"),
    ]
    assert summarize_splits(pairs) == {
        "train": {
            "pairs": 2,
            "groups": 1,
            "sources": {"s": 1, "t": 1},
            "share_chosen_longer": 0.5,
            "mean_characters": {"prompt": 2.0, "chosen": 2.5, "rejected": 1.5},
            "flipped": 1,
        },
        "iid": {
            "pairs": 1,
            "groups": 1,
            "sources": {"s": 1},
            "share_chosen_longer": 0.5,
            "mean_characters": {"prompt": 1.0, "chosen": 2.0, "rejected": 2.0},
            "flipped": 0,
        },
    }
