"""performance/compare_speed.py: a small table end to end, and that its methods have names of their own."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.performance.test_gpu_script import script


@pytest.mark.process
def test_the_script_compares_made_up_runs(tmp_path):
    options = {"--variants": 3, "--seeds": 3, "--benchmarks": 1, "--metrics": 2, "--out": tmp_path / "out"}
    command = [sys.executable, REPOSITORY / "performance" / "compare_speed.py"]
    for name, value in options.items():
        command += [name, value]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "11 runs, 2 columns" in done.stdout
    assert "peak memory" in done.stdout
    assert (tmp_path / "out" / "comparison.png").exists()


def test_the_scripts_variants_have_different_names_and_begin_with_the_reference():
    variants = script("compare_speed").trained_variants(60)
    assert len({name for name, _ in variants}) == 60
    assert variants[0] == ("bradley_terry", "bradley_terry")
