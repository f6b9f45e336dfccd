"""Compare our scores with those of transformers for every sequence-classification model, tiny and random.

Usage (a CPU, no weights, no network; about two minutes):
    python performance/architectures.py
    python performance/architectures.py --only llama qwen3_5_text doge

Each type is built in the smallest configuration that works, with random weights, and with windows and chunks that are
shorter than the texts.  It is saved, loaded as `rm-methods score` loads it, and scores texts of several lengths:
decoders as reward models in both layouts, all others as joint models.  The reference is
`AutoModelForSequenceClassification` on each text alone, in fp32, with its default attention.  Differences are relative
to the spread of the scores over the texts.

Outcomes: packed or plain (exact in this layout), refused (with the sentence), not built (with the reason), WRONG or
CRASH.  The last two make the script fail.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TOLERANCE = 1e-3  # as a share of the spread of scores
PACKED, PLAIN, REFUSED, NOT_BUILT, WRONG, CRASH = "packed", "plain", "refused", "not built", "WRONG", "CRASH"

SIZE = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {
    "num_key_value_heads": 4,
    "head_dim": None,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
# Further values of a type's configuration; None leaves a value out.
# Shorter than the texts, where a type has it.
WINDOWS = {
    "sliding_window": 8,
    "keep_window_size": 8,
    "attention_chunk_size": 8,
    "attention_window": 8,
    "window_size": 8,
    "index_topk": 8,
}
# The text model of a composite configuration, and a vision model that is built but not used.
TEXT = SIZE | LINEAR | {"sliding_window": 8}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 64,
}
COMPOSITE = {"text_config": TEXT, "vision_config": VISION}
ENCODER_DECODER = {"decoder_start_token_id": 0}
OWN = {
    "axk1": LATENT | {"first_k_dense_replace": 1},
    "axk2": LATENT | {"first_k_dense_replace": 1},
    "bart": ENCODER_DECODER,
    "bigbird_pegasus": ENCODER_DECODER | {"block_size": 4},
    "mbart": ENCODER_DECODER,
    "mvp": ENCODER_DECODER,
    "mt5": ENCODER_DECODER,
    "t5": ENCODER_DECODER,
    "umt5": ENCODER_DECODER,
    "big_bird": {"block_size": 4},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")
        },
    },
    "deepseek_v2": LATENT | {"first_k_dense_replace": 1},
    "deepseek_v3": LATENT | {"first_k_dense_replace": 1},
    "doge": {"sliding_window": None},
    "esmc": {"num_key_value_heads": 4},
    "falcon": {"head_dim": None},
    "funnel": {"num_hidden_layers": None, "block_sizes": [1, 1], "d_head": 16, "d_inner": 96},
    "gemma3": COMPOSITE | {"mm_tokens_per_image": 4},
    "gpt_neo": {"num_hidden_layers": None, "num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 11, "shape_size": 10, "input_size": 32},
    "lilt": {"hidden_size": 96},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 16},
    "minicpm3": LATENT,
    "minimax": {"block_size": 8},
    "mistral4": LATENT | {"first_k_dense_replace": 1},
    "modernvbert": COMPOSITE,
    "perceiver": {
        "num_latents": 8,
        "d_latents": 32,
        "d_model": 32,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
    "plbart": ENCODER_DECODER | {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    "qwen3_5": COMPOSITE,
    "qwen3_5_text": LINEAR,
    "qwen3_next": LINEAR,
    "reformer": {
        "axial_pos_embds": False,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "attention_head_size": 16,
        "num_buckets": 4,
        "feed_forward_size": 96,
    },
    "squeezebert": {"embedding_size": 64},
    "t5gemma": ENCODER_DECODER | {"encoder": TEXT, "decoder": TEXT},
    "t5gemma2": ENCODER_DECODER | {"encoder": {"text_config": TEXT, "vision_config": VISION}, "decoder": TEXT},
    "ultravbert": COMPOSITE,
    "xlnet": {"max_position_embeddings": None, "d_inner": 96, "head_dim": None, "d_head": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 6,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "attention_head_dim": None,
        "head_dim": None,
    },
    "zamba2": {
        "num_hidden_layers": 6,
        "layers_block_type": ["mamba", "hybrid"] * 3,
        "n_mamba_heads": 8,
        "chunk_size": 8,
        "head_dim": None,
    },
}

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '[' + message['role'] + ']' + message['content'] + eos_token }}{% "
    "endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


@dataclass(frozen=True)
class Outcome:
    """The outcome for one type.

    Attributes:
        kind: "decoder", "encoder", or "" if it was not built.
        result: see the module's head.
        difference: largest, relative to the spread of scores; NaN where nothing was scored.
        note: the sentence of a refusal, or the reason.
    """

    name: str
    kind: str
    result: str
    difference: float = float("nan")
    note: str = ""


def types() -> list[str]:
    """Model types with a sequence-classification class in the installed transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    return sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)


