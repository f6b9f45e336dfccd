"""A damaged model folder gets one sentence, whatever is damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from rm_methods.errors import UserError
from rm_methods.reward_models.model_folder import CHECKSUMS, check_checksums, check_model_folder, write_checksums
from rm_methods.scoring.scorer import ScoringSettings, load_scorer

SETTINGS = ScoringSettings(max_length=256, threads=1)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


@pytest.fixture
def folder(reward_model, tokenizer, tmp_path):
    reward_model.save(tmp_path / "model")
    tokenizer.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def content(name: str, data: bytes):
    return lambda folder: (folder / name).write_bytes(data)


def half(name: str):
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


def setting(name: str = CONFIG, **keys):
    def change(folder: Path):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | keys))

    return change


def without(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def replaced(name: str, data: bytes):
    """The weights are gone; this file is there."""

    def change(folder: Path):
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(data)

    return change


def shard_missing(folder: Path):
    index = {"weight_map": {"score.weight": "model-1.safetensors", "model.norm.weight": "model-2.safetensors"}}
    (folder / WEIGHTS).rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def adapters_only(folder: Path):
    without(WEIGHTS, CONFIG)(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')


def folder_for_weights(folder: Path):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def broken_link(folder: Path):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "nothing")


DAMAGES = {
    "pointer": (content(WEIGHTS, POINTER), r"model\.safetensors is a Git LFS pointer.*git lfs pull"),
    "pointer tokenizer": (content(TOKENIZER, POINTER), r"tokenizer\.json is a Git LFS pointer"),
    "cut weights": (half(WEIGHTS), r"model\.safetensors is cut short or damaged"),
    "empty weights": (content(WEIGHTS, b""), r"model\.safetensors is cut short or damaged"),
    "no weights": (without(WEIGHTS), r"no weights \(model\.safetensors, or"),
    "missing shard": (shard_missing, r"1 of 2 files of weights are missing: model-2\.safetensors"),
    "index": (replaced("model.safetensors.index.json", b"{}"), "no 'weight_map'"),
    "pickle": (replaced("pytorch_model.bin", b"x"), r"pickled files only \(pytorch_model\.bin\)"),
    "gguf": (replaced("m.gguf", b"x"), r"GGUF files only \(m\.gguf\).*backbone\.gguf_file"),
    "other name": (replaced("other.safetensors", b"x"), r"only other\.safetensors"),
    "weights are a folder": (folder_for_weights, r"model\.safetensors is a folder"),
    "weights are a broken link": (broken_link, r"model\.safetensors is a broken link"),
    "adapters": (adapters_only, r"adapter_model\.safetensors is missing\. Pickled adapters"),
    "quantized": (
        setting(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"quantized \(bitsandbytes\).*Use the unquantized model",
    ),
    "no config": (without(CONFIG), r"config\.json is missing"),
    "empty config": (content(CONFIG, b""), "not valid JSON"),
    "binary config": (content(CONFIG, b"\xff\xfe\x00"), "not valid JSON"),
    "deep config": (content(CONFIG, b"[" * 100_000), "config.json: not valid JSON"),
    "list as config": (content(CONFIG, b"[]"), "a JSON object is needed, found a list"),
    "no type": (content(CONFIG, b"{}"), "model_type is missing"),
    "unknown type": (setting(model_type="lama"), r"model_type 'lama' is not known.*Did you mean 'llama'\?"),
    "type is a list": (setting(model_type=["llama"]), r"model_type .* is not known"),
    "wrong value": (setting(hidden_size="a"), r"cannot be loaded \(.*hidden_size"),
    "negative value": (setting(hidden_size=-4), "cannot be loaded"),
    "no heads": (setting(num_attention_heads=0), "cannot be loaded"),
    "unknown activation": (setting(hidden_act="painted"), "cannot be loaded"),
    "other width": (setting(intermediate_size=7), "of another shape"),
    "no tokenizer": (without(TOKENIZER), "cannot be loaded"),
    "empty tokenizer": (content(TOKENIZER, b""), "cannot be loaded"),
    "cut tokenizer": (half(TOKENIZER), "cannot be loaded"),
    "list as tokenizer": (content(TOKENIZER, b"[]"), "cannot be loaded"),
    "binary tokenizer": (content(TOKENIZER, b"\xff\xfe\x00"), "cannot be loaded"),
    "empty tokenizer configuration": (content("tokenizer_config.json", b""), "cannot be loaded"),
    "wrong length of a tokenizer": (setting("tokenizer_config.json", model_max_length=[1]), "cannot be loaded"),
    "binary chat template": (content("chat_template.jinja", b"\xff\xfe"), "cannot be loaded"),
    "wrong chat template": (content("chat_template.jinja", b"{% if %}"), "chat template"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_is_refused_in_one_sentence(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        load_scorer(folder, SETTINGS)
    assert "\n" not in str(error.value)


def test_messages_name_the_setting(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"^backbone\.source = '.*model': no weights"):
        check_model_folder(folder, "backbone.source")


def zero_bytes(folder: Path):
    file = folder / WEIGHTS
    data = bytearray(file.read_bytes())
    data[-1000:] = bytes(1000)
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (zero_bytes, r"model\.safetensors changed since the folder was written"),
        (setting(rms_norm_eps=1.0), r"config\.json changed since"),
        (without("chat_template.jinja"), r"chat_template\.jinja \(missing\) changed since"),
        (content(CHECKSUMS, b"\xff"), r"SHA256SUMS, line 1: not a checksum"),
        (content(CHECKSUMS, b"0" * 64 + b"  ../x\n"), r"SHA256SUMS, line 1: not a checksum"),
    ],
)
def test_a_folder_that_changed_since_its_export_is_refused(folder, damage, message):
    write_checksums(folder)
    load_scorer(folder, SETTINGS)
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_scorer(folder, SETTINGS)


def test_a_folder_without_checksums_is_not_compared(folder):
    zero_bytes(folder)
    check_checksums(folder)


def test_every_file_but_the_checksums_has_one(folder):
    write_checksums(folder)
    names = [line.partition("  ")[2] for line in (folder / CHECKSUMS).read_text().splitlines()]
    assert names == sorted(file.name for file in folder.iterdir() if file.name != CHECKSUMS)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_the_checksums_are_those_of_sha256sum(folder):
    write_checksums(folder)
    subprocess.run(["sha256sum", "--check", "--strict", CHECKSUMS], cwd=folder, check=True, capture_output=True)


def test_checksums_leave_the_model_card_out(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("# Card")
    write_checksums(tmp_path)
    assert [line.split()[1] for line in (tmp_path / "SHA256SUMS").read_text().splitlines()] == ["config.json"]
