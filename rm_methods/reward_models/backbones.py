"""Backbones: a hub id, a local folder, a GGUF file inside a package or folder, or a tiny Llama-type model from scratch.

`prepare_backbone` runs once per experiment and writes one folder (tokenizer, chat template, configuration, converted
weights if any); `load_classifier` makes a sequence-classification model of that folder in every run.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_methods.errors import UserError
from rm_methods.files import check_regular, check_replaceable, file_hash, read_json, write_json, written_atomically
from rm_methods.preferences.pair import PreferencePair
from rm_methods.preferences.tool_calls import TOOLS, readable, uses_tools
from rm_methods.reward_models.template_probe import conversation, fold_system, pin_date, render
from rm_methods.system.engines import look_for_engines_only_with_deepspeed

if TYPE_CHECKING:
    from rm_methods.reward_models.tokenization import ChatTokenizer

RECORD = "backbone.json"
_DATA = Path(__file__).resolve().parent.parent / "data"
WORLD_MODEL = _DATA / "world_model"
# Language models of the controlled world, written by `train-world-model`.  The weak one has not yet learned to compare.
WORLD_MODELS = {"world": WORLD_MODEL, "world_weak": _DATA / "world_weak"}
WORLD_JOINT = _DATA / "world_joint"  # a joint one, no backbone
WORLD_SCRATCH = "world_scratch"  # shape and tokenizer of "world", random weights
_PREPARE_FIRST = (
    "Prepare the backbone first (`rm-methods prepare-backbone`). If that refuses the backbone, it says what to change."
)
_INSTALL_AGAIN = (
    "Install the package again. To use a model that you trained or changed, name its folder in backbone.source."
)
_ROLES = ("system", "user", "assistant")
_TOOL_ROLES = (TOOLS, "tool")
_TINY_TEMPLATE = (
    "{{ bos_token }}"
    "{% if tools %}{{ '<tools>' + tools | tojson + eos_token }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<' + message['role'] + '>' + (message['content'] or '') }}"
    "{% for call in message['tool_calls'] or [] %}{{ '\\n' + call['function'] | tojson }}{% endfor %}"
    "{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def prepare_backbone(backbone: dict[str, Any], pairs: Iterable[PreferencePair], folder: Path) -> dict[str, Any]:
    """Make the backbone folder of an experiment.

    Args:
        backbone: the resolved `backbone` section of the configuration.
        pairs: training pairs, read only by the tiny backbone, whose tokenizer is trained on their text.
        folder: output folder.

    Returns:
        The record that is also written to `backbone.json`: kind, where weights are loaded from, revision, tokenizer
        hash, and properties of the chat template (`rm_methods.reward_models.template_probe.probe_template`).

    Raises:
        UserError: source not found, hub not reachable, tokenizer unusable, a model that needs code that comes with it.
    """
    from rm_methods.reward_models.tokenization import ChatTokenizer

    check_replaceable(folder, "backbone.json")
    with written_atomically(folder) as path:
        path.mkdir()
        if backbone["source"] == "tiny":
            record = _prepare_tiny(backbone, pairs, path)
        elif backbone["source"] == WORLD_SCRATCH:
            record = _prepare_world_scratch(path)
        elif backbone["gguf_file"]:
            record = _convert_gguf(backbone, path)
        else:
            if backbone["source"] in WORLD_MODELS:
                check_shipped(WORLD_MODELS[backbone["source"]])
            record = _prepare_pretrained(backbone, path)
        tokenizer = _tokenizer(path, backbone)
        tokenizer.save_pretrained(path)
        _check_length(path, backbone)
        reader = ChatTokenizer(tokenizer, backbone["max_length"])
        record |= {"tokenizer_hash": reader.hash(), "template": reader.template}
        write_json(path / RECORD, record)
    return record


def load_tokenizer(folder: Path, max_length: int, chat_template: str | None = None) -> ChatTokenizer:
    """The `ChatTokenizer` of a prepared backbone or of a saved reward model.

    Args:
        chat_template: text of a Jinja template, in place of the tokenizer's.

    Raises:
        UserError: the folder does not exist, or its tokenizer cannot be used, or is not the one that was prepared.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder. {_PREPARE_FIRST}")
    from rm_methods.reward_models.loading import pretrained_tokenizer
    from rm_methods.reward_models.tokenization import ChatTokenizer

    tokenizer = pretrained_tokenizer(folder)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    reader = ChatTokenizer(tokenizer, max_length)
    record = Path(folder) / RECORD
    prepared = read_json(record).get("tokenizer_hash") if record.is_file() and chat_template is None else None
    if prepared is not None and prepared != reader.hash():
        raise UserError(
            f"{folder}: the tokenizer is not the one that was prepared ({RECORD} has another hash), so a file of the "
            f"folder was changed. {_PREPARE_FIRST}"
        )
    return reader


