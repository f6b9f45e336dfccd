"""The verbs that are fuzzed: for each, small valid inputs, and an oracle for the answer to a changed one."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.subjects.arguments import Arguments
from tests.fuzz.subjects.base import Subject
from tests.fuzz.subjects.configurations import Check, DryRun, Plan, Words
from tests.fuzz.subjects.data import Contamination, Init, Prepare, PrepareBenchmark
from tests.fuzz.subjects.results import (
    Compare,
    CompareFolders,
    Diagnose,
    DiagnoseSummary,
    Overoptimization,
    Power,
    Track,
    Tune,
)
from tests.fuzz.subjects.scoring import Benchmark, Evaluate, Score
from tests.fuzz.subjects.sharing import Bundle, ModelFolder, Report, Verify
from tests.fuzz.subjects.training import (
    Ppo,
    PrepareBackbone,
    Sample,
    Sft,
    SourceFolder,
    Train,
    TrainWorldModel,
)

# Not config/smol.yaml: it reads local folders that a plain clone lacks.
CONFIGURATIONS = ("quickstart", "paper", "noise", "interaction_distillation", "overoptimization", "tune_world")
FORMATS = (
    "text.jsonl",
    "conversations.jsonl",
    "implicit.jsonl",
    "text.json",
    "text.csv",
    "text.parquet",
    "conversations.parquet",
)
BENCHMARKS = (
    "heldout",
    "rm_bench",
    "judge_bench",
    "hh_rlhf",
    "alpaca_eval_pool",
    "ppe_correctness",
    "llmbar",
    "auto_j",
    "tldr",
    "helpsteer3",
    "ultrafeedback",
    "rewardbench",
    "rewardbench2",
    "rmb",
    "ppe_preference",
)
_FILES: dict[str, type[Subject]] = {
    "list/word": Words,
    "show/word": Words,
    **{f"init/{name}": Init for name in ("text.jsonl", "text.csv", "conversations.parquet")},
    **{f"check/{name}": Check for name in CONFIGURATIONS},
    "plan/config": Plan,
    "snakemake/config": DryRun,
    **{f"prepare/{name}": Prepare for name in FORMATS},
    **{f"prepare-backbone/{name}": PrepareBackbone for name in ("config", "pairs")},
    "prepare-backbone/source": SourceFolder,
    **{f"prepare-benchmark/{name}": PrepareBenchmark for name in BENCHMARKS},
    "contamination/tables": Contamination,
    **{f"train/{name}": Train for name in ("config", "pairs", "backbone")},
    **{f"score/{name}": Score for name in ("text", "items", "prepared", "model", "foreign-model", "longest-model")},
    **{f"benchmark/{name}": Benchmark for name in ("files", "model")},
    "evaluate/tables": Evaluate,
    "compare/experiment": Compare,
    "compare/folders": CompareFolders,
    "power/experiment": Power,
    "report/experiment": Report,
    "bundle/experiment": Bundle,
    "verify/bundle": Verify,
    **{f"{verb}/model": ModelFolder for verb in ("model-card", "copy-model", "push")},
    "tune/experiment": Tune,
    **{f"diagnose/{name}": Diagnose for name in ("items", "model")},
    **{f"diagnose-teacher/{name}": Diagnose for name in ("items", "teacher")},
    "diagnose-summary/experiment": DiagnoseSummary,
    "overoptimization/experiment": Overoptimization,
    "track/experiment": Track,
    **{f"sft/{name}": Sft for name in ("config", "pairs")},
    **{f"sample-pool/{name}": Sample for name in ("config", "pairs", "policy")},
    **{f"sample-references/{name}": Sample for name in ("pairs", "policy")},
    **{f"ppo/{name}": Ppo for name in ("config", "pairs", "references", "policy", "model")},
    "train-world-model/start": TrainWorldModel,
}
# Verbs without a subject, and why.
LEFT_OUT = {
    "test-method": "it reads code of its user: tests/methods/test_contract_failures.py has wrong methods",
    "cancel": "it reads no file, and acts on the queue of Slurm: tests/system/test_cluster.py has made-up queues",
}
# A subject of each verb whose options get odd words, too; Snakemake's options are not ours, and `verify` has none.
_WITH_OPTIONS = {
    name.split("/")[0]: name
    for name in reversed(_FILES)
    if not name.startswith(("list/", "show/", "snakemake/", "verify/"))
}
SUBJECTS: tuple[str, ...] = (*_FILES, *(f"{verb}/options" for verb in _WITH_OPTIONS))


def make_subject(name: str, seeds: dict[str, Path]) -> Subject:
    """A subject by its name.

    Args:
        seeds: folders of the finished experiments, by `Subject.study`.
    """
    verb, kind = name.split("/")
    if kind == "options":
        inner = make_subject(_WITH_OPTIONS[verb], seeds)
        subject = Arguments(name, inner.seeds)
        subject.inner = inner
        return subject
    subject_class = _FILES[name]
    return subject_class(name, seeds[subject_class.study])
