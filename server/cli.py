"""The `bitskip` command.

Commands import what they run inside themselves, so that `bitskip --help` is quick.
"""

from __future__ import annotations

from typing import Annotated

import typer

from server.commands.evaluate import evaluate
from server.commands.pack import pack
from server.commands.serve import serve
from server.commands.train import train
from server.version import package_version

app = typer.Typer(
    name="bitskip",
    help="Self-speculative decoding for early-exit, ternary-weight language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(pack)
app.command()(train)
app.command("eval")(evaluate)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(package_version())
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `bitskip` script."""
    app()
