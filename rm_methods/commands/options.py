"""Options that several verbs share, and checks of their values."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from rm_methods.errors import ConfigError, DataError, UserError, nearest, nearest_path

_OPTION_KEY = r"(?P<key>\bdata(?:\.sources\.\d+)?\.options\.(?P<name>\w+))"


def complete_methods(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Names of methods for the shell's completion."""
    from rm_methods.methods.registry import method_names

    return _beginning_with(begun, method_names())


def complete_benchmarks(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Names of benchmarks for the shell's completion, also after a comma."""
    from rm_methods.benchmarks.cards import list_benchmark_cards

    before, comma, last = begun.rpartition(",")
    return _beginning_with(last, list_benchmark_cards(), before + comma)


def complete_data(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Names of benchmarks and datasets for the shell's completion, and its own completion of files."""
    from rm_methods.benchmarks.cards import list_benchmark_cards
    from rm_methods.preferences.cards import list_dataset_cards

    names = _beginning_with(begun, [*list_benchmark_cards(), *list_dataset_cards()])
    return names or [CompletionItem(begun, type="file")]


def _beginning_with(begun: str, names: Iterable[str], before: str = "") -> list[CompletionItem]:
    return [CompletionItem(before + name) for name in sorted(set(names)) if name.startswith(begun)]


class _NamedPath(click.Path):
    """A path that is not empty, because an unset variable of a shell would name the current folder; and that is UTF-8,
    because records of runs hold it.
    """

    def convert(self, value, param, ctx):
        if not str(value).strip():
            self.fail("the path is empty. Name a file or folder.", param, ctx)
        try:
            str(value).encode("utf-8")
        except UnicodeEncodeError:
            shown = ascii(str(value))
            self.fail(f"{shown} has bytes that are not UTF-8, so no record could name it. Rename it.", param, ctx)
        return super().convert(value, param, ctx)


class _InputPath(_NamedPath):
    """A file or folder that must exist."""

    def convert(self, value, param, ctx):
        path = super().convert(value, param, ctx)
        if not path.exists():
            raise UserError(f"{param.opts[0]} {path}: no such file or folder.{nearest_path(path)}")
        return path


PATH = _NamedPath(path_type=Path)
INPUT = _InputPath(path_type=Path)
INPUT_FILE = _InputPath(dir_okay=False, path_type=Path)
FILE = _NamedPath(dir_okay=False, path_type=Path)
FOLDER = _NamedPath(file_okay=False, path_type=Path)
SEED = click.IntRange(min=0, max=2**32 - 1)
CONFIG_HELP = "Configuration file; repeatable, later files override earlier ones."


def config_files_option(help_text: str, *, required: bool = False):
    """The option --config, whose files a verb gets as `config_files`."""
    return click.option("--config", "config_files", multiple=True, required=required, type=FILE, help=help_text)


config_option = config_files_option(CONFIG_HELP, required=True)
methods_option = click.option(
    "--methods",
    "method_folders",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder with methods of yours, as in `methods_path` of a configuration; repeatable.",
)
variant_option = click.option("--variant", required=True, help="Name of a variant: a key of `methods:`.")
seed_option = click.option("--seed", required=True, type=SEED, help="Seed of the run.")
experiment_option = click.option(
    "--experiment", "folder", required=True, type=FOLDER, help="Folder of the experiment's results."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="CPU threads; 0 lets torch decide."
)
reader_option = click.option(
    "--option", "reader", multiple=True, help="NAME=VALUE of the reader, such as chosen_field=better; repeatable."
)
benchmarks_option = click.option(
    "--benchmark",
    multiple=True,
    required=True,
    shell_complete=complete_benchmarks,
    help="Name of a benchmark; repeatable.",
)
items_option = click.option(
    "--items", multiple=True, required=True, type=FILE, help="Benchmark items, one file per --benchmark."
)
policy_option = click.option("--policy", required=True, type=FOLDER, help="Policy folder.")
checkpoints_option = click.option(
    "--work", required=True, type=FOLDER, help="Folder for checkpoints of unfinished runs."
)
samples_option = click.option("--work", required=True, type=FOLDER, help="Folder for unfinished samples.")


def external_model_options(command):
    """Options for reward models from elsewhere, collected in `model_options`."""

    @functools.wraps(command)
    def with_options(chat_template, label, reference, trust_remote_code, **arguments):
        from rm_methods.scoring.model_options import ModelOptions

        options = ModelOptions(chat_template, label, reference, trust_remote_code)
        return command(model_options=options, **arguments)

    for option in (
        click.option(
            "--trust-remote-code", is_flag=True, help="Run the Python code that comes with the model; read it before."
        ),
        click.option(
            "--reference",
            default=None,
            help="Reference of a policy trained by DPO, whose implicit reward is scored: folder, hub id, or none.",
        ),
        click.option(
            "--label", default=None, help="Name or number of the output that is the reward, if the head has several."
        ),
        click.option(
            "--chat-template", type=FILE, default=None, help="Jinja file, in place of the tokenizer's chat template."
        ),
    ):
        with_options = option(with_options)
    return with_options


def find_methods(folders: Sequence[Path]) -> None:
    """Find methods in the folders of --methods, for a verb without a configuration.

    Raises:
        UserError: a folder cannot be used.
    """
    from rm_methods.methods.sources import named_folder_problems, use_folders

    if problem := next(named_folder_problems(folders, "--methods"), None):
        raise UserError(f"{problem}.")
    use_folders(folders)


def check_variant(config: Mapping[str, Any], variant: str) -> None:
    """Refuse a variant that the configuration does not have."""
    if variant not in config["methods"]:
        raise UserError(f"Unknown variant '{variant}'. {nearest(variant, config['methods'])}")


def benchmark_items(benchmarks: Sequence[str], items: Sequence[Path]) -> list[tuple[str, Path]]:
    """The benchmarks, each with its file of items."""
    if len(benchmarks) != len(items):
        raise UserError(
            f"{len(benchmarks)} --benchmark but {len(items)} --items were given; give one --items for each --benchmark."
        )
    return list(zip(benchmarks, items, strict=True))


def reader_options(texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE options of a reader as a mapping."""
    return named_values("--option", texts, "chosen_field=better")


def named_values(option: str, texts: Sequence[str], example: str) -> dict[str, Any]:
    """NAME=VALUE options as a mapping; values are read as YAML, or else as text."""
    from yaml import YAMLError

    from rm_methods.yaml_files import parse_yaml

    values = {}
    for given in texts:
        name, separator, text = given.partition("=")
        if not separator:
            raise UserError(f"{option} {given}: write NAME=VALUE, for instance {example}.")
        try:
            values[name] = parse_yaml(text)[0]
        except YAMLError:
            values[name] = text
    return values


@contextmanager
def reader_options_in_errors(config_files: Sequence[Path] = ()) -> Iterator[None]:
    """Errors inside name options of a reader as the command line gives them: `--option ties=drop`, not
    `data.options.ties: drop`.  With a configuration, they name both.

    Raises:
        ConfigError, DataError: those raised inside, with the names changed.
    """

    def named(text: str) -> str:
        also = r" (\g<key> of a configuration)" if config_files else ""
        text = re.sub(rf"\A{_OPTION_KEY}(?=: |\.\d+: )", r"--option \g<name>", text)
        text = re.sub(rf"{_OPTION_KEY}(?= is ')", r"--option \g<name>", text)
        text = re.sub(rf"{_OPTION_KEY}: (?P<value>[\w-]+|\[[^]]*\])", rf"--option \g<name>=\g<value>{also}", text)
        text = re.sub(rf"{_OPTION_KEY}(?<=_field)", rf"--option \g<name>=COLUMN{also}", text)
        text = re.sub(_OPTION_KEY, rf"--option \g<name>=VALUE{also}", text)
        return re.sub(r"\bdata(\.sources\.\d+)?\.options\b(?!\.)", "--option", text) if not config_files else text

    try:
        yield
    except ConfigError as error:
        source = "the options" if error.source == "the configuration" else error.source
        raise ConfigError(map(named, error.problems), source) from None
    except DataError as error:
        raise DataError(named(str(error))) from None


def counts_text(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in counts.items())


def named_folders(option: str, texts: tuple[str, ...]) -> dict[str, list[Path]]:
    """NAME=FOLDER options as a mapping; a name may have several folders."""
    return named_paths(option, texts, "teacher=results/x/runs/joint_encoder/seed0/model")


def named_paths(option: str, texts: tuple[str, ...], example: str) -> dict[str, list[Path]]:
    """NAME=PATH options as a mapping; a name may have several paths."""
    if wrong := [text for text in texts if "=" not in text]:
        raise UserError(f"{option} {wrong[0]}: write NAME=PATH, for instance {example}.")
    paths: dict[str, list[Path]] = {}
    for name, path in (text.split("=", 1) for text in texts):
        paths.setdefault(name, []).append(Path(path))
    return paths
