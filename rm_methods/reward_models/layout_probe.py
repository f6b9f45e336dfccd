"""Measures, on a few tiny texts, whether a model scores a text in our batches as transformers scores it alone.

Two faults give no error: a layer that carries something from one packed text to the next (a recurrent state, a
convolution, a window), and a layer that sees the padding of other rows.  The name of an architecture does not show
them, but a forward does.  The texts are made of random ids: four sequences of different lengths, two that share a
prompt, responses short enough for a leak to reach their last token.

Each text has only ten tokens.  Faults of longer texts (a window, chunks, frequencies that depend on the length) must be
read from the configuration (`rm_methods.reward_models.model.packing_obstacle`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from rm_methods.errors import UserError, first_line
from rm_methods.reward_models import packed_attention
from rm_methods.reward_models.layouts import lay_out
from rm_methods.reward_models.tokenization import TokenizedItem

if TYPE_CHECKING:
    from rm_methods.reward_models.encoder_model import EncoderRewardModel
    from rm_methods.reward_models.joint_model import JointModel
    from rm_methods.reward_models.model import RewardModel

# Lengths of prompts, and of each one's responses.
_LENGTHS = ((6, (2, 7)), (3, (4, 1)))


@dataclass(frozen=True)
class LayoutProbe:
    """Results of the probe: largest differences from each text alone, relative to the spread over the probe's texts.

    Attributes:
        tolerance: largest difference that counts as rounding.
        plain: of rows padded to one length.
        packed: of the packed layout; None if it was not tried or its forward failed.
        packing_obstacle: why packed batches are not exact; None if they are, or were not tried.
    """

    tolerance: float
    plain: float
    packed: float | None = None
    packing_obstacle: str | None = None

    def record(self) -> dict[str, float | str | None]:
        """For a run card."""
        return asdict(self)


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative difference that rounding explains, for weights of this type.

    fp32 (and its TF32 products on GPUs, 10 bits) stays below 1e-3; bf16 rounds each product to 8 bits, which adds up to
    a few percent over the layers of a large model.  The leaks that the probe is for are about as large as the states
    themselves (performance/architectures.py prints them).
    """
    return 1e-3 if torch.finfo(dtype).bits >= 32 else 0.1


def probe_reward_model(model: RewardModel) -> LayoutProbe:
    """Compare the states that our head reads of each text in a batch with those of transformers for the text alone.

    Args:
        model: a `RewardModel` whose weights are whole; autocast is left out, so fp32 weights are compared in fp32.

    Raises:
        UserError: transformers reads the score at another token, or padding changes the state.
    """
    items = probe_items(model.config)
    limit = tolerance(next(model.classifier.parameters()).dtype)
    with _undisturbed(model), _forward_explained(model):
        with _own_kernel(model.classifier):
            alone_SH = _read_by_transformers(model.classifier, items)
        packed = None
        obstacle = None
        if model.packing_obstacle is None:
            packed, obstacle = _try_packing(model, items, alone_SH, limit)
        # A model that cannot be packed gets its own masks back.
        with _own_kernel(model.classifier) if obstacle else nullcontext():
            plain = _difference(_last_states(model, items, "plain"), alone_SH)
    _check_padding(model, plain, limit)
    return LayoutProbe(limit, plain, packed, obstacle)


def _try_packing(
    model, items: list[TokenizedItem], alone_SH: torch.Tensor, limit: float
) -> tuple[float | None, str | None]:
    """The largest difference of packed texts from each text alone.

    Returns:
        The difference, None where the forward fails; and why packing is not exact, None if it is.

    Plain rows count, too: with our attention, transformers builds no masks, which a few models need for plain rows.
    """
    try:
        packed = _difference(_last_states(model, items, "packed"), alone_SH)
        largest = max(packed, _difference(_last_states(model, items, "plain"), alone_SH))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # A model may raise any error on a layout that its authors never tried; the plain one remains.
        return None, f"its packed forward fails ({first_line(error)})"
    if largest <= limit:
        return packed, None
    obstacle = (
        f"packed texts are not computed as alone (off by {largest:.1e} of the spread over texts; rounding is at most "
        f"{limit:.0e})"
    )
    return packed, obstacle


