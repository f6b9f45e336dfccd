"""Reward models as they are published: each kind gives the scores of a plain computation with transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rm_methods.benchmarks.item import BenchmarkItem
from rm_methods.errors import UserError
from rm_methods.files import read_json, write_json
from rm_methods.reward_models.published_head import NAMES
from rm_methods.scoring.model_options import ModelOptions
from rm_methods.scoring.scorer import ScoringSettings, load_scorer

SETTINGS = ScoringSettings(max_length=256, threads=1)


@pytest.fixture
def items(pairs):
    return [BenchmarkItem(pair.pair_id, "s", pair.prompt, [pair.chosen, pair.rejected], 0) for pair in pairs[:4]]


@pytest.fixture
def folder(reward_model, tokenizer, tmp_path):
    """A plain reward model."""
    reward_model.save(tmp_path / "plain")
    tokenizer.tokenizer.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def scores(folder: Path, items, **options) -> torch.Tensor:
    rows = load_scorer(folder, SETTINGS, options=ModelOptions(**options)).score(items)
    return torch.tensor([row.score for row in rows])


def changed(folder: Path, name: str, change) -> Path:
    """A copy of a model whose tensors `change` has changed."""
    copy = folder.parent / name
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("name", NAMES)
def test_a_head_may_have_any_name_in_use(folder, items, name):
    def rename(tensors):
        tensors[f"{name}.weight"] = tensors.pop("score.weight")

    torch.testing.assert_close(scores(changed(folder, "other", rename), items), scores(folder, items))


def test_a_head_with_a_bias_beside_a_language_model(folder, items):
    """As TRL saves a value-head model."""

    def rename(tensors):
        tensors["v_head.summary.weight"] = tensors.pop("score.weight")
        tensors["v_head.summary.bias"] = torch.tensor([2.5])
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    torch.testing.assert_close(scores(changed(folder, "trl", rename), items), scores(folder, items) + 2.5)


def test_a_head_of_several_layers_is_refused(folder, items):
    def deepen(tensors):
        weight = tensors.pop("score.weight")
        tensors["score.0.weight"] = torch.eye(weight.shape[1])
        tensors["score.2.weight"] = weight

    with pytest.raises(UserError, match=r"score\.weight"):
        scores(changed(folder, "deep", deepen), items)


@pytest.fixture
def with_labels(folder):
    """Three outputs: twice the reward, the reward, and its opposite."""

    def widen(tensors):
        tensors["score.weight"] = torch.cat(
            [2 * tensors["score.weight"], tensors["score.weight"], -tensors["score.weight"]]
        )

    copy = changed(folder, "labels", widen)
    labels = {"0": "helpful", "1": "correct", "2": "verbose"}
    config = read_json(copy / "config.json")
    write_json(copy / "config.json", config | {"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}})
    return copy


@pytest.mark.parametrize(("label", "factor"), [("helpful", 2), ("correct", 1), ("verbose", -1), ("2", -1), ("0", 2)])
def test_one_of_several_outputs_is_the_reward_that_the_user_names(folder, with_labels, items, label, factor):
    torch.testing.assert_close(scores(with_labels, items, label=label), factor * scores(folder, items))


def test_several_outputs_need_a_choice(with_labels, items):
    with pytest.raises(UserError, match=r"3 outputs: helpful, correct, verbose\. Say which .* --label"):
        scores(with_labels, items)
    with pytest.raises(UserError, match=r"no output 'corect'\. Did you mean 'correct'"):
        scores(with_labels, items, label="corect")


def test_half_precision_and_shards_give_the_scores_of_the_rounded_weights(folder, reward_model, items, tokenizer):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    sharded, rounded = folder.parent / "sharded", folder.parent / "rounded"
    model.save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    model.float().save_pretrained(rounded)
    for copy in (sharded, rounded):
        tokenizer.tokenizer.save_pretrained(copy)
    torch.testing.assert_close(scores(sharded, items), scores(rounded, items))


def test_a_template_may_be_given(folder, items, tmp_path):
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    file = folder / "chat_template.jinja"
    template = template or file.read_text()
    (tmp_path / "mine.jinja").write_text(template)
    without = folder.parent / "without"
    shutil.copytree(folder, without)
    (without / "chat_template.jinja").unlink(missing_ok=True)
    config = read_json(without / "tokenizer_config.json")
    config.pop("chat_template", None)
    write_json(without / "tokenizer_config.json", config)
    with pytest.raises(UserError, match=r"no chat template.*--chat-template"):
        scores(without, items)
    expected = scores(folder, items)
    torch.testing.assert_close(scores(without, items, chat_template=tmp_path / "mine.jinja"), expected)
    with pytest.raises(UserError, match="cannot be read"):
        scores(without, items, chat_template=tmp_path / "none.jinja")


@pytest.fixture
def adapters(folder, tokenizer):
    """Adapters of a base model whose head is new, with the head in them; and the merged model."""
    import peft
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(folder)
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["score"])
    adapted = peft.get_peft_model(base, settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.normal_(std=0.3)
    copy = folder.parent / "adapters"
    adapted.save_pretrained(copy)
    tokenizer.tokenizer.save_pretrained(copy)
    merged = folder.parent / "merged"
    adapted.merge_and_unload().save_pretrained(merged)
    tokenizer.tokenizer.save_pretrained(merged)
    return copy, merged


def test_adapters_are_merged_into_their_base(folder, adapters, items):
    copy, merged = adapters
    assert not list(copy.glob("model*.safetensors"))
    expected = scores(merged, items)
    torch.testing.assert_close(scores(copy, items), expected, atol=1e-5, rtol=1e-4)
    assert (expected - scores(folder, items)).abs().max() > 1e-3


def test_adapters_that_do_not_fit_are_refused(adapters, items):
    copy, _ = adapters
    tensors = load_file(copy / "adapter_model.safetensors")
    lost = {name: tensor for name, tensor in tensors.items() if "layers.0.self_attn.q_proj" not in name}
    save_file(lost, copy / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"the adapters do not fit .*: 2 are missing"):
        scores(copy, items)
    save_file(tensors | {"base_model.model.other.lora_A.weight": torch.ones(2, 2)}, copy / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"do not fit .*: 1 tensors are not used"):
        scores(copy, items)
    (copy / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is missing"):
        scores(copy, items)


@pytest.fixture
def policies(prepared, tokenizer, tmp_path):
    """Two language models with the same tokens: a policy and its reference."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folders = []
    for seed, name in enumerate(["policy", "reference"]):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(prepared[1])).save_pretrained(tmp_path / name)
        tokenizer.tokenizer.save_pretrained(tmp_path / name)
        folders.append(tmp_path / name)
    return folders


