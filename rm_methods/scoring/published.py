"""The scorer of a model folder: a classifier of ours or of others, adapters, a joint model, a policy, or code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rm_methods.errors import UserError
from rm_methods.files import read_json
from rm_methods.reward_models.model_folder import IMPLICIT_REWARD_RECORD, JOINT_RECORD, check_config
from rm_methods.scoring.adapters import base_folder, holds_only_adapters, merged_classifier
from rm_methods.scoring.model_options import ModelOptions
from rm_methods.scoring.scorer import JointScorer, RewardModelScorer, Scorer, ScoringSettings
from rm_methods.system.cpu import prepare_cpu

if TYPE_CHECKING:
    import torch

    from rm_methods.reward_models.model import RewardModel

_NO_LIMIT = 10**6  # tokenizers without a limit say 10**30


def published_scorer(folder: Path, settings: ScoringSettings, options: ModelOptions) -> Scorer:
    """The scorer of a folder with weights.

    Raises:
        UserError: the folder is damaged, of another kind, or needs an option; the message says which.
    """
    if holds_only_adapters(folder):
        _refuse(options, "adapters", ("label", "reference", "trust_remote_code"))
        prepare_cpu(settings.threads, settings.precision)
        classifier = merged_classifier(folder, attention=settings.attention)
        has_tokenizer = (folder / "tokenizer_config.json").is_file()
        return _decoder_scorer(classifier, folder if has_tokenizer else base_folder(folder), settings, options)
    check_config(folder)
    if (folder / IMPLICIT_REWARD_RECORD).exists():
        from rm_methods.reward_models.implicit_reward_model import load_implicit_reward_model

        _refuse(options, "a policy whose folder holds its reference", ("label", "reference", "trust_remote_code"))
        prepare_cpu(settings.threads, settings.precision)
        model = load_implicit_reward_model(folder, attention=settings.attention, autocast=_autocast(settings))
        return _model_scorer(model, folder, settings, options)
    if options.reference is not None:
        from rm_methods.scoring.implicit_reward import ImplicitRewardScorer, refuse_reward_model

        _refuse(options, "an implicit reward", ("label", "trust_remote_code"))
        refuse_reward_model(folder)
        return ImplicitRewardScorer.from_folders(folder, options.reference, settings, options.template())
    if (folder / JOINT_RECORD).exists() or _is_pairrm(folder):
        _refuse(options, "a joint model", ("chat_template", "label", "trust_remote_code"))
        return JointScorer.from_folder(folder, settings)
    if options.trust_remote_code:
        from rm_methods.scoring.remote_code import RemoteCodeScorer

        _refuse(options, "a model with its own code", ("label",))
        return RemoteCodeScorer.from_folder(folder, settings, options.template())
    return _classifier_scorer(folder, settings, options)


def _classifier_scorer(folder: Path, settings: ScoringSettings, options: ModelOptions) -> RewardModelScorer:
    from torch import nn

    from rm_methods.reward_models.published_head import published_classifier

    prepare_cpu(settings.threads, settings.precision)
    classifier = published_classifier(folder, attention=settings.attention, label=options.label)
    if isinstance(getattr(classifier, "score", None), nn.Linear):
        return _decoder_scorer(classifier, folder, settings, options)
    return _encoder_scorer(classifier, folder, settings, options)


def _decoder_scorer(classifier, folder: Path, settings: ScoringSettings, options: ModelOptions) -> RewardModelScorer:
    """Args: folder: of the tokenizer."""
    from rm_methods.reward_models.model import RewardModel

    return _model_scorer(RewardModel(classifier, autocast=_autocast(settings)), folder, settings, options)


def _model_scorer(
    model: RewardModel, folder: Path, settings: ScoringSettings, options: ModelOptions
) -> RewardModelScorer:
    """Args: folder: of the tokenizer."""
    import torch

    from rm_methods.reward_models.backbones import load_tokenizer
    from rm_methods.reward_models.loading import length_within_positions, load_errors_explained

    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    max_length = length_within_positions(folder, model.config, settings.max_length)
    tokenizer = load_tokenizer(folder, max_length, options.template())
    with load_errors_explained(folder):  # its probe is the first forward, which a damaged configuration may break
        return RewardModelScorer(model, tokenizer, settings)


def _autocast(settings: ScoringSettings) -> torch.dtype | None:
    import torch

    return torch.bfloat16 if settings.precision == "bf16" else None


def _encoder_scorer(classifier, folder: Path, settings: ScoringSettings, options: ModelOptions) -> RewardModelScorer:
    import torch

    from rm_methods.reward_models.encoder_model import EncoderRewardModel, TextPairReader
    from rm_methods.reward_models.loading import length_within_positions, load_errors_explained, pretrained_tokenizer
    from rm_methods.reward_models.published_head import chosen_output
    from rm_methods.reward_models.tokenization import ChatTokenizer

    tokenizer = pretrained_tokenizer(folder)
    template = options.template()
    if template is not None:
        tokenizer.chat_template = template
    max_length = length_within_positions(folder, classifier.config, settings.max_length)
    # The positions of RoBERTa's table count two that no token has, and the tokenizer knows it.
    if tokenizer.model_max_length < _NO_LIMIT:
        max_length = min(max_length, tokenizer.model_max_length)
    reads_chat = bool(tokenizer.chat_template)
    types = getattr(classifier.config, "type_vocab_size", 0)
    has_types = types > 1 and "token_type_ids" in tokenizer.model_input_names
    model = EncoderRewardModel(
        classifier,
        chosen_output(folder, classifier.config, classifier.config.num_labels, options.label),
        separator=tokenizer.sep_token_id if has_types and not reads_chat else None,
        autocast=_autocast(settings),
    )
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    reader = ChatTokenizer(tokenizer, max_length) if reads_chat else TextPairReader(tokenizer, max_length)
    with load_errors_explained(folder):
        return RewardModelScorer(model, reader, settings)


def _is_pairrm(folder: Path) -> bool:
    from rm_methods.reward_models.pairrm import is_pairrm

    return is_pairrm(read_json(folder / "config.json"))


def _refuse(options: ModelOptions, what: str, names: tuple[str, ...]) -> None:
    """Raises UserError for an option that would have no effect."""
    unused = [name for name in names if name in options.record()]
    if unused:
        raise UserError(f"{', '.join(unused)} has no effect on {what}. Leave it out.")
