"""The socket that is listened on, made before anything slow: TCP or Unix, with or without TLS."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import ConfigError
from server.settings import ServerSettings

BACKLOG = 2048
"""Connections that the kernel holds for us; uvicorn's own choice."""


@contextmanager
def listening(settings: ServerSettings) -> Iterator[socket.socket]:
    """The listening socket of a server; a Unix socket's file is removed at the end.

    Connections wait from now on. Raises `ConfigError` for an address that cannot be had and for
    certificates that cannot be used.
    """
    check_certificates(settings)
    if settings.uds is None:
        with bind(settings.host, settings.port) as bound:
            yield bound
        return
    path = Path(settings.uds)
    with bind_unix(path, int(settings.uds_permissions, 8)) as bound:
        ours = _identity(path)
        try:
            yield bound
        finally:
            # Another server may have taken over the name meanwhile.
            with contextlib.suppress(OSError):
                if _identity(path) == ours:
                    path.unlink()


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on the address; raises `ConfigError` saying why it cannot."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # asyncio sets TCP_NODELAY only where the protocol is named. Without it every answer waits
        # for the client's delayed acknowledgement of its headers: 40 ms.
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Only now is the port ours: two sockets with SO_REUSEADDR may be bound to it.
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        hint = "; choose another with --port" if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(f"cannot listen on {host}:{port}: {_reason(error)}{hint}") from error
    return bound


def bind_unix(path: Path, mode: int) -> socket.socket:
    """A socket that listens at `path`, which only those whom `mode` lets may connect to.

    The file that a dead server left is replaced. Raises `ConfigError` for one that is in use and
    for anything that is no socket.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        # Never wider than asked, not even between bind and chmod. The process has one thread yet.
        previous = os.umask(0o777 & ~mode)
        try:
            bound.bind(str(path))
        finally:
            os.umask(previous)
        path.chmod(mode)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise ConfigError(f"cannot listen on {path}: {_reason(error)}") from error
    except ConfigError:
        bound.close()
        raise
    return bound


def address_of(bound: socket.socket, *, tls: bool = False) -> str:
    """The URL under which a listening socket is reached; `unix:` and the path for a Unix one."""
    if bound.family == socket.AF_UNIX:
        return f"unix:{bound.getsockname()}"
    scheme = "https" if tls else "http"
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def check_certificates(settings: ServerSettings) -> None:
    """Raise `ConfigError` where the TLS options do not go together or a file cannot be used."""
    if settings.ssl_certfile is None:
        for name in ("ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs"):
            if getattr(settings, name) is not None:
                raise ConfigError(f"{name} needs ssl_certfile")
        return
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secret = settings.ssl_keyfile_password
    password = secret.get_secret_value() if secret else ""
    files = settings.ssl_certfile
    try:
        # Given a password, OpenSSL does not ask for one on the terminal.
        context.load_cert_chain(files, settings.ssl_keyfile, lambda: password)
        if settings.ssl_ca_certs is not None:
            files = settings.ssl_ca_certs
            context.load_verify_locations(files)
    except FileNotFoundError as error:
        missing = [
            name
            for name in (settings.ssl_certfile, settings.ssl_keyfile, settings.ssl_ca_certs)
            if name is not None and not Path(name).exists()
        ]
        raise ConfigError(f"no such file: {', '.join(missing) or files}") from error
    except (ssl.SSLError, OSError) as error:
        names = ", ".join(filter(None, (settings.ssl_certfile, settings.ssl_keyfile)))
        names = names if files == settings.ssl_certfile else files
        reason = getattr(error, "reason", None) or error.strerror or error
        raise ConfigError(
            f"{names}: not a certificate and key that can be used ({reason})"
        ) from error


def _remove_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"cannot listen on {path}: it exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise ConfigError(f"cannot listen on {path}: another server is listening there")


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
