"""The verb that tests a method."""

from __future__ import annotations

import sys

import click

from rm_methods.commands.options import find_methods, methods_option, named_values
from rm_methods.commands.verb import verb


@verb("test-method")
@click.argument("method")
@methods_option
@click.option("--set", "settings", multiple=True, help="NAME=VALUE: a setting of the method; repeatable.")
@click.option("--two-ranks", is_flag=True, help="Also train on two processes, which takes longer.")
def test_method(method, method_folders, settings, two_ranks):
    """Test whether a method fulfills the contract, on small data.

    Prints one line for each property, and what to do about those that do not hold.
    """
    from rm_methods.contract_test.report import check_method as run
    from rm_methods.methods.registry import load_method_card

    find_methods(method_folders)
    load_method_card(method)  # refuses a name that is misspelled
    values = named_values("--set", settings, "temperature=2")
    if not run(method, click.echo, method_folders=method_folders, settings=values, two_ranks=two_ranks):
        sys.exit(1)
