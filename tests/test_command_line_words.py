"""Several values after one option, and completion in the shell."""

from __future__ import annotations

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from rm_methods.cli import main
from rm_methods.commands.verb import verb


@verb("taking")
@click.option("--config", "files", multiple=True)
@click.option("--data", multiple=True)
@click.option("--out", default=None)
@click.option("--fast", is_flag=True)
def taking(files, data, out, fast):
    click.echo(repr((files, data, out, fast)))


@verb("with-folders")
@click.argument("folders", nargs=-1)
@click.option("--config", "files", multiple=True)
def with_folders(folders, files):
    click.echo(repr((folders, files)))


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ("--config a b", (("a", "b"), (), None, False)),
        ("--config a --config b", (("a", "b"), (), None, False)),
        ("--config a b --data c d e --fast", (("a", "b"), ("c", "d", "e"), None, True)),
        ("--config=a b --out o", (("a", "b"), (), "o", False)),
        ("--config -1 --fast", (("-1",), (), None, True)),
        ("--data --config", ((), ("--config",), None, False)),
        ("--data a --fast --config b", (("b",), ("a",), None, True)),
    ],
)
def test_a_repeatable_option_takes_several_values(words, taken):
    done = CliRunner().invoke(taking, words.split())
    assert done.exit_code == 0, done.output
    assert done.output == f"{taken!r}\n"


@pytest.mark.parametrize("words", ["--out a b", "a", "--fast a", "--config a --out o b"])
def test_a_word_that_belongs_to_no_repeatable_option_is_refused(words):
    done = CliRunner().invoke(taking, words.split())
    assert done.exit_code == 2
    assert "unexpected extra argument" in done.output


def test_words_without_an_option_stay_what_they_are_where_a_verb_takes_them():
    done = CliRunner().invoke(with_folders, ["--config", "a", "b", "c"])
    assert done.output == "(('b', 'c'), ('a',))\n"


def test_check_takes_files_as_snakemake_does(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("experiment: x\ndata: {dataset: world}\nmethods: {longest: {}}\nbenchmarks: {world: {}}\n")
    second.write_text("seeds: [1, 2]\nexperiment: y\n")
    done = CliRunner().invoke(main, ["check", "--config", str(first), str(second), "--full"])
    assert done.exit_code == 0, done.output
    assert "experiment: y" in done.output
    assert "experiment: x" not in done.output


def completed(*words: str) -> list[str]:
    """What the shell offers for the last word."""
    shell = ShellComplete(main, {}, "rm-methods", "_RM_METHODS_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("show", "bradley"), ["bradley_terry", "bradley_terry_regression"]),
        (("benchmark", "--benchmarks", "rm_b"), ["rm_bench"]),
        (("benchmark", "--benchmarks", "rm_bench,llmb"), ["rm_bench,llmbar"]),
        (("evaluate", "--benchmark", "judge"), ["judge_bench"]),
        (("score", "--data", "hh_"), ["hh_rlhf"]),
        (("score", "--data", "my_pairs.jso"), ["my_pairs.jso"]),  # the shell completes files
        (("pla",), ["plan"]),
        (("list", "d"), ["datasets"]),
    ],
)
def test_the_shell_completes_verbs_and_names(words, offered):
    assert completed(*words) == offered
