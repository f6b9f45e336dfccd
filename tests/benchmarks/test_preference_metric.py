from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rm_methods

MODULE = Path(rm_methods.__file__).parent / "benchmarks" / "preference_metric"

CODE = """
import json, sys
import evaluate

label = json.dumps({"chosen": [0, 1, 2], "rejected": [3, 4, 5]})
rm_bench = evaluate.load(sys.argv[1], "rm_bench")
scores = [[3, 1, 2, 2, 0, 3], [1, 1, 1, 0, 0, 0]]
results = {"rm_bench": rm_bench.compute(predictions=scores, references=[label] * 2, subsets=["chat", "code"])}

judge = evaluate.load(sys.argv[1], "judge_bench")
judge.add_batch(predictions=[[2, 1], [1, 1]], references=['"A>B"', '"B>A"'], subsets=["mmlu-pro", "mmlu-pro"])
judge.add_batch(predictions=[[float("nan"), 1]], references=['"B>A"'], subsets=["livecodebench"])
results["judge_bench"] = judge.compute()

for name, arguments in {
    "not JSON": {"predictions": [[2, 1]], "references": ["A>B"], "subsets": ["mmlu-pro"]},
    "subset": {"predictions": [[2, 1]], "references": ['"A>B"'], "subsets": ["mmlu"]},
}.items():
    try:
        judge.compute(**arguments)
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"
try:
    evaluate.load(sys.argv[1], "rmbench")
except Exception as error:
    results["unknown"] = f"{type(error).__name__}: {error}"
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the module answers in a process of its own, offline, with its caches in a temporary folder."""
    home = tmp_path_factory.mktemp("hf")
    environment = os.environ | {
        "HF_HOME": str(home),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", CODE, str(MODULE)], capture_output=True, text=True, env=environment, cwd=home
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_it_gives_the_metrics_of_the_evaluate_stage(results):
    """The chat item by hand is 1/3, 2/3, 1/3 (see test_rm_bench), the code item is all right."""
    values = results["rm_bench"]
    assert [values[name] for name in ("easy", "normal", "hard", "chat", "code")] == pytest.approx(
        [2 / 3, 5 / 6, 2 / 3, 4 / 9, 1]
    )


def test_batches_ties_and_missing_scores(results):
    values = results["judge_bench"]
    assert values["overall"] == values["overall_double_game"] == pytest.approx(1 / 3)
    assert values["overall_single_game"] == pytest.approx(2 / 3)
    assert values["coding"] == 0.0


def test_bad_input_is_explained(results):
    assert results["not JSON"].startswith("DataError: references, row 1: 'A>B' is not JSON")
    assert "unknown subset 'mmlu'" in results["subset"]
    assert "Did you mean 'rm_bench'" in results["unknown"]
