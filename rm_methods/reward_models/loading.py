"""The one place that loads models, tokenizers and configurations of transformers.

A model is loaded whole or not at all.  For weights that a checkpoint lacks, transformers draws random ones, so that
every process gives other scores.  Weights that it does not know are left out.  Both are errors here.  Code that comes
with a model (`auto_map` in its config.json) is never run, because every reader of the folder would have to trust it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations import deepspeed

from rm_methods.errors import UserError
from rm_methods.files import check_regular
from rm_methods.reward_models.model_folder import check_config, check_model_folder, named
from rm_methods.system.ranks import print_once

AUTO = "auto"
# Modules that wrap a model, or a part of it, and leave their name in the names of its tensors: torch.compile, DDP,
# FSDP, and activation checkpointing.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# transformers applies each pattern once to a name, and FSDP wraps the model and its layers, so each occurs twice.
_UNWRAPPED = {rf"(^|{dot}){wrapper}\.": r"\1" for dot in (r"\.", "[.]") for wrapper in _WRAPPERS}
# In front of all names: PEFT, TRL's value-head models, and a module that holds the model.
_OUTER_NAMES = ("base_model.model.", "pretrained_model.", "model.", "classifier.", "backbone.")


def pretrained_config(source: str | Path, *, revision: str | None = None, setting: str | None = None):
    """The configuration of a local folder or hub id.

    Args:
        setting: key path of the setting that names the source, for messages.

    Raises:
        UserError: it cannot be read.
    """
    local = Path(source).is_dir()
    if local:
        check_config(source, setting)
    with load_errors_explained(source, setting):
        return AutoConfig.from_pretrained(source, revision=revision, local_files_only=local, trust_remote_code=False)


def pretrained_tokenizer(source: str | Path, *, revision: str | None = None, setting: str | None = None, **options):
    """The tokenizer of a local folder or hub id.

    Args:
        options: of `AutoTokenizer.from_pretrained`.

    Raises:
        UserError: it cannot be read.
    """
    local = Path(source).is_dir()
    with load_errors_explained(source, setting):
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, local_files_only=local, trust_remote_code=False, **options
        )
        tokenizer("a")  # shows some kinds of damage of its configuration
        return tokenizer


def pretrained_model(
    auto_class,
    source: str | Path,
    *,
    dtype: str | torch.dtype = torch.float32,
    attention: str = AUTO,
    new_head: bool = False,
    revision: str | None = None,
    setting: str | None = None,
    renames: Mapping[str, str] | None = None,
    read_elsewhere: Sequence[str] = (),
    **options: Any,
):
    """The model of a local folder or hub id, with every weight from its checkpoint.

    Args:
        auto_class: a class with `from_pretrained`, such as `AutoModelForSequenceClassification`.
        dtype: of the weights.
        attention: "auto" (sdpa if the architecture has it, otherwise eager with a message on stderr), or a name that
            transformers knows.
        new_head: the head may be missing, and that of a language model in the checkpoint is left out.
        renames: patterns and replacements for names of tensors, if the head has another name in the checkpoint; then
            the head of a language model may be beside it, and is left out.
        read_elsewhere: names of tensors that the caller reads.
        options: of `from_pretrained`.

    Returns:
        The model, in evaluation mode, and whether tensors of its head are new.

    Raises:
        UserError: the files are damaged or of another kind, or tensors are missing, unexpected or of another shape.
    """
    options |= {"revision": revision, "attn_implementation": attention_option(attention)}
    options |= {"dtype": getattr(torch, dtype) if isinstance(dtype, str) else dtype}
    mapping = check_tensors(
        auto_class,
        source,
        new_head=new_head,
        setting=setting,
        renames=renames,
        read_elsewhere=read_elsewhere,
        **options,
    )
    with load_errors_explained(source, setting), _without_load_report():
        model, report = _from_pretrained(auto_class, source, key_mapping=mapping, output_loading_info=True, **options)
    # Otherwise save_pretrained would restore the removed prefixes.
    if mapping is not None and hasattr(model, "_weight_conversions"):
        del model._weight_conversions
    used = model.config._attn_implementation
    if attention == AUTO and used != "sdpa":
        print_once(f"{source}: {type(model).__name__} has no sdpa attention, so {used} attention is used.")
    return model, bool(report["missing_keys"])


def model_with_code(folder: Path, auto_class: str):
    """A model and its tokenizer whose Python code comes with them; the code is run.

    Args:
        auto_class: name of the class of transformers that config.json names the code for.

    Raises:
        UserError: the files are damaged, or the code fails.
    """
    options: dict[str, Any] = {"trust_remote_code": True, "local_files_only": True}
    with load_errors_explained(folder):
        model = getattr(transformers, auto_class).from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, **options
        )
        return model, AutoTokenizer.from_pretrained(folder, **options)


def adapter_settings(folder: Path):
    """The configuration of PEFT adapters, for scoring."""
    import peft

    with load_errors_explained(folder):
        settings = peft.PeftConfig.from_pretrained(str(folder))
    settings.inference_mode = True
    return settings


def pretrained_gguf(auto_class, folder: str | Path, gguf_file: str, *, setting: str | None = None):
    """The model of a GGUF file in a folder, de-quantized to fp32.

    Raises:
        UserError: it cannot be read, or holds other tensors than the model.
    """
    with load_errors_explained(folder, setting), _without_load_report():
        model, report = auto_class.from_pretrained(
            folder, gguf_file=gguf_file, dtype=torch.float32, output_loading_info=True
        )
    wrong = _wrong_tensors(model, report, new_head=False)
    if any(wrong.values()):
        raise UserError(
            f"{Path(folder) / gguf_file}: the weights are not those of {type(model).__name__}: {_listed(wrong)}. "
            f"{_advice(wrong)}"
        )
    return model


def check_tensors(
    auto_class,
    source: str | Path,
    *,
    new_head: bool = False,
    setting: str | None = None,
    renames: Mapping[str, str] | None = None,
    read_elsewhere: Sequence[str] = (),
    **options: Any,
) -> dict[str, str] | None:
    """Compare the tensors of a checkpoint with those of the model, from headers alone: nothing large is read.

    Args:
        auto_class, new_head, setting, renames, read_elsewhere, options: as for `pretrained_model`.

    Returns:
        `renames`, and patterns that take prefixes of compiled or wrapped models off the names of the tensors
        (`key_mapping` of `from_pretrained`); None if the names are right, which is the rule.

    Raises:
        UserError: as for `pretrained_model`.
    """
    if Path(source).is_dir():
        check_model_folder(source, setting)
    # On the meta device and outside of ZeRO-3, which reports neither unexpected tensors nor other shapes.
    options = options | {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    with load_errors_explained(source, setting), outside_of_zero3(), _without_load_report(), _without_load_bar():
        ignored = set(read_elsewhere)
        model, report = _from_pretrained(auto_class, source, key_mapping=dict(renames) if renames else None, **options)
        if renames:
            ignored |= _language_model_heads(model.config)
        wrong = _wrong_tensors(model, report, new_head, ignored)
        if not any(wrong.values()):
            return dict(renames) if renames else None
        for mapping in _unwrapping(report["unexpected_keys"]):
            mapping |= renames or {}
            model, unwrapped = _from_pretrained(auto_class, source, key_mapping=mapping, **options)
            if not any(_wrong_tensors(model, unwrapped, new_head, ignored).values()):
                name = min(report["unexpected_keys"])
                print_once(f"{source}: tensors have the names of a wrapped model ({name}); the prefix is removed.")
                return mapping
    raise UserError(
        f"{named(source, setting)}: the weights are not those of {type(model).__name__}: {_listed(wrong)}. "
        f"{_advice(wrong)}"
    )


def attention_option(attention: str) -> str | None:
    """Value of `attn_implementation` for transformers; None is sdpa if the architecture has it, otherwise eager."""
    return None if attention == AUTO else attention


def learned_positions(config) -> int | None:
    """Longest row that a model with a table of learned positions reads; None for computed positions (rotary)."""
    config = config.get_text_config()
    if getattr(config, "rope_parameters", None) is not None or getattr(config, "alibi", False):
        return None
    positions = getattr(config, "max_position_embeddings", None) or 0
    return positions if positions > 0 else None  # XLNet says -1: no limit


def length_within_positions(source: str | Path, config, max_length: int) -> int:
    """`max_length`, or the number of learned positions if that is less: longer texts are then cut and marked.

    A message on stderr names a lower length.
    """
    positions = learned_positions(config)
    if positions is None or max_length <= positions:
        return max_length
    print_once(
        f"{source}: texts are cut at {positions} tokens, not {max_length}: the model has learned no more positions."
    )
    return positions


@contextmanager
def load_errors_explained(source: str | Path, setting: str | None = None) -> Iterator[None]:
    """Turns errors of transformers for a damaged, unknown or unreachable model into one message that says what to do.

    Args:
        source: folder or hub id.
        setting: key path of the setting that names it.
    """
    if Path(source).is_dir():
        check_regular(*Path(source).iterdir())
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # panics of the tokenizers library are no Exception
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{source}: this model needs code that comes with it (auto_map in config.json or "
                "tokenizer_config.json), which is never run. Use a model whose class is part of transformers; if this "
                "one has such a class, name its model_type and leave auto_map out. To score with it all the same, "
                "read the code and say --trust-remote-code."
            ) from error
        if "does not support an attention implementation" in str(error):
            raise UserError(
                f"{named(source, setting)}: this architecture does not support the attention implementation that is "
                "asked for. Set attention to 'auto' (backbone.attention, or --attention)."
            ) from error
        first = next(iter(str(error).strip().splitlines()), "")
        what = f"{type(error).__name__}: {first}" if first else type(error).__name__
        if Path(source).is_dir():
            advice = (
                "A file of this folder is damaged or missing, or of a kind that transformers does not read; fetch or "
                "save the model again."
            )
        else:
            advice = (
                "No such folder exists here, so it was taken for a model of the hub. If this machine has no network, "
                f"download the model elsewhere and {f'set {setting} to' if setting else 'name'} the local folder."
            )
        raise UserError(f"{named(source, setting)} cannot be loaded ({what}). {advice}") from error


@contextmanager
def outside_of_zero3() -> Iterator[None]:
    """Models loaded inside are whole: under ZeRO-3 transformers loads every model in shards, trained or not."""
    if not deepspeed.is_deepspeed_zero3_enabled():
        yield
        return
    reference = deepspeed._hf_deepspeed_config_weak_ref
    configuration = None if reference is None else reference()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(configuration)


def _from_pretrained(auto_class, source: str | Path, **options: Any):
    # Pickled weights can run code.
    local = Path(source).is_dir()
    return auto_class.from_pretrained(
        source, local_files_only=local, use_safetensors=True, trust_remote_code=False, **options
    )


def _wrong_tensors(
    model, report: dict[str, Any], new_head: bool, ignored: Set[str] = frozenset()
) -> dict[str, list[str]]:
    """Names of tensors that are missing, unexpected or of another shape, without those that a new head explains.

    Args:
        ignored: names that may be unexpected.
    """
    missing = set(report["missing_keys"])
    unexpected = set(report["unexpected_keys"]) - ignored
    if new_head:
        missing = {name for name in missing if not _is_head(name, model.base_model_prefix)}
        unexpected = unexpected and unexpected - _language_model_heads(model.config)
    shapes = [
        f"{name} ({_shape(stored)} in place of {_shape(expected)})"
        for name, stored, expected in report["mismatched_keys"]
    ]
    return {"missing": sorted(missing), "unexpected": sorted(unexpected), "of another shape": sorted(shapes)}


def _is_head(name: str, base_model_prefix: str) -> bool:
    """Whether a tensor is outside of the base model, or of its pooler, which only classification reads."""
    return not name.startswith(f"{base_model_prefix}.") or "pooler" in name.split(".")


def _language_model_heads(config) -> set[str]:
    """Names of the tensors of all language-model heads (causal, masked, pretraining) of this type in transformers."""
    heads: set[str] = set()
    for auto_class in (AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForPreTraining):
        mapping: Any = auto_class._model_mapping
        if type(config) in mapping:
            model_class = mapping[type(config)]
            for architecture in model_class if isinstance(model_class, tuple) else (model_class,):
                with torch.device("meta"):
                    model = architecture(config)
                head = {name: w for name, w in model.state_dict().items() if _is_head(name, model.base_model_prefix)}
                # Some have another name in files: GPT-NeoX saves its lm_head as embed_out.
                heads.update(head, revert_weight_conversion(model, head))
    return heads


def _unwrapping(names: set[str]) -> list[dict[str, str]]:
    """Patterns to try, without those that change no name."""
    mappings = []
    for outer in ("", *_OUTER_NAMES):
        mapping = dict(_UNWRAPPED)
        if outer:
            # After the wrappers, which may be around the outer module or in it.
            mapping[f"^{re.escape(outer)}"] = ""
        if any(renamed(name, mapping) != name for name in names):
            mappings.append(mapping)
    return mappings


def renamed(name: str, mapping: dict[str, str]) -> str:
    """A tensor's name after a `key_mapping`."""
    for pattern, replacement in mapping.items():
        name = re.sub(pattern, replacement, name)
    return name


