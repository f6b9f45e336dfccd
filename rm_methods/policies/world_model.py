"""Training of the small language models of the controlled world, which learn to compare (docs/world.md).

They read conversations of `preferences.world.conversations`.  One end token closes each turn, and no header follows it:

    <bos> user <end> response <end> reaction <end>

causal  predicts every token.  So the hidden state at the end of a response, where reward models read the reward, has
        to know what the reaction will be.  A linear probe shows when it does (`probe`).
joint   starts from a causal model, reads a prompt with two responses in both directions, and predicts the reaction at
        the end of each (rm_methods.policies.joint_world_model).
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_methods.errors import UserError, nearest
from rm_methods.files import check_replaceable, content_hash, file_hash, read_json, write_json, written_atomically
from rm_methods.policies.sft import IGNORED
from rm_methods.preferences.pair import Message, PreferencePair
from rm_methods.reward_models.template_probe import conversation, render

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rm_methods.policies.joint_world_model import JointTask

RECORD = "training.json"
TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('the controlled world has no system turns') }}{% endif %}"
    "{{ message['content'] + eos_token }}"
    "{% endfor %}"
)
_TOKENIZER_TEXTS = 5000
_PROBE_SEED = 10_000  # of a world whose pairs no experiment trains on by default
_PROBE_TEST_PAIRS = 1000
_PENALTY = 1e-4  # of the probe's weights, on hidden states of variance 1
_HELD_OUT_COMPARISONS = 1000


@dataclass(frozen=True, kw_only=True)
class WorldModelSettings:
    """Everything that the weights depend on, but the seed and the weights of the start.

    Attributes:
        texts: conversations, or comparisons for a joint model.
        epochs: passes over them.
        texts_per_step: texts of one optimizer step, of similar length.
        learning_rate, weight_decay, adam_betas, schedule, warmup_fraction, max_gradient_norm: AdamW with a peak
            learning rate; norms have no weight decay.
        vocabulary_size, hidden_size, intermediate_size, layers, heads, initializer_range, positions: the Llama-type
            model.
        probe_pairs: pairs that the probe is fitted on.
    """

    texts: int = 40_000
    epochs: int = 8
    texts_per_step: int = 32
    learning_rate: float = 6e-3
    weight_decay: float = 0.5
    adam_betas: tuple[float, float] = (0.9, 0.98)
    schedule: str = "cosine"
    warmup_fraction: float = 0.1
    max_gradient_norm: float = 1.0
    vocabulary_size: int = 1024
    hidden_size: int = 96
    intermediate_size: int = 144
    layers: int = 4
    heads: int = 4
    initializer_range: float = 0.1
    positions: int = 1024
    probe_pairs: int = 3000

    @classmethod
    def changed(cls, texts: Sequence[str], kind: str = "causal") -> WorldModelSettings:
        """The defaults of a kind with changes, such as "hidden_size=128".

        Raises:
            UserError: for an unknown setting, a value that is no positive number, or sizes that do not fit.
        """
        changes: dict[str, Any] = dict(KINDS[kind])
        defaults = {name: value for name, value in asdict(cls()).items() if isinstance(value, int | float)}
        for text in texts:
            name, _, value = text.partition("=")
            if name not in defaults:
                raise UserError(f"--set {text}: no setting of the world model. {nearest(name, defaults)}")
            number = type(defaults[name])
            try:
                changes[name] = number(value)
            except ValueError:
                changes[name] = math.nan
            if not 0 < changes[name] < math.inf:
                raise UserError(f"--set {text}: write {name}=NUMBER, with a positive {number.__name__}.")
        settings = cls(**changes)
        if settings.hidden_size % (2 * settings.heads):
            raise UserError(
                f"--set: hidden_size ({settings.hidden_size}) is not an even multiple of heads ({settings.heads})."
            )
        return settings


# What each kind changes in the defaults.
KINDS: dict[str, dict[str, Any]] = {"causal": {}, "joint": {"epochs": 2, "learning_rate": 1e-3}}


def train_world_model(
    settings: WorldModelSettings,
    seed: int,
    out: Path,
    work: Path,
    *,
    threads: int = 1,
    start: Path | None = None,
    kind: str = "causal",
) -> dict[str, Any]:
    """Train the model; a run that was stopped continues from its last checkpoint.

    Args:
        seed: of the texts, the weights and the order.
        out: a plain causal-language-model folder, with `training.json` (written).
        work: folder for checkpoints.
        start: folder of an earlier training, whose weights and tokenizer it starts from.  By default a causal model
            starts from random weights, and a joint one from the shipped causal model.
        kind: of `KINDS`.

    Returns:
        The record that is also written to `training.json`: kind, settings, seed, vocabulary and parameters, curves of
        the loss and of the probe (causal) or of the reactions told right (joint), and the hashes of the written files.
    """
    from transformers import AutoModelForCausalLM, set_seed

    from rm_methods.policies.joint_world_model import JointTask
    from rm_methods.preferences.world.conversations import comparisons, conversations
    from rm_methods.reward_models.backbones import WORLD_MODEL, check_shipped
    from rm_methods.reward_models.loading import pretrained_model, pretrained_tokenizer
    from rm_methods.system.cpu import prepare_cpu

    check_replaceable(out, RECORD)
    prepare_cpu(threads)
    if start is not None:
        check_shipped(start, "Copy the folder again, or train it again.")
    if kind == "joint" and start is None:
        start = WORLD_MODEL
    if start is not None:
        tokenizer = pretrained_tokenizer(start)
        model, _ = pretrained_model(AutoModelForCausalLM, start)
        _check_shape(settings, model.config, start)
    else:
        tokenizer = make_tokenizer(settings)
        model = _new_model(settings, tokenizer, seed)
    set_seed(seed)
    task: CausalTask | JointTask
    if kind == "causal":
        task = CausalTask(model, tokenizer, list(conversations(settings.texts, seed)), settings.probe_pairs)
    else:
        held_out = list(comparisons(_HELD_OUT_COMPARISONS, _PROBE_SEED))
        task = JointTask(model, tokenizer, list(comparisons(settings.texts, seed)), held_out)
    earlier = None if start is None else read_json(start / RECORD)
    work = work / content_hash([asdict(settings), seed, earlier, kind])
    curves = _fit(model, task, settings, seed, work)
    model.eval()
    with written_atomically(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        record = {
            "kind": kind,
            "settings": asdict(settings),
            "seed": seed,
            "vocabulary": len(tokenizer),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "tokens_per_epoch": sum(map(len, task.ids)),
            **task.sizes,
            "started_from": earlier,
            **curves,
            "sha256": {file.name: file_hash(file, length=64) for file in sorted(folder.iterdir())},
        }
        write_json(folder / RECORD, record)
    shutil.rmtree(work, ignore_errors=True)
    return record


class CausalTask:
    """Prediction of every token, measured by the probe.

    Args:
        texts: of the training.
        fitted: pairs that the probe is fitted on.

    Attributes:
        curve: the key of the measurements in the record.
        ids: token ids of the texts.
        sizes: numbers of texts that are measured, for the record.
        progress: share of the optimizer steps done; set by `_fit`.
    """

    curve = "probe"
    progress = 0.0

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[Sequence[Message]],
        fitted: int,
    ):
        self.model = model
        self.ids = token_ids(tokenizer, texts)
        self.read = [len(row) for row in token_ids(tokenizer, [text[:-1] for text in texts])]
        self.tokenizer = tokenizer
        self.pairs = probe_pairs(fitted + _PROBE_TEST_PAIRS)
        self.fitted = fitted
        self.sizes = {"probe_pairs": {"fitted": fitted, "tested": _PROBE_TEST_PAIRS}}

    def collate(self, batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Padded rows and what each position predicts."""
        from rm_methods.policies.sft import collate

        rows = [{"input_ids": row["input_ids"], "labels": [*row["input_ids"][1:], IGNORED]} for row in batch]
        padded = collate(rows, self.tokenizer.pad_token_id)
        read = [self.read[row["index"]] for row in batch]
        return padded | {"labels": _text_and_reaction(padded["labels"], [count - 1 for count in read])}

    def loss(self, output, labels, num_items_in_batch=None) -> Any:
        """`reaction_loss` of the model's output."""
        return reaction_loss(output.logits, labels)

    def measure(self) -> dict[str, Any]:
        """Accuracy of the probe after each layer."""
        accuracies = probe(self.model, self.tokenizer, self.pairs, self.fitted)
        return {"accuracy_by_layer": [round(accuracy, 4) for accuracy in accuracies]}


