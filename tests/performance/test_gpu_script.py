"""performance/gpu.py and its neighbors: run end to end on a CPU, and what they count."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from rm_methods.planning.shapes import published_configuration
from rm_methods.planning.sizes import activation_bytes, shape_of
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.process


def script(name: str):
    """A script of performance/ as a module."""
    specification = importlib.util.spec_from_file_location(name, REPOSITORY / "performance" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_gpu_script_runs_to_the_end_on_a_cpu(tmp_path):
    command = [
        sys.executable,
        REPOSITORY / "performance" / "gpu.py",
        "--tiny",
        "--pairs",
        "120",
        "--out",
        tmp_path / "gpu.json",
    ]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["gpu"] is None or found["gpu"] in done.stdout or torch.cuda.is_available()
    assert [row["part"] for row in found["rows"]] == ["attention", "training", "scoring", "training"]
    assert all(row["tokens_per_second"] > 0 for row in found["rows"] if row["part"] != "attention")
    assert "interaction_distillation" in done.stdout


def test_packed_attention_and_flex_attention_agree():
    found = script("gpu").attention_case(4, 2, 16, 3, 24, 8)
    assert found["tokens"] == 3 * (24 + 2 * 8)
    assert found["largest_difference"] < 0.05
    assert found["packed"] > 0
    assert found["flex"] > 0


@pytest.mark.parametrize("name", ["135M", "1B", "8B"])
def test_the_scripts_shapes_are_the_published_ones(name):
    gpu = script("gpu")
    shape = shape_of(published_configuration(name))
    # What is left are the norms (two a layer and one at the end) and the head.
    norms = (2 * shape.layers + 1) * shape.hidden + shape.hidden
    assert gpu.matrix_parameters(gpu.SIZES[name]) == shape.parameters - shape.embedding - norms


def test_a_failing_row_is_named_and_not_counted_as_a_result():
    gpu = script("gpu")
    assert gpu.line(
        {"part": "training", "case": ["8B", "bradley_terry", "zero2"], "error": "CUDA out of memory"}
    ).endswith("failed: CUDA out of memory")
    assert (
        gpu._reason("a\ntorch.OutOfMemoryError: CUDA out of memory. Tried\nrank failed")
        == "torch.OutOfMemoryError: CUDA out of memory. Tried"
    )
    assert gpu._reason("first\nlast") == "last"


def test_the_largest_shape_is_cut_to_the_layers_asked_for():
    from argparse import Namespace

    gpu = script("gpu")
    assert gpu.sizes(Namespace(tiny=False, layers=4))["8B"] == (4096, 14336, 4, 32, 8)
    assert gpu.sizes(Namespace(tiny=False, layers=99))["8B"][2] == 32


def test_the_formula_of_activations_is_what_autograd_keeps(monkeypatch):
    from rm_methods.reward_models import packed_attention

    monkeypatch.setattr(packed_attention, "_multiplies_blocks", lambda *_: False)
    measure = script("activation_memory")
    from transformers import LlamaConfig

    hidden, intermediate, heads, key_value_heads, size = sizes = measure.SHAPES[0]
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=size,
        pad_token_id=0,
    )
    shape = shape_of(config)
    for recomputed in (False, True):
        copies = 0 if recomputed else 2 * (shape.parameters - shape.embedding)
        counted = activation_bytes(shape, 512, recomputed) - activation_bytes(shape, 256, recomputed)
        once = (
            256 * (26 * hidden + 8 * intermediate + 12 * heads * size + 8 * key_value_heads * size + 4 * heads + 8)
            if recomputed
            else 0
        )
        assert (counted - once) / 256 / 4 == measure.bytes_per_token_and_layer(sizes, recomputed)
        assert activation_bytes(shape, 0, recomputed) == copies


def test_recomputed_activations_keep_no_copies_of_the_weights(monkeypatch):
    """Under ZeRO-3 such copies would stand whole on every GPU."""
    from rm_methods.reward_models import packed_attention

    monkeypatch.setattr(packed_attention, "_multiplies_blocks", lambda *_: False)
    measure = script("activation_memory")
    assert measure.saved_bytes(measure.SHAPES[0], 2, 248, True)[1] == 0
    assert measure.saved_bytes(measure.SHAPES[0], 2, 248, False)[1] > 0
