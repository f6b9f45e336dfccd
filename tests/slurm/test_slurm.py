"""The workflow through a real Slurm: GPU requests, retries, several nodes, a killed Snakemake, a node that disappears, too few GPUs.

The tests build on each other's files: data and backbone are prepared once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from tests.slurm.conftest import in_queue, jobs_of, wait_for

ON_ONE_GPU = {"gpus": 1, "memory_mb": 500, "runtime_minutes": 20}


@pytest.fixture(scope="module")
def finished(project):
    """The whole workflow, in which one training fails once."""
    status, output = project.snakemake(project.configure("smoke.yaml", resources=ON_ONE_GPU))
    assert status == 0, output[-4000:] + project.logs()
    return project


def test_the_workflow_runs_to_the_end(finished):
    table = (finished.results / "comparison" / "table.txt").read_text()
    assert "bradley_terry" in table
    assert "label_smoothing" in table
    exported = json.loads((finished.results / "tracking" / "export.json").read_text())
    assert [run["status"] for run in exported] == ["exported"] * 2


def test_training_jobs_get_the_gpus_they_ask_for_and_run_once(finished):
    (job,) = jobs_of("rule_train_wildcards_bradley_terry_0")
    assert job["TresPerJob"] in ("gpu:1", "gres:gpu:1")
    assert job["NumNodes"] == "1"
    calls = [line.split(" ", 2) for line in (finished.folder / "calls").read_text().splitlines()]
    gpus = [gpu for number, gpu, command in calls if number == job["JobId"] and command.startswith("train")]
    assert len(gpus) == 1
    assert gpus[0] in ("0", "1")
    (prepare,) = jobs_of("rule_prepare")
    assert "TresPerJob" not in prepare


def test_only_local_rules_touch_the_tracking_database(finished):
    assert {job["Comment"].split("_wildcards_")[0] for job in in_queue()} == {
        "rule_prepare", "rule_prepare_backbone", "rule_prepare_benchmark", "rule_train", "rule_score", "rule_evaluate"
    }  # fmt: skip


def test_a_job_that_failed_is_tried_again_with_more_memory(finished):
    first, second = jobs_of("rule_train_wildcards_label_smoothing_0")
    assert (first["JobState"], first["MinMemoryNode"]) == ("FAILED", "500M")
    assert (second["JobState"], second["MinMemoryNode"]) == ("COMPLETED", "1000M")


def test_one_training_on_two_nodes(finished):
    config = finished.configure("nodes.yaml", seeds=[0, 1], resources=ON_ONE_GPU | {"nodes": 2})
    status, output = finished.snakemake(config, "results/smoke/runs/bradley_terry/seed1/summary.json")
    assert status == 0, output[-4000:] + finished.logs()
    (job,) = jobs_of("rule_train_wildcards_bradley_terry_1")
    assert (job["NumNodes"], job["NodeList"]) == ("2", "n[1-2]")
    summary = json.loads((finished.results / "runs" / "bradley_terry" / "seed1" / "summary.json").read_text())
    assert summary["cost"]["world_size"] == 2
    assert summary["cost"]["optimizer_steps"] == 15


def test_a_killed_snakemake_and_a_lost_node_cost_only_the_steps_since_the_last_checkpoint(finished):
    target, comment = "results/smoke/runs/bradley_terry/seed2/summary.json", "rule_train_wildcards_bradley_terry_2"
    config = finished.configure("long.yaml", seeds=[0, 1, 2], resources=ON_ONE_GPU, training={"epochs": 100})
    run = finished.results / "runs" / "bradley_terry" / "seed2"
    work = finished.results / "work"

    def newest_checkpoint():
        return max((int(folder.parent.name.rsplit("-", 1)[1]) for folder in work.glob("*/checkpoint-*/complete")), default=0)

    # Snakemake is killed; its job runs on, and a second writer is refused.
    process = finished.start(config, target)
    wait_for("a checkpoint", newest_checkpoint)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (orphan,) = jobs_of(comment)
    assert orphan["JobState"] == "RUNNING"
    started = next(line for line in (finished.folder / "calls").read_text().splitlines() if line.startswith(orphan["JobId"] + " "))
    status, output = finished.rm_methods(*started.split(" ")[2:])
    assert status == 2
    assert f"is being written by process {json.loads((run / 'writer.lock').read_text())['process']} on " in output
    assert f"Slurm job {orphan['JobId']}" in output

    # Cancelled and started again, it continues.
    status, output = finished.rm_methods("cancel")
    assert status == 0, output
    assert "1 rm-methods jobs" in output
    assert comment in output
    assert jobs_of(comment)[0]["JobState"] == "CANCELLED"
    subprocess.run(finished.command(config, "--unlock"), cwd=finished.folder, env=finished.environment(), check=True, capture_output=True)
    before = newest_checkpoint()
    assert before > 0
    process = finished.start(config, target)
    wait_for("a newer checkpoint", lambda: newest_checkpoint() > before)
    log = finished.results / "logs" / "train" / "bradley_terry_seed2.log"
    assert f"/checkpoint-{before}\n" in log.read_text()

    # Its node disappears; Slurm starts it again on the other one, and it continues once more.
    job = jobs_of(comment)[1]
    subprocess.run(["scontrol", "update", f"NodeName={job['NodeList']}", "State=DOWN", "Reason=test"], check=True)
    try:
        moved = wait_for(
            "the job on the other node", lambda: [j for j in jobs_of(comment)[1:] if j["NodeList"] not in ("(null)", job["NodeList"])]
        )
        assert (moved[0]["JobId"], moved[0]["Restarts"]) == (job["JobId"], "1")
        assert process.wait(timeout=240) == 0, (finished.folder / "snakemake.log").read_text()[-4000:] + finished.logs()
    finally:
        subprocess.run(["scontrol", "update", f"NodeName={job['NodeList']}", "State=RESUME"])
    assert "resumes from" in log.read_text()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 100 * 15 + 1))
    assert [j["JobState"] for j in jobs_of(comment)] == ["CANCELLED", "COMPLETED"]
    assert not (run / "writer.lock").exists()


def test_gpus_that_are_not_those_asked_for_stop_a_training_before_it_starts(finished):
    config = finished.configure("gpus.yaml", seeds=[3], resources=ON_ONE_GPU)
    status, _ = finished.snakemake(
        config, "results/smoke/runs/bradley_terry/seed3/summary.json", "--set-resources", "train:gpu=2", "--retries", "0"
    )
    assert status == 1
    log = (finished.results / "logs" / "train" / "bradley_terry_seed3.log").read_text()
    assert "resources.gpus: 1 GPUs were asked for, but Slurm job" in log
    assert "shows 2 (CUDA_VISIBLE_DEVICES=0,1)" in log


def test_more_gpus_than_there_are_is_an_error_of_slurm_that_snakemake_shows(finished):
    config = finished.configure("many.yaml", seeds=[3], resources=ON_ONE_GPU | {"gpus": 8}, training={"processes": 8})
    status, output = finished.snakemake(config, "results/smoke/runs/bradley_terry/seed3/summary.json", "--retries", "0")
    assert status == 1
    assert "Requested node configuration is not available" in output
