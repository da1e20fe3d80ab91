"""`bitskip chat`: a conversation with a running server."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from clients.terminal.options import (
    DEFAULT_URL,
    ApiKey,
    DraftExit,
    ExitLayer,
    ModelName,
    NumSpeculations,
    Seed,
    SpeculativeFlag,
    Temperature,
    TopP,
    Url,
    clean_errors,
    explain,
    print_error,
    speculative_option,
)

if TYPE_CHECKING:
    from rich.console import Console

    from clients.client import Client
    from clients.options import ChatStreamOptions, Message

HELP = """\
/reset  forget the conversation
/help   show this
/exit   leave; so does Ctrl-D
A line that ends in \\ goes on in the next one; a line of three double quotes begins a text of
many lines, and another one ends it. Ctrl-C stops an answer, or drops what is being typed."""


def chat(
    system: Annotated[
        str | None, typer.Option(help="What to tell the model before the conversation.")
    ] = None,
    exit_layer: ExitLayer = None,
    speculative: SpeculativeFlag = None,
    num_speculations: NumSpeculations = None,
    draft_exit: DraftExit = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer. Default: what the context holds.")
    ] = None,
    seed: Seed = None,
    model: ModelName = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Talk with a running server; /help lists what else can be typed."""
    drafting = speculative_option(speculative, draft_exit, num_speculations)
    with clean_errors():
        from clients.client import Client

        with Client(url, api_key=api_key) as client:
            options: ChatStreamOptions = {
                "exit_layer": exit_layer,
                "speculative": drafting,
                "temperature": temperature,
                "top_p": top_p,
                "max_completion_tokens": max_tokens,
                "seed": seed,
                "model": model,
                "return_metrics": True,
                "return_token_sources": True,
            }
            Conversation(client, options, system).run()


class EndOfInput(Exception):
    """The user has left."""


@dataclass(slots=True)
class Conversation:
    """Reads, answers and remembers, until its user leaves."""

    client: Client
    options: ChatStreamOptions
    system: str | None
    history: list[Message] = field(default_factory=list)

    def run(self) -> None:
        """Talk until /exit or the end of input."""
        from rich.console import Console

        notes = Console(stderr=True, highlight=False)
        served = self.client.models()[0]
        is_interactive = sys.stdin.isatty()
        if is_interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  # Arrow keys and a history for input().
            notes.print(
                f"{served.id}: {served.num_layers} layers, {served.max_model_len} tokens of "
                "context. /help says what can be typed.",
                style="dim",
                markup=False,
            )
        while True:
            try:
                said = read_message(is_interactive)
            except EndOfInput:
                return
            except KeyboardInterrupt:
                print(file=sys.stderr)
                continue
            if said.startswith("/") and "\n" not in said:
                if said == "/exit":
                    return
                self._obey(said, notes)
            elif said.strip():
                self._answer(said, is_interactive, notes)

    def _obey(self, command: str, notes: Console) -> None:
        if command == "/reset":
            self.history.clear()
            notes.print("The conversation is forgotten.", style="dim")
        elif command == "/help":
            notes.print(HELP, style="dim", markup=False)
        else:
            notes.print(f"There is no {command}; /help lists what there is.", markup=False)

    def _answer(self, said: str, is_interactive: bool, notes: Console) -> None:
        from clients.errors import ClientError, ContextLengthError

        self.history.append({"role": "user", "content": said})
        while True:
            try:
                text = self._stream()
            except ContextLengthError as error:
                if len(self.history) > 2:
                    # The oldest question with its answer; what was just said stays.
                    del self.history[:2]
                    notes.print("The oldest exchange is forgotten: no room.", style="dim")
                    continue
                failure: ClientError = error
            except ClientError as error:
                failure = error
            else:
                self.history.append({"role": "assistant", "content": text})
                return
            self.history.pop()
            if not is_interactive:
                raise failure
            print_error(explain(failure))
            return

    def _stream(self) -> str:
        """Stream the answer to the history; returns it, or what came before Ctrl-C."""
        from clients.options import Message
        from clients.terminal.painting import Painter

        system = [] if self.system is None else [Message(role="system", content=self.system)]
        text, painter, metrics, finish_reason = "", Painter(), None, None
        try:
            with self.client.stream_chat([*system, *self.history], **self.options) as stream:
                for chunk in stream:
                    for choice in chunk.choices:
                        text += choice.text
                        painter.add(choice.text, choice.token_sources)
                        finish_reason = choice.finish_reason or finish_reason
                    metrics = chunk.metrics or metrics
        except KeyboardInterrupt:
            # What was read stays in the conversation: it was said.
            pass
        finally:
            painter.close(metrics, finish_reason)
        return text


def read_message(is_interactive: bool) -> str:
    """One message, of one line or many; raises `EndOfInput` when there is no more."""
    line = _read_line("> " if is_interactive else "")
    if line.strip() == '"""':
        lines = []
        while (line := _read_line("… " if is_interactive else "")).strip() != '"""':
            lines.append(line)
        return "\n".join(lines)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(_read_line("… " if is_interactive else ""))
    return "\n".join(lines)


def _read_line(prompt: str) -> str:
    try:
        return input(prompt)
    except EOFError:
        if prompt:
            print()
        raise EndOfInput from None
