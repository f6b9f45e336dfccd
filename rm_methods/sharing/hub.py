"""Sends a model folder to the Hugging Face hub: the only code of this project that writes there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rm_methods.errors import UserError
from rm_methods.model_card.facts import gather_facts, summary_of
from rm_methods.model_card.text import card_text, is_edited
from rm_methods.reward_models.model_folder import MODEL_CARD
from rm_methods.run_card import RunSummary
from rm_methods.sharing.contents import Contents, shared_contents
from rm_methods.sharing.evaluated import measured_run

_MADE_BY_THE_HUB = (".gitattributes",)
_STATUS = {
    400: "The hub refuses a value.",
    401: "The hub does not accept the token. Log in again with `hf auth login`, or set HF_TOKEN.",
    403: "The token has no right to write there. Use a token with the right to write, and a user or organization that "
    "you belong to.",
    404: "The hub does not have that user, organization or revision, or the token may not see it.",
    409: "The repository or revision exists in another form.",
    413: "A file is too large for the hub.",
    429: "The hub asks to wait: too many requests. Try again later.",
}


@dataclass(frozen=True)
class Push:
    """One upload, complete but not sent.

    Attributes:
        repository: name on the hub, "user/name".
        revision: branch to write to; None: the main one.
        card: text of the card, which is also among the contents.
        notes: sentences that the sender should read.
    """

    repository: str
    revision: str | None
    private: bool
    contents: Contents
    card: str
    notes: tuple[str, ...]


def run_card_text(
    folder: Path, summary: RunSummary, *, license: str | None = None, repository: str | None = None
) -> tuple[str, tuple[str, ...]]:
    """The card of a model folder with all that is known, and remarks on what is missing."""
    measured = measured_run(folder, summary)
    return card_text(gather_facts(folder, summary), measured, license=license, repository=repository), measured.notes


def write_run_card(folder: Path, out: Path | None, *, license: str | None = None, force: bool = False) -> Path:
    """Write the card of a model folder with the metrics of its evaluation.

    Args:
        out: file to write; None: README.md of the folder.
        force: replace a card that was edited by hand.

    Returns:
        The file.

    Raises:
        UserError: not the model folder of a run, or the card was edited by hand.
    """
    from rm_methods.files import write_text

    summary = summary_of(folder)
    target = out or folder / MODEL_CARD
    existing = target.read_text(encoding="utf-8") if target.is_file() else ""
    if existing and is_edited(existing):
        if not force:
            raise UserError(
                f"{target}: was edited by hand, or is another file. Give --force to replace it, or --out FILE."
            )
        existing = ""
    text, _ = run_card_text(folder, summary, license=license or _stated(existing))
    write_text(target, text)
    return target


def prepare_push(
    folder: Path, repository: str, *, private: bool = False, revision: str | None = None, license: str | None = None
) -> Push:
    """Check and collect everything that would be sent; asks no network.

    A card that was edited by hand is sent unchanged; otherwise it is written anew, with the metrics of the evaluation.

    Args:
        license: id of the hub for the front matter; None: that of the card or of the base model.

    Raises:
        UserError: the name is not one of the hub, the folder may not be shared, or no license is stated.
    """
    check_name(repository)
    summary = summary_of(folder)
    file = folder / MODEL_CARD
    existing = file.read_text(encoding="utf-8") if file.is_file() else ""
    notes: tuple[str, ...]
    if existing and is_edited(existing):
        card = existing
        notes = (f"{MODEL_CARD} was edited by hand, so it is sent unchanged, without new metrics.",)
        if license:
            raise UserError(f"{file}: was edited by hand, so --license cannot change it. Write the license into it.")
    else:
        card, notes = run_card_text(folder, summary, license=license or _stated(existing), repository=repository)
    if _stated(card) is None:
        raise UserError(
            f"{folder}: no license is stated for the model. Give an id of the hub, such as --license apache-2.0, or "
            "--license other. Heed the licenses of the base model and of the training data, which the card names."
        )
    data = gather_facts(folder, summary).data
    if data.is_non_commercial:
        notes += (f"The training data does not allow commercial use: {data.license}.",)
    contents = shared_contents(folder, summary, card)
    return Push(repository, revision, private, contents, card, (*contents.notes, *notes))


def check_name(repository: str) -> None:
    """Raise UserError unless a text can name a repository of the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--to {repository}: not a name of the hub ({str(error).splitlines()[0]})") from None
    if repository.count("/") != 1:
        raise UserError(f"--to {repository}: write user/name, or organization/name.")


