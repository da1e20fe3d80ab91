"""`bitskip complete PROMPT`."""

from __future__ import annotations

import sys
from typing import Annotated

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
    speculative_option,
)


def complete(
    prompt: Annotated[str, typer.Argument(help="What to go on from; - reads standard input.")],
    exit_layer: ExitLayer = None,
    speculative: SpeculativeFlag = None,
    num_speculations: NumSpeculations = None,
    draft_exit: DraftExit = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 200,
    seed: Seed = None,
    model: ModelName = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Complete PROMPT on a running server, streaming; tokens are coloured by their source.

    Drafted tokens are green, corrected ones yellow. Only the text goes to standard output.
    """
    drafting = speculative_option(speculative, draft_exit, num_speculations)
    with clean_errors():
        from clients.client import Client
        from clients.terminal.painting import Painter

        text = sys.stdin.read() if prompt == "-" else prompt
        painter, metrics, finish_reason = Painter(), None, None
        with (
            Client(url, api_key=api_key) as client,
            client.stream(
                text,
                exit_layer=exit_layer,
                speculative=drafting,
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_tokens,
                seed=seed,
                model=model,
                return_metrics=True,
                return_token_sources=True,
            ) as stream,
        ):
            try:
                for chunk in stream:
                    for choice in chunk.choices:
                        painter.add(choice.text, choice.token_sources)
                        finish_reason = choice.finish_reason or finish_reason
                    metrics = chunk.metrics or metrics
            finally:
                painter.close(metrics, finish_reason)