def _text_and_reaction(targets_RL, first: Sequence[int]):
    """What each position predicts, in two parts: of prompts and responses, and of reactions, int64 [2, R, L].

    Args:
        targets_RL: what each position predicts, int64 [R, L]; IGNORED for nothing.
        first: the first position that predicts a token of the reaction, for each row.
    """
    import torch

    of_reaction_RL = torch.arange(targets_RL.shape[1]) >= torch.tensor(first)[:, None]
    of_text_RL = targets_RL.masked_fill(of_reaction_RL, IGNORED)
    return torch.stack([of_text_RL, targets_RL.masked_fill(~of_reaction_RL, IGNORED)])


def reaction_loss(logits_RLV, labels_2RL):
    """Mean over the predicted tokens of prompts and responses, plus the mean over those of reactions.

    Without the second mean, the few tokens of a reaction count little, and a model learns to compare late.

    Args:
        logits_RLV: of a language model.
        labels_2RL: what each position predicts, first of prompts and responses, then of reactions, int64 [2, R, L].
    """
    import torch

    logits_RVL = logits_RLV.transpose(1, 2)
    each = [torch.nn.functional.cross_entropy(logits_RVL, part_RL, reduction="none") for part_RL in labels_2RL]
    return sum(loss.sum() / (part != IGNORED).sum().clamp(min=1) for loss, part in zip(each, labels_2RL, strict=True))


