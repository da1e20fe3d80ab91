"""The slow, obvious way to answer a request, for the engine to be equal to.

No cache, no scheduler, no speculation: every token comes from running its whole prefix from
scratch, alone, in fresh memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.backends.protocol import Backend, Row, Sweep
from engine.types import FinishReason, SamplingParams

Logits = NDArray[np.float32]

BLOCK_SIZE = 16

MakeBackend = Callable[[], Backend]
"""Gives a backend to allocate anew for each prefix; it may be the same one every time."""


class SamplingState(Protocol):
    """The past of one choice, as `engine.sampling` keeps it."""

    def append(self, token_id: int) -> None:
        """Note a token of the completion."""
        ...


NewState = Callable[[SamplingParams, Sequence[int], tuple[int, ...], int], SamplingState]
"""(params, prompt, EOS ids, seed) → state: `engine.sampling.sampler.SamplingState`."""

Sample = Callable[[Logits, Any, int], int | None]
"""(logits, state, position of the new token) → token: `engine.sampling.sampler.sample`."""

TextOf = Callable[[Sequence[int]], str]
"""The text of a completion, without an incomplete character at its end."""


@dataclass(frozen=True, slots=True)
class OracleResult:
    """A completion; `tokens` include an EOS or stop token, and those of a stop string."""

    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None
    logits: tuple[Logits, ...]
    """The full-head logits from which each token was sampled."""


class FromScratch:
    """From-scratch logits of prefixes, remembered: they are a pure function of the prefix.

    One instance serves one model; share it between completions.
    """

    def __init__(self, make_backend: MakeBackend) -> None:
        self._make_backend = make_backend
        self._known: dict[tuple[int, tuple[int, ...]], Logits] = {}

    def logits(self, prefix: Sequence[int], exit_layer: int) -> Logits:
        """V logits for the token after `prefix` at an exit; not to be modified."""
        key = exit_layer, tuple(prefix)
        if key not in self._known:
            logits = logits_from_scratch(self._make_backend(), prefix, exit_layer)
            logits.setflags(write=False)
            self._known[key] = logits
        return self._known[key]


def logits_from_scratch(backend: Backend, prefix: Sequence[int], exit_layer: int) -> Logits:
    """V logits for the token after `prefix`, in one sweep over newly allocated memory."""
    blocks = range(-(-len(prefix) // BLOCK_SIZE))
    backend.allocate(len(blocks), BLOCK_SIZE, 1)
    rows = [Row(0, position, 0, exit_layer, token) for position, token in enumerate(prefix)]
    residuals = backend.sweep(Sweep(rows, {0: list(blocks)}))
    return backend.head(residuals, [len(prefix) - 1], [exit_layer])[0].copy()


def naive_completion(
    model: MakeBackend | FromScratch,
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    seed: int,
    *,
    sample: Sample,
    new_state: NewState,
    exit_layer: int,
    eos_token_ids: tuple[int, ...],
    max_model_len: int,
    text_of: TextOf | None = None,
) -> OracleResult:
    """What the request must be answered with, token by token.

    `text_of` is needed for stop strings. `params.seed`, `n` and `exit_layer` are not looked at:
    one choice is computed, with the seed and the exit given. A prompt that leaves no room under
    `max_model_len`, or a `max_tokens` of 0, gives no token.
    """
    assert not params.stop or text_of is not None, "stop strings need text_of"
    scratch = model if isinstance(model, FromScratch) else FromScratch(model)
    prefix = list(prompt_token_ids)
    limit = max_model_len - len(prefix)
    if params.max_tokens is not None:
        limit = min(limit, params.max_tokens)
    state = new_state(params, prompt_token_ids, eos_token_ids, seed)
    tokens: list[int] = []
    all_logits: list[Logits] = []
    finish_reason, stop_reason = FinishReason.LENGTH, None
    while len(tokens) < limit:
        all_logits.append(scratch.logits(prefix, exit_layer))
        token = sample(all_logits[-1], state, len(prefix))
        assert token is not None, "the full vocabulary always has an answer"
        state.append(token)
        prefix.append(token)
        tokens.append(token)
        ended, stop_reason = _ended(tokens, params, eos_token_ids, text_of)
        if ended:
            finish_reason = FinishReason.STOP
            break
    return OracleResult(tuple(tokens), finish_reason, stop_reason, tuple(all_logits))


def _ended(
    tokens: Sequence[int],
    params: SamplingParams,
    eos_token_ids: tuple[int, ...],
    text_of: TextOf | None,
) -> tuple[bool, str | int | None]:
    """Whether the last token stops the completion, and the stop reason.

    `min_tokens` needs nothing here but for stop strings: sampling bans EOS and stop tokens.
    """
    if tokens[-1] in eos_token_ids and not params.ignore_eos:
        return True, None
    if tokens[-1] in params.stop_token_ids:
        return True, tokens[-1]
    if text_of is None or not params.stop or len(tokens) < params.min_tokens:
        return False, None
    # A stop string counts when it is completed by a token from number min_tokens on; of those
    # that one token completes, the one that starts first wins, then the one listed first.
    held_off = len(text_of(tokens[: max(0, params.min_tokens - 1)]))
    text = text_of(tokens)
    starts = [text.find(stop, max(0, held_off + 1 - len(stop))) for stop in params.stop]
    found = [(start, index) for index, start in enumerate(starts) if start >= 0]
    return (True, params.stop[min(found)[1]]) if found else (False, None)