def build(name: str):
    """A tiny random classifier with one output."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

    defaults = CONFIG_MAPPING[name]()
    windows = {key: value for key, value in WINDOWS.items() if hasattr(defaults, key)}
    size = SIZE | EXPERTS | windows | OWN.get(name, {})
    config = CONFIG_MAPPING[name](**{key: value for key, value in size.items() if value is not None})
    config.num_labels = 1
    config.pad_token_id = SIZE["pad_token_id"]
    with torch.device("meta"):
        count = sum(
            parameter.numel() for parameter in AutoModelForSequenceClassification.from_config(config).parameters()
        )
    if count > 20e6:
        raise ValueError(f"{count / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_config(config)
    # Parameters that begin as constants would hide their effect, and cause ties if a model ranks tokens (Doge).
    for parameter in classifier.parameters():
        if parameter.is_floating_point() and parameter.numel() > 1 and parameter.std() == 0:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return classifier


def chat_tokenizer():
    """A byte-level tokenizer with a chat template and the tokens that encoders need."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special, alphabet = ["<pad>", "<bos>", "<eos>"], pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def items():
    """Prompts with two or three responses, 27 to 99 tokens a text."""
    from rm_methods.benchmarks.item import BenchmarkItem

    texts = [
        ("Name a tree.", ["Oak.", "Rock, or a long answer about stones that names none."]),
        ("Name a fruit, please, and say where it grows.", ["Pear; it grows in gardens.", "A stone."]),
        ("2+2?", ["4", "It is five, or so they say."]),
    ]
    return [
        BenchmarkItem(str(k), "s", [{"role": "user", "content": p}], responses, 0)
        for k, (p, responses) in enumerate(texts)
    ]


def try_type(name: str, folder: Path) -> Outcome:
    """Build, save, load and score one type."""
    from rm_methods.errors import UserError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            classifier = build(name).eval()
            classifier.save_pretrained(folder)
            chat_tokenizer().save_pretrained(folder)
        except Exception as error:
            return Outcome(name, "", NOT_BUILT, note=_first_line(error))
        decoder = not classifier.config.is_encoder_decoder and hasattr(classifier, "score")
        kind = "decoder" if decoder else "encoder"
        try:
            return _score_decoder(name, folder) if decoder else _score_encoder(name, folder)
        except UserError as error:
            return Outcome(name, kind, REFUSED, note=str(error))
        except Exception as error:
            return Outcome(name, kind, CRASH, note=f"{type(error).__name__}: {_first_line(error)}")


def _score_decoder(name: str, folder: Path) -> Outcome:
    from rm_methods.scoring.scorer import ScoringSettings, load_scorer

    differences: dict[str, float] = {}
    for asked in ("auto", "plain"):
        scorer = load_scorer(folder, ScoringSettings(max_length=200, layout=asked, threads=1))
        ours = [row.score for row in scorer.score(items())]
        rows = [sequence for item in _encoded(scorer) for sequence in item.sequences]
        layout = scorer.model.layout(asked)
        differences[layout] = max(differences.get(layout, 0.0), relative(ours, scores_of_transformers(folder, rows)))
    result = WRONG if max(differences.values()) > TOLERANCE else PACKED if PACKED in differences else PLAIN
    note = scorer.model.packing_obstacle or ""
    return Outcome(name, "decoder", result, max(differences.values()), note)


def _score_encoder(name: str, folder: Path) -> Outcome:
    from rm_methods.files import write_json
    from rm_methods.reward_models.model_folder import JOINT_RECORD
    from rm_methods.scoring.scorer import ScoringSettings, load_scorer

    write_json(folder / JOINT_RECORD, {"decoder": False})
    scorer = load_scorer(folder, ScoringSettings(max_length=200, threads=1))
    ours = [row.score for row in scorer.score(items())]
    texts = [(item.prompt, (item.responses[1], item.responses[0])) for item in items()]
    rows = [sequence for item in scorer.tokenizer.encode(texts) for sequence in item.sequences]
    logits = np.array(scores_of_transformers(folder, rows)).reshape(-1, 2)
    preference = (logits[:, 0] - logits[:, 1]) / 2
    theirs = np.stack([-preference / 2, preference / 2], axis=1).ravel()
    # The two orders of a pair may hardly differ, so differences count relative to the spread of logits.
    difference = float(np.abs(np.array(ours) - theirs).max() / max(logits.std(), 1e-2 * np.abs(logits).max()))
    return Outcome(name, "encoder", WRONG if difference > TOLERANCE else PLAIN, difference)


def _encoded(scorer):
    return scorer.tokenizer.encode((item.prompt, item.responses) for item in items())


def scores_of_transformers(folder: Path, rows: Sequence[np.ndarray]) -> list[float]:
    """Transformers' own score of each row of token ids alone, fp32, with its default attention."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    with torch.no_grad():
        for row in rows:
            ids = torch.from_numpy(row.astype(np.int64))[None]
            scores.append(float(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0]))
    return scores


def relative(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Largest difference of two lists of scores, relative to the standard deviation of the second; NaN counts as
    infinite."""
    reference = np.asarray(theirs, dtype=float)
    difference = float(np.abs(np.asarray(ours, dtype=float) - reference).max() / reference.std())
    return float("inf") if np.isnan(difference) else difference


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=None, metavar="TYPE", help="these types instead of all")
    arguments = parser.parse_args()
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    outcomes = []
    for name in arguments.only or types():
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            outcome = try_type(name, Path(folder))
        outcomes.append(outcome)
        print(
            f"{outcome.name:22} {outcome.kind:8} {outcome.result:10} {outcome.difference:8.1e}  {outcome.note}",
            flush=True,
        )
    counts = Counter((outcome.kind, outcome.result) for outcome in outcomes)
    print(f"\ntransformers {transformers.__version__}, {len(outcomes)} types")
    for (kind, result), count in sorted(counts.items()):
        print(f"{kind or '-':8} {result:10} {count}")
    if any(outcome.result in (WRONG, CRASH) for outcome in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
