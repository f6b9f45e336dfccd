"""Supervised fine-tuning: a policy learns to write the responses of preference pairs.

The `Trainer` of transformers does the training.  This module makes the examples (the prompt as in sampling, loss on
the response and its end token) and the log.  Training on chosen *and* rejected responses gives a policy that makes
mistakes, so that a reward model has something to detect.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rm_methods.errors import ConfigError, DataError
from rm_methods.files import write_json, written_atomically
from rm_methods.policies.policy import Policy, policy_from_backbone, refuse_tools, save_policy
from rm_methods.preferences.pair import Message, PreferencePair
from rm_methods.reward_models.template_probe import contains, conversation, render

IGNORED = -100  # label of tokens without loss, as in transformers
Example = dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class SFTSettings:
    """Settings of supervised fine-tuning.  Their defaults and limits are in config.schema.yaml.

    Attributes:
        responses: "both" trains on chosen and rejected responses, "chosen" on the chosen ones, "mixed" on as many as
            "both", written for the prompts of the controlled world within a limit of sentences.
        epochs: passes over the examples; 0 leaves the policy unchanged.
        examples_per_step: examples of one optimizer step, over all ranks.
        examples_per_microbatch: examples of one forward; changes the result only by rounding.
        learning_rate, weight_decay, adam_betas, schedule, warmup_fraction, max_gradient_norm: AdamW with a peak
            learning rate.
        precision: "fp32" or "bf16" (autocast; weights stay fp32).
        max_prompt_tokens: longer prompts are cut, oldest turns first.
        max_sentences: most sentences of a "mixed" response.
        max_response_tokens: longer responses are cut; they then teach no end token.
        log_every_steps: optimizer steps between two lines of metrics.jsonl.
        checkpoint_every_steps: optimizer steps between checkpoints for resuming; None writes none.
    """

    responses: str
    epochs: int
    examples_per_step: int
    examples_per_microbatch: int
    learning_rate: float
    weight_decay: float
    schedule: str
    warmup_fraction: float
    precision: str
    max_prompt_tokens: int
    max_response_tokens: int
    max_sentences: int | None = None
    # The same in every experiment.
    adam_betas: tuple[float, float] = (0.9, 0.95)
    max_gradient_norm: float = 1.0
    log_every_steps: int = 10
    checkpoint_every_steps: int | None = 200

    @classmethod
    def of_experiment(cls, config: Mapping[str, Any]) -> SFTSettings:
        """The settings of a resolved configuration."""
        section = config["overoptimization"]
        mixed = section["sft"]["responses"] == "mixed"
        return cls(
            **section["sft"],
            max_prompt_tokens=section["sampling"]["max_prompt_tokens"],
            max_sentences=section["sampling"]["max_sentences"] if mixed else None,
        )


def train_sft(
    settings: SFTSettings,
    pairs: Sequence[PreferencePair],
    *,
    backbone_folder: str | Path,
    backbone: Mapping[str, Any],
    seed: int,
    out_folder: str | Path,
    work_folder: str | Path,
    threads: int = 0,
) -> dict[str, Any]:
    """Fine-tune a prepared backbone on the responses of preference pairs.

    Args:
        pairs: prepared pairs.  Split "train" gives the examples; the loss is also measured on split "validation".
        backbone_folder: output of `prepare_backbone`.
        backbone: the resolved `backbone` section of the configuration.
        seed: of the order of examples, and of the weights of a tiny backbone.
        out_folder: gets `policy/` (a plain causal-language-model folder), `metrics.jsonl` and `summary.json`.
        work_folder: for checkpoints; a run that was killed continues from the last one.  Removed at the end.

    Returns:
        The summary that was written; an empty dictionary on ranks other than the first.

    Raises:
        UserError: an unusable backbone, or a loss that is not finite.
        DataError: no training pairs.
    """
    from rm_methods.system.cpu import prepare_cpu

    prepare_cpu(threads)
    started = time.monotonic()
    out_folder, work_folder = Path(out_folder), Path(work_folder)
    policy = policy_from_backbone(Path(backbone_folder), dict(backbone), seed)
    train, counts = sft_examples(policy, [pair for pair in pairs if pair.split == "train"], settings)
    validation, _ = sft_examples(policy, [pair for pair in pairs if pair.split == "validation"], settings)
    if not train and settings.epochs:
        raise DataError(
            "The data have no pairs of split 'train' to fine-tune the policy. Prepare the data first, or set epochs: 0."
        )
    from rm_methods.training.trainer import TrainingLog

    log = TrainingLog(work_folder / "metrics.jsonl", "SFT")
    trainer = _trainer(policy, train, settings, seed, work_folder, log)
    first = trainer.args.process_index == 0
    if settings.epochs:
        _fit(trainer, work_folder)
    policy.model.eval()
    if not first:
        return {}
    summary = {
        "settings": asdict(settings),
        "seed": seed,
        "examples": len(train),
        **counts,
        "tokens": settings.epochs * sum(len(example["input_ids"]) for example in train),
        "response_tokens": settings.epochs
        * sum(sum(label != IGNORED for label in example["labels"]) for example in train),
        "optimizer_steps": trainer.state.global_step,
        "wall_seconds": round(log.seconds_before + time.monotonic() - started, 2),
        "train_loss": log.last_loss,
        "validation_loss": mean_loss(policy, validation, settings.examples_per_microbatch),
        "validation_examples": len(validation),
    }
    save_policy(policy, out_folder / "policy")
    with written_atomically(out_folder / "metrics.jsonl") as path:
        shutil.copyfile(log.path, path) if log.path.exists() else path.touch()
    write_json(out_folder / "summary.json", summary)
    shutil.rmtree(work_folder, ignore_errors=True)
    return summary


def sft_examples(
    policy: Policy, pairs: Sequence[PreferencePair], settings: SFTSettings
) -> tuple[list[dict[str, list[int]]], dict[str, int]]:
    """Training examples `{"input_ids", "labels"}`: prompt, response, end token; labels of the prompt are ignored.

    The prompt has the same ids as in sampling.  The response's ids come from the whole conversation if that starts
    with the prompt's ids.  If a token straddles the boundary, the response is tokenized alone.

    Returns:
        The examples, and counts: prompts_cut, responses_cut, boundary_merges.
    """
    prompt_ids, cut = policy.encode_prompts([pair.prompt for pair in pairs], settings.max_prompt_tokens)
    counts = {"prompts_cut": 0, "responses_cut": 0, "boundary_merges": 0}
    examples = []
    for pair, prompt, was_cut in zip(pairs, prompt_ids, cut, strict=True):
        responses = _responses(pair, settings)
        refuse_tools((), responses)
        for response in responses:
            ids, merged = response_token_ids(policy, None if was_cut else pair.prompt, prompt, response)
            counts["prompts_cut"] += was_cut
            counts["boundary_merges"] += merged
            if len(ids) > settings.max_response_tokens:
                ids = ids[: settings.max_response_tokens]
                counts["responses_cut"] += 1
            examples.append({"input_ids": prompt + ids, "labels": [IGNORED] * len(prompt) + ids})
    policy.check_room([example["input_ids"] for example in examples], 0)
    return examples, counts


def _responses(pair: PreferencePair, settings: SFTSettings) -> tuple[str, ...]:
    """The responses to learn for the prompt of a pair."""
    if settings.responses == "mixed":
        from rm_methods.preferences.world.mixtures import mixed_response

        assert settings.max_sentences is not None
        rng = random.Random(f"mixed responses/{pair.group}")
        return tuple(mixed_response(rng, pair.prompt, settings.max_sentences) for _ in range(2))
    return (pair.chosen, pair.rejected) if settings.responses == "both" else (pair.chosen,)


def response_token_ids(
    policy: Policy, messages: Sequence[Message] | None, prompt_ids: list[int], response: str
) -> tuple[list[int], bool]:
    """Token ids of a response with its end token, and whether the whole conversation has other ids.

    Args:
        messages: the rendered prompt, or None if it was cut (then the response is tokenized alone).
    """
    tokenizer, end_id = policy.tokenizer, policy.end_ids[0]
    if messages is not None:
        text = render(tokenizer, conversation(messages, response))
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        after = whole[len(prompt_ids) :]
        # If the template leaves thinking text out, the conversation holds another response.
        if contains(text, response) and whole[: len(prompt_ids)] == prompt_ids and end_id in after:
            return after[: after.index(end_id) + 1], False
    return [*tokenizer(response, add_special_tokens=False)["input_ids"], end_id], messages is not None


def mean_loss(policy: Policy, examples: Sequence[Mapping[str, list[int]]], batch_size: int) -> float | None:
    """Mean negative log-likelihood of a response token over all response tokens; None without examples."""
    import torch

    total, tokens = 0.0, 0
    for start in range(0, len(examples), batch_size):
        batch = collate(examples[start : start + batch_size], policy.pad_id, policy.model.device)
        with torch.no_grad():
            logits = (
                policy.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
                .logits[:, :-1]
                .float()
            )
        labels = batch["labels"][:, 1:]
        total += float(
            torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
            )
        )
        tokens += int((labels != IGNORED).sum())
    return total / tokens if tokens else None


def collate(examples: Sequence[Mapping[str, list[int]]], pad_id: int, device=None) -> dict[str, Any]:
    """A batch as wide as its longest example: input_ids, attention_mask, labels, int64 [B, L], padded on the right."""
    import torch

    longest = max(len(example["input_ids"]) for example in examples)

    def padded(rows: Sequence[list[int]], filling: int):
        return torch.tensor(
            [[*row, *[filling] * (longest - len(row))] for row in rows], dtype=torch.long, device=device
        )

    return {
        "input_ids": padded([e["input_ids"] for e in examples], pad_id),
        "attention_mask": padded([[1] * len(e["input_ids"]) for e in examples], 0),
        "labels": padded([e["labels"] for e in examples], IGNORED),
    }


def _trainer(policy: Policy, examples: list, settings: SFTSettings, seed: int, work: Path, log):
    """The transformers Trainer of a run; the loss is the mean over the response tokens of a whole optimizer step."""
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    from rm_methods.system.engines import look_for_engines_only_with_deepspeed
    from rm_methods.training.fitting import common_arguments, one_device

    ranks = int(os.environ.get("WORLD_SIZE", 1))
    per_rank, rest = divmod(settings.examples_per_step, ranks)
    if rest:
        raise ConfigError(
            [f"examples_per_step: {settings.examples_per_step} cannot be divided evenly among {ranks} ranks"],
            "the SFT settings",
        )
    per_forward = max(n for n in range(1, min(per_rank, settings.examples_per_microbatch) + 1) if per_rank % n == 0)
    steps = settings.epochs * -(-len(examples) // settings.examples_per_step)
    arguments = TrainingArguments(
        **common_arguments(asdict(settings), seed, work, steps),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=per_forward,
        gradient_accumulation_steps=per_rank // per_forward,
        bf16=settings.precision == "bf16",
    )
    one_device(arguments)
    look_for_engines_only_with_deepspeed()
    trainer = Trainer(
        model=policy.model,
        args=arguments,
        train_dataset=examples,
        data_collator=lambda batch: collate(batch, policy.pad_id),
        callbacks=[log],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _fit(trainer, work: Path) -> None:
    from rm_methods.training.trainer import last_complete_checkpoint

    checkpoint = last_complete_checkpoint(work, remove_incomplete=trainer.args.process_index == 0)
    if checkpoint and trainer.args.process_index == 0:
        print(f"SFT: resumes from {checkpoint}", file=sys.stderr, flush=True)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