def _prepared(folder: Path) -> dict[str, Any]:
    """The record of a prepared backbone; raises UserError without one."""
    if not (Path(folder) / RECORD).is_file():
        raise UserError(f"{folder}: not a prepared backbone ({RECORD} is missing). {_PREPARE_FIRST}")
    return read_json(Path(folder) / RECORD)


def load_classifier(folder: Path, backbone: dict[str, Any], seed: int):
    """A sequence-classification model with a fresh head, from a prepared backbone folder.

    Args:
        seed: initializes the head, and all weights of a tiny backbone; pretrained weights do not depend on it.

    Raises:
        UserError: the weights cannot be read, or tensors other than the head's are missing, unexpected or of another
            shape.
    """
    from transformers import AutoModelForSequenceClassification, set_seed

    from rm_methods.reward_models.loading import attention_option, pretrained_config, pretrained_tokenizer

    record = _prepared(folder)
    tokenizer = pretrained_tokenizer(folder)
    set_seed(seed)
    if record["kind"] == "tiny":
        config = pretrained_config(folder)
        config.num_labels = 1
        classifier = AutoModelForSequenceClassification.from_config(
            config, attn_implementation=attention_option(backbone["attention"])
        )
    else:
        classifier, head_is_new = _pretrained(
            AutoModelForSequenceClassification, folder, record, backbone, new_head=True, num_labels=1
        )
        if head_is_new:
            _draw_head(classifier, seed)
        _make_room(classifier, tokenizer)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    return classifier


def load_language_model(folder: Path, backbone: dict[str, Any], seed: int):
    """The causal language model of a prepared backbone folder; a tiny one has random weights, drawn from the seed."""
    from transformers import AutoModelForCausalLM, set_seed

    from rm_methods.reward_models.loading import attention_option, pretrained_config, pretrained_tokenizer

    record = _prepared(folder)
    set_seed(seed)
    if record["kind"] == "tiny":
        config = pretrained_config(folder)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention_option(backbone["attention"]))
    language_model, _ = _pretrained(AutoModelForCausalLM, folder, record, backbone)
    _make_room(language_model, pretrained_tokenizer(folder))
    return language_model


def _pretrained(auto_class, folder: Path, record: dict[str, Any], backbone: dict[str, Any], **options):
    """The model whose weights a prepared backbone folder names, and whether its head is new."""
    from rm_methods.reward_models.loading import pretrained_model

    return pretrained_model(
        auto_class,
        str(folder) if record["weights"] == "here" else record["weights"],
        dtype=backbone["dtype"],
        attention=backbone["attention"],
        revision=record["revision"],
        setting="backbone.source",
        **options,
    )


def changed_logits(config) -> dict[str, float]:
    """Changes that a language model with this configuration makes to hidden states times output embeddings.

    Returns:
        Settings by name; empty for most models, which change nothing.
    """
    keys = ("logit_scale", "logits_scaling", "lm_head_multiplier", "final_logit_softcapping")
    return {key: value for key in keys if (value := getattr(config, key, None)) not in (None, 1)}


