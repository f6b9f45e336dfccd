"""Pushing: what is shown, what is sent, and what every refusal says. No test uses the network."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import huggingface_hub
import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard

from rm_methods.cli import main
from rm_methods.errors import UserError
from rm_methods.sharing.hub import check_name, prepare_push, send


def run_verb(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


class Hub:
    """Records the calls to the hub, and answers as one with an empty repository."""

    def __init__(self, private=False, files=(".gitattributes",), error=None):
        self.private = private
        self.files = files
        self.error = error
        self.calls = []

    def create_repo(self, name, **options):
        self.calls.append(("create_repo", name, options))
        if self.error:
            raise self.error

    def repo_info(self, name):
        return SimpleNamespace(private=self.private)

    def create_branch(self, name, **options):
        self.calls.append(("create_branch", name, options))

    def list_repo_files(self, name, revision=None):
        return list(self.files)

    def create_commit(self, name, operations, **options):
        self.calls.append(("create_commit", name, options))
        self.sent = {operation.path_in_repo: operation.path_or_fileobj for operation in operations}
        return SimpleNamespace(commit_url="https://huggingface.co/me/model/commit/1")


@pytest.fixture
def hub(monkeypatch):
    """hub(**answers) takes the place of the hub, with a token."""

    def install(**answers):
        fake = Hub(**answers)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
        monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
        return fake

    return install


def http_error(status):
    """The error of the hub for a status, made by its own library."""
    from huggingface_hub.errors import HfHubHTTPError

    request = SimpleNamespace(url="https://huggingface.co/api/repos/create", method="POST")
    response = SimpleNamespace(status_code=status, headers={}, request=request, text="")
    return HfHubHTTPError("refused", response=response, server_message="said by the hub")


def test_a_dry_run_prints_every_file_and_the_card(experiment, hub):
    fake = hub()
    folder = experiment.model("bradley_terry", 0)
    result = run_verb("push", "--model", folder, "--to", "me/model", "--license", "mit", "--dry-run", "--yes")
    assert result.exit_code == 0, result.output
    assert fake.calls == []
    lines = result.output.splitlines()
    assert lines[0].startswith("To: https://huggingface.co/me/model, revision main, public")
    for path in folder.iterdir():
        (line,) = [line for line in lines if line.split() and line.split()[0] == path.name]
        if path.name != "README.md":
            assert int(line.split()[1].replace(",", "")) == path.stat().st_size
    assert "license: mit" in lines
    assert "    hf download me/model --local-dir FOLDER" in lines
    assert 'folder = "me/model"' in lines
    assert "Nothing was sent (--dry-run)." in lines


def test_nothing_is_sent_without_yes(experiment, hub):
    fake = hub()
    result = run_verb("push", "--model", experiment.model("longest", 0), "--to", "me/model", "--license", "mit")
    assert result.exit_code == 2
    assert "To: https://huggingface.co/me/model" in result.output
    assert "Nothing was sent. Add --yes" in result.output
    assert fake.calls == []


def test_the_files_are_sent_in_one_commit(experiment, hub):
    fake = hub(private=True)
    folder = experiment.model("ensemble", 0)
    arguments = ["--private", "--revision", "v1", "--license", "mit", "--yes"]
    result = run_verb("push", "--model", folder, "--to", "me/model", *arguments)
    assert result.exit_code == 0, result.output
    assert "Sent: https://huggingface.co/me/model/commit/1" in result.output
    assert [call[:2] for call in fake.calls] == [
        ("create_repo", "me/model"),
        ("create_branch", "me/model"),
        ("create_commit", "me/model"),
    ]
    assert fake.calls[0][2] == {"private": True, "exist_ok": True}
    assert fake.calls[1][2]["branch"] == fake.calls[2][2]["revision"] == "v1"
    assert {
        "README.md",
        "scorer.json",
        "members/0/model.safetensors",
        "members/1/model.safetensors",
    } <= fake.sent.keys()
    assert ModelCard(fake.sent["README.md"].decode()).data.license == "mit"
    assert b".." not in fake.sent["scorer.json"]


def test_a_public_repository_is_no_private_one(experiment, hub):
    fake = hub(private=False)
    folder = experiment.model("longest", 0)
    with pytest.raises(UserError, match=r"public already.*Nothing was sent"):
        send(prepare_push(folder, "me/model", private=True, license="mit"))
    assert [call[0] for call in fake.calls] == ["create_repo"]


def test_a_repository_with_other_files_is_refused(experiment, hub):
    fake = hub(files=["README.md", "pytorch_model.bin"])
    with pytest.raises(UserError, match=r"not part of this model: pytorch_model.bin. Nothing was sent"):
        send(prepare_push(experiment.model("longest", 0), "me/model", license="mit"))
    assert "create_commit" not in [call[0] for call in fake.calls]


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, "hf auth login"), (403, "right to write"), (404, "does not have that user"), (500, "Try")],
)
def test_errors_of_the_hub_are_sentences(experiment, hub, status, expected):
    hub(error=http_error(status))
    folder = experiment.model("longest", 0)
    result = run_verb("push", "--model", folder, "--to", "me/model", "--license", "mit", "--yes")
    assert result.exit_code == 2
    assert f"Pushing to me/model failed (status {status}: said by the hub)." in result.output
    assert expected in result.output


def test_a_missing_network_is_a_sentence(experiment, hub):
    hub(error=ConnectionError("Name or service not known"))
    with pytest.raises(UserError, match=r"Pushing to me/model failed \(ConnectionError: Name or .*Check the network"):
        send(prepare_push(experiment.model("longest", 0), "me/model", license="mit"))


def test_offline_mode_and_a_missing_token_are_sentences(experiment, hub, monkeypatch):
    hub()
    push = prepare_push(experiment.model("longest", 0), "me/model", license="mit")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="no token"):
        send(push)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    with pytest.raises(UserError, match="offline mode"):
        send(push)


@pytest.mark.parametrize("name", ["model", "a/b/c", "me/", "me/a--b", "me/.x", "m e/x", ""])
def test_names_that_the_hub_does_not_take_are_refused(name):
    with pytest.raises(UserError, match="--to"):
        check_name(name)


def test_a_model_without_a_license_is_refused(experiment):
    with pytest.raises(UserError, match="no license is stated"):
        prepare_push(experiment.model("bradley_terry", 0), "me/model")


def test_the_license_of_an_earlier_card_counts(experiment):
    folder = experiment.model("bradley_terry", 0)
    assert run_verb("model-card", "--model", folder, "--license", "mit").exit_code == 0
    assert ModelCard(prepare_push(folder, "me/model").card).data.license == "mit"
    assert run_verb("model-card", "--model", folder).exit_code == 0
    assert ModelCard((folder / "README.md").read_text()).data.license == "mit"


def test_a_card_that_was_edited_by_hand_is_kept(experiment):
    folder = experiment.model("bradley_terry", 0)
    mine = "---\nlicense: mit\n---\n# Mine\n"
    (folder / "README.md").write_text(mine)
    push = prepare_push(folder, "me/model")
    assert push.card == mine
    assert "edited by hand" in push.notes[0]
    with pytest.raises(UserError, match="--license cannot change it"):
        prepare_push(folder, "me/model", license="mit")
    result = run_verb("model-card", "--model", folder)
    assert result.exit_code == 2
    assert "--force" in result.output
    assert (folder / "README.md").read_text() == mine
    assert run_verb("model-card", "--model", folder, "--force", "--license", "mit").exit_code == 0
    assert "# Bradley-Terry" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("# No front matter\n")
    with pytest.raises(UserError, match="no license is stated"):
        prepare_push(folder, "me/model")


def test_a_target_that_cannot_be_written_is_a_sentence(experiment, tmp_path):
    (tmp_path / "file").touch()
    folder = experiment.model("longest", 0)
    result = run_verb("model-card", "--model", folder, "--out", tmp_path / "file" / "card.md")
    assert result.exit_code == 2
    assert result.output.startswith("rm-methods: ")
