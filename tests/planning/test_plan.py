"""`rm-methods plan`: numbers by hand, what is assumed and what is measured, the whole of config/paper.yaml."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from click.testing import CliRunner

from rm_methods.benchmarks.cards import list_benchmark_cards
from rm_methods.cli import main
from rm_methods.config.resolve import load_config, resolve
from rm_methods.errors import ConfigError, UserError
from rm_methods.methods.registry import load_method_card, method_names
from rm_methods.planning import plan as planning
from rm_methods.planning.plan import Assumptions, make_assumptions, plan, warnings
from rm_methods.planning.shapes import published_configuration, shape_in_name
from rm_methods.planning.sizes import (
    Shape,
    activation_bytes,
    checkpoint_bytes,
    model_state_bytes,
    shape_of,
)
from rm_methods.preferences.pair import write_pairs
from rm_methods.system.deepspeed import configuration_file, configuration_problems, zero_settings
from rm_methods.system.memory import check_offload, main_memory
from tests.conftest import REPOSITORY, experiment_config, made_up_pairs

PAPER = REPOSITORY / "config" / "paper.yaml"


@pytest.fixture(scope="module")
def paper() -> dict:
    return load_config([PAPER])


def by_name(plans):
    return {entry.variant: entry for entry in plans}


def test_parameters_are_those_of_the_published_models():
    """Llama 3.1 8B has 8.030 billion parameters with its output matrix of 128,256 x 4,096, which a reward model
    lacks."""
    shape = shape_of(published_configuration("8B"))
    assert shape.parameters == 8_030_261_248 - 128_256 * 4096 + 4096
    assert shape.embedding == shape.largest_layer == 128_256 * 4096
    assert (shape.hidden, shape.layers, shape.attention) == (4096, 32, 4096)


@pytest.mark.parametrize(
    ("stage", "ranks", "gpu"),
    [
        (None, 1, 16_000),  # weight 4, gradient 4, moments 8
        (None, 2, 20_000),  # and buckets of the gradients
        ("zero0", 2, 20_000),
        ("zero1", 4, 8_000 + 12_000 + 3_000),  # 4 + 4; buffers of 2 x 4 + 4; (4 + 8) / 4
        ("zero2", 4, 4_000 + 12_000 + 4_000),  # 4; buffers; (4 + 4 + 8) / 4
        ("zero3", 4, 5_000 + 4_000),  # 20 / 4; everything gathered at once, because it is below the limit
    ],
)
def test_memory_of_weights_gradients_and_optimizer(stage, ranks, gpu):
    zero = zero_settings(stage) if stage else None
    assert model_state_bytes(1000, 100, zero, ranks) == (gpu, 0)


def test_offload_moves_the_optimizer_to_the_nodes_memory():
    gpu, host = model_state_bytes(1000, 100, zero_settings("zero3_offload"), 8, nodes=2)
    assert gpu == model_state_bytes(1000, 100, zero_settings("zero3"), 8)[0] - 12 * 1000 // 8
    assert host == 16 * 1000 // 2


def test_deepspeeds_estimators_have_the_same_form_for_16_bit_weights():
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    _, theirs, _ = estimate_zero3_model_states_mem_needs(10**10, 10**9, 8, 1, cpu_offload=False)
    ours, _ = model_state_bytes(10**10, 10**9, zero_settings("zero3"), 8)
    assert theirs == 4 * 10**9 + 18 * 10**10 // 8
    assert ours == 4 * 10**9 + 20 * 10**10 // 8


def test_activations_by_hand():
    shape = Shape(
        parameters=1000,
        embedding=200,
        largest_layer=200,
        hidden=10,
        intermediate=20,
        layers=3,
        heads=2,
        attention=10,
        key_value=5,
        trainable=1000,
    )
    layer = 26 * 10 + 8 * 20 + 12 * 10 + 8 * 5 + 4 * 2 + 8
    assert activation_bytes(shape, 7, recomputed=False) == 7 * 3 * layer + 2 * 800
    assert activation_bytes(shape, 7, recomputed=True) == 7 * (3 * 4 * 10 + layer)


@pytest.mark.parametrize(("stage", "each"), [(None, 12), ("zero0", 16), ("zero1", 20), ("zero2", 20), ("zero3", 16)])
def test_bytes_of_a_checkpoint(stage, each):
    assert checkpoint_bytes(1000, zero_settings(stage) if stage else None) == 1000 * each


def small(tmp_path, **sections):
    return experiment_config(tmp_path, data={"dataset": "world"}, **sections)


def test_gpu_hours_by_hand(tmp_path):
    config = small(
        tmp_path, methods={"bradley_terry": {}, "contrastive": {}}, training={"epochs": 2, "layout": "packed"}
    )
    assumed = Assumptions(gpu="a100", utilization=0.5, prompt_tokens=10, response_tokens=5, pairs=1000, responses=100)
    entries = by_name(plan(config, assumed))
    shape = shape_of(planning._configuration(config, "bradley_terry", None))
    each = 6 * (shape.parameters - shape.embedding) + 6 * 2 * 32 * 15  # 2 layers, attention width 32, context 10 + 5
    hours = 2 * 1000 * 20 * each / (312e12 * 0.5) / 3600
    assert entries["bradley_terry"].train_hours == pytest.approx(hours)
    assert entries["contrastive"].train_hours == pytest.approx(2 * hours)
    assert entries["bradley_terry"].steps == 2 * 125
    assert entries["bradley_terry"].score_hours == 0.0  # no benchmark
    recomputed = small(tmp_path, training={"epochs": 2, "gradient_checkpointing": True})
    assert by_name(plan(recomputed, assumed))["bradley_terry"].train_hours == pytest.approx(hours * 8 / 6)


def test_half_the_utilization_takes_twice_the_hours(tmp_path):
    assumed = Assumptions(pairs=100)
    whole, half = (
        by_name(plan(small(tmp_path), a))["bradley_terry"] for a in (assumed, replace(assumed, utilization=0.2))
    )
    assert half.train_hours == pytest.approx(2 * whole.train_hours)
    assert half.gpu_bytes == whole.gpu_bytes


def test_a_student_pays_for_its_teachers_maps(tmp_path):
    methods = {"bradley_terry": {}, "joint_encoder": {}, "stored": {"method": "interaction_distillation"},
               "online": {"method": "interaction_distillation", "online": True},
               "uniform": {"method": "interaction_distillation", "teacher": "uniform"}}  # fmt: skip
    config = small(tmp_path, methods=methods, training={"epochs": 3})
    entries = by_name(plan(config, Assumptions(pairs=1000, prompt_tokens=10, response_tokens=5)))
    more = {name: entries[name].train_hours - entries["bradley_terry"].train_hours for name in methods}
    assert more["online"] == pytest.approx(3 * more["stored"])
    assert more["uniform"] == 0 < more["stored"]
    assert entries["stored"].maps_bytes == 2 * 1000 * 20**2
    assert entries["online"].maps_bytes == entries["uniform"].maps_bytes == 0


def test_prepared_pairs_are_counted_and_measured(tmp_path, prepared):
    config = small(tmp_path)
    with pytest.raises(UserError, match=r"Give --pairs, or set data\.max_pairs\.train"):
        plan(config, make_assumptions(config, {}))
    folder = Path(config["results"]) / "test" / "data"
    folder.mkdir(parents=True)
    write_pairs(made_up_pairs(48), folder / "pairs.parquet")
    assert make_assumptions(config, {}).pairs == 48
    assert make_assumptions(config, {}).measured == ("pairs",)
    assert make_assumptions(config, {"pairs": 7}).pairs == 7
    (folder / "backbone").symlink_to(prepared[1])
    assumptions = make_assumptions(config, {})
    assert assumptions.measured == ("pairs", "prompt_tokens", "response_tokens")
    assert 5 < assumptions.response_tokens < assumptions.prompt_tokens < 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": "h1000"}, "Did you mean 'h100'"),
        ({"utilization": 40.0}, "at most 1"),
        ({"utilization": 0.0}, "above 0"),
        ({"shape": "7B"}, "Did you mean '70B'|Did you mean '1B'|Did you mean '8B'"),
    ],
)
def test_a_wrong_assumption_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        plan(small(tmp_path), replace(Assumptions(pairs=10), **change))


def test_a_model_of_unknown_size_needs_a_shape(tmp_path):
    config = small(tmp_path, backbone={"source": "somebody/unheard-of"})
    with pytest.raises(UserError, match="--shape"):
        plan(config, Assumptions(pairs=10))
    assert plan(config, Assumptions(pairs=10, shape="1B"))[0].parameters > 10**9


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "8B"),
        ("org/llama-3.3-70b", "70B"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "135M"),
        ("answerdotai/ModernBERT-large", "ModernBERT-large"),
        ("org/model-1.8B", None),
        ("org/8Bit", None),
    ],
)
def test_the_shape_in_a_models_name(source, shape):
    assert shape_in_name(source) == shape


def test_what_does_not_fit_is_named(paper):
    assumed = Assumptions(pairs=150_000)
    assert warnings(paper, plan(paper, assumed), assumed) == []
    larger = replace(assumed, shape="70B")
    found = warnings(paper, plan(paper, larger), larger)
    (crowded,) = [text for text in found if "GB a GPU, a h100 has 80" in text and text.startswith("bradley_terry and ")]
    assert "weights, gradients and optimizer" in crowded
    assert any("main memory" in text and "resources.memory_mb" in text for text in found)
    assert any(
        "resources.runtime_minutes" in text
        for text in warnings(paper, plan(paper, replace(assumed, utilization=0.001)), assumed)
    )


def test_training_on_text_needs_a_second_model_in_main_memory(paper):
    entry = paper["methods"]["joint_bidirectional"]
    config = paper | {
        "methods": {"joint_bidirectional": entry | {"settings": entry["settings"] | {"masked_language_epochs": 1}}}
    }
    assumed = Assumptions(pairs=150_000)
    (found,), (alone,) = (
        plan(config, assumed),
        [row for row in plan(paper, assumed) if row.variant == "joint_bidirectional"],
    )
    assert found.gpu_bytes == alone.gpu_bytes
    assert found.host_bytes == 2 * alone.host_bytes
    assert any("main memory" in text and "joint_bidirectional" in text for text in warnings(config, [found], assumed))


def test_training_on_text_trains_all_weights_beside_adapters(paper):
    entry = paper["methods"]["joint_bidirectional"] | {
        "lora": {"rank": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}
    }
    bytes_of = {}
    for epochs in (0, 1):
        settings = entry["settings"] | {"masked_language_epochs": epochs}
        (row,) = plan(
            paper | {"methods": {"joint_bidirectional": entry | {"settings": settings}}}, Assumptions(pairs=150_000)
        )
        bytes_of[epochs] = row.gpu_bytes
    assert bytes_of[1] > 1.5 * bytes_of[0]


def test_the_paper_has_every_method_and_every_benchmark_that_it_can(paper):
    used = {entry["method"] for entry in paper["methods"].values()}
    need_strengths = {"bradley_terry_regression", "scaled_bradley_terry", "soft_labels", "rm_distiller"}
    in_the_world_only = {"annotator", "cue_only", "gold", "cue_removed", "label_control"}
    # meta_rm is refused under ZeRO-3; attention_transfer would hold a whole 8B teacher on every GPU, dpo its reference.
    too_large = {"meta_rm", "attention_transfer", "dpo"}
    # An external row needs the name of a model.
    assert set(method_names()) - used == need_strengths | in_the_world_only | too_large | {"external"}
    # The world needs its own data; the others are on no hub.
    on_no_hub = {"alpaca_eval_pool", "auto_j", "llmbar", "rmb"}
    assert set(list_benchmark_cards()) - set(paper["benchmarks"]) == {"world"} | on_no_hub
    teachers = {
        e["settings"]["teacher"] for e in paper["methods"].values() if e["method"] == "interaction_distillation"
    }
    assert teachers == {"joint_encoder", "joint_bidirectional", "untuned_teacher", "random_teacher", "uniform"}
    assert paper["resources"]["gpus"] == paper["training"]["processes"] == 8
    assert paper["data"]["root"] is None
    assert all(entry["root"] is None for entry in paper["benchmarks"].values())


def test_plan_of_the_paper_prints_the_whole_dag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["plan", "--config", str(PAPER), "--gpu", "h200", "--utilization", "0.3"])
    assert done.exit_code == 0, done.output
    config = load_config([PAPER])
    runs = [
        (v, s)
        for v, e in config["methods"].items()
        for s in (config["seeds"][:1] if load_method_card(e["method"]).seed_free else config["seeds"])
    ]
    assert f"train {len(runs)}," in done.output
    assert f"score {len(runs) * len(config['benchmarks'])}," in done.output
    assert "utilization: 0.3" in done.output
    assert "h200: 989 TFLOP/s" in done.output
    for word in ("GPU-hours: ", "Disk that stays: ", "Scratch of a training job", "GB/node", *config["methods"]):
        assert word in done.output


def test_a_failing_dry_run_is_told(tmp_path):
    with pytest.raises(UserError, match="dry run of the workflow failed"):
        planning.job_counts([tmp_path / "absent.yaml"])


def test_shipped_deepspeed_configurations_are_accepted_and_named_in_the_schema():
    schema = (REPOSITORY / "rm_methods" / "config" / "config.schema.yaml").read_text()
    for name in ("zero0", "zero1", "zero2", "zero3", "zero3_offload"):
        assert Path(configuration_file(name)).is_file()
        assert name in schema
    assert zero_settings("zero3_offload")["offload_optimizer"]["device"] == "cpu"
    assert zero_settings(None) == {"stage": 0}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"zero_optimization": {"stage": 4}}, "4 is not 0, 1, 2 or 3"),
        (
            {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer: 'cpu' needs stage 1, 2 or 3",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "offload_param: 'cpu' needs stage 3, the stage is 2",
        ),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}, "nvme needs stage 3"),
        ({"zero_optimization": {"stage": 3}}, "stage3_gather_16bit_weights_on_model_save"),
        ({"bf16": {"enabled": True}}, "bf16.enabled: must be off; training.precision"),
        ({"optimizer": {"type": "AdamW"}}, "optimizer: must be left out"),
        ({"gradient_accumulation_steps": 4}, "must be 'auto', not 4; training.tokens_per_microbatch"),
    ],
)
def test_deepspeed_options_that_do_not_go_together_are_refused(content, problem):
    (found,) = configuration_problems(content)
    assert problem in found


def test_a_wrong_deepspeed_file_is_a_problem_of_the_configuration(tmp_path):
    file = tmp_path / "mine.json"
    for text, message in (
        ("{", "not a readable JSON file"),
        ('{"zero_optimization": {"stage": 3}}', "mine.json: zero_optimization"),
        ("[]", "object"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            resolve(
                {
                    "experiment": "x",
                    "data": {"dataset": "world"},
                    "methods": {"bradley_terry": {}},
                    "training": {"deepspeed": str(file)},
                }
            )


GIB = 2**30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """machine(files, slurm) makes a machine with 64 GiB free and these files below its root, and gives the root."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))

    def of(files, slurm=None):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        if slurm is None:
            monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
        else:
            monkeypatch.setenv("SLURM_MEM_PER_NODE", slurm)
        return tmp_path

    return of


