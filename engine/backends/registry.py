"""Backends by name. Each is imported only when it is chosen."""

from __future__ import annotations

from collections.abc import Sequence

from engine.backends.protocol import Backend
from engine.checkpoint.loader import Checkpoint
from engine.errors import ConfigError

BACKENDS = ("reference",)
"""Names in order of preference: `auto` takes the first that can run here."""


def create_backend(
    name: str,
    checkpoint: Checkpoint,
    *,
    draft_vocab_size: int,
    always_draft_ids: Sequence[int],
    threads: int | None = None,
) -> Backend:
    """Load a checkpoint onto the backend `name`, or onto the best one for `auto`.

    Raises `ConfigError` for a name that does not exist.
    """
    if name == "auto":
        name = BACKENDS[0]
    if name == "reference":
        from engine.backends.reference import ReferenceBackend

        return ReferenceBackend(
            checkpoint,
            draft_vocab_size=draft_vocab_size,
            always_draft_ids=always_draft_ids,
            threads=threads,
        )
    choices = ", ".join(("auto", *BACKENDS))
    raise ConfigError(f"backend {name!r} does not exist; choose one of: {choices}")
