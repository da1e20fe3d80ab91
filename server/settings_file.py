"""The configuration file: a YAML mapping from options to values, and nothing else."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import ConfigError


def read_settings_file(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """The options that a file sets, by their name; `max-num-seqs` means max_num_seqs.

    A null is an option that is not set. Raises `ConfigError`, naming the file and what is wrong
    with it: not readable, not YAML, no mapping, or keys that are no option or come twice.
    """
    # Only servers with a file pay for the import.
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_one_line(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold options and their values, like max_num_seqs: 8")
    values: dict[str, Any] = {}
    unknown: list[str] = []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in known:
            unknown.append(_with_suggestion(str(key), name, known))
        elif name in values:
            raise ConfigError(f"{path}: {name} is set twice")
        else:
            values[name] = value
    if unknown:
        raise ConfigError(f"{path}: unknown option{'s'[: len(unknown) > 1]}: {', '.join(unknown)}")
    return {name: value for name, value in values.items() if value is not None}


def _with_suggestion(key: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"{key} (did you mean {close[0]}?)" if close else key


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "cannot be parsed"
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else str(problem)
