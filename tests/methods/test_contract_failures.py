"""What the contract test says of methods that break the contract: the property, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from rm_methods.cli import main
from rm_methods.contract_test.properties import PROPERTIES, properties_of
from rm_methods.contract_test.workbench import Workbench
from rm_methods.errors import UserError
from rm_methods.methods import sources
from rm_methods.methods.registry import FOLDER

pytestmark = pytest.mark.process

HEAD = """import numpy as np
import torch
import torch.nn.functional as F

from rm_methods.methods.contract import Loss, TrainedMethod


class Method(TrainedMethod):
"""
RIGHT = "F.softplus(rewards[:, 1] - rewards[:, 0])"


def loss_body(expression: str, before: str = "pass") -> str:
    return (
        f"    def loss(self, model, batch):\n        rewards = model(batch).rewards\n        {before}\n"
        f"        return {expression}\n"
    )


def write(folder: Path, body: str, name: str = "broken") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(HEAD + body)
    card = (FOLDER / "template" / "my_method.yaml").read_text()
    (folder / f"{name}.yaml").write_text(card)
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Workbench:
    """Prepared data, which all broken methods share."""
    bench = Workbench(tmp_path_factory.mktemp("shared"))
    bench.data("bradley_terry")
    return bench


@pytest.fixture
def bench_of(shared, tmp_path, monkeypatch):
    """bench_of(body) gives a workbench for a method with this body."""
    monkeypatch.chdir(tmp_path)

    def make(body: str) -> Workbench:
        folder = write(tmp_path / "mine", body)
        bench = Workbench(tmp_path / "work", [folder])
        bench._data = shared._data
        bench.check_can_run("broken")
        return bench

    yield make
    sources.use_folders(())


def whole(extra: str, expression: str = f"Loss({RIGHT})", before: str = "pass") -> str:
    """Further lines of the class, then its loss."""
    return f"{extra}\n" + loss_body(expression, before)


ENDLESS = """
    steps = 0

    def loss(self, model, batch):
        self.steps += 1
        return Loss(0 * model(batch).rewards[:, 0] + self.steps)
"""
RANDOM_PAIRS = """
    def transform_pairs(self, pairs, inputs):
        return [pairs[k] for k in np.random.permutation(len(pairs))]
"""
CHANGED_PAIRS = """
    def transform_pairs(self, pairs, inputs):
        pairs.reverse()
        return sorted(pairs, key=str)
"""
CALLED_FROZEN = """
    def is_frozen(self, parameter):
        return "score" in parameter
"""
FORGETS = """
    def export(self, model, folder, state_dict=None):
        torch.nn.init.zeros_(model.classifier.score.weight)
        super().export(model, folder, state_dict)
