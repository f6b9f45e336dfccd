"""Print the memory of a GPU and of a node in training by size, ZeRO stage and number of GPUs: see docs/scaling.md.

Usage (no GPU, no weights, seconds):
    python performance/memory_table.py

Columns: our formulas (rm_methods/planning/sizes.py: fp32 weights, DeepSpeed's buffers), DeepSpeed's own estimators
(16-bit weights, no buffers), and the activations of a micro-batch of 16,384 tokens with recomputation.  GB are 10^9
bytes; 8 GPUs per node. A second table: the states with LoRA of rank 16 on every linear layer.
"""

from __future__ import annotations

from rm_methods.planning.shapes import published_configuration
from rm_methods.planning.sizes import activation_bytes, checkpoint_bytes, model_state_bytes, shape_of
from rm_methods.system.deepspeed import zero_settings

TOKENS = 16_384
SIZES = ("1B", "8B", "70B")
STAGES = (None, "zero1", "zero2", "zero3", "zero3_offload")
WORLDS = (1, 8, 16, 32, 64)
LORA = {"rank": 16, "target_modules": "all-linear"}
LORA_RUNS = ((1, None), (8, None), (8, "zero3"))
PER_NODE = 8


def deepspeeds_estimate(
    parameters: int, largest: int, stage: str | None, ranks: int, nodes: int
) -> tuple[float, float] | None:
    """(bytes of a GPU, bytes of a node) by DeepSpeed's estimators; None if DeepSpeed has none for the stage."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    if stage not in ("zero2", "zero3", "zero3_offload"):
        return None
    world = {"num_gpus_per_node": ranks // nodes, "num_nodes": nodes}
    if stage == "zero2":
        host, gpu = estimate_zero2_model_states_mem_needs(parameters, cpu_offload=False, **world)
    else:
        offload = stage == "zero3_offload"
        host, gpu, _ = estimate_zero3_model_states_mem_needs(
            parameters, largest, cpu_offload=offload, cpu_offload_params=False, **world
        )
    return gpu, host


def main() -> None:
    print(
        "| student | GPUs | stage | states, GB/GPU | DeepSpeed's estimate | activations | total | host, GB/node | "
        "DeepSpeed's |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for size in SIZES:
        shape = shape_of(published_configuration(size))
        activations = activation_bytes(shape, TOKENS, recomputed=True)
        for ranks in WORLDS:
            nodes = max(1, ranks // PER_NODE)
            for stage in STAGES:
                zero = zero_settings(stage) if stage else None
                gpu, host = model_state_bytes(shape.parameters, shape.largest_layer, zero, ranks, nodes)
                theirs = deepspeeds_estimate(shape.parameters, shape.largest_layer, stage, ranks, nodes)
                cells = [f"{size} ({shape.parameters / 1e9:.2f})", str(ranks), stage or "none", f"{gpu / 1e9:.1f}"]
                cells += [
                    f"{theirs[0] / 1e9:.1f}" if theirs else "-",
                    f"{activations / 1e9:.1f}",
                    f"{(gpu + activations) / 1e9:.1f}",
                ]
                cells += [f"{host / 1e9:.0f}" if host else "-", f"{theirs[1] / 1e9:.0f}" if theirs and host else "-"]
                print("| " + " | ".join(cells) + " |")
    print_lora()


def print_lora() -> None:
    print(
        "\n| student with LoRA | trained, millions | GPUs | stage | states, GB/GPU | all weights, GB/GPU | checkpoint, "
        "GB |"
    )
    print("|---|---:|---:|---|---:|---:|---:|")
    for size in SIZES:
        shape = shape_of(published_configuration(size), LORA)
        for ranks, stage in LORA_RUNS:
            zero = zero_settings(stage) if stage else None
            states, full = (
                model_state_bytes(shape.parameters, shape.largest_layer, zero, ranks, trainable=trainable)[0] / 1e9
                for trainable in (shape.trainable, None)
            )
            checkpoint = checkpoint_bytes(shape.parameters, zero, shape.trainable) / 1e9
            cells = [
                f"{size} ({shape.parameters / 1e9:.2f})",
                f"{shape.trainable / 1e6:.1f}",
                str(ranks),
                stage or "none",
            ]
            print("| " + " | ".join([*cells, f"{states:.1f}", f"{full:.1f}", f"{checkpoint:.1f}"]) + " |")


if __name__ == "__main__":
    main()