def _make_room(model, tokenizer) -> None:
    """Add rows of embeddings for tokens that were added to the tokenizer (a pad token)."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def _draw_head(classifier, seed: int) -> None:
    """Initialize a new scalar head from the seed alone: equal on every rank, with and without ZeRO-3."""
    from contextlib import nullcontext

    import torch

    weight = classifier.score.weight
    gathered = nullcontext()
    if hasattr(weight, "ds_id"):
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters([weight], modifier_rank=0)
    scale = getattr(classifier.config, "initializer_range", 0.02)
    drawn = torch.randn(1, classifier.score.in_features, generator=torch.Generator().manual_seed(seed)) * scale
    with gathered, torch.no_grad():
        if weight.shape == drawn.shape:
            weight.copy_(drawn)


def source_folder(source: str) -> str:
    """Where weights are stored: for "world" and "world_weak" the language models of the controlled world in this
    package, for "package:<name>[/folder]" (a folder in) an installed package, otherwise `source`.

    "world_scratch" has no weights; its folder has the configuration that it shares with "world".

    Raises:
        UserError: the package is not installed.
    """
    if source == WORLD_SCRATCH:
        return str(WORLD_MODEL)
    if source in WORLD_MODELS:
        return str(WORLD_MODELS[source])
    if not source.startswith("package:"):
        return source
    package, _, inside = source.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise UserError(
            f"source: package '{package}' is not installed in {sys.prefix}. `make setup` installs the weight packages; "
            "or name a hub id or a local folder."
        )
    return str(Path(spec.origin).parent / inside)


def check_shipped(folder: Path, advice: str = _INSTALL_AGAIN) -> None:
    """Compare the files of a model in this package, or of another one of `train-world-model`, with its record.

    Args:
        advice: what to do if they differ, for the message.

    Raises:
        UserError: naming every file that is missing or differs.
    """
    record = folder / "training.json"
    if not record.is_file():
        raise UserError(f"{folder}: {record.name} is missing, so the model cannot be checked. {advice}")
    problems = []
    content = read_json(record)
    hashes = content.get("sha256") if isinstance(content, dict) else None
    if not isinstance(hashes, dict) or not all(isinstance(expected, str) for expected in hashes.values()):
        raise UserError(f"{record}: `sha256` must be the hash of each file; the record is damaged. {advice}")
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif (actual := file_hash(folder / name, length=len(expected))) != expected:
            problems.append(f"{name} has the SHA-256 {actual[:12]}..., not {expected[:12]}...")
    if problems:
        raise UserError(
            f"{folder}: the model is not the one of its record {record.name}. {'; '.join(problems)}. {advice}"
        )


def check_token_ids(source: str, other, tokenizer, *, setting: str) -> None:
    """Refuse a model that would read other tokens than a reward model where both get the same ids.

    Args:
        source: names the model, in the message.
        other: its tokenizer.
        tokenizer: of the reward model.  Its pad token may differ, because nothing attends to padding.
        setting: key path of the setting that names the model.

    Raises:
        UserError: a token has another id in the model's tokenizer.
    """
    known = other.get_vocab()
    different = [
        token
        for token, number in tokenizer.get_vocab().items()
        if known.get(token) != number and number != tokenizer.pad_token_id
    ]
    if different:
        raise UserError(
            f"{setting} = '{source}': {len(different)} tokens of this experiment's backbone have other ids there, such "
            f"as {min(different)!r}. Use a model with the tokenizer of the backbone."
        )


def _prepare_tiny(backbone: dict[str, Any], pairs: Iterable[PreferencePair], path: Path) -> dict[str, Any]:
    """Train a byte-level BPE tokenizer on the training text and write the configuration of a small Llama."""
    from transformers import LlamaConfig

    tiny = backbone["tiny"]
    texts = []
    has_tools = False
    for pair in pairs:
        texts += [readable(message["content"]) for message in pair.prompt]
        texts += [readable(pair.chosen), readable(pair.rejected)]
        has_tools = has_tools or uses_tools(pair.prompt, (pair.chosen, pair.rejected))
    if not texts:
        raise UserError("backbone.source = 'tiny' trains its tokenizer on the training pairs, but none were given.")
    roles = (*_ROLES, *_TOOL_ROLES) if has_tools else _ROLES
    tokenizer = trained_tokenizer(
        texts, tiny["vocabulary_size"], [f"<{role}>" for role in roles], template=_TINY_TEMPLATE, end="<eos>"
    )
    tokenizer.save_pretrained(path)
    LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=tiny["hidden_size"],
        intermediate_size=tiny["intermediate_size"],
        num_hidden_layers=tiny["layers"],
        num_attention_heads=tiny["heads"],
        num_key_value_heads=tiny["key_value_heads"],
        initializer_range=tiny["initializer_range"],
        max_position_embeddings=max(backbone["max_length"], 512),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(path)
    return {"kind": "tiny", "weights": None, "revision": None, "source": "tiny"}


def _prepare_world_scratch(path: Path) -> dict[str, Any]:
    """Write tokenizer and configuration of the controlled world's language model, without its weights."""
    from rm_methods.reward_models.loading import pretrained_config, pretrained_tokenizer

    pretrained_config(WORLD_MODEL).save_pretrained(path)
    pretrained_tokenizer(WORLD_MODEL).save_pretrained(path)
    return {"kind": "tiny", "weights": None, "revision": None, "source": WORLD_SCRATCH}


