"""docs/adding-a-method.md: the fields in its tables are those of the code, and its example with lengths works."""

from __future__ import annotations

import copy
import math
import pickle
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from rm_methods.cli import main
from rm_methods.contract_test.small_experiment import made_up_pairs
from rm_methods.contract_test.workbench import Workbench
from rm_methods.methods import sources
from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import FOLDER, load_method
from rm_methods.preferences.pair import PreferencePair, make_pair
from rm_methods.reward_models.layouts import PairBatch
from rm_methods.reward_models.model import RewardOutput
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "adding-a-method.md").read_text()
EXAMPLE = PAGE.partition("### Example: a loss that knows the lengths")[2].partition("\n## ")[0]
(CODE,) = re.findall(r"^```python\n(.*?)^```$", EXAMPLE, re.MULTILINE | re.DOTALL)
(CARD,) = re.findall(r"^```yaml\n(.*?)^```$", EXAMPLE, re.MULTILINE | re.DOTALL)
ADDS_PAIRS = """
    def transform_pairs(self, pairs, inputs):
        from rm_methods.preferences.pair import make_pair

        longer = [
            make_pair(pair.prompt, pair.chosen, f"{pair.rejected} Really.", split=pair.split, source=pair.source)
            for pair in pairs
        ]
        return [*pairs, *longer]

    def report(self):
        return {"pairs": len(self.log_ratio)}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder `mine` with the method of the page, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine"
    path.mkdir()
    (path / "length_offset.py").write_text(CODE)
    (path / "length_offset.yaml").write_text(CARD)
    sources.use_folders([path])
    yield path
    sources.use_folders(())


def batch_of(pairs) -> PairBatch:
    nothing = torch.zeros(0, dtype=torch.int64)
    return PairBatch(nothing, nothing, None, nothing, nothing, 2, pair_ids=tuple(pair.pair_id for pair in pairs))


def fields_in_table(heading: str) -> set[str]:
    rows = PAGE.partition(f"| field of {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}


@pytest.mark.parametrize(("heading", "record"), [("`batch`", PairBatch), ("a pair", PreferencePair)])
def test_the_tables_of_fields_are_complete(heading, record):
    assert fields_in_table(heading) == {field.name for field in fields(record)}


def test_the_configuration_on_the_page_is_the_one_of_the_template():
    assert f"```yaml\n{(FOLDER / 'template' / 'my_experiment.yaml').read_text()}```" in PAGE


def test_the_lengths_of_the_example_are_those_of_the_pair_of_each_loss(folder):
    prompt = [{"role": "user", "content": "x"}]
    pairs = [
        make_pair(prompt, "abc", "a", split="train", source="s"),  # log(4 / 2)
        make_pair(prompt, "", "abcdefg", split="train", source="s"),  # log(1 / 8)
    ]
    method = load_method("length_offset", {"strength": 1.0})
    method.build(None, Inputs(0, Path(), pairs=pairs))
    rewards = torch.tensor([[0.5, 0.5], [math.log(2), 0.0]])
    output = RewardOutput(rewards, torch.zeros(0), torch.zeros(0))
    losses = method.loss(lambda batch: output, batch_of(pairs)).per_pair
    # -log sigmoid(log a) = log(1 + 1 / a): a is 2 for the first pair, 2 / 8 for the second one.
    torch.testing.assert_close(losses, torch.tensor([math.log(1.5), math.log(5)]))
    turned = method.loss(
        lambda batch: RewardOutput(rewards.flip(0), torch.zeros(0), torch.zeros(0)), batch_of(pairs[::-1])
    )
    torch.testing.assert_close(turned.per_pair, losses.flip(0))


@pytest.mark.process
def test_the_example_fulfills_the_contract_and_what_it_prints_is_shown(folder):
    code = folder / "length_offset.py"
    code.write_text(
        CODE.replace("        rewards = model", "        print(len(batch.pair_ids), 'pairs')\n        rewards = model")
    )
    done = CliRunner().invoke(main, ["test-method", "length_offset", "--methods", str(folder)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[-1] == "length_offset fulfills the contract."
    loss = next(k for k, line in enumerate(lines) if line.startswith("  ok      loss"))
    assert lines[loss + 1 : loss + 3] == ["          printed:", "          | 6 pairs"]
    training = next(k for k, line in enumerate(lines) if line.startswith("  ok      training"))
    # Six epochs of six steps, and all 48 pairs for the sign of the loss.
    heading, *printed = lines[training + 1 : training + 12]
    assert re.fullmatch(r" +printed: the last 10 of 3\d lines", heading)
    assert printed == [*["          | 8 pairs"] * 9, "          | 48 pairs"]


@pytest.mark.process
def test_the_example_trains_on_added_pairs_and_with_validation(folder, tmp_path):
    (folder / "length_offset.py").write_text(CODE + ADDS_PAIRS)
    bench = Workbench(tmp_path / "work", [folder])
    run = bench.run("length_offset", validation={"times": 2})
    assert run.summary["report"] == {"pairs": 2 * len(bench.data("length_offset").train)}
    validated = [row for row in run.log if "validation/validation/accuracy" in row]
    assert len(validated) == 2


@pytest.mark.process
def test_two_pairs_of_one_id_are_reported(folder, tmp_path):
    from rm_methods.contract_test.properties import pairs_are_pure
    from rm_methods.errors import UserError

    changed = ADDS_PAIRS.replace(
        'make_pair(pair.prompt, pair.chosen, f"{pair.rejected} Really.", split=pair.split, source=pair.source)',
        'replace(pair, rejected=f"{pair.rejected} Really.")',
    ).replace("rm_methods.preferences.pair import make_pair", "dataclasses import replace")
    (folder / "length_offset.py").write_text(CODE + changed)
    bench = Workbench(tmp_path / "work", [folder])
    with pytest.raises(UserError, match=r"gave two pairs with different texts the pair_id .*make_pair`"):
        pairs_are_pure(bench, "length_offset")


def test_a_missing_attribute_is_answered_with_the_fields():
    (pair,) = made_up_pairs(1)
    batch = batch_of([pair])
    with pytest.raises(
        AttributeError, match=r"PairBatch has no `pairs`\. It has input_ids, .*, pair_ids, progress; see"
    ):
        _ = batch.pairs
    with pytest.raises(
        AttributeError, match=r"PreferencePair has no `text`\. It has pair_id, prompt, chosen, .*, row;"
    ):
        _ = pair.text
    with pytest.raises(AttributeError, match=r"RewardOutput has no `scores`\. It has rewards, .*, margins; see"):
        _ = RewardOutput(torch.zeros(1, 2), torch.zeros(0), torch.zeros(0)).scores
    assert "What a loss receives" in PAGE
    assert pickle.loads(pickle.dumps(pair)) == copy.deepcopy(pair) == pair
    assert copy.copy(batch).pair_ids == (pair.pair_id,)