def _check_shape(settings: WorldModelSettings, config: Any, start: Path) -> None:
    """Raises UserError if the settings ask for another shape than that of the model that training starts from."""
    shape = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "positions": config.max_position_embeddings,
    }
    others = [
        f"{name} ({asked}, not {has})" for name, has in shape.items() if (asked := getattr(settings, name)) != has
    ]
    if others:
        raise UserError(
            f"--set: the model in {start}, which training starts from, has another shape: {', '.join(others)}. Leave "
            "these settings out, or start from a model of this shape."
        )


def _new_model(settings: WorldModelSettings, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A Llama-type model with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            initializer_range=settings.initializer_range,
            max_position_embeddings=settings.positions,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_tokenizer(settings: WorldModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of conversations of seed 0, whatever the training's seed, so that all models share it."""
    from rm_methods.preferences.world.conversations import conversations
    from rm_methods.reward_models.backbones import trained_tokenizer

    return trained_tokenizer(
        (message["content"] for text in conversations(min(settings.texts, _TOKENIZER_TEXTS), 0) for message in text),
        settings.vocabulary_size,
        [],
        template=TEMPLATE,
        end="<end>",
    )


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Iterable[Sequence[Message]]) -> list[list[int]]:
    """The token ids of whole conversations."""
    rendered = [render(tokenizer, text) for text in texts]
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]


def probe_pairs(count: int) -> list[PreferencePair]:
    """Pairs of a world with annotators, each with gold's better response as chosen."""
    from rm_methods.preferences.pair import make_pair
    from rm_methods.preferences.world import generate

    pairs = []
    for pair in generate(seed=_PROBE_SEED, annotator={}, train_pairs=count, validation_pairs=0, test_pairs=0):
        better, worse = pair.chosen, pair.rejected
        if pair.meta["gold_chosen"] < pair.meta["gold_rejected"]:
            better, worse = worse, better
        pairs.append(make_pair(pair.prompt, better, worse, split=pair.split, source=pair.source, meta=pair.meta))
    return pairs


def probe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair], fitted: int
) -> list[float]:
    """How well the hidden state at the end of a response tells the better one, after each layer.

    A logistic regression without intercept on differences of hidden states.

    Args:
        pairs: the better response is chosen.
        fitted: the first pairs, for the fit; the rest gives the accuracy.

    Returns:
        accuracies, one for each layer; the last one is after the final norm.
    """
    states = end_states(model, tokenizer, pairs)
    return [_probe_accuracy(states[:, :, layer], fitted) for layer in range(states.shape[2])]


