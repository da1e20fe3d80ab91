"""What the commands that talk to a server share: options, and how they end on an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from clients.options import Speculative

INTERRUPTED = 130
"""Exit code of a command that was ended by Ctrl-C: 128 + SIGINT."""
DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option(envvar="BITSKIP_URL", help="Address of the server.")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="BITSKIP_API_KEY", help="Key, if the server asks for one."),
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Name of the model. Default: the served one.")
]
ExitLayer = Annotated[
    int | None,
    typer.Option(min=1, help="Layers that answer: fewer are faster and worse. Default: all."),
]
SpeculativeFlag = Annotated[
    bool | None,
    typer.Option(
        "--speculative/--no-speculative",
        help="Draft and verify; never changes the tokens. Default: as the server is set up.",
    ),
]
NumSpeculations = Annotated[
    int | None, typer.Option(min=0, max=16, help="Drafts per round. Default: what pays.")
]
DraftExit = Annotated[
    int | None, typer.Option(min=1, help="Layers that draft. Default: the server's choice.")
]
Temperature = Annotated[
    float | None, typer.Option(min=0.0, help="0 takes the likeliest token. Default: 1.")
]
TopP = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Likeliest tokens that hold this probability. Default: 1."),
]
Seed = Annotated[
    int | None, typer.Option(help="The same seed gives the same text. Default: another each time.")
]


def speculative_option(
    enabled: bool | None, draft_exit: int | None, num_speculations: int | None
) -> bool | Literal["auto"] | Speculative | None:
    """The request's `speculative` from the three options; refuses those that contradict."""
    if draft_exit is None and num_speculations is None:
        return "auto" if enabled else enabled
    if enabled is False:
        raise typer.BadParameter(
            "--draft-exit and --num-speculations say how to draft", param_hint="--no-speculative"
        )
    from clients.options import Speculative

    return Speculative(exit_layer=draft_exit, num_speculations=num_speculations)


def explain(error: Exception) -> str:
    """What went wrong, and what to do about it where that is known."""
    from clients.errors import (
        AuthenticationError,
        NotFoundError,
        ServerConnectionError,
        StreamInterruptedError,
    )

    if isinstance(error, AuthenticationError):
        return f"{error}; give a key with --api-key or BITSKIP_API_KEY"
    if isinstance(error, ServerConnectionError) and not isinstance(error, StreamInterruptedError):
        return (
            f"{error}; is the server running there? `bitskip serve` starts one, "
            "--url or BITSKIP_URL names another"
        )
    if isinstance(error, NotFoundError) and error.code is None:
        return (
            f"{error} (404): no BitSkip server answers under this address; "
            "--url or BITSKIP_URL names another"
        )
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def print_error(message: str) -> None:
    """One red line on stderr."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"error: {message}", style="bold red", markup=False
    )


@contextmanager
def clean_errors() -> Iterator[None]:
    """End the command with one line and exit code 1 on an error, and quietly on Ctrl-C."""
    from clients.errors import ClientError

    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        raise  # The reader of our output has left; the command line ends quietly on this.
    except (ClientError, ValueError, OSError) as error:
        print_error(explain(error))
        raise typer.Exit(1) from None