def push_text(push: Push, *, whole_card: bool = True) -> str:
    """What would be sent, for readers: place, files, sizes, remarks, and the card."""
    place = f"https://huggingface.co/{push.repository}"
    width = max(len(file.name) for file in push.contents.files)
    total = sum(file.size for file in push.contents.files)
    visible = "private (new repositories only)" if push.private else "public, unless it exists and is private"
    lines = [
        f"To: {place}, revision {push.revision or 'main'}, {visible}",
        f"{len(push.contents.files)} files, {total:,} bytes:",
        *(f"  {file.name.ljust(width)}  {file.size:>15,}" for file in push.contents.files),
        *(f"Note: {note}" for note in push.notes),
    ]
    if whole_card:
        lines += ["", f"{MODEL_CARD}:", "", push.card.rstrip()]
    return "\n".join(lines)


def send(push: Push) -> str:
    """Send the files in one commit; makes the repository and the branch if they do not exist.

    Returns:
        The address of the commit.

    Raises:
        UserError: no token, no network, no rights, or the repository is public or holds other files.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token, is_offline_mode

    if is_offline_mode():
        raise UserError("Nothing was sent: offline mode is on (HF_HUB_OFFLINE). Unset it to push.")
    if get_token() is None:
        raise UserError("Nothing was sent: no token of the hub. Log in with `hf auth login`, or set HF_TOKEN.")
    api = HfApi()
    operations = [
        CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file.content) for file in push.contents.files
    ]
    with _explained(push):
        api.create_repo(push.repository, private=push.private, exist_ok=True)
        if push.private and not api.repo_info(push.repository).private:
            raise UserError(
                f"{push.repository} is public already, and --private was given. Nothing was sent: make it private on "
                "its page, or name a new repository."
            )
        if push.revision:
            api.create_branch(push.repository, branch=push.revision, exist_ok=True)
        names = {file.name for file in push.contents.files}
        present = api.list_repo_files(push.repository, revision=push.revision)
        if others := sorted(set(present) - names - set(_MADE_BY_THE_HUB)):
            raise UserError(
                f"{push.repository} holds files that are not part of this model: {', '.join(others[:5])}. Nothing was "
                "sent: remove them there, or name a new repository or --revision."
            )
        commit = api.create_commit(
            push.repository,
            operations,
            commit_message=f"Model and card, from {len(names)} files of rm-methods",
            revision=push.revision,
        )
    return str(commit.commit_url)


@contextmanager
def _explained(push: Push) -> Iterator[None]:
    """Turn errors of the hub and of the network into sentences."""
    from huggingface_hub.errors import HfHubHTTPError

    where = f"Pushing to {push.repository} failed"
    try:
        yield
    except UserError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        said = (error.server_message or str(error)).strip().splitlines()
        advice = _STATUS.get(status, "Try again later.")
        raise UserError(f"{where} (status {status}: {said[0] if said else 'no message'}). {advice}") from error
    except Exception as error:  # network layers raise errors of many kinds; the user reads their text
        said = str(error).strip().splitlines()
        raise UserError(
            f"{where} ({type(error).__name__}: {said[0] if said else 'no message'}). Check the network, and push again."
        ) from error


def _stated(card: str) -> str | None:
    """The license in the front matter of a card."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    if not card.startswith("---"):
        return None
    try:
        license = ModelCard(card, ignore_metadata_errors=True).data.to_dict().get("license")
    except (ValueError, YAMLError) as error:
        raise UserError(f"{MODEL_CARD}: the front matter is not YAML ({str(error).splitlines()[0]}).") from None
    return str(license) if license else None
