"""Data, models and runs that the contract test needs, made when they are needed and kept for the next property."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rm_methods.contract_test.small_experiment import made_up_pairs, small_config
from rm_methods.errors import UserError
from rm_methods.methods.contract import Inputs
from rm_methods.methods.registry import MethodCard, load_method, load_method_card
from rm_methods.methods.sources import use_folders
from rm_methods.preferences.pair import PreferencePair, write_pairs

TRAIN_PAIRS = 48
VALIDATION_PAIRS = 12
SEEDS = (0, 1)


@dataclass(frozen=True)
class SmallData:
    """What a method trains on.

    Attributes:
        file: prepared pairs, training and validation.
        backbone: folder of a prepared tiny model.
        train: the training pairs.
    """

    file: Path
    backbone: Path
    train: list[PreferencePair]


@dataclass(frozen=True)
class FinishedRun:
    """A run of a method.

    Attributes:
        folder: holds `model/`, and the files below.
        summary: content of `summary.json`.
        log: lines of `metrics.jsonl`.
    """

    folder: Path
    summary: dict[str, Any]
    log: list[dict[str, Any]]


class Workbench:
    """Trains methods on 48 pairs, in a folder.

    Args:
        folder: for everything made.
        method_folders: folders with methods outside the package.
        settings: of methods, by name; those left out have the defaults of the card.
    """

    def __init__(
        self,
        folder: Path,
        method_folders: Sequence[Path] = (),
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        self.folder = folder
        self.method_folders = [str(path) for path in method_folders]
        use_folders(method_folders)
        self.settings = settings or {}
        self._data: dict[str | None, SmallData] = {}
        self._required: dict[tuple[str, int], Path] = {}
        self._trained: dict[str, FinishedRun] = {}
        self._folders = 0

    def new_folder(self, name: str) -> Path:
        """An empty folder."""
        self._folders += 1
        folder = self.folder / f"{self._folders}_{name}"
        folder.mkdir(parents=True)
        return folder

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration of a small experiment."""
        return small_config(self.folder, methods_path=self.method_folders)

    def method_settings(self, name: str) -> dict[str, Any]:
        """All settings of a method."""
        return load_method_card(name).defaults() | dict(self.settings.get(name, {}))

    def method(self, name: str) -> Any:
        """A new object of the method's class."""
        return load_method(name, self.method_settings(name))

    def data(self, name: str) -> SmallData:
        """What a method trains on: pairs of the controlled world if its settings need that."""
        from rm_methods.preferences.world import generate
        from rm_methods.reward_models.backbones import prepare_backbone

        needed = self._data_needed(name)
        if needed not in self._data:
            folder = self.new_folder("data")
            if needed is None:
                train = made_up_pairs(TRAIN_PAIRS)
                pairs = [*train, *made_up_pairs(VALIDATION_PAIRS, seed=1, split="validation")]
            else:
                pairs = generate(annotator={}, train_pairs=TRAIN_PAIRS, validation_pairs=VALIDATION_PAIRS, test_pairs=0)
                train = [pair for pair in pairs if pair.split == "train"]
            write_pairs(pairs, folder / "pairs.parquet")
            prepare_backbone(self.config["backbone"], train, folder / "backbone")
            self._data[needed] = SmallData(folder / "pairs.parquet", folder / "backbone", train)
        return self._data[needed]

    def _data_needed(self, name: str) -> str | None:
        return load_method_card(name).data_needed(self.method_settings(name))

    def sections(self, name: str) -> dict[str, Any]:
        """Sections of a configuration that trains a method."""
        methods = {other: dict(self.settings.get(other, {})) for other in [name, *self._required_methods(name)]}
        sections = {"methods": methods, "seeds": list(SEEDS), "methods_path": self.method_folders}
        if self._data_needed(name) is not None:
            sections["data"] = {"dataset": "world", "options": {"annotator": {}}}
        return sections

    def _required_methods(self, name: str) -> list[str]:
        """What the method requires, what those require, and so on."""
        methods = []
        for other in load_method_card(name).required_variants(self.method_settings(name)).values():
            methods += [other, *self._required_methods(other)]
        return methods

    def required(self, name: str) -> dict[str, list[Path]]:
        """Model folders of the runs that a method requires, by setting; they are trained once."""
        card = load_method_card(name)
        folders: dict[str, list[Path]] = {}
        for key, other in card.required_variants(self.method_settings(name)).items():
            for seed in range(_required_seeds(card, key)):
                if (other, seed) not in self._required:
                    self._required[other, seed] = self.run(other, seed).folder / "model"
                folders.setdefault(key, []).append(self._required[other, seed])
        return folders

    def run(self, name: str, seed: int = 0, folder: Path | None = None, **training: Any) -> FinishedRun:
        """Run a method to its end.

        Args:
            folder: of the run; a new one by default.
            training: changes of this section of the configuration.
        """
        from rm_methods.training.run import RunFiles, train

        folder = folder or self.new_folder(name)
        config = small_config(self.folder, training=training, **self.sections(name))
        data = self.data(name)
        files = RunFiles(
            pairs=data.file,
            backbone=data.backbone,
            model=folder / "model",
            metrics=folder / "metrics.jsonl",
            summary=folder / "summary.json",
            work=folder / "work",
            required=self.required(name),
        )
        summary = train(config, name, seed, files)
        log = [json.loads(line) for line in files.metrics.read_text(encoding="utf-8").splitlines()]
        return FinishedRun(folder, dict(summary or {}), log)

    def trained(self, name: str) -> FinishedRun:
        """A run of six epochs; a method is trained once for all properties."""
        if name not in self._trained:
            self._trained[name] = self.run(name, epochs=6)
        return self._trained[name]

    def micro_batches(
        self, name: str, n_pairs: int | None = None, *, layout: str = "packed", tokens: int = 10**6
    ) -> tuple[Any, Any, list[Any]]:
        """(method, model, micro-batches) as a training of one step would make them.

        Args:
            n_pairs: the first training pairs; None takes all.
            layout: "packed" or "plain".
            tokens: at most in one micro-batch.
        """
        from rm_methods.reward_models.batching import plan_steps
        from rm_methods.training.trainer import PlannedSteps

        data = self.data(name)
        method = self.method(name)
        training = method.training(self.config["training"], 0)
        config = {"backbone": self.config["backbone"], "training": training}
        work = self.new_folder(name) / "work" / "run"
        inputs = Inputs(0, work, name, config, data.backbone, self.required(name))
        pairs = list(method.transform_pairs(data.train[:n_pairs], inputs))
        reader = method.reader(pairs, inputs)
        items = reader.encode((pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs)
        model = method.model(pairs, reader, inputs)
        layout = model.layout(layout)
        plan = plan_steps(
            items, steps=1, pairs_per_step=len(items), tokens_per_microbatch=tokens, seed=0, ranks=1, layout=layout
        )
        method.build(model, replace(inputs, pairs=pairs, items=items, reader=reader))
        steps = PlannedSteps(plan, pairs, items, layout=layout, rank=0, pad_id=reader.pad_id)
        return method, model, [replace(batch, progress=0.5) for batch in steps[0]["micro_batches"]]

    def check_can_run(self, name: str) -> None:
        """Refuse settings that the card does not allow, and mistakes in the code that show without running it.

        Raises:
            UserError: all of them.
        """
        small_config(self.folder, **self.sections(name))
        if load_method_card(name).kind in ("external", "computed"):
            raise UserError(
                f"'{name}' is of kind {load_method_card(name).kind}; the contract test is for trained, joint, combined "
                "and content_blind methods."
            )


def _required_seeds(card: MethodCard, setting: str) -> int:
    """The number of runs that a setting needs."""
    need = card.requires[setting]
    return max(len(SEEDS), need.get("at_least", 1)) if need.get("seeds") == "all" else 1
