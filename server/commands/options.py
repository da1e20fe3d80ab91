"""The settings as options of a command: built from their fields, so that none can be missing."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from server.settings import ServerSettings, env_name, option_names

ARGUMENT = "model"
"""The one setting that is given without a flag."""


def section_of(field: str) -> str:
    """The heading under which a setting is shown."""
    return _extra(ServerSettings.model_fields[field])["section"]


def flag_of(field: str) -> str:
    """How a setting is written on the command line."""
    if field == ARGUMENT:
        return "MODEL"
    name = field.replace("_", "-")
    is_switch = ServerSettings.model_fields[field].annotation is bool
    return f"--{name}/--no-{name}" if is_switch else f"--{name}"


def default_of(field: str) -> str:
    """A setting's default as help shows it; empty where its description tells."""
    default = ServerSettings.model_fields[field].default
    if isinstance(default, bool):
        return "on" if default else "off"
    return "" if default in (None, ()) else str(default)


def with_settings_as_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes keyword arguments one optional parameter for each setting."""
    parameters = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(name)
        )
        for name in option_names()
    ]
    command.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _annotation(field: str) -> Any:
    info = ServerSettings.model_fields[field]
    default = f"default: {shown}; " if (shown := default_of(field)) else ""
    help_text = f"{info.description} ({default}env: {env_name(field)})"
    metavar = _extra(info)["metavar"] or (field.upper() if field == ARGUMENT else None)
    if field == ARGUMENT:
        kind = typer.Argument(metavar=metavar, help=help_text, show_default=False)
    else:
        kind = typer.Option(flag_of(field), metavar=metavar, help=help_text, show_default=False)
    return Annotated[_flag_type(info) | None, kind]


def _flag_type(info: FieldInfo) -> Any:
    """What the command line itself checks; the rest is left to the settings."""
    kinds = {bool: bool, int: int, float: float}
    annotation = info.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is tuple:
        return list[str]
    if get_origin(annotation) is Literal:
        return str
    return kinds.get(annotation, str) if isinstance(annotation, type) else str


def _extra(info: FieldInfo) -> dict[str, Any]:
    assert isinstance(info.json_schema_extra, dict)
    return info.json_schema_extra


class SectionedCommand(TyperCommand):
    """A command whose help groups the options by the settings' sections."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one list of options per section, in the order of the settings."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                name = parameter.name or ""
                title = section_of(name) if name in option_names() else "Other"
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