def end_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair], batch_size: int = 64
) -> np.ndarray:
    """Hidden states at the last token of each response, fp64 [pairs, 2 (chosen, rejected), layers, hidden]."""
    import torch

    from rm_methods.policies.sft import collate

    texts = [conversation(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    ids = token_ids(tokenizer, texts)
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    states: dict[int, np.ndarray] = {}
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        batch = collate([{"input_ids": ids[k], "labels": ids[k]} for k in members], tokenizer.pad_token_id)
        with torch.no_grad():
            output = model.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
            )
        last = batch["attention_mask"].sum(1) - 1
        rows = torch.arange(len(members))
        hidden = torch.stack([layer[rows, last] for layer in output.hidden_states[1:]], 1).double().numpy()
        states |= dict(zip(members, hidden, strict=True))
    stacked = np.stack([states[index] for index in range(len(ids))])
    return stacked.reshape(len(pairs), 2, *stacked.shape[1:])


def _probe_accuracy(states: np.ndarray, fitted: int) -> float:
    """Held-out accuracy of a logistic regression on the differences of states [pairs, 2, hidden]."""
    from scipy.optimize import minimize

    differences = states[:, 0] - states[:, 1]
    differences = differences / (np.std(states[:fitted].reshape(-1, states.shape[-1]), axis=0) + 1e-12)
    train, test = differences[:fitted], differences[fitted:]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = train @ weights
        gradient = -train.T @ np.exp(-np.logaddexp(0, margins)) / len(train) + 2 * _PENALTY * weights
        return float(np.mean(np.logaddexp(0, -margins)) + _PENALTY * weights @ weights), gradient

    weights = minimize(loss, np.zeros(train.shape[1]), jac=True, method="L-BFGS-B").x
    return float(np.mean(test @ weights > 0))


def _fit(
    model: PreTrainedModel,
    task: CausalTask | JointTask,
    settings: WorldModelSettings,
    seed: int,
    work: Path,
) -> dict[str, Any]:
    """Train the model in place.

    Returns:
        The curves: "loss" as [step, loss], that of the task as {"epoch", "step", what it measures}, and "wall_seconds".
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    from rm_methods.files import read_json_lines
    from rm_methods.system.engines import look_for_engines_only_with_deepspeed
    from rm_methods.training.fitting import common_arguments, one_device
    from rm_methods.training.trainer import TrainingLog, last_complete_checkpoint

    started = time.monotonic()
    steps_per_epoch = -(-len(task.ids) // settings.texts_per_step)
    curve_file = work / f"{task.curve}.json"
    curve: list[dict[str, Any]] = []

    class MeasureAfterEpoch(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            if state.global_step and curve_file.exists():
                curve[:] = [row for row in read_json(curve_file) if row["step"] <= state.global_step]
            if state.global_step and (not curve or curve[-1]["step"] < state.global_step):
                self.on_epoch_end(args, state, control)  # the last training was stopped between checkpoint and curve

        def on_step_begin(self, args, state, control, **kwargs):
            task.progress = state.global_step / state.max_steps

        def on_epoch_end(self, args, state, control, **kwargs):
            model.eval()
            measured = task.measure()
            model.train()
            curve.append({"epoch": round(state.epoch), "step": state.global_step, **measured})
            write_json(curve_file, curve)
            print(f"world model: after epoch {round(state.epoch)} {measured}", flush=True)

    optimizer_settings = asdict(settings) | {"log_every_steps": 50, "checkpoint_every_steps": steps_per_epoch}
    arguments = TrainingArguments(
        **common_arguments(optimizer_settings, seed, work, settings.epochs * steps_per_epoch),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.texts_per_step,
        train_sampling_strategy="group_by_length",
    )
    one_device(arguments)
    look_for_engines_only_with_deepspeed()
    log = TrainingLog(work / "metrics.jsonl", "world model")
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": row, "index": index} for index, row in enumerate(task.ids)],
        data_collator=task.collate,
        compute_loss_func=task.loss,
        callbacks=[log, MeasureAfterEpoch()],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_complete_checkpoint(work)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    losses = [[row["step"], round(row["loss"], 4)] for row in read_json_lines(log.path)]
    seconds = round(log.seconds_before + time.monotonic() - started)
    return {"loss": losses, task.curve: curve, "wall_seconds": seconds}
