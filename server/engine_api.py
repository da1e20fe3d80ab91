"""The engine's asynchronous interface, as far as the server uses it.

`engine.async_engine.AsyncEngine` and `engine.tokenizer.Tokenizer` satisfy these protocols, and
so do the fakes of the tests. Naming the interface here keeps the engine's own imports out of
the server's modules.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol

from engine.config import EngineConfig, ModelConfig
from engine.metrics import StepStats
from engine.types import ChoiceOutput, SamplingParams

READY, LOADING, DRAINING, DEAD = "ready", "loading", "draining", "dead"
"""The values of the engine's status."""


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Role (`bos_token`, `eos_token` …) → text."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja source, where it has one."""
        ...

    @property
    def tokenizer_class(self) -> str | None:
        """Hugging Face's class that made the tokenizer's files, where they say."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`. Safe to call from any thread."""
        ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that are not valid UTF-8 become U+FFFD."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of a token."""
        ...

    def first_token_bytes(self, token_id: int) -> bytes:
        """Its bytes as the first token with any of a text."""
        ...

    def token_text(self, token_id: int) -> str:
        r"""A token's name among logprobs, unique; `bytes:\xNN` for a part of a character."""
        ...


class OutputStream(Protocol):
    """The outputs of one submitted prompt; ends after every choice has finished."""

    def __aiter__(self) -> AsyncIterator[ChoiceOutput]: ...

    async def __anext__(self) -> ChoiceOutput: ...

    def abort(self) -> None:
        """Stop generating; idempotent, and without effect on a finished request."""
        ...


class Engine(Protocol):
    """One model being served."""

    @property
    def model_config(self) -> ModelConfig: ...

    @property
    def config(self) -> EngineConfig:
        """The resolved configuration."""
        ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def backend_name(self) -> str: ...

    @property
    def backend_description(self) -> str:
        """How the backend computes: its instruction set or library, and its threads."""
        ...

    @property
    def head_dtype(self) -> str:
        """What the head's weights are held in: `fp32`, `bf16` or `int8`."""
        ...

    @property
    def linear_dtype(self) -> str:
        """What the linears' weights are held in: `ternary`, or `fp32`, `bf16` or `int8`."""
        ...

    @property
    def kv_dtype(self) -> str:
        """What K/V is cached in: `fp32`, `fp16` or `int8`."""
        ...

    @property
    def status(self) -> str:
        """`loading`, `ready`, `draining` or `dead`."""
        ...

    async def start(self) -> None:
        """Become ready; raises what keeps the engine from running."""
        ...

    def add_stats_listener(self, listener: Callable[[StepStats], None]) -> None:
        """Have `listener` called on the event loop, once per engine step."""
        ...

    def submit(
        self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> OutputStream:
        """Begin a request of `params.n` choices.

        Raises `InvalidRequestError` or `EngineUnavailableError` (or subclasses).
        """
        ...

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests and wait for the running ones, which end with an error at last."""
        ...

    async def stop(self) -> None:
        """Release everything; the engine is not used afterwards."""
        ...
