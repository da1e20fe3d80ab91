"""A whole engine over a fake backend: real core, scheduler, cache and intake; no files, no time."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from engine.backends.protocol import Backend
from engine.build import EngineParts
from engine.config import EngineConfig
from engine.core import Core, StepResult
from engine.intake import Intake
from engine.request import Request
from engine.tokenizer import Tokenizer
from engine.types import ChoiceOutput, FinishReason, SamplingParams
from support.fake_backend import FakeBackend, fake_config

FIRST_CHARACTER = 0x30
"""Token i is the character after so many: `0` to `o` for 64 tokens."""


class CharTokenizer:
    """One character per token; the last token may be a special end of text."""

    def __init__(self, vocab_size: int, special_ids: Iterable[int] = ()) -> None:
        self.vocab_size = vocab_size
        self.special_ids = frozenset(special_ids)
        self.eos_token_id = next(iter(self.special_ids), None)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(character) - FIRST_CHARACTER for character in text]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        skipped = self.special_ids if skip_special_tokens else frozenset[int]()
        return "".join(chr(FIRST_CHARACTER + index) for index in ids if index not in skipped)

    def token_bytes(self, token_id: int) -> bytes:
        return chr(FIRST_CHARACTER + token_id).encode()

    first_token_bytes = token_bytes


def char_tokenizer(vocab_size: int, special_ids: Iterable[int] = ()) -> Tokenizer:
    """A `CharTokenizer` for where the engine's own type is asked for."""
    return cast(Tokenizer, CharTokenizer(vocab_size, special_ids))


@dataclass(slots=True)
class Clock:
    """Seconds that pass only when told to, and `tick_s` with every reading."""

    now_s: float = 100.0
    tick_s: float = 0.0

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s


def make_parts(
    backend: Backend | None = None, clock: Clock | None = None, **config: Any
) -> EngineParts:
    """An engine over `backend` (a `FakeBackend` of 64 tokens and 6 layers, unless given)."""
    backend = backend or FakeBackend(fake_config())
    clock = clock or Clock()
    model = backend.config
    resolved = EngineConfig(**config).resolve(model)
    core = Core(backend, resolved, clock)
    tokenizer = char_tokenizer(model.vocab_size, model.eos_token_ids)
    intake = Intake(model, resolved, tokenizer, random.Random(0), clock)
    return EngineParts(core, intake, backend)


def request_of(
    parts: EngineParts,
    prompt: Sequence[int] = (1, 2, 3),
    request_id: str = "r",
    **params: Any,
) -> Request:
    """The first choice of a prompt, greedy unless told otherwise; not added yet."""
    sampling = SamplingParams(**{"temperature": 0.0, **params})
    return parts.intake.make_requests(request_id, list(prompt), sampling)[0]


@dataclass(slots=True)
class Ledger:
    """What every choice was sent; asserts that it ends once, last, and is not heard of again."""

    outputs: dict[tuple[str, int], list[ChoiceOutput]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def note(self, outputs: Iterable[ChoiceOutput]) -> None:
        """Note outputs in the order in which they came."""
        for output in outputs:
            past = self.outputs[output.request_id, output.index]
            assert not past or past[-1].finish_reason is None, f"output after the end: {output}"
            assert output.tokens or output.finish_reason or output.prompt_logprobs is not None
            past.append(output)

    def reason(self, request_id: str, index: int = 0) -> FinishReason | None:
        """Why a choice ended; None: it has not."""
        past = self.outputs[request_id, index]
        return past[-1].finish_reason if past else None

    def token_ids(self, request_id: str, index: int = 0) -> list[int]:
        """A choice's tokens so far."""
        past = self.outputs[request_id, index]
        return [token.token_id for output in past for token in output.tokens]

    def text(self, request_id: str, index: int = 0) -> str:
        """A choice's text so far."""
        past = self.outputs[request_id, index]
        return "".join(token.text for output in past for token in output.tokens)

    def last(self, request_id: str, index: int = 0) -> ChoiceOutput:
        """A choice's latest output."""
        return self.outputs[request_id, index][-1]


def run_to_end(core: Core, ledger: Ledger | None = None, max_steps: int = 2000) -> Ledger:
    """Step until there is no work; asserts that this comes."""
    ledger = Ledger() if ledger is None else ledger
    for _ in range(max_steps):
        if not core.has_work:
            return ledger
        ledger.note(core.step().outputs)
    raise AssertionError(f"still {core.scheduler.num_waiting} waiting after {max_steps} steps")


def steps_to_end(core: Core, max_steps: int = 2000) -> list[StepResult]:
    """Every step's result until there is no work."""
    results: list[StepResult] = []
    while core.has_work:
        assert len(results) < max_steps, "it does not end"
        results.append(core.step())
    return results
