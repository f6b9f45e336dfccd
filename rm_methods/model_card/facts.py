"""Gathers what a model card says from the files of a run: its summary, those of the runs it needed, and the cards."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError, nearest_path
from rm_methods.files import read_json
from rm_methods.methods.registry import MethodCard, load_method_card
from rm_methods.preferences.cards import list_dataset_cards, load_dataset_card
from rm_methods.preferences.dataset_card import DatasetCard
from rm_methods.reward_models.backbones import WORLD_MODELS, WORLD_SCRATCH, source_folder
from rm_methods.reward_models.model_folder import IMPLICIT_REWARD_RECORD, MODEL_CARD
from rm_methods.run_card import RunSummary
from rm_methods.stored import read_summary

# A path of this machine: absolute with a folder, of the home folder, relative, or with a drive.
_PATH = re.compile(r"(?:/[^/\s]+/|~/|\.{1,2}/|[A-Za-z]:\\)\S.*")
_NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial", re.IGNORECASE)
_RUN = "runs/<variant>/seed<k>/model"
_LICENSE_KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class BaseModel:
    """The model that a training started from.

    Attributes:
        name: for readers, without a folder of this machine.
        hub_id: its name on the hub, if it was read from there.
        revision: of the hub; None where none was asked for.
        license: front matter of the model's README, if it is at hand: `license`, and for "other" also
            `license_name` and `license_link`.  Empty if unknown.
        has_weights: False for weights that were drawn at random.
    """

    name: str
    hub_id: str | None = None
    revision: str | None = None
    license: Mapping[str, str] = field(default_factory=dict)
    has_weights: bool = True


@dataclass(frozen=True)
class TrainingPairs:
    """The preference data of a run.

    Attributes:
        name: for readers; of a local file its name without the folder.
        license, citation, url: None where nothing says it.
        pairs: number of training pairs.
        hash: of the file of prepared pairs.
        splits: pairs by split; empty without the report of the preparation.
        noise: counts of flipped labels.
    """

    name: str
    hub_id: str | None
    revision: str | None
    license: str | None
    citation: str | None
    url: str | None
    pairs: int | None
    hash: str | None
    splits: Mapping[str, int]
    noise: Mapping[str, int]

    @property
    def is_non_commercial(self) -> bool:
        """Whether the license excludes commercial use."""
        return bool(self.license and _NON_COMMERCIAL.search(self.license))


@dataclass(frozen=True)
class CardFacts:
    """Everything that the card of a run's model folder says, except measures of an evaluation.

    Attributes:
        summary: of the run.
        method: card of its method; None if this installation does not have it.
        formula: what the file of the method says of it, with its equations; empty without the method.
        base: None for a scorer without weights.
        required: summaries of the runs that were needed first (teachers, members), those that are at hand.
        has_plain_weights: whether transformers loads the folder as a sequence classifier.
    """

    summary: RunSummary
    method: MethodCard | None
    formula: str
    base: BaseModel | None
    data: TrainingPairs
    required: tuple[RunSummary, ...]
    has_plain_weights: bool

    @property
    def title(self) -> str:
        """Name of the method for readers."""
        return self.method.title if self.method else self.summary["method"]


def summary_of(folder: Path) -> RunSummary:
    """The summary of the run that a model folder belongs to.

    Raises:
        UserError: no such folder, or not the model folder of a finished run of this project.
        DataError: the summary is damaged.
    """
    if not folder.is_dir():
        hint = nearest_path(folder, folders_only=True)
        raise UserError(f"{folder}: no such model folder. Name a folder {_RUN} of an experiment's results.{hint}")
    file = folder.parent / "summary.json"
    if not file.is_file():
        raise UserError(
            f"{folder}: {file} is missing, so this is not the model folder of a finished run, and nothing says how the "
            f"model was trained. Name a folder {_RUN} of an experiment's results; if the run was stopped, finish it. "
            "For a model from elsewhere, use `hf upload`."
        )
    return read_summary(file)


def experiment_folder(folder: Path) -> Path | None:
    """The experiment's folder of a run's model folder; None if the run is stored outside of an experiment."""
    runs = folder.absolute().parent.parent.parent
    return runs.parent if runs.name == "runs" else None


def gather_facts(folder: Path, summary: RunSummary) -> CardFacts:
    """The facts for the card of a model folder. Whatever is not at hand is left out, never guessed.

    Args:
        folder: the model folder of the run.
    """
    required = _required_summaries(folder, summary)
    trained = [summary, *(other for other in required if summary.get("kind") == "combined")]
    backbone = next((record["backbone"] for record in trained if record.get("backbone")), None)
    try:
        method = load_method_card(summary["method"])
    except UserError:
        method = None
    return CardFacts(
        summary=summary,
        method=method,
        formula=_formula(method) if method else "",
        base=_base_model(backbone) if backbone else None,
        data=_training_pairs(folder, summary, next((run["noise"] for run in trained if run.get("noise")), {})),
        required=required,
        has_plain_weights=(folder / "config.json").is_file()
        and not (folder / IMPLICIT_REWARD_RECORD).exists()
        and summary.get("scalar_reward", True),
    )


def without_folders(value: Any) -> Any:
    """A JSON-like value in which every path of this machine is reduced to its last part.

    >>> without_folders({"teacher": "/home/me/runs/teacher", "start": "backbone"})
    {'teacher': 'teacher', 'start': 'backbone'}
    """
    if isinstance(value, Mapping):
        return {key: without_folders(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(entry) for entry in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if is_path(value) else value


def is_path(value: Any) -> bool:
    """Whether a value is the text of a path of this machine."""
    return isinstance(value, str) and _PATH.fullmatch(value) is not None


def _required_summaries(folder: Path, summary: RunSummary) -> tuple[RunSummary, ...]:
    """Summaries of the runs whose keys a run depends on, in the order of the keys."""
    keys = [key for names in summary.get("depends_on", {}).get("required", {}).values() for key in names]
    root = experiment_folder(folder)
    if not keys or root is None:
        return ()
    by_key = {}
    for file in sorted((root / "runs").glob("*/seed*/summary.json")):
        try:
            other = read_summary(file)
        except UserError:
            continue  # unfinished or older: the card then lacks it
        by_key[other["run_key"]] = other
    return tuple(by_key[key] for key in keys if key in by_key)


def _formula(method: MethodCard) -> str:
    """The docstring of a method's file; the code is parsed, not run."""
    try:
        return ast.get_docstring(ast.parse(method.file.with_suffix(".py").read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError):
        return ""


def _base_model(backbone: Mapping[str, Any]) -> BaseModel:
    """The base model of a summary's section `backbone`."""
    record = backbone.get("prepared", {})
    source = str(record.get("source", backbone.get("source", "")))
    if source in WORLD_MODELS:
        return BaseModel(
            f"language model of the controlled world (`{source}`, part of rm-methods)",
            license={"license": "apache-2.0"},
        )
    if record.get("kind") == "tiny" or source in ("tiny", WORLD_SCRATCH):
        return BaseModel("none: the weights were drawn at random", has_weights=False)
    weights = str(record.get("weights") or source)
    is_hub_id = weights == source and source.count("/") == 1 and not is_path(source) and not Path(source).is_dir()
    if is_hub_id and not source.startswith("package:"):
        revision = record.get("revision")
        return BaseModel(source, hub_id=source, revision=revision, license=_license_of_hub_model(source, revision))
    name = source if source.startswith("package:") else without_folders(str(Path(source).absolute()))
    return BaseModel(f"`{name}`", license=_license_in(_local_folder(backbone, weights) / MODEL_CARD))


def _local_folder(backbone: Mapping[str, Any], weights: str) -> Path:
    if Path(weights).is_dir():
        return Path(weights)
    try:
        return Path(source_folder(str(backbone.get("source", ""))))
    except UserError:  # the package is not installed here
        return Path(weights)


def _license_of_hub_model(hub_id: str, revision: str | None) -> dict[str, str]:
    """The license in the README of a hub model that is in the cache; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(hub_id, MODEL_CARD, revision=revision)
    return _license_in(Path(file)) if isinstance(file, str) else {}


def _license_in(card: Path) -> dict[str, str]:
    """The license keys in the front matter of a README; empty if it has none."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    if not card.is_file():
        return {}
    try:
        text = card.read_text(encoding="utf-8-sig")
        entries = ModelCard(text, ignore_metadata_errors=True).data.to_dict() if text.startswith("---") else {}
    except (OSError, ValueError, YAMLError):
        return {}
    return {key: entries[key] for key in _LICENSE_KEYS if isinstance(entries.get(key), str)}


def _training_pairs(folder: Path, summary: RunSummary, noise: Mapping[str, int]) -> TrainingPairs:
    data = summary.get("data", {})
    name = str(data.get("dataset", "not recorded"))
    card = _dataset_card(name)
    root = experiment_folder(folder)
    mixture = _mixture(root / "data" / "report.json") if root and not card else {}
    return TrainingPairs(
        name=f"{card.title} (`{card.name}`)" if card else f"`{without_folders(str(Path(name).absolute()))}`",
        hub_id=card.hub_id if card else None,
        revision=card.revision if card else None,
        license=card.license if card else mixture.get("license"),
        citation=card.citation if card else mixture.get("citation"),
        url=card.url if card else None,
        pairs=data.get("pairs"),
        hash=data.get("hash"),
        splits=_splits(root / "data" / "report.json") if root else {},
        noise=noise,
    )


def _dataset_card(name: str) -> DatasetCard | None:
    """The card of a data set; None for a file, and for a card that is damaged: a long training must not fail here."""
    try:
        return load_dataset_card(name) if name in list_dataset_cards() else None
    except UserError:
        return None


def _mixture(report: Path) -> dict[str, str]:
    """Licenses and citations of a mixture's sources, from the report of the preparation; empty for other data."""
    try:
        content = read_json(report)
        return {key: content["dataset"][key] for key in ("license", "citation")} if "sources" in content else {}
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return {}


def _splits(report: Path) -> dict[str, int]:
    """Pairs by split, from the report of the preparation; empty without a whole one."""
    try:
        splits = read_json(report)["splits"]
        return {name: int(entry["pairs"]) for name, entry in splits.items()}
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return {}