def test_main_memory_is_what_is_free_where_nothing_limits_it(machine):
    assert main_memory(machine({})) == ("free on the machine", 64 * GIB)
    unlimited = {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"}
    assert main_memory(machine(unlimited, slurm="0")) == ("free on the machine", 64 * GIB)
    assert main_memory(machine({}, slurm="128000")) == ("free on the machine", 64 * GIB)


def test_main_memory_is_limited_by_the_job_of_slurm(machine):
    assert main_memory(machine({}, slurm="8192")) == ("SLURM_MEM_PER_NODE", 8 * GIB)


@pytest.mark.parametrize(
    "group", ["sys/fs/cgroup/job/step/memory.max", "sys/fs/cgroup/job/memory.max", "sys/fs/cgroup/memory.max"]
)
def test_main_memory_is_limited_by_any_group_around_the_process(machine, group):
    root = machine({"proc/self/cgroup": "0::/job/step\n", group: f"{6 * GIB}\n"}, slurm="8192")
    assert main_memory(root) == ("limit of the control group", 6 * GIB)


def test_main_memory_is_limited_by_groups_of_version_1_of_the_memory_controller_only(machine):
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/job\n4:memory:/slurm/job\n1:name=systemd:/x\n",
        "sys/fs/cgroup/memory/slurm/job/memory.limit_in_bytes": f"{5 * GIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/job/memory.max": "1\n",
    }
    assert main_memory(machine(files)) == ("limit of the control group", 5 * GIB)


def test_offload_beyond_the_memory_of_the_job_is_refused(machine):
    machine({}, slurm="1024")
    zero = zero_settings("zero3_offload")
    check_offload(2**20, zero)
    with pytest.raises(UserError, match=r"takes 2\.0 GiB .*only 1\.0 GiB are free \(SLURM_MEM_PER_NODE\)"):
        check_offload(2**27, zero)


def test_offload_without_memory_is_refused_before_training():
    zero = zero_settings("zero3_offload")
    check_offload(1000, zero)
    check_offload(10**15, zero_settings("zero3"))
    with pytest.raises(
        UserError, match=r"takes 149011\.6 GiB of main memory on each of 100 nodes.*resources\.memory_mb.*zero3"
    ):
        check_offload(10**15, zero, nodes=100)