def frozen_difference(model: RewardModel) -> float:
    """Largest difference of states that pass the frozen layers first from those of the whole forward.

    Relative to the spread over the probe's texts.
    """
    items = probe_items(model.config)
    layouts = ("plain",) if model.packing_obstacle else ("packed", "plain")
    frozen = model.frozen
    differences = []
    with _undisturbed(model):
        for layout in layouts:
            split_SH = _last_states(model, items, layout)
            model.frozen = None
            whole_SH = _last_states(model, items, layout)
            model.frozen = frozen
            differences.append(_difference(split_SH, whole_SH))
    return max(differences)


def probe_joint_model(model: JointModel | EncoderRewardModel) -> LayoutProbe:
    """Compare the logits of rows padded to one length with those of each row without padding.

    Args:
        model: a `JointModel` or `EncoderRewardModel` whose weights are whole.

    Raises:
        UserError: padding changes a row's logit, on the probe or with longer rows (the configuration tells).
    """
    if reason := _depends_on_length(model.config):
        raise UserError(
            f"{type(model.classifier).__name__} is refused: {reason}, so its scores would depend on the batch."
        )
    items = [
        replace(item, first_ends=tuple(length // 2 for length in item.lengths)) for item in probe_items(model.config)
    ]
    limit = tolerance(next(model.classifier.parameters()).dtype)
    # A batch of equal rows has no padding.
    alone = [
        replace(item, sequences=(sequence, sequence), first_ends=(end, end))
        for item in items
        for sequence, end in zip(item.sequences, item.first_ends, strict=True)
    ]
    with _undisturbed(model), _forward_explained(model):
        alone_S1 = torch.cat([_forward(model, [item], "plain").rewards[:, :1] for item in alone])
        plain = _difference(_forward(model, items, "plain").rewards.view(-1, 1), alone_S1)
    _check_padding(model, plain, limit)
    return LayoutProbe(limit, plain)


def _depends_on_length(config) -> str | None:
    """Why an encoder's attention depends on the padded length of a batch although no small probe shows it; or None."""
    if getattr(config, "attention_type", None) == "block_sparse":
        return (
            "block-sparse attention depends on the padded length of a batch (attention_type: original_full in its "
            "config.json does not)"
        )
    if "lsh" in (getattr(config, "attn_layers", None) or ()):
        return "its hashed attention draws random numbers and depends on the padded length of a batch"
    return None


def check_length(classifier: PreTrainedModel, longest: int) -> None:
    """Refuse a text so long that it would change the scores of the other texts of its batch.

    Some rotary embeddings take other frequencies for the whole batch as soon as one text passes the original length
    (longrope, arXiv 2402.13753; dynamic NTK); Doge ranks the tokens of the whole padded row.

    Args:
        longest: tokens of the longest text of a batch.

    Raises:
        UserError: it is that long.
    """
    config = classifier.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    limits = {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        original = parameters.get("original_max_position_embeddings") or getattr(
            config, "max_position_embeddings", None
        )
        if parameters.get("rope_type") in ("longrope", "dynamic") and original:
            limits[f"rope_type {parameters['rope_type']}"] = original
    if window := getattr(config, "keep_window_size", None):
        limits["keep_window_size"] = window
    for reason, limit in limits.items():
        if longest > limit:
            raise UserError(
                f"{type(classifier).__name__}: a text of {longest} tokens would change the scores of the other texts "
                f"of its batch ({reason} depends on the longest text above {limit} tokens). Set max_length to at most "
                f"{limit}."
            )


def _check_padding(model, difference: float, limit: float) -> None:
    if difference > limit:
        raise UserError(
            f"{type(model.classifier).__name__} is refused: padding, or other texts of a batch, change its score of a "
            f"text (by {difference:.1e} of the spread over texts; rounding is at most {limit:.0e}). Its scores would "
            "depend on the batch. Use another model."
        )


def probe_items(config) -> list[TokenizedItem]:
    """The probe's texts for a model with this configuration: ordinary ids, drawn with a separate seed.

    An encoder-decoder reads its score at the end token, so there each text ends with it.
    """
    needs_end = config.is_encoder_decoder
    config = config.get_text_config()
    special: set[Any] = set()
    for key, value in config.to_dict().items():
        if "token" in key:
            special.update(value if isinstance(value, list) else [value])
    vocabulary = min(getattr(config, "vocab_size", None) or 256, 10_000)
    ordinary = np.array([i for i in range(vocabulary) if i not in special], dtype=np.int32)
    end = getattr(config, "eos_token_id", None)
    ends = [end] if needs_end and isinstance(end, int) else []
    generator = np.random.default_rng(0)
    items = []
    for prompt_length, lengths in _LENGTHS:
        prompt = generator.choice(ordinary, prompt_length)
        sequences = tuple(
            np.array([*prompt, *generator.choice(ordinary, length), *ends], dtype=np.int32) for length in lengths
        )
        items.append(TokenizedItem(sequences, prompt_length, (False, False), (False, False)))
    return items


@contextmanager
def _undisturbed(model: RewardModel | JointModel | EncoderRewardModel) -> Iterator[None]:
    """Evaluation mode without gradients and autocast; restores modes and random numbers."""
    training = [module for module in model.modules() if module.training]
    autocast = model.autocast
    device = next(model.parameters()).device
    model.autocast = None
    model.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            yield
    finally:
        model.autocast = autocast
        for module in training:
            module.training = True


@contextmanager
def _own_kernel(classifier: PreTrainedModel) -> Iterator[None]:
    """Use the attention of transformers, masks included, instead of ours."""
    ours = classifier.config._attn_implementation
    if ours != packed_attention.NAME:
        yield
        return
    classifier.set_attn_implementation(packed_attention.KERNEL)
    try:
        yield
    finally:
        classifier.set_attn_implementation(ours)


def _read_by_transformers(classifier: PreTrainedModel, items: list[TokenizedItem]) -> torch.Tensor:
    """The states that the head reads in the forward of transformers for each text alone, fp32 [S, hidden]."""
    head = cast(nn.Linear, classifier.score)
    read = []

    def keep(_, inputs):
        # The head is fp32 whatever the backbone is.
        states = inputs[0].to(head.weight.dtype)
        read.append(states.reshape(-1, states.shape[-1])[-1])
        return (states,)

    device = head.weight.device
    scores = []
    handle = head.register_forward_pre_hook(keep)
    try:
        for sequence in (sequence for item in items for sequence in item.sequences):
            ids = torch.from_numpy(sequence.astype(np.int64))[None].to(device)
            scores.append(classifier(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0])
    finally:
        handle.remove()
    states_SH = torch.stack(read)
    scores_S1 = torch.stack(scores)
    if not torch.allclose(head(states_SH).float(), scores_S1.float(), rtol=1e-3, atol=1e-5):
        raise UserError(
            f"{type(classifier).__name__} is refused: its score is not its head at the last token. Use another model."
        )
    return states_SH


def _last_states(model, items: list[TokenizedItem], layout: str) -> torch.Tensor:
    """The states that our head reads of each text, fp32 [S, hidden]."""
    return _forward(model, items, layout).last_hidden.flatten(0, 1).float()


def _forward(model, items: list[TokenizedItem], layout: str):
    pad_id = model.config.get_text_config().pad_token_id or 0
    return model(lay_out(items, layout, pad_id).to(next(model.parameters()).device))


@contextmanager
def _forward_explained(model) -> Iterator[None]:
    """A model that cannot compute plain rows of text is refused by name."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"{type(model.classifier).__name__} is refused: it does not compute a batch of text rows "
            f"({first_line(error)}). Use another model."
        ) from error


def _difference(ours_SH: torch.Tensor, theirs_SH: torch.Tensor) -> float:
    """Largest distance between two vectors of the same text, relative to the spread of vectors over texts."""
    spread = (theirs_SH - theirs_SH.mean(0)).square().sum(-1).mean().sqrt()
    size = theirs_SH.square().sum(-1).mean().sqrt()
    largest = (ours_SH - theirs_SH).square().sum(-1).max().sqrt()
    # Texts that a model hardly tells apart would make rounding look large.
    ratio = float(largest / torch.maximum(spread, size / 100).clamp(min=torch.finfo(spread.dtype).tiny))
    return math.inf if math.isnan(ratio) else ratio
