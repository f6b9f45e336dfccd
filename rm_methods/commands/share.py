"""Verbs that give a model to others: its card, a copy that works anywhere, and the Hugging Face hub."""

from __future__ import annotations

import click

from rm_methods.commands.options import FILE, FOLDER
from rm_methods.commands.verb import verb
from rm_methods.errors import UserError

_model_option = click.option(
    "--model", required=True, type=FOLDER, help="Model folder of a run: runs/<variant>/seed<k>/model of an experiment."
)
_license_option = click.option(
    "--license", default=None, help="License of the model for its card, an id of the hub; default: the base model's."
)


@verb("model-card")
@_model_option
@click.option("--out", type=FILE, default=None, help="File to write; default: README.md of the model folder.")
@_license_option
@click.option("--force", is_flag=True, help="Replace a card that was edited by hand.")
def model_card(model, out, license, force):
    """Write a run's model card again, with the metrics of its evaluation.

    Every training writes a card, but knows no metrics yet.
    """
    from rm_methods.sharing.hub import write_run_card

    click.echo(f"Written: {write_run_card(model, out, license=license, force=force)}")


@verb("copy-model")
@_model_option
@click.option("--out", required=True, type=FOLDER, help="Folder to write; it must not exist.")
@_license_option
def copy_model(model, out, license):
    """Copy a run's model folder so that it works anywhere.

    An ensemble is copied with its members.  The card gets the metrics of the evaluation.
    """
    from rm_methods.model_card.facts import summary_of
    from rm_methods.sharing.contents import shared_contents, write_contents
    from rm_methods.sharing.hub import run_card_text

    summary = summary_of(model)
    text, _ = run_card_text(model, summary, license=license)
    contents = shared_contents(model, summary, text)
    write_contents(contents, out)
    for note in contents.notes:
        click.echo(f"Note: {note}", err=True)
    click.echo(f"Written: {out}, {len(contents.files)} files")


@verb()
@_model_option
@click.option("--to", "repository", required=True, help="Name on the hub: user/name or organization/name.")
@click.option("--private", is_flag=True, help="Make a private repository; refused if it exists and is public.")
@click.option("--revision", default=None, help="Branch to write to; default: the main one.")
@_license_option
@click.option("--dry-run", is_flag=True, help="Print what would be sent, with the card; uses no network.")
@click.option("--yes", is_flag=True, help="Send it. Without this, nothing is sent.")
def push(model, repository, private, revision, license, dry_run, yes):
    """Send a run's model folder with its card to the Hugging Face hub.

    Checks first that the folder is whole and holds nothing private.  An ensemble is sent with its members.  No other
    verb writes to the hub.
    """
    from rm_methods.sharing.hub import prepare_push, push_text, send

    prepared = prepare_push(model, repository, private=private, revision=revision, license=license)
    click.echo(push_text(prepared, whole_card=dry_run))
    if dry_run:
        click.echo("\nNothing was sent (--dry-run).")
        return
    if not yes:
        raise UserError("Nothing was sent. Add --yes to send these files, or --dry-run to read the card, too.")
    click.echo(f"Sent: {send(prepared)}")


# In the order of their use, as `rm-methods --help` lists them.
VERBS = (model_card, copy_model, push)
