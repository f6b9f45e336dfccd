"""A synthetic experiment in the files of docs/architecture.md, with effects that the tests choose."""

import json

import numpy as np
import pandas as pd
import pytest

from rm_methods.experiment.evaluated_runs import EvaluatedFiles


class ExperimentFolder:
    """Writes summary.json, metrics.json and credits.parquet of runs; credits are 0 or 1 by a latent ability of the
    variant.

    Args:
        benchmarks: name -> {"metrics": [...], "items": n, "strata": k}; strata have equal weight.
    """

    def __init__(self, folder, benchmarks=None, sampling_seed=0):
        self.folder = folder
        self.benchmarks = benchmarks or {"rm_bench": {"metrics": ["overall"], "items": 60, "strata": 1}}
        self.rng = np.random.default_rng(sampling_seed)
        self.difficulty = {name: self.rng.normal(0, 1.2, spec["items"]) for name, spec in self.benchmarks.items()}

    def add(self, variant, ability, seeds=(0, 1, 2), *, seed_spread=0.1, method=None, without=(), **summary):
        """Write the runs of a variant; returns their EvaluatedFiles."""
        shift = {name: self.rng.normal(0, 0.25, len(d)) for name, d in self.difficulty.items()}
        return [
            self._add_run(variant, ability, seed, seed_spread, method or variant, without, shift, summary)
            for seed in seeds
        ]

    def _add_run(self, variant, ability, seed, seed_spread, method, without, shift, summary):
        folder = self.folder / variant / f"seed{seed}"
        folder.mkdir(parents=True)
        run_ability = ability + self.rng.normal(0, seed_spread)
        frames, reports = [], {}
        for name, spec in self.benchmarks.items():
            if name in without:
                continue
            metrics = {}
            for offset, metric in enumerate(spec["metrics"]):
                latent = run_ability - 0.5 * offset + shift[name] - self.difficulty[name]
                credit = (self.rng.random(spec["items"]) < 1 / (1 + np.exp(-latent))).astype(float)
                frame = credits_frame(name, metric, credit, spec.get("strata", 1), spec.get("group_size", 1))
                metrics[metric] = float(
                    (frame.weight * frame.credit / frame.groupby("stratum").credit.transform("size")).sum()
                )
                frames.append(frame)
            reports[name] = {"metrics": metrics, "tie_rate": 0.0, "tie_rule": "a tie is wrong", "n_truncated": 3}
            reports[name] |= {"n_scored": spec["items"], "n_total": spec["items"]}
        identity = {"variant": variant, "method": method, "seed": seed, "run_key": f"key-{variant}-{seed}"}
        cost = {
            "tokens": 1_250_000,
            "wall_seconds": 194.0 + seed,
            "peak_memory_bytes": 1.4 * 2**30,
            "device": "cpu",
            "world_size": 1,
        }
        files = EvaluatedFiles(folder / "summary.json", folder / "metrics.json", folder / "credits.parquet")
        files.summary.write_text(
            json.dumps(identity | {"experiment": "test", "cost": cost, "data": {"hash": "d1"}} | summary)
        )
        files.metrics.write_text(json.dumps(identity | {"benchmarks": reports}))
        pd.concat(frames).to_parquet(files.credits)
        return files


def credits_frame(benchmark, metric, credit, strata=1, group_size=1):
    index = np.arange(len(credit))
    return pd.DataFrame(
        {
            "benchmark": benchmark,
            "metric": metric,
            "item_id": [f"item{i:05d}" for i in index],
            "group": [f"group{i // group_size}" for i in index],
            "stratum": [f"stratum{i * strata // len(credit)}" for i in index],
            "weight": 1.0 / strata,
            "credit": np.asarray(credit, dtype=np.float64),
        }
    )


@pytest.fixture
def experiment(tmp_path):
    """Function that makes an ExperimentFolder in a temporary folder."""
    return lambda **settings: ExperimentFolder(tmp_path / "experiment", **settings)


def change_json(path, change):
    """Read JSON, let `change` edit it, write it back."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def edit_json():
    return change_json
