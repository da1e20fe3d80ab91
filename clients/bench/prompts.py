"""Prompts of a benchmark: read from a file, or made up at exact lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from clients.bench.settings import Setting

_WORDS = (
    "a about after all and any are back bird blue but by came can cat day did dog down every "
    "first for found friend from garden gave girl go good had happy he her him his home house "
    "how in into is it just kind know like little long look made make man many more mother new "
    "no not of old on once one or other out over park people play ran red river said saw school "
    "see she so some sun take than that the their them then there they this time to together "
    "told too tree two under until up very walk wanted was water way we went were what when "
    "where which who will wind with wood world would year you"
)
_NUM_WORDS = 4096
_FIELDS = ("prompt", "max_tokens", "exit_layer", "speculation")


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """One prompt of a file; what it does not say, the benchmark's options do."""

    prompt: str | tuple[int, ...]
    max_tokens: int | None = None
    setting: Setting | None = None


@dataclass(frozen=True, slots=True)
class MadeUpText:
    """Token ids of a long senseless text, to cut prompts of any length from."""

    token_ids: tuple[int, ...]

    def cut(self, length: int, random: Random) -> tuple[int, ...]:
        """So many tokens from a random place on, around the end if need be."""
        start = random.randrange(len(self.token_ids))
        return tuple(
            self.token_ids[(start + offset) % len(self.token_ids)] for offset in range(length)
        )


def made_up_text(seed: int) -> str:
    """Common English words in random order."""
    return " ".join(Random(f"{seed}/words").choices(_WORDS.split(), k=_NUM_WORDS))


def read_prompts(path: Path) -> tuple[ReadPrompt, ...]:
    """The prompts of a file: one on each line, or JSONL where its name ends in .jsonl.

    A JSON line is an object with `prompt` (a text or token ids) and, if it likes, `max_tokens`,
    `exit_layer` and `speculation` (as on the command line). Raises `ValueError` with the line,
    and `OSError`.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path} holds no prompt")
    if path.suffix != ".jsonl":
        return tuple(ReadPrompt(line.rstrip("\r")) for _, line in numbered)
    prompts = []
    for number, line in numbered:
        try:
            prompts.append(_read_object(json.loads(line)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return tuple(prompts)


def _read_object(raw: Any) -> ReadPrompt:
    if not isinstance(raw, Mapping) or "prompt" not in raw:
        raise ValueError('an object with "prompt" is expected')
    if unknown := sorted(raw.keys() - set(_FIELDS)):
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(_FIELDS)}")
    prompt, max_tokens, exit_layer = raw["prompt"], raw.get("max_tokens"), raw.get("exit_layer")
    if isinstance(prompt, list) and prompt and all(type(item) is int for item in prompt):
        prompt = tuple(prompt)
    elif not isinstance(prompt, str) or not prompt:
        raise ValueError('"prompt" must be a text or a list of token ids, not empty')
    for name, value in (("max_tokens", max_tokens), ("exit_layer", exit_layer)):
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f'"{name}" must be an integer of at least 1')
    speculation = raw.get("speculation")
    if exit_layer is None and speculation is None:
        return ReadPrompt(prompt, max_tokens)
    setting = Setting(exit_layer, "server" if speculation is None else str(speculation))
    return ReadPrompt(prompt, max_tokens, setting.checked())
