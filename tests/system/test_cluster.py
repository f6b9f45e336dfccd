"""What a training job asks for, and `rm-methods cancel`, with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from click.testing import CliRunner

from rm_methods.cli import main
from rm_methods.errors import ConfigError, UserError
from rm_methods.system import cluster
from tests.conftest import REPOSITORY, experiment_config

SQUEUE = """#!/bin/sh
echo "squeue $*" >> {folder}/calls
cat {folder}/queue
"""
SCANCEL = """#!/bin/sh
echo "scancel $*" >> {folder}/calls
: > {folder}/queue
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with squeue, which prints `queue`, and scancel, which empties it; both write down how they were
    called."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (("squeue", SQUEUE), ("scancel", SCANCEL)):
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    (folder / "queue").write_text("")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def line(
    job, folder, name="rm-methods_1f3a", state="RUNNING", where="node3", comment="rule_train_wildcards_bradley_terry_0"
):
    return "\t".join([str(job), name, state, where, comment, str(folder)]) + "\n"


def resources(folder, trained=True, **section):
    config = experiment_config(folder, resources=section, training={"processes": section.get("gpus", 0) or 1})
    names = ("gpu", "tasks", "nodes", "mpi", "gres", "tasks_per_gpu")
    found = {
        n: cluster.train_resource(config, lambda variant: trained, n)(SimpleNamespace(variant="bradley_terry"))
        for n in names
    }
    return {name: value for name, value in found.items() if value is not None}


def test_a_job_on_one_node_is_one_task_with_all_its_gpus(tmp_path):
    assert resources(tmp_path, gpus=4) == {"gpu": 4, "tasks": 0}
    assert resources(tmp_path) == {"gpu": 0, "tasks": 0}


def test_a_job_on_several_nodes_is_one_task_a_node_with_gpus_by_node(tmp_path):
    expected = {"gpu": 0, "nodes": 2, "tasks": 2, "mpi": "srun", "gres": "gpu:4", "tasks_per_gpu": 0}
    assert resources(tmp_path, gpus=4, nodes=2) == expected
    assert resources(tmp_path, nodes=3) == {"gpu": 0, "nodes": 3, "tasks": 3, "mpi": "srun"}


def test_what_is_not_trained_takes_neither_gpus_nor_nodes(tmp_path):
    assert resources(tmp_path, trained=False, gpus=4, nodes=2) == {"gpu": 0, "tasks": 0}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"resources": {"gpus": 4}}, "resources.gpus: 4, but training.processes: 1; both are per node"),
        (
            {"resources": {"nodes": 5}, "training": {"processes": 2}},
            "training.pairs_per_step: 8 is fewer than the 10 ranks",
        ),
        ({"resources": {"nodes": 0}}, "resources.nodes"),
    ],
)
def test_resources_that_cannot_be_are_refused(tmp_path, sections, message):
    with pytest.raises(ConfigError, match=message):
        experiment_config(tmp_path, **sections)


def test_the_profile_and_cancel_agree_on_the_prefix_and_rules_have_no_retries():
    profile = yaml.safe_load((REPOSITORY / "workflow" / "profiles" / "slurm" / "config.yaml").read_text())
    assert profile["slurm-jobname-prefix"] == cluster.JOB_PREFIX
    assert profile["retries"] > 0
    rules = [file.read_text() for file in (REPOSITORY / "workflow" / "rules").glob("*.smk")]
    assert rules
    assert not any("retries:" in text for text in rules), (
        "the plugin would honor them a second time inside the Slurm job"
    )


def test_cancel_takes_this_folders_jobs_of_the_prefix_and_says_how_to_go_on(slurm, tmp_path):
    text = line(11, tmp_path) + line(12, tmp_path, state="PENDING", where="(Resources)") + line(13, "/elsewhere")
    (slurm / "queue").write_text(
        text + line(14, tmp_path, name="my_own_job") + line(15, tmp_path, name="rm-methods2_x")
    )
    done = CliRunner().invoke(main, ["cancel", "--folder", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert [call for call in (slurm / "calls").read_text().splitlines() if call.startswith("scancel")] == [
        "scancel 11 12"
    ]
    assert "2 rm-methods jobs" in done.output
    assert "11  running  rule_train_wildcards_bradley_terry_0  node3" in done.output
    assert "snakemake --unlock" in done.output


def test_cancel_everywhere_and_list(slurm, tmp_path):
    (slurm / "queue").write_text(line(11, tmp_path) + line(13, "/elsewhere"))
    listed = CliRunner().invoke(main, ["cancel", "--everywhere", "--list"]).output
    assert "2 rm-methods jobs anywhere:" in listed
    assert "scancel" not in (slurm / "calls").read_text()
    CliRunner().invoke(main, ["cancel", "--everywhere"])
    assert "scancel 11 13" in (slurm / "calls").read_text()


def test_cancel_with_an_empty_queue_says_so(slurm, tmp_path):
    done = CliRunner().invoke(main, ["cancel", "--folder", str(tmp_path)])
    assert (done.exit_code, done.output) == (0, f"No rm-methods jobs submitted from {tmp_path} in Slurm's queue.\n")


def test_cancel_waits_and_names_jobs_that_do_not_end(slurm, tmp_path):
    (slurm / "queue").write_text(line(11, tmp_path, state="COMPLETING"))
    (slurm / "scancel").write_text("#!/bin/sh\n")
    with pytest.raises(UserError, match=r"11 \(COMPLETING on node3\) did not end within 1 s"):
        cluster.cancel(tmp_path, patience=1.0)


def test_cancel_refuses_while_snakemake_runs_there(slurm, tmp_path):
    (slurm / "queue").write_text(line(11, tmp_path))
    script = tmp_path / "snakemake"
    script.write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    submits, inside = (
        subprocess.Popen([sys.executable, str(script), *more], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for more in ([], ["--mode", "remote"])
    )
    try:
        assert [process.stdout.readline() for process in (submits, inside)] == ["up\n"] * 2
        with pytest.raises(UserError, match=rf"Snakemake still runs in .*kill -INT {submits.pid}"):
            cluster.cancel(tmp_path)
        submits.kill()
        submits.wait()
        assert [job.job_id for job in cluster.cancel(tmp_path)] == ["11"]
    finally:
        submits.kill()
        inside.kill()
        submits.wait()
        inside.wait()


@pytest.mark.parametrize(
    ("squeue", "message"),
    [
        (None, "squeue: not found. Run this where Slurm's commands are installed"),
        ("echo down >&2; exit 1", "failed \\(1\\): down"),
    ],
)
def test_without_slurm_the_error_says_what_is_missing(tmp_path, monkeypatch, squeue, message):
    if squeue:
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{squeue}\n")
        (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    if squeue:
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    with pytest.raises(UserError, match=message):
        cluster.queued_jobs()


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("echo RUNNING", "RUNNING"),
        ("true", "GONE"),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "GONE"),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", None),
    ],
)
def test_the_state_of_a_job_is_unknown_only_where_slurm_does_not_answer(slurm, script, state):
    (slurm / "squeue").write_text(f"#!/bin/sh\n{script}\n")
    assert cluster.job_state("41") == state
