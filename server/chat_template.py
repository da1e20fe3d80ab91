"""From messages to a prompt: Jinja chat templates, rendered as transformers renders them.

Templates come with models, so they run in Jinja's sandbox and see plain values only. What they may
count on is what `apply_chat_template` of transformers (`utils/chat_template_utils.py`) gives them:
trimmed blocks, loop controls, `raise_exception`, `strftime_now`, a `tojson` that leaves HTML alone,
the `generation` tag, and the special tokens' texts under the names of their roles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import ConfigError, InvalidRequestError

FIXED_VARIABLES = frozenset(
    {"add_generation_prompt", "continue_final_message", "documents", "messages", "tools"}
)
"""What a template is always given; a request may add variables, but not replace these."""

MAX_MESSAGE_LENGTH = 300
"""Characters of a template's own complaint that are passed on."""

_END_OF_TEXT = "END_OF_THE_TEXT_TO_CONTINUE "
"""Stands behind a text to be continued while it is rendered; trimmed where the template trims."""

Message = Mapping[str, str]


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says, for training; here it is only a block."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own name and type)

    def parse(self, parser: Parser) -> Node | list[Node]:
        """The block's content in its place."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return Scope(body, lineno=line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


class ChatTemplate:
    """One compiled template; safe to render from several threads."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        clock: Callable[[], float],
        origin: str = "the model's chat template",
    ) -> None:
        """Compile `source`; `clock` (Unix seconds) tells templates the date.

        Raises `ConfigError` saying what is wrong with the template from `origin`.
        """

        def strftime_now(form: str) -> str:
            return datetime.fromtimestamp(clock()).strftime(form)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = strftime_now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"{origin} is not a usable Jinja template: {error.message} (line {error.lineno})"
            ) from error
        self.source = source
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text.

        `continue_final_message` leaves the last message open, so that it is gone on with instead
        of answered. `variables` are further names for the template. Raises `InvalidRequestError`
        for messages that the template refuses or cannot render.
        """
        shown = [dict(message) for message in messages]
        if "developer" not in self.source:
            for message in shown:
                # OpenAI's newer name, which few templates know.
                message["role"] = message["role"].replace("developer", "system")
        if continue_final_message:
            shown[-1]["content"] += _END_OF_TEXT
        text = self._render(shown, add_generation_prompt, variables or {})
        return _cut_open_end(text) if continue_final_message else text

    def _render(
        self,
        messages: list[dict[str, str]],
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        known = {
            **self._special_tokens,
            **variables,
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(known)
        except jinja2.TemplateError as error:
            reason = str(error)[:MAX_MESSAGE_LENGTH]
        except Exception as error:
            # Whatever Python makes of a template that the messages do not suit.
            reason = type(error).__name__
        raise InvalidRequestError(
            f"messages cannot be rendered by the model's chat template: {reason}", param="messages"
        )


def _cut_open_end(text: str) -> str:
    """The rendered text up to the end of the final message."""
    end = text.rfind(_END_OF_TEXT.strip())
    if end < 0:
        raise InvalidRequestError(
            "continue_final_message is not possible: the model's chat template leaves the final "
            "message out",
            param="continue_final_message",
        )
    kept_spaces = text[end:].startswith(_END_OF_TEXT)
    return text[:end] if kept_spaces else text[:end].rstrip()
