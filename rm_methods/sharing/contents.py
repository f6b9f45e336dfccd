"""The files that a model folder is shared as.

Whatever could be wrong is checked before anything is written or sent: the folder is whole, holds only files that the
export wrote, needs nothing outside of itself, and names no path of this machine and no text of the training pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_methods.errors import UserError
from rm_methods.experiment.layout import Layout
from rm_methods.files import read_json, written_atomically
from rm_methods.model_card.facts import experiment_folder, is_path
from rm_methods.preferences.pair import read_pairs
from rm_methods.reward_models.model_folder import (
    CHECKSUMS,
    MODEL_CARD,
    check_checksums,
    check_model_folder,
    weights_hash,
)
from rm_methods.run_card import RunSummary
from rm_methods.scoring.scorer import SCORER_FILE
from rm_methods.stored import read_record

MEMBERS = "members"  # folder of an ensemble's members in a shared folder
_KINDS = (".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_NOT_SENT = (".snakemake_timestamp",)  # Snakemake's
# Vocabularies hold pieces of any text, among them "/usr" and "../".
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
# Transformers writes the folder that a model was loaded from into these keys, and nothing reads them.
_LOADED_FROM = ("_name_or_path", "name_or_path")
_SHORTEST_TEXT = 40  # characters; shorter texts of pairs occur anywhere by chance


@dataclass(frozen=True)
class SharedFile:
    """One file of a shared folder.

    Attributes:
        name: path in the shared folder, with slashes.
        content: its bytes, or the local file that is copied.
    """

    name: str
    content: bytes | Path

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Contents:
    """What is shared of a model folder.

    Attributes:
        files: sorted by name; the card is among them.
        notes: sentences on files that are left out or changed.
    """

    files: tuple[SharedFile, ...]
    notes: tuple[str, ...]


def shared_contents(folder: Path, summary: RunSummary, card: str) -> Contents:
    """The files of a model folder, with the card, and with the members of an ensemble.

    Args:
        folder: model folder of a run.
        card: text of the card.

    Raises:
        UserError: the folder is damaged, does not belong to the summary, or holds something that must not be shared.
    """
    if summary.get("kind") == "external":
        raise UserError(
            f"{folder}: this run only refers to a model from elsewhere, so it holds nothing to share. Share that model "
            "from where it is stored."
        )
    _check_whole(folder, summary)
    notes: list[str] = []
    files = _files_of(folder, notes)
    if (folder / SCORER_FILE).is_file():
        description = read_record(folder / SCORER_FILE, "a description of a scorer", "train")
        if "members" in description:
            files = _with_members(folder, description, files, notes)
    files = [*files, SharedFile(MODEL_CARD, card.encode("utf-8"))]
    _check_private(folder, files)
    _check_no_pairs(folder, files)
    return Contents(tuple(sorted(files, key=lambda file: file.name)), tuple(notes))


def write_contents(contents: Contents, target: Path) -> None:
    """Write the files as a folder.

    Raises:
        UserError: the target exists.
    """
    import shutil

    if target.exists():
        raise UserError(f"{target}: exists already. Name a new folder, or remove it.")
    with written_atomically(target) as root:
        for file in contents.files:
            path = root / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(file.content, bytes):
                path.write_bytes(file.content)
            else:
                shutil.copyfile(file.content, path)


def _check_whole(folder: Path, summary: RunSummary) -> None:
    if not (folder / CHECKSUMS).is_file():
        raise UserError(
            f"{folder}: {CHECKSUMS} is missing, so nothing shows whether the folder is whole. Run the training again, "
            "or finish it."
        )
    if (folder / SCORER_FILE).is_file():
        check_checksums(folder)
    else:
        check_model_folder(folder)
    recorded = summary.get("weights_hash")  # results of earlier releases lack it
    if recorded is not None and weights_hash(folder) != recorded:
        raise UserError(
            f"{folder}: its weights are not those of {folder.parent / 'summary.json'} (weights_hash). Put the folder "
            "and the summary of one run together."
        )


def _files_of(folder: Path, notes: list[str], prefix: str = "") -> list[SharedFile]:
    """The files of one model folder without its card, all of them written by the export."""
    listed = {line.partition("  ")[2] for line in (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()}
    problems = []
    files = []
    for path in sorted(folder.iterdir()):
        if path.name == MODEL_CARD and not path.is_symlink():
            continue
        if path.name in _NOT_SENT:
            notes.append(f"Left out: {prefix}{path.name}, which only the workflow needs.")
        elif problem := _problem_of(path, listed):
            problems.append(f"{path.name} {problem}")
        else:
            files.append(SharedFile(f"{prefix}{path.name}", path))
    if problems:
        raise UserError(
            f"{folder}: {'; '.join(problems)}. Only files that the export wrote are shared: move the others out of the "
            "folder."
        )
    return _without_loaded_from(files, notes)


def _problem_of(path: Path, listed: set[str]) -> str | None:
    if path.is_symlink():
        return "is a link"
    if path.is_dir():
        return "is a folder, such as a checkpoint"
    if path.suffix in _PICKLES:
        return "is a pickled file, which can run code"
    if path.name == CHECKSUMS:
        return None
    if path.name not in listed:
        return f"was added after the export ({CHECKSUMS} does not list it)"
    return None if path.suffix in _KINDS else "is no file of a model"


def _without_loaded_from(files: list[SharedFile], notes: list[str]) -> list[SharedFile]:
    """The files, in which no configuration names the folder that it was loaded from."""
    changed = {}
    for file in files:
        if not file.name.endswith("config.json"):
            continue
        content = read_json(_local(file))
        named = [key for key in _LOADED_FROM if isinstance(content, dict) and is_path(content.get(key))]
        if named:
            changed[file.name] = {key: value for key, value in content.items() if key not in named}
            notes.append(f"Changed: {file.name} does not name the folder that it was loaded from ({', '.join(named)}).")
    return _replaced(files, changed)


def _with_members(
    folder: Path, description: dict[str, Any], files: list[SharedFile], notes: list[str]
) -> list[SharedFile]:
    """The files of an ensemble and of its members, which the description then names in the shared folder."""
    names = []
    for number, relative in enumerate(description["members"]):
        member = (folder.resolve() / relative).resolve()
        if not member.is_dir():
            raise UserError(
                f"{folder / SCORER_FILE}: member {number} is missing ({member}). An ensemble is shared with its "
                "members: name the folder inside the whole experiment."
            )
        check_model_folder(member)
        if not (member / CHECKSUMS).is_file():
            raise UserError(f"{member}: {CHECKSUMS} is missing, so nothing shows whether this member is whole.")
        name = f"{MEMBERS}/{number}"
        names.append(name)
        files = [*files, *_files_of(member, notes, f"{name}/")]
    notes.append(f"Added: the {len(names)} members of the ensemble, in {MEMBERS}/.")
    return _replaced(files, {SCORER_FILE: description | {"members": names}})


def _replaced(files: list[SharedFile], changed: dict[str, Any]) -> list[SharedFile]:
    """The files with other JSON contents, and the checksums that fit them."""
    if not changed:
        return files
    contents = {
        name: (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode() for name, value in changed.items()
    }
    for checksums in [file for file in files if Path(file.name).name == CHECKSUMS]:
        text = _text(checksums)
        parent = checksums.name.removesuffix(CHECKSUMS)
        lines = []
        for line in text.splitlines():
            digest, _, name = line.partition("  ")
            content = contents.get(parent + name)
            lines.append(f"{hashlib.sha256(content).hexdigest() if content is not None else digest}  {name}\n")
        if (new := "".join(lines)) != text:
            contents[checksums.name] = new.encode()
    return [SharedFile(file.name, contents.get(file.name, file.content)) for file in files]


def _local(file: SharedFile) -> Path:
    assert isinstance(file.content, Path)
    return file.content


def _text(file: SharedFile) -> str:
    content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    return content.decode("utf-8")


def _check_private(folder: Path, files: list[SharedFile]) -> None:
    """Refuse paths of this machine in the files, and folders of this user in the card."""
    problems = []
    for file in files:
        if file.name.endswith(".json") and Path(file.name).name not in _VOCABULARIES:
            problems += [f"{file.name} names {text!r}" for text in _strings(json.loads(_text(file))) if is_path(text)]
    home = Path.home()
    private = {str(folder.absolute().parent), *([str(home)] if len(home.parts) > 2 else [])}
    problems += [
        f"{file.name} names {text!r}"
        for file in files
        if file.name == MODEL_CARD
        for text in private
        if text in _text(file)
    ]
    if problems:
        raise UserError(
            f"{folder}: {'; '.join(problems[:3])}: paths of this machine, which work nowhere else. Train with "
            "settings that name no such path, or write the card again."
        )


def _check_no_pairs(folder: Path, files: list[SharedFile]) -> None:
    """Refuse texts of the training pairs, whose license may not allow to share them. Needs the experiment's pairs."""
    root = experiment_folder(folder)
    pairs_file = Layout(root).pairs if root is not None else None
    if pairs_file is None or not pairs_file.is_file():
        return
    long_texts = [(file.name, text) for file in files for text in _long_texts(file)]
    if not long_texts:
        return
    for pair in read_pairs(pairs_file):
        for text in (pair.prompt[-1]["content"], pair.chosen, pair.rejected):
            name = next((name for name, long in long_texts if len(text) >= _SHORTEST_TEXT and text in long), None)
            if name is not None:
                raise UserError(
                    f"{folder}: {name} holds a text of pair {pair.pair_id} of the training data "
                    f"({text[:30]!r}...). Its license may not allow that; remove the text."
                )


def _long_texts(file: SharedFile) -> list[str]:
    """Texts in a file that are long enough to hold one of a pair."""
    if file.name.endswith(".json"):
        return [text for text in _strings(json.loads(_text(file))) if len(text) >= _SHORTEST_TEXT]
    return [] if file.name.endswith((".safetensors", ".model", CHECKSUMS)) else [_text(file)]


def _strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield key
            yield from _strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(entry)
