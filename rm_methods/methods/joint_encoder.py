"""Joint preference model on an encoder: reads `[CLS] prompt [SEP] first [SEP] second [SEP]` in both directions.

    loss = mean over both orders of -log sigmoid(+-logit)
    preference = (logit(chosen first) - logit(rejected first)) / 2

After PairRM (LLM-Blender, arXiv 2306.02561), which reads one order at a time.  Here both orders of a pair are in every
step, so the position of a response never tells its label.  It is a baseline and a teacher of
`interaction_distillation`.  A tiny encoder, made for the controlled world, is first trained on the text of the pairs
by masked-language modeling.
"""

from __future__ import annotations

from collections import Counter

import torch

from rm_methods.errors import UserError
from rm_methods.methods.joint_method import JointMethod
from rm_methods.preferences.tool_calls import prompt_text, readable
from rm_methods.reward_models.backbones import source_folder
from rm_methods.reward_models.joint_model import JointModel, encoder_reader, load_encoder
from rm_methods.reward_models.joint_reader import EncoderReader
from rm_methods.reward_models.loading import pretrained_config, pretrained_model, pretrained_tokenizer

_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


class Method(JointMethod):
    def reader(self, pairs, inputs):
        if self.settings["source"] == "tiny":
            return EncoderReader(
                _words(pairs, self.settings["tiny"]["vocabulary_size"]), self.settings["tiny"]["positions"]
            )
        source, options = self._source()
        config = pretrained_config(source, **options)
        return encoder_reader(pretrained_tokenizer(source, **options), config)

    def model(self, pairs, reader, inputs):
        from transformers import AutoModelForSequenceClassification, set_seed

        set_seed(inputs.seed)
        if self.settings["source"] == "tiny":
            classifier = AutoModelForSequenceClassification.from_config(
                self._tiny(reader, num_labels=1), attn_implementation="sdpa"
            )
        else:
            source, options = self._source()
            classifier = load_encoder(source, new_head=True, **options)
        autocast = torch.bfloat16 if inputs.config["training"]["precision"] == "bf16" else None
        return JointModel(classifier, False, autocast)

    def adaptation(self, pairs, reader, inputs):
        from transformers import AutoModelForMaskedLM, set_seed

        if not self.settings["masked_language_epochs"]:
            return None
        set_seed(inputs.seed)
        source, options = self._source()
        if reader.tokenizer.mask_token_id is None:
            raise UserError(
                f"joint_encoder: the tokenizer of '{source}' has no mask token; set masked_language_epochs: 0."
            )
        if source == "tiny":
            language_model = AutoModelForMaskedLM.from_config(self._tiny(reader), attn_implementation="sdpa")
        else:
            try:
                language_model, _ = pretrained_model(AutoModelForMaskedLM, source, new_head=True, **options)
            except UserError as error:
                raise UserError(
                    f"{error} Or set masked_language_epochs: 0, which leaves out training on text."
                ) from error
        return self.masked_language_modeling(
            language_model, reader, inputs, decoder=False, mask_id=reader.tokenizer.mask_token_id
        )

    def _source(self) -> tuple[str, dict[str, str | None]]:
        """Folder or hub id of the encoder, and the options of its loads."""
        return source_folder(self.settings["source"]), {
            "revision": self.settings["revision"],
            "setting": "joint_encoder.source",
        }

    def _tiny(self, reader, **options):
        from transformers import ModernBertConfig

        tiny = self.settings["tiny"]
        tokenizer = reader.tokenizer
        # ModernBERT for its rotary positions: a few thousand short texts are too few to learn absolute ones.
        return ModernBertConfig(
            vocab_size=len(tokenizer),
            hidden_size=tiny["hidden_size"],
            intermediate_size=tiny["intermediate_size"],
            num_hidden_layers=tiny["layers"],
            num_attention_heads=tiny["heads"],
            initializer_range=tiny["initializer_range"],
            max_position_embeddings=tiny["positions"],
            layer_types=["full_attention"] * tiny["layers"],
            rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}},
            pad_token_id=tokenizer.pad_token_id,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
            **options,
        )


def _words(pairs, size: int):
    """A tokenizer of the most frequent lower-case words of the pairs.

    Not WordPiece, whose trainer gives another vocabulary every time.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.BertNormalizer()
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for pair in pairs:
        for text in (prompt_text(pair.prompt), readable(pair.chosen), readable(pair.rejected)):
            counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: size - len(_SPECIAL)]
    vocabulary = {word: k for k, word in enumerate([*_SPECIAL.values(), *frequent])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL["unk_token"]))
    words.normalizer = normalizer
    words.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(tokenizer_object=words, **_SPECIAL)