def log_probability(folder: Path, tokenizer, item: BenchmarkItem, response: str) -> float:
    """Of the tokens after the prompt, token by token."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    (encoded,) = tokenizer.encode([(item.prompt, item.responses)])
    ids = torch.from_numpy(encoded.sequences[item.responses.index(response)].astype("int64"))[None]
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0].log_softmax(-1)
    return sum(float(logs[t - 1, ids[0, t]]) for t in range(encoded.shared, ids.shape[1]))


def test_the_implicit_reward_of_a_policy(policies, tokenizer, items):
    policy, reference = policies
    actual = scores(policy, items, reference=str(reference))
    expected = [
        log_probability(policy, tokenizer, item, response) - log_probability(reference, tokenizer, item, response)
        for item in items
        for response in item.responses
    ]
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-3, rtol=1e-4)
    alone = scores(policy, items, reference="none")
    assert alone[0] == pytest.approx(log_probability(policy, tokenizer, items[0], items[0].responses[0]), rel=1e-4)
    torch.testing.assert_close(scores(policy, items, reference=str(policy)), torch.zeros(len(actual)))


def test_references_that_make_no_sense_are_refused(policies, folder, items):
    policy, reference = policies
    with pytest.raises(UserError, match=r"this is a reward model .*leave --reference out"):
        scores(folder, items, reference=str(reference))
    with pytest.raises(UserError, match="label has no effect on an implicit reward"):
        scores(policy, items, reference=str(reference), label="1")
    with pytest.raises(UserError, match="--reference"):
        scores(policy, items)


@pytest.fixture(params=["bert", "roberta", "deberta-v2", "modernbert"])
def encoder(request, tmp_path):
    """An encoder with a classification head of two outputs, and a tokenizer without a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = {token: number for number, token in enumerate([*special, *map(chr, range(33, 127))])}
    backend = Tokenizer(models.WordLevel(letters, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if request.param == "bert" else [])
    tokenizer = PreTrainedTokenizerFast(
        model_input_names=names,
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        request.param, vocab_size=len(letters), max_position_embeddings=400, pad_token_id=0, num_labels=2, **sizes
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for weight in model.parameters():
        weight.data.normal_(std=1.0)
    model.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_an_encoder_reads_prompt_and_response_as_a_pair_of_texts(encoder, items):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    expected = []
    for item in items:
        prompt = "\n".join(message["content"] for message in item.prompt)
        for response in item.responses:
            with torch.no_grad():
                row = tokenizer(prompt, response, return_tensors="pt")
                expected.append(float(model(**row).logits[0, 1]))
    torch.testing.assert_close(scores(encoder, items, label="1"), torch.tensor(expected), atol=1e-4, rtol=1e-4)
    assert torch.tensor(expected).std() > 1e-3
    with pytest.raises(UserError, match="the head has 2 outputs"):
        scores(encoder, items)


def test_an_encoder_cuts_the_start_of_a_prompt_and_says_so(encoder, items):
    prompt = [{"role": "user", "content": "x" * 500}]
    scorer = load_scorer(encoder, SETTINGS, options=ModelOptions(label="0"))
    item = BenchmarkItem("a", "s", prompt, ["abc", "y" * 600], 0)
    encoded = scorer._encode([(item.prompt, item.responses)], ["a"])[0]
    assert (encoded.prompt_cut, encoded.response_cut) == ((True, True), (False, True))
    assert encoded.lengths == (256, 256)
    tokens = scorer.tokenizer.tokenizer.convert_ids_to_tokens(encoded.sequences[0].tolist())
    assert tokens[-5:] == ["[SEP]", "a", "b", "c", "[SEP]"]
    assert tokens[:3] == ["[CLS]", "x", "x"]
    assert all(row.truncated for row in scorer.score([item]))


CODE = """
import torch
from transformers import LlamaConfig, LlamaModel, PreTrainedModel


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.score = torch.nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def forward(self, input_ids, attention_mask):
        return {{"{output}": self.score(self.model(input_ids=input_ids).last_hidden_state[:, -1]){extra}}}
"""


def with_code(folder: Path, output: str = "rewards", extra: str = "") -> Path:
    copy = folder.parent / f"code_{output}"
    shutil.copytree(folder, copy)
    (copy / "own_code.py").write_text(CODE.format(output=output, extra=extra))
    auto_map = {"AutoConfig": "own_code.OwnConfig", "AutoModel": "own_code.OwnModel"}
    config = read_json(copy / "config.json") | {
        "model_type": "own",
        "auto_map": auto_map,
        "architectures": ["OwnModel"],
    }
    write_json(copy / "config.json", config)
    return copy


def test_code_of_a_model_runs_only_where_the_user_says_so(folder, items, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    copy = with_code(folder)
    with pytest.raises(UserError, match=r"is never run.*--trust-remote-code"):
        scores(copy, items)
    torch.testing.assert_close(scores(copy, items, trust_remote_code=True), scores(folder, items), atol=1e-5, rtol=1e-4)
    scorer = load_scorer(copy, SETTINGS, options=ModelOptions(trust_remote_code=True))
    assert list(scorer.computation()["remote_code"]) == ["own_code.py"]
    with pytest.raises(UserError, match=r"names no model class with code.*Leave --trust-remote-code out"):
        scores(folder, items, trust_remote_code=True)


def test_an_output_that_is_no_number_is_refused(folder, items, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    copy = with_code(folder, "logits", ".expand(1, 3)")
    with pytest.raises(UserError, match=r"no output is one number for one text \(logits \[1, 3\]"):
        scores(copy, items, trust_remote_code=True)


def test_options_without_effect_are_refused(adapters, items):
    with pytest.raises(UserError, match="label has no effect on adapters"):
        scores(adapters[0], items, label="1")


def test_the_record_has_what_is_not_the_default(tmp_path):
    options = ModelOptions(label="a", trust_remote_code=True)
    assert json.loads(json.dumps(options.record())) == {"label": "a", "trust_remote_code": True}
    assert ModelOptions.of(options.record() | {"model": "x"}) == options
    assert ModelOptions().record() == {}


def test_the_length_of_a_model_is_found_without_torch(tmp_path):
    """Content-blind scoring asks for it, too, and starts in a fraction of the time."""
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 77}')
    code = (
        "import sys; from pathlib import Path; from rm_methods.scoring.model_source import own_length; "
        "print(own_length(Path(sys.argv[1])), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["77", "False"]
