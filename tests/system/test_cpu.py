import torch

from rm_methods.system.cpu import bf16_note, prepare_cpu


def test_a_processor_without_bf16_is_told_once(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx2": True})
    prepare_cpu(0, "fp32")
    assert capsys.readouterr().err == ""
    prepare_cpu(0, "bf16")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "no bf16 instructions" in lines[0]


def test_processors_with_bf16_and_others_get_no_note():
    assert bf16_note({"architecture": "x86_64", "avx512_bf16": True}) is None
    assert bf16_note({"architecture": "x86_64", "amx_bf16": True}) is None
    assert bf16_note({"architecture": "aarch64"}) is None
    assert bf16_note({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}) is not None