"""
REVERSED = "F.softplus(rewards[:, 0] - rewards[:, 1])"
NEIGHBORS = "Loss(F.softplus(rewards.mean() - rewards[:, 0] + rewards[:, 1]))"
SHAPE = r"expected a floating-point tensor of shape \[6\]"
# Case -> the property that fails, the body of the class, and a part of the sentence.
BROKEN = {
    "a tensor": ("loss", loss_body(RIGHT), r"returned a tensor of shape \[6\].*; expected `Loss\(per_pair\)`"),
    "a mean": ("loss", loss_body(f"Loss(({RIGHT}).mean())"), f"{SHAPE}.*leave out mean"),
    "both responses": ("loss", loss_body("Loss(rewards)"), rf"shape \[6, 2\].*{SHAPE}"),
    "whole numbers": ("loss", loss_body("Loss((rewards[:, 0] > 0).long())"), r"convert it with float\(\)"),
    "detached": ("loss", loss_body(f"Loss(({RIGHT}).detach())"), "has no gradient, so nothing would be trained"),
    "fp64": ("loss", loss_body(f"Loss(({RIGHT}).double())"), r"`Loss\.per_pair` is float64; compute it in fp32"),
    "not finite": ("loss", loss_body("Loss(torch.log(0 * rewards[:, 0] - 1))"), "is nan, nan, nan, nan. Guard"),
    "no weight": ("loss", loss_body("Loss(torch.ones(len(rewards), requires_grad=True))"), "zero for every weight"),
    "slope": ("loss", loss_body("Loss(torch.sqrt((0 * rewards[:, 0]).abs()))"), "is not finite, though the loss is"),
    "random pairs": ("pairs", whole(RANDOM_PAIRS), "gave other pairs for the same arguments"),
    "changed pairs": ("pairs", whole(CHANGED_PAIRS), "changed the list that it was given"),
    "rows of a batch": (
        "layouts",
        loss_body(f"Loss(({RIGHT}) * batch.input_ids.shape[1])"),
        "packed layout and .* plain",
    ),
    "batch mean": ("micro-batches", loss_body(NEIGHBORS), "in one micro-batch with all pairs.*`depends_on_cut = True`"),
    "endless": ("training", ENDLESS, "it must decrease"),
    "wrong sign": ("training", loss_body(f"Loss({REVERSED})"), "Check the sign of the loss"),
    "called frozen": ("training", whole(CALLED_FROZEN), "was trained, though `is_frozen` names it"),
    "memory": (
        "resume",
        whole("    sum = 0.0\n", f"Loss(({RIGHT}) * (1 + self.sum))", "self.sum += float(rewards.detach().std())"),
        "differs from the uninterrupted run .*`build` attaches to the model",
    ),
    "forgets": ("export", whole(FORGETS), "gives all responses one score"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_method_fails_the_property_with_a_sentence(case, bench_of):
    prop, body, message = BROKEN[case]
    bench = bench_of(body)
    checks = {entry.name: entry.check for entry in PROPERTIES}
    with pytest.raises(UserError, match=message):
        checks[prop](bench, "broken")


def test_a_method_that_names_its_comparisons_is_not_checked_for_them(bench_of):
    bench = bench_of("    depends_on_cut = True\n\n" + loss_body(NEIGHBORS))
    (entry,) = [entry for entry in properties_of("broken") if entry.name == "micro-batches"]
    assert entry.check(bench, "broken") == "the method says `depends_on_cut`"


def cli(*arguments: object):
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_the_command_says_which_property_failed_and_stops(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine", loss_body(f"Loss(({RIGHT}).mean())"))
    done = cli("test-method", "broken", "--methods", "mine")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert lines[0] == f"Contract test of broken ({tmp_path / 'mine' / 'broken.py'})"
    assert lines[1].startswith("  FAILED  loss")
    assert "leave out mean()" in " ".join(done.stdout.split())
    assert lines[-1] == "broken does not fulfill the contract."
    assert "  ok  " not in done.stdout


def test_an_error_in_the_code_names_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine", loss_body("Loss(rewards[:, 0] + torch.ones(999))"))
    done = cli("test-method", "broken", "--methods", "mine")
    assert done.exit_code == 1
    assert f"{tmp_path / 'mine' / 'broken.py'}, line 12: RuntimeError" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bradley_tery"], "Did you mean 'bradley_terry'"),
        (["gold"], "'gold' is of kind computed; the contract test is for"),
        (["label_smoothing", "--set", "smoothing=2"], "methods.label_smoothing.smoothing: is 2"),
        (["label_smoothing", "--set", "smoothing"], "--set smoothing: write NAME=VALUE"),
        (["label_smoothing", "--methods", "nowhere"], "--methods: no such folder: 'nowhere'"),
    ],
)
def test_mistakes_of_the_command_line_are_sentences(arguments, message):
    done = cli("test-method", *arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_a_content_blind_method_with_a_wrong_card_is_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "words.py").write_text(
        "from rm_methods.methods.contract import ContentBlindMethod\n\n\nclass Method(ContentBlindMethod):\n"
        "    def score(self, prompt, response, seed):\n        return float(len(response.split()))\n"
    )
    card = "title: Words\ncitation: none\nkind: content_blind\ntargets: []\ncost: none\nsettings: {}\n"
    (folder / "words.yaml").write_text(card)
    done = cli("test-method", "words", "--methods", "mine")
    assert done.exit_code == 1
    assert "The scores do not depend on the seed, but the card says seed_free: false" in " ".join(done.stdout.split())
    (folder / "words.yaml").write_text(card + "seed_free: true\n")
    sources.card_files.cache_clear()
    from rm_methods.methods import registry

    registry._read_card.cache_clear()
    assert cli("test-method", "words", "--methods", "mine").stdout.endswith("words fulfills the contract.\n")
