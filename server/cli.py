"""The `bitskip` command.

Commands import what they run inside themselves, so that `bitskip --help` is quick.
"""

from __future__ import annotations

from typing import Annotated

import typer

from clients.bench.command import bench
from clients.terminal.chat import chat
from clients.terminal.complete import complete
from server.commands.draft_vocab import draft_vocab
from server.commands.evaluate import evaluate
from server.commands.export import export
from server.commands.inspect import inspect
from server.commands.options import SectionedCommand
from server.commands.pack import pack
from server.commands.report import report
from server.commands.serve import serve
from server.commands.synth import synth
from server.commands.train import train
from server.version import package_version

app = typer.Typer(
    name="bitskip",
    help="Self-speculative decoding for early-exit, ternary-weight language models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # Its tables cut off the names of environment variables.
    pretty_exceptions_enable=False,
)
app.command(cls=SectionedCommand, short_help="Serve a model over OpenAI-style endpoints.")(serve)
app.command(short_help="Complete a prompt on a running server.")(complete)
app.command(short_help="Talk with a running server.")(chat)
app.command(short_help="Send load to a running server, and measure.")(bench)
app.command(short_help="Make a checkpoint small and quick to load.")(pack)
app.command(short_help="Look into a model: what it holds, and is it credible?")(inspect)
app.command("draft-vocab", short_help="Count which tokens drafts should choose from.")(draft_vocab)
app.command(short_help="Write a model for llama.cpp (GGUF) or transformers.")(export)
app.command(short_help="Train an early-exit model on text files.")(train)
app.command(short_help="Write a random model of any size, to measure speed with.")(synth)
app.command("eval", short_help="Measure what each exit of a model is worth.")(evaluate)
app.command(short_help="Write that as a model-card section, with pictures.")(report)


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