def trained_tokenizer(
    texts: Iterable[str], vocabulary_size: int, special_tokens: Sequence[str], *, template: str, end: str
):
    """A byte-level BPE tokenizer of these texts, with the tokens <pad>, <bos>, `end` (EOS) and the special tokens.

    Args:
        vocabulary_size: at most; texts of few words give fewer tokens.
        template: the chat template.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<pad>", "<bos>", end, *special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token=end)
    tokenizer.chat_template = template
    return tokenizer


def _convert_gguf(backbone: dict[str, Any], path: Path) -> dict[str, Any]:
    """Dequantize a GGUF file once into safetensors."""
    from transformers import AutoModelForCausalLM

    from rm_methods.reward_models.loading import pretrained_gguf, pretrained_tokenizer

    folder = source_folder(backbone["source"])
    if not (Path(folder) / backbone["gguf_file"]).is_file():
        names = ", ".join(sorted(path.name for path in Path(folder).glob("*.gguf"))) or "none"
        raise UserError(
            f"backbone.gguf_file = '{backbone['gguf_file']}' is not in {folder}. GGUF files in this folder: {names}."
        )
    model = pretrained_gguf(AutoModelForCausalLM, folder, backbone["gguf_file"], setting="backbone.source")
    # The record of the quantization makes save_pretrained refuse, and the folder's path would make two machines' files
    # differ.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.config._name_or_path = ""
    look_for_engines_only_with_deepspeed()
    model.save_pretrained(path)
    pretrained_tokenizer(folder, setting="backbone.source", gguf_file=backbone["gguf_file"]).save_pretrained(path)
    return {
        "kind": "pretrained",
        "weights": "here",
        "revision": None,
        "source": backbone["source"] + "/" + backbone["gguf_file"],
    }


def _prepare_pretrained(backbone: dict[str, Any], path: Path) -> dict[str, Any]:
    """Store tokenizer and configuration of a hub id or local folder; its weights are not copied."""
    from transformers import AutoModelForSequenceClassification

    from rm_methods.reward_models.loading import check_tensors, pretrained_config, pretrained_tokenizer

    source = source_folder(backbone["source"])
    options = {"revision": backbone["revision"], "setting": "backbone.source"}
    pretrained_config(source, **options).save_pretrained(path)
    pretrained_tokenizer(source, **options).save_pretrained(path)
    weights = source
    if Path(source).is_dir():
        # Here and not first in the training jobs, which may wait for GPUs. Weights of the hub are fetched by the first
        # of these.
        check_tensors(AutoModelForSequenceClassification, source, new_head=True, num_labels=1, **options)
        weights = os.path.abspath(source)
    return {"kind": "pretrained", "weights": weights, "revision": backbone["revision"], "source": backbone["source"]}


def _check_length(path: Path, backbone: dict[str, Any]) -> None:
    """Refuse more positions than the model has: they would give an index error or nonsense."""
    from rm_methods.reward_models.loading import pretrained_config

    limit = getattr(pretrained_config(path), "max_position_embeddings", None)
    if limit is not None and backbone["max_length"] > limit:
        raise UserError(
            f"backbone.max_length = {backbone['max_length']} is more than the {limit} positions of backbone.source = "
            f"'{backbone['source']}'. Lower it; longer prompts are then cut, oldest turns first, and counted."
        )


def _tokenizer(path: Path, backbone: dict[str, Any]):
    """The tokenizer with a chat template and with a pad token that never ends a conversation.

    Sequence-classification models find the end of a sequence as its last token that is not the pad token.  If the
    template's last token *is* the pad token (pad = eos is common), every other server would read the reward one token
    early.
    """
    from rm_methods.reward_models.loading import pretrained_tokenizer

    tokenizer = pretrained_tokenizer(path)
    tokenizer.name_or_path = backbone["source"]  # for messages
    if backbone["chat_template"]:
        check_regular(backbone["chat_template"])
        try:
            tokenizer.chat_template = Path(backbone["chat_template"]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"backbone.chat_template = '{backbone['chat_template']}' cannot be read ({error})."
            ) from None
    if not tokenizer.chat_template:
        raise UserError(
            f"backbone.source = '{backbone['source']}': the tokenizer has no chat template. Name a Jinja file in "
            "backbone.chat_template, or use a chat model."
        )
    pin_date(tokenizer)
    if backbone["refused_conversations"] == "fold_system":
        fold_system(tokenizer)
    text = render(tokenizer, conversation([{"role": "user", "content": "a"}], "b"))
    last = next(iter(tokenizer(text, add_special_tokens=False)["input_ids"][-1:]), None)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == last:
        spare = next(
            (t for t in (tokenizer.unk_token, "<|endoftext|>", "<pad>", "[PAD]") if _usable_as_pad(tokenizer, t, last)),
            None,
        )
        if spare is None:
            spare = "<|reward_pad|>"
            tokenizer.add_special_tokens({"pad_token": spare})
        tokenizer.pad_token = spare
    tokenizer.padding_side = "right"
    return tokenizer


def _usable_as_pad(tokenizer, token: str | None, last: int | None) -> bool:
    if token is None:
        return False
    token_id = tokenizer.get_vocab().get(token)
    return token_id is not None and token_id != last and token_id in tokenizer.all_special_ids