def _listed(wrong: dict[str, list[str]]) -> str:
    parts = []
    for what, names in wrong.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(
                f"{len(names)} {'tensor is' if len(names) == 1 else 'tensors are'} {what}: {', '.join(names[:3])}{more}"
            )
    return "; ".join(parts)


def _advice(wrong: dict[str, list[str]]) -> str:
    missing, unexpected, shapes = wrong.values()
    if any(".lora_" in name or ".base_layer." in name or ".modules_to_save." in name for name in unexpected):
        return (
            "It holds adapters that are not merged: merge them with PEFT (merge_and_unload) and save the model again."
        )
    if any(name.startswith("score.weight ") for name in shapes):
        return (
            "A reward model has one output (score.weight of shape [1, hidden]); a classifier of several labels is none."
        )
    if "score.weight" in missing and "lm_head.weight" in unexpected:
        return (
            "This is a causal language model: train a reward model from it (backbone.source), or name a trained one. "
            "The implicit reward of a policy trained by DPO needs --reference."
        )
    if missing == ["score.weight"]:
        return (
            "Its reward head is missing, as in a language model: train a reward model from it (backbone.source), or "
            "name the reference of a policy trained by DPO (--reference). If the head is one linear layer under a name "
            "that is not in use elsewhere, rename its tensor to score.weight."
        )
    if missing == ["lm_head.weight"] or (not missing and "score.weight" in unexpected):
        return "Is this a reward model? A language model needs its language-model head."
    if missing:
        return (
            "Missing weights would be drawn at random: fetch the checkpoint again, or use a config.json that fits it."
        )
    return (
        "Leaving weights out would change what the model computes: use a model all of whose weights transformers knows."
    )


def _shape(size) -> str:
    return str(list(size))


class _LoadReport(logging.Filter):
    """Drops the table that transformers logs of missing and unexpected tensors: here they are an error or meant."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()


@contextmanager
def _without_load_bar() -> Iterator[None]:
    """No progress bar while a model's tensors are checked, so that a load shows one; downloads show theirs."""
    shows_bars = transformers.utils.logging.is_progress_bar_enabled()
    hides_downloads = huggingface_hub.utils.are_progress_bars_disabled()
    transformers.utils.logging.disable_progress_bar()
    if not hides_downloads:
        huggingface_hub.utils.enable_progress_bars()
    try:
        yield
    finally:
        if shows_bars:
            transformers.utils.logging.enable_progress_bar()
        if hides_downloads:
            huggingface_hub.utils.disable_progress_bars()


@contextmanager
def _without_load_report() -> Iterator[None]:
    logger = logging.getLogger(transformers.modeling_utils.__name__)
    report = _LoadReport()
    logger.addFilter(report)
    try:
        yield
    finally:
        logger.removeFilter(report)
