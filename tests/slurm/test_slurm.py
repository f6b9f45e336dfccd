"""The workflow through a real Slurm: several nodes, GPU requests, retries, a killed Snakemake, a node that disappears,
too few GPUs.

Two checkouts use Slurm at the same time: one runs the workflow to its end while the other one is killed and recovers.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

import pytest

from tests.slurm.conftest import ONE_GPU, bring_back, in_queue, lose_node, wait_for

pytestmark = pytest.mark.process

EPOCHS, STEPS = 80, 80 * 15


def test_a_killed_snakemake_and_a_lost_node_cost_only_the_steps_since_the_last_checkpoint(projects, slurm):
    project = projects[1]
    target, comment = "results/smoke/runs/bradley_terry/seed2/summary.json", "rule_train_wildcards_bradley_terry_2"
    config = project.configure("long.yaml", seeds=[2], resources=ONE_GPU, training={"epochs": EPOCHS})
    run = project.results / "runs" / "bradley_terry" / "seed2"
    log = project.results / "logs" / "train" / "bradley_terry_seed2.log"

    def newest_checkpoint():
        complete = project.results.glob("work/*/checkpoint-*/complete")
        return max((int(file.parent.name.rsplit("-", 1)[1]) for file in complete), default=0)

    # Snakemake is killed; its job runs on, and a second writer is refused.
    process = project.start(config, target)
    wait_for("a checkpoint", newest_checkpoint)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (orphan,) = project.jobs(comment)
    assert orphan["JobState"] == "RUNNING"
    assert orphan["TresPerJob"] in ("gpu:1", "gres:gpu:1")
    ((gpus, command),) = project.train_calls(orphan)
    assert gpus in ("0", "1")
    status, output = project.rm_methods(*command)
    assert status == 2
    assert f"is being written by process {json.loads((run / 'writer.lock').read_text())['process']} on " in output
    assert f"Slurm job {orphan['JobId']}" in output

    # Canceled and started again, it continues.  Jobs of the other checkout are left alone.
    status, output = project.rm_methods("cancel")
    assert status == 0, output
    assert "1 rm-methods jobs" in output
    assert comment in output
    assert project.jobs(comment)[0]["JobState"] == "CANCELLED"
    assert not [job for job in projects[0].jobs("") if job["JobState"] == "CANCELLED"]
    assert project.run(*project.command(config, "--unlock"))[0] == 0
    before = newest_checkpoint()
    assert before > 0
    project.start(config, target)
    wait_for("a newer checkpoint", lambda: newest_checkpoint() > before)
    assert f"/checkpoint-{before}\n" in log.read_text()

    # Its node disappears; Slurm starts it again on the other one, and it continues once more.
    before = newest_checkpoint()
    job = project.jobs(comment)[1]
    lose_node(slurm, job["NodeList"])
    moved = wait_for(
        # Between its two starts a job has no node, written as nothing or as "(null)".
        "the job on the other node",
        lambda: [j for j in project.jobs(comment)[1:] if {j["NodeList"], job["NodeList"]} == {"n1", "n2"}],
    )
    bring_back(slurm, job["NodeList"])
    assert (moved[0]["JobId"], moved[0]["Restarts"]) == (job["JobId"], "1")
    project.finish()
    assert "takes over from process" in log.read_text()
    assert int(re.search(r"resumes from .*/checkpoint-(\d+)\n", log.read_text())[1]) >= before
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
    assert [j["JobState"] for j in project.jobs(comment)] == ["CANCELLED", "COMPLETED"]
    assert not (run / "writer.lock").exists()


def test_gpus_that_are_not_those_asked_for_stop_a_training_before_it_starts(projects):
    project = projects[1]
    config = project.configure("gpus.yaml", resources=ONE_GPU)
    files = [
        "--pairs",
        "results/smoke/data/pairs.parquet",
        "--backbone",
        "results/smoke/data/backbone",
        "--out",
        "out",
        "--work",
        "work",
    ]
    run = ["--config", config, "--variant", "bradley_terry", "--seed", "3"]
    status, output = project.run("srun", "--gpus=2", "rm-methods", "train", *run, *files)
    assert status == 2
    assert "resources.gpus: 1 GPUs were asked for, but Slurm job" in output
    assert "shows 2 (CUDA_VISIBLE_DEVICES=0,1)" in output
    assert list((project.folder / "out").iterdir()) == []


def test_more_gpus_than_there_are_is_an_error_of_slurm_that_snakemake_shows(projects):
    project = projects[1]
    config = project.configure("many.yaml", seeds=[3], resources=ONE_GPU | {"gpus": 8}, training={"processes": 8})
    target = "results/smoke/runs/bradley_terry/seed3/summary.json"
    status, output = project.run(*project.command(config, target, "--retries", "0"))
    assert status == 1
    assert "Requested node configuration is not available" in output


@pytest.fixture(scope="module")
def finished(projects):
    projects[0].finish()
    return projects[0]


def test_the_workflow_runs_to_the_end(finished):
    assert "Bradley-Terry" in (finished.results / "comparison" / "table.txt").read_text()
    exported = json.loads((finished.results / "tracking" / "export.json").read_text())
    assert [run["status"] for run in exported] == ["exported"]


def test_a_job_that_failed_is_tried_again_with_more_memory(finished):
    first, second = finished.jobs("rule_train")
    assert (first["JobState"], first["MinMemoryNode"]) == ("FAILED", "500M")
    assert (second["JobState"], second["MinMemoryNode"]) == ("COMPLETED", "1000M")


def test_one_training_on_two_nodes(finished):
    job = finished.jobs("rule_train")[-1]
    assert (job["NumNodes"], job["NodeList"]) == ("2", "n[1-2]")
    assert job["TresPerNode"] in ("gpu:1", "gres:gpu:1")
    summary = json.loads((finished.results / "runs" / "bradley_terry" / "seed0" / "summary.json").read_text())
    assert summary["cost"]["world_size"] == 2
    assert summary["cost"]["optimizer_steps"] == 15


def test_only_local_rules_touch_the_tracking_database(finished):
    assert {job["Comment"].split("_wildcards_")[0] for job in finished.jobs("rule")} == {
        "rule_train",
        "rule_score",
        "rule_evaluate",
    }


def test_nothing_is_left_in_the_queue(finished):
    assert not [job["JobId"] for job in in_queue() if job["JobState"] in ("RUNNING", "PENDING")]
    assert subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout == ""
