"""Every command of docs/own-data.md, literally and in its order, from a file of pairs to the verdict."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY, made_up_pairs
from tests.workflow.checkouts import checkout, environment, planned

# The trainings of a whole comparison: minutes on a busy machine.
pytestmark = [pytest.mark.process, pytest.mark.slow]
PAGE = (REPOSITORY / "docs/own-data.md").read_text()
# A command may go on in the next line.
COMMANDS = [
    re.sub(r"\s*\\\n\s*", " ", command)
    for command in re.findall(r"^    ((?:rm-methods|snakemake|cat) (?:.*\\\n)?.*)$", PAGE, re.MULTILINE)
]


def rows(count: int, seed: int, names=("prompt", "chosen", "rejected")) -> list[dict[str, str]]:
    return [
        dict(zip(names, (pair.prompt[0]["content"], pair.chosen, pair.rejected), strict=True))
        for pair in made_up_pairs(count, seed)
    ]


def write(path: Path, lines: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))


def run(folder: Path, command: str) -> str:
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment(folder, HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    logs = "\n".join(f"== {path}\n{path.read_text()[-2000:]}" for path in (folder / "results").rglob("*.log"))
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"[-3000:] + logs
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A checkout in which all commands of the page have run, and what each printed."""
    folder = checkout(tmp_path_factory.mktemp("own"))
    write(folder / "my_pairs.jsonl", rows(80, seed=0))
    write(folder / "my_test.jsonl", rows(20, seed=1))
    write(folder / "my_more.jsonl", rows(40, seed=3))
    write_table(folder / "my_table.csv", rows(80, 2, ("question", "better", "worse")))
    votes = rows(80, 4, ("question", "answer_1", "answer_2"))
    write_table(folder / "my_votes.csv", [row | {"vote": "1"} for row in votes])
    (smaller,) = re.findall(r"```yaml\n(# smaller\.yaml\n.*?)```", PAGE, re.DOTALL)
    (folder / "smaller.yaml").write_text(smaller)
    return folder, {command: run(folder, as_tested(command)) for command in COMMANDS}


def as_tested(command: str) -> str:
    """The command; only what would run of the smaller experiment, whose results would replace those of the page."""
    return command.replace("snakemake ", "snakemake -n ") if "smaller.yaml" in command else command


def write_table(path: Path, lines: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, lines[0])
        table.writeheader()
        table.writerows(lines)


def test_the_page_has_the_commands_of_the_whole_way():
    assert [command.split()[:2] for command in COMMANDS] == [
        *[["rm-methods", "init"]] * 6,
        ["rm-methods", "check"],
        *[["snakemake", "--cores"]] * 2,
        ["rm-methods", "plan"],
        ["cat", "results/my_pairs/comparison/table.txt"],
        ["rm-methods", "power"],
        *[["rm-methods", "score"]] * 2,
    ]


def test_the_way_ends_at_a_verdict(finished):
    folder, printed = finished
    table = printed["cat results/my_pairs/comparison/table.txt"]
    for title in ("Bradley-Terry", "RRM", "Longest response", "Fitted length", "Random score"):
        assert title in table
    assert "Verdict" in table
    assert "The best content-blind row is" in table
    assert (folder / "scores.csv").exists()
    for name in ("my_pairs", "large", "with_test", "my_table", "my_votes", "mixed"):
        assert yaml.safe_load((folder / f"{name}.yaml").read_text())["experiment"] == name


def test_the_training_pairs_and_nothing_else_run_again_when_the_test_file_changes(finished):
    """The pairs are prepared again; the commands of the page leave nothing else to do."""
    folder, _ = finished
    target = "results/with_test/data/pairs.parquet"
    command = f"snakemake --cores 2 --configfile with_test.yaml -- {target}"
    run(folder, command)
    dry = command.replace("snakemake", "snakemake -n")
    assert "Nothing to be done" in run(folder, dry)
    report = json.loads((folder / "results/with_test/data/report.json").read_text())
    assert report["splits"]["test"]["pairs"] == 20
    write(folder / "my_test.jsonl", rows(21, seed=1))
    assert planned(run(folder, dry)) == {"prepare": 1}
    run(folder, command)
    report = json.loads((folder / "results/with_test/data/report.json").read_text())
    assert report["splits"]["test"]["pairs"] == 21


def test_an_edited_file_or_weight_of_a_mixture_prepares_the_pairs_again(finished):
    """The weights are those of the page: 2 for the first source, 1 for the second."""
    folder, _ = finished
    (block,) = re.findall(r"```yaml\n(data:\n  sources:.*?)```", PAGE, re.DOTALL)
    (folder / "weights.yaml").write_text(block)
    command = "snakemake --cores 2 --configfile mixed.yaml {} -- results/mixed/data/pairs.parquet"
    plain, weighted = command.format(""), command.format("weights.yaml")
    used = {}
    for name, line in (("plain", plain), ("weighted", weighted)):
        assert planned(run(folder, line.replace("snakemake", "snakemake -n"))) == {"prepare": 1}
        run(folder, line)
        sources = json.loads((folder / "results/mixed/data/report.json").read_text())["sources"]
        used[name] = [(source["name"], source["available"], source["used"]) for source in sources]
    (first, available, all_used), (second, others, all_others) = used["plain"]
    assert (first, second, all_used, all_others) == ("my_pairs", "my_more", available, others)
    draws = min(available // 2, others)
    assert [count for _, _, count in used["weighted"]] == [2 * draws, draws]
    assert "Nothing to be done" in run(folder, weighted.replace("snakemake", "snakemake -n"))
    write(folder / "my_more.jsonl", rows(41, seed=3))
    assert planned(run(folder, weighted.replace("snakemake", "snakemake -n"))) == {"prepare": 1}


def test_without_a_test_split_nothing_starts(finished):
    folder, _ = finished
    config = yaml.safe_load((folder / "my_pairs.yaml").read_text())
    del config["data"]["test_fraction"]
    config["experiment"] = "without"
    (folder / "without.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        ["snakemake", "--cores", "2", "--configfile", "without.yaml"],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "Set data.test_fraction above 0" in done.stdout + done.stderr
    assert not (folder / "results" / "without" / "data").exists()
