"""Where a server listens: TCP, Unix sockets, with TLS."""

from __future__ import annotations

import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from engine.errors import ConfigError
from server.listener import address_of, bind, check_certificates, listening
from server.settings import ServerSettings
from support.live_server import live_server
from support.sse import joined_text, parse_events


def settings(**options: Any) -> ServerSettings:
    return ServerSettings(**{"port": 0, **options})


def test_a_bound_socket_lets_connections_wait() -> None:
    with bind("127.0.0.1", 0) as bound:
        with socket.create_connection(bound.getsockname()[:2], timeout=5):
            pass
        assert address_of(bound).startswith("http://127.0.0.1:")
        assert address_of(bound, tls=True).startswith("https://127.0.0.1:")


def test_a_taken_port_is_noticed_before_anything_is_loaded() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=r"already in use; choose another with --port"):
            bind("127.0.0.1", port)


# --- Unix sockets --------------------------------------------------------------------------------


def ask(path: Path, route: str) -> httpx.Response:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=30) as client:
        return client.get(f"http://localhost{route}")


def test_a_unix_socket_is_served_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "bitskip.sock"
    with live_server(uds=str(path)) as server:
        assert server.url == f"unix:{path}"
        assert ask(path, "/health").json() == {"status": "ready"}
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=30) as client:
            body = {"prompt": "hi", "max_tokens": 100, "stream": True}
            response = client.post("http://localhost/v1/completions", json=body)
        assert joined_text(parse_events(response.content)) == server.engine.text
    assert not path.exists()


def test_the_permissions_of_a_unix_socket_can_be_chosen(tmp_path: Path) -> None:
    for mode in ("600", "0666"):
        with listening(settings(uds=str(tmp_path / mode), uds_permissions=mode)):
            found = stat.S_IMODE((tmp_path / mode).stat().st_mode)
        assert found == int(mode, 8)
    with pytest.raises(ValueError, match="uds_permissions"):
        settings(uds_permissions="rw-")


def test_what_a_dead_server_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    with live_server(uds=str(path)):
        assert ask(path, "/health").status_code == 200


def test_a_live_server_keeps_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "busy.sock"
    with live_server(uds=str(path)):
        with (
            pytest.raises(ConfigError, match="another server is listening there"),
            listening(settings(uds=str(path))),
        ):
            pass
        assert ask(path, "/health").status_code == 200


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with (
        pytest.raises(ConfigError, match="exists and is not a socket"),
        listening(settings(uds=str(path))),
    ):
        pass
    assert path.read_text() == "data"


def test_a_successor_keeps_its_socket(tmp_path: Path) -> None:
    """A server that ends late does not take away the socket of the one that replaced it."""
    path = tmp_path / "shared.sock"
    with listening(settings(uds=str(path))):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
            successor.listen()
    assert path.exists()


@pytest.mark.parametrize("name", ["missing/x.sock", "x" * 200])
def test_a_path_that_cannot_be_a_socket(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(ConfigError, match=f"cannot listen on {tmp_path}"),
        listening(settings(uds=str(tmp_path / name))),
    ):
        pass


# --- TLS -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificates:
    """Files of a certificate for 127.0.0.1, and who vouches for it."""

    authority: trustme.CA
    certificate: str
    key: str
    authority_file: str

    def client_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(folder / "certificate.pem", append=True)
    names = (str(folder / f"{name}.pem") for name in ("certificate", "key", "authority"))
    return Certificates(authority, *names)


def test_https(certificates: Certificates) -> None:
    with live_server(ssl_certfile=certificates.certificate, ssl_keyfile=certificates.key) as server:
        assert server.url.startswith("https://127.0.0.1:")
        with httpx.Client(verify=certificates.client_context(), base_url=server.url) as client:
            assert client.get("/health").json() == {"status": "ready"}
            body = {"prompt": "hi", "max_tokens": 100, "stream": True}
            response = client.post("/v1/completions", json=body)
            assert joined_text(parse_events(response.content)) == server.engine.text
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            httpx.get(f"{server.url}/health")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url.replace('https', 'http')}/health")


def test_clients_must_show_a_certificate_where_asked(certificates: Certificates) -> None:
    with live_server(
        ssl_certfile=certificates.certificate,
        ssl_keyfile=certificates.key,
        ssl_ca_certs=certificates.authority_file,
    ) as server:
        context = certificates.client_context()
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url}/health", verify=context)
        certificates.authority.issue_cert("client@example.com").configure_cert(context)
        assert httpx.get(f"{server.url}/health", verify=context).status_code == 200


@pytest.fixture(scope="module")
def encrypted_key(certificates: Certificates) -> str:
    from cryptography.hazmat.primitives import serialization

    source = Path(certificates.key)
    key = serialization.load_pem_private_key(source.read_bytes(), None)
    file = source.with_name("encrypted.pem")
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open sesame"),
        )
    )
    return str(file)


def test_an_encrypted_key_needs_its_password(
    certificates: Certificates, encrypted_key: str
) -> None:
    files: dict[str, Any] = {"ssl_certfile": certificates.certificate, "ssl_keyfile": encrypted_key}
    for wrong in ({}, {"ssl_keyfile_password": "close sesame"}):
        with pytest.raises(ConfigError, match="not a certificate and key that can be used"):
            check_certificates(settings(**files, **wrong))
    with live_server(**files, ssl_keyfile_password="open sesame") as server:
        assert "sesame" not in repr(settings(**files, ssl_keyfile_password="open sesame"))
        answer = httpx.get(f"{server.url}/health", verify=certificates.client_context())
    assert answer.status_code == 200


def test_certificates_that_cannot_be_used(certificates: Certificates, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("hello")
    other = tmp_path / "other.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(other)
    missing = str(tmp_path / "missing.pem")
    good = {"ssl_certfile": certificates.certificate, "ssl_keyfile": certificates.key}
    for changes, words in (
        ({"ssl_certfile": missing}, ["no such file", missing]),
        ({"ssl_keyfile": missing}, ["no such file", missing]),
        ({"ssl_certfile": str(garbage)}, [str(garbage), "not a certificate"]),
        ({"ssl_keyfile": str(other)}, [str(other), "mismatch"]),
        ({"ssl_ca_certs": str(garbage)}, [str(garbage)]),
        ({"ssl_certfile": None}, ["ssl_keyfile needs ssl_certfile"]),
    ):
        with pytest.raises(ConfigError) as caught:
            check_certificates(settings(**{**good, **changes}))
        for word in words:
            assert word.lower() in str(caught.value).lower()
