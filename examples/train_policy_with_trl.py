"""Train a policy with TRL (GRPO or RLOO) against one of our reward models.

    pip install -r performance/requirements.txt
    python examples/train_policy_with_trl.py --reward-model results/quickstart/runs/bradley_terry/seed0/model \\
        --policy MY_CHAT_MODEL --pairs results/quickstart/data/pairs.parquet --max-prompt-tokens 256 \\
        --output policy --steps 100

Prompt, completion and 16 closing tokens must fit into both models' positions.

The reward model is a plain sequence-classification folder.  TRL loads it, applies its chat template and reads its
score.  In fp32 that equals the score of `rm-methods score`.  With --scorer our scorer computes the rewards.  Use it
for ensembles, which have no weights for TRL to load, and for bf16, because TRL would compute the head in bf16 too.
See docs/using-reward-models.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rm_methods.errors import DataError, UserError
from rm_methods.files import written_atomically
from rm_methods.preferences.pair import Message, read_pairs
from rm_methods.reward_models.model_folder import JOINT_RECORD
from rm_methods.scoring.scorer import SCORER_FILE, ScoringSettings, load_scorer

CLOSING_TOKENS = 16  # room for what the reward model's chat template prints behind a completion


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reward-model", type=Path, required=True, help="model folder of a run")
    parser.add_argument(
        "--policy",
        type=Path,
        required=True,
        help="folder of a causal language model whose tokenizer has a chat template",
    )
    parser.add_argument("--pairs", type=Path, required=True, help="pairs.parquet; only its prompts are used")
    parser.add_argument("--split", default="train", help="split of the pairs to take prompts from")
    parser.add_argument("--output", type=Path, required=True, help="folder for the trained policy")
    parser.add_argument("--trainer", choices=["grpo", "rloo"], default="grpo")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps")
    parser.add_argument("--prompts-per-step", type=int, default=4)
    parser.add_argument("--completions", type=int, default=4, help="completions of each prompt, at least 2")
    parser.add_argument("--max-prompt-tokens", type=int, default=512, help="longer prompts are left out and counted")
    parser.add_argument("--max-completion-tokens", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument(
        "--kl", type=float, default=0.05, help="coefficient of the KL penalty to the policy at the start (TRL's beta)"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument(
        "--scorer",
        action="store_true",
        help="compute rewards with our scorer instead of TRL's own reading of the model",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def read_prompts(pairs: Path, split: str) -> list[list[Message]]:
    """The different prompts of a split, in file order.

    Raises:
        DataError: the file is not one of prepared pairs, or has no pair of that split.
    """
    all_pairs = read_pairs(pairs)
    # Pairs of one prompt are common (several answers, several annotators).
    different = {json.dumps(pair.prompt): pair.prompt for pair in all_pairs if pair.split == split}
    if not different:
        raise DataError(
            f"{pairs}: no pair of split '{split}'. Splits of the file: "
            f"{', '.join(sorted({p.split for p in all_pairs})) or 'none'}."
        )
    return [[{"role": m["role"], "content": m["content"]} for m in prompt] for prompt in different.values()]


def prompts_that_fit(prompts: Sequence[list[Message]], tokenizers: Sequence[Any], limit: int) -> list[list[Message]]:
    """Leave out prompts that take more than `limit` tokens of one of the tokenizers: TRL cuts neither prompts nor what
    it scores.

    Raises:
        DataError: no prompt is left.
    """

    def length(prompt: list[Message]) -> int:
        return max(
            len(t.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])
            for t in tokenizers
        )

    kept = [prompt for prompt in prompts if length(prompt) <= limit]
    print(
        f"{len(kept)} of {len(prompts)} prompts; {len(prompts) - len(kept)} have more than {limit} tokens.",
        file=sys.stderr,
    )
    if not kept:
        raise DataError(f"No prompt of {len(prompts)} has at most {limit} tokens. Raise --max-prompt-tokens.")
    return kept


def scorer_reward(folder: Path, settings: ScoringSettings) -> Callable[..., list[float]]:
    """A TRL reward function (prompts and completions are conversations) that scores as `rm-methods score` does.

    Raises:
        UserError: the model does not exist.
    """
    from rm_methods.benchmarks.item import BenchmarkItem

    scorer = load_scorer(folder, settings, keep_loaded=True)

    def reward(
        prompts: list[list[Message]], completions: list[list[Message]], log_metric: Callable, **columns: Any
    ) -> list[float]:
        pairs = enumerate(zip(prompts, completions, strict=True))
        items = [
            BenchmarkItem(str(k), "rollout", prompt, [completion[-1]["content"]], None)
            for k, (prompt, completion) in pairs
        ]
        rows = scorer.score(items, "rewards")
        log_metric("rewards/truncated", sum(row.truncated for row in rows) / len(rows))
        return [row.score for row in rows]

    return reward


def check(options: argparse.Namespace) -> None:
    """Refuse unusable options before anything is loaded.

    Raises:
        UserError: a folder is missing, or its reward cannot be computed in the way that was asked for.
    """
    for name, folder in (("--reward-model", options.reward_model), ("--policy", options.policy)):
        if not folder.is_dir():
            raise UserError(f"{name} {folder}: no such folder.")
    if (options.reward_model / JOINT_RECORD).exists():
        raise UserError(
            f"--reward-model {options.reward_model}: a joint model compares responses and has no score for a single "
            "one. "
            "Use a reward model that was distilled from it (interaction_distillation)."
        )
    if (options.reward_model / SCORER_FILE).exists() and not options.scorer:
        raise UserError(
            f"--reward-model {options.reward_model}: holds {SCORER_FILE} and no weights that TRL could load. Add "
            "--scorer."
        )
    if options.completions < 2:
        raise UserError(
            f"--completions {options.completions}: GRPO and RLOO compare completions of one prompt; give 2 or more."
        )
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"TRL cannot be imported ({error}). Install it: pip install -r performance/requirements.txt"
        ) from None


def longest_sequence(options: argparse.Namespace, configurations: dict[str, Any]) -> int:
    """Largest number of tokens that a model will read.  More than its positions are refused, because the model would
    fail with an index error or read wrong positions.

    Raises:
        UserError: naming the model.
    """
    needed = options.max_prompt_tokens + options.max_completion_tokens + CLOSING_TOKENS
    for name, configuration in configurations.items():
        limit = getattr(configuration, "max_position_embeddings", None)
        if limit is not None and needed > limit:
            raise UserError(
                f"{name} takes {limit} tokens, but --max-prompt-tokens {options.max_prompt_tokens} and "
                "--max-completion-tokens "
                f"{options.max_completion_tokens} make {needed} with the template's closing tokens. Lower them."
            )
    return needed


def make_trainer(options: argparse.Namespace, work: Path):
    """The TRL trainer.

    Args:
        options: of `parse_arguments`.
        work: scratch folder; no checkpoint is written.

    Raises:
        UserError: a folder, length or setting that cannot work; an unreadable pairs file; no prompt that fits.
    """
    check(options)
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from rm_methods.reward_models.loading import check_tensors, pretrained_config, pretrained_tokenizer

    # TRL loads the models itself, and only warns if weights are missing.
    check_tensors(AutoModelForCausalLM, options.policy, setting="--policy")
    policy_tokenizer = pretrained_tokenizer(options.policy, setting="--policy", padding_side="left")
    if not policy_tokenizer.chat_template:
        raise UserError(f"--policy {options.policy}: its tokenizer has no chat template. Use a chat model.")
    tokenizers, configurations = [policy_tokenizer], {"--policy": pretrained_config(options.policy)}
    if not options.scorer:
        check_tensors(AutoModelForSequenceClassification, options.reward_model, setting="--reward-model", num_labels=1)
        tokenizers.append(pretrained_tokenizer(options.reward_model, setting="--reward-model"))
        configurations["--reward-model"] = pretrained_config(options.reward_model)
    longest = longest_sequence(options, configurations)
    reward, reward_tokenizer = str(options.reward_model), tokenizers[-1]
    if options.scorer:
        reward = scorer_reward(options.reward_model, ScoringSettings(max_length=longest, precision=options.precision))
        reward_tokenizer = None
    prompts = prompts_that_fit(read_prompts(options.pairs, options.split), tokenizers, options.max_prompt_tokens)

    make_config, make = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}[options.trainer]
    config = make_config(
        output_dir=str(work),
        max_steps=options.steps,
        # TRL counts completions, and all completions of a prompt must be in one generation batch.
        per_device_train_batch_size=options.prompts_per_step * options.completions,
        num_generations=options.completions,
        max_completion_length=options.max_completion_tokens,
        learning_rate=options.learning_rate,
        beta=options.kl,
        # TRL's default is bf16, which would reach the reward model's head.
        bf16=options.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=options.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    return make(
        model=str(options.policy),
        reward_funcs=reward,
        reward_processing_classes=reward_tokenizer,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=policy_tokenizer,
    )


def train_policy(options: argparse.Namespace) -> list[float]:
    """Train and save the policy.

    Returns:
        The mean reward of each step.
    """
    with tempfile.TemporaryDirectory() as work:
        trainer = make_trainer(options, Path(work))
        trainer.train()
        if trainer.accelerator.is_main_process:
            # Not save_model, which also pickles the arguments.
            with written_atomically(options.output) as folder:
                trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
                trainer.processing_class.save_pretrained(folder)
    return [row["reward"] for row in trainer.state.log_history if "reward" in row]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        rewards = train_policy(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{options.output}: {len(rewards)} steps, mean reward {rewards[0]:.3f} in the first and {rewards[-1]:.3f} in "
        "the last."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
