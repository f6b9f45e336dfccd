from __future__ import annotations

import json
import math

import numpy as np
import pytest

from rm_methods.errors import UserError
from rm_methods.overoptimization.gold import check_finite, load_gold
from rm_methods.reward_models.backbones import load_classifier
from rm_methods.reward_models.model import RewardModel
from rm_methods.scoring.scorer import ScoringSettings

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Paint it red, please."},
    {"role": "assistant", "content": "It is now blue."},
    {"role": "user", "content": "No:\nred!"},
]
# The exact text that a gold reward model with the tiny template reads for CONVERSATION and the response "It is now
# red."
RENDERED = (
    "<bos><system>Be brief.<eos><user>Paint it red, please.<eos><assistant>It is now blue.<eos><user>No:\nred!<eos>"
    "<assistant>It is now red.<eos>"
)


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def gold_folder(prepared, tmp_path):
    """A saved reward model with random weights."""
    model = RewardModel(load_classifier(prepared[1], prepared[2]["backbone"], seed=0))
    from transformers import AutoTokenizer

    model.classifier.save_pretrained(tmp_path / "gold")
    AutoTokenizer.from_pretrained(prepared[1]).save_pretrained(tmp_path / "gold")
    return tmp_path / "gold"


class TestWorld:
    def test_it_is_the_exact_gold_of_the_world(self):
        from rm_methods.preferences.world import generate
        from rm_methods.preferences.world.gold import gold as exact

        pairs = list(generate(train_pairs=5, validation_pairs=0, test_pairs=0))
        prompts, responses = [p.prompt for p in pairs], [p.chosen for p in pairs]
        values = load_gold("world")(prompts, responses)
        assert values.dtype == np.float64
        assert values.tolist() == [exact(p, r) for p, r in zip(prompts, responses, strict=True)]

    def test_as_many_prompts_as_responses_are_needed(self):
        with pytest.raises(UserError, match="found 1 prompts and 2 responses"):
            load_gold("world")([user("a")], ["b", "c"])


class TestRewardModel:
    def test_the_text_it_reads_is_exactly_the_stored_one(self, gold_folder):
        gold = load_gold(str(gold_folder), settings=ScoringSettings(max_length=256))
        assert gold.text_read(CONVERSATION, "It is now red.") == RENDERED

    def test_its_rewards_are_those_of_the_scorer_and_do_not_depend_on_the_batch(self, gold_folder, prepared, tokenizer):
        from rm_methods.reward_models.layouts import lay_out

        gold = load_gold(str(gold_folder), settings=ScoringSettings(max_length=256))
        values = gold([CONVERSATION, user("Paint it green."), CONVERSATION], ["It is now red.", "Green.", ""])
        alone = gold([CONVERSATION], ["It is now red."])
        assert values.dtype == np.float64
        assert values[0] == pytest.approx(alone[0], abs=1e-5)
        model = RewardModel(load_classifier(prepared[1], prepared[2]["backbone"], seed=0)).eval()
        batch = lay_out(tokenizer.encode([(CONVERSATION, ["It is now red."])]), "plain", tokenizer.pad_id)
        assert values[0] == pytest.approx(model(batch).rewards.item(), abs=1e-5)

    def test_unknown_sources_are_explained(self, tmp_path):
        with pytest.raises(UserError, match=r"Unknown gold source 'wrld'\. Did you mean 'world'"):
            load_gold("wrld")
        with pytest.raises(UserError, match="no such model folder"):
            load_gold(str(tmp_path / "nothing"))

    def test_it_reads_as_far_as_the_model_can_unless_another_length_is_asked_for(self, gold_folder):
        proxies = ScoringSettings(max_length=40)
        long = "word " * 90
        read = load_gold(str(gold_folder), settings=proxies).text_read(user("q"), long)
        assert len(read) > len(long)
        shorter = load_gold(str(gold_folder), settings=proxies, max_length=64)
        assert (shorter.scorer.settings.max_length, shorter.scorer.tokenizer.max_length) == (64, 64)
        assert len(shorter.text_read(user("q"), long)) < len(long)
        with pytest.raises(UserError, match=r"gold\.max_length = 100000 is more than the \d+ positions"):
            load_gold(str(gold_folder), max_length=100_000)
        config = json.loads((gold_folder / "config.json").read_text())
        del config["max_position_embeddings"]
        (gold_folder / "config.json").write_text(json.dumps(config))
        assert load_gold(str(gold_folder), settings=proxies).scorer.tokenizer.max_length == 40

    def test_only_hub_models_have_a_revision(self, gold_folder, monkeypatch):
        import huggingface_hub

        asked = []
        monkeypatch.setattr(
            huggingface_hub, "snapshot_download", lambda source, **given: asked.append(given["revision"]) or gold_folder
        )
        load_gold("owner/gold", revision="abc123")
        assert asked == ["abc123"]
        with pytest.raises(UserError, match="is a folder, which has no revision"):
            load_gold(str(gold_folder), revision="abc123")
        with pytest.raises(UserError, match="neither revision nor max_length"):
            load_gold("world", revision="abc123")

    def test_an_unreachable_hub_model_says_what_to_do(self, monkeypatch):
        import huggingface_hub

        def unreachable(*_, **given):
            assert not any("bin" in pattern or "py" in pattern for pattern in given["allow_patterns"])
            raise ConnectionError("no network")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
        with pytest.raises(
            UserError, match=r"'owner/gold' is no folder here and could not be fetched.*download it elsewhere"
        ):
            load_gold("owner/gold")


def test_a_reward_that_is_not_finite_names_prompt_and_response():
    with pytest.raises(
        UserError,
        match="1 of 2 rewards of the gold model are not finite; the first is nan for prompt 'two', response 'b'",
    ):
        check_finite(np.array([1.0, math.nan]), [user("one"), user("two")], ["a", "b"], "the gold model")
