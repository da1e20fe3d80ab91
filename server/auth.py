"""API keys: only their hashes are kept, and every request compares with all of them."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.errors import ConfigError
from server.errors import UnauthorizedError, error_response, rejection_reason
from server.settings import ServerSettings, key_digest

METRICS_PATH = "/metrics"
OPEN_PATHS = frozenset({"/", "/health", "/ping", METRICS_PATH})
"""What is answered without a key: probes, scrapes, and the page at which a key can be entered."""
OPEN_PREFIX = "/static/"
"""Where that page's files are."""

_SCHEME = b"bearer "


def key_hashes(settings: ServerSettings) -> tuple[bytes, ...]:
    """The hashes of all keys that the settings name; none: nobody needs one.

    Raises `ConfigError` for a file of keys that cannot be read or holds none.
    """
    hashes = list(settings.api_key)
    if settings.api_key_file is not None:
        hashes += map(key_digest, _read_keys(Path(settings.api_key_file)))
    return tuple(dict.fromkeys(hashes))


def _read_keys(file: Path) -> list[bytes]:
    try:
        lines = [line.strip() for line in file.read_bytes().splitlines()]
    except OSError as error:
        raise ConfigError(f"api_key_file: {file}: cannot be read ({error.strerror})") from error
    keys = [line for line in lines if line and not line.startswith(b"#")]
    if not keys:
        raise ConfigError(f"api_key_file: {file}: holds no key")
    return keys


class Authentication:
    """Answers 401 to requests without one of the keys. Plain ASGI, inside the request boundary.

    Preflights carry no key by their nature, so that no OPTIONS request needs one.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hashes: Sequence[bytes],
        open_paths: frozenset[str],
        on_reject: Callable[[str], None],
    ) -> None:
        """`on_reject` is told the reason of every refusal."""
        self.app = app
        self._hashes = tuple(hashes)
        self._open_paths = open_paths
        self._on_reject = on_reject

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or self._is_open(scope) or self._has_key(scope):
            await self.app(scope, receive, send)
            return
        was_sent = "authorization" in Headers(scope=scope)
        error = UnauthorizedError(
            "The API key is not one of this server's"
            if was_sent
            else "This server wants an API key: send the header Authorization: Bearer KEY"
        )
        self._on_reject(rejection_reason(error))
        await error_response(error)(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path = scope["path"]
        return (
            scope["method"] == "OPTIONS" or path in self._open_paths or path.startswith(OPEN_PREFIX)
        )

    def _has_key(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if not given.lower().startswith(_SCHEME):
            return False
        digest = key_digest(given[len(_SCHEME) :].strip())
        # Compared with every key, whichever fits: the time taken tells nothing.
        return any([hmac.compare_digest(digest, known) for known in self._hashes])
