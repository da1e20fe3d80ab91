"""`bitskip serve` as operators run it: packing, keys, HTTPS, sockets, limits, early ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from support.fake_hub import fake_hub
from support.live_server import wait_until
from support.served_process import (
    ENDLESS,
    ROOT,
    ServedProcess,
    environment,
    run_command,
    serving,
    write_model,
)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("operating") / "story")


def cached(cache: Path) -> list[Path]:
    return sorted(cache.glob("packed/*/*/model.safetensors"))


def test_a_model_is_packed_once(unpacked: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    options = ("--cache-dir", str(cache))
    with serving(unpacked, tmp_path / "first.log", *options) as first:
        tokens = first.complete(prompt="Once", max_tokens=8, temperature=0)["choices"]
        (packed,) = cached(cache)
        assert f"packing {unpacked} into {packed.parent}, once" in first.log
        assert f"({unpacked}, loaded from {packed.parent})" in first.log
        assert first.http.get("/v1/models").json()["data"][0]["id"] == "story"
    with serving(unpacked, tmp_path / "second.log", *options) as second:
        assert "packing" not in second.log
        assert second.complete(prompt="Once", max_tokens=8, temperature=0)["choices"] == tokens
    with serving(unpacked, tmp_path / "third.log", *options, "--no-pack-cache") as third:
        assert f"({unpacked})" in third.log
        assert third.complete(prompt="Once", max_tokens=8, temperature=0)["choices"] == tokens
    assert cached(cache) == [packed]


def test_two_servers_that_start_at_once_share_a_copy(unpacked: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def answer(number: int) -> Any:
        log = tmp_path / f"{number}.log"
        with serving(unpacked, log, "--cache-dir", str(cache)) as served:
            return served.complete(prompt="Once", max_tokens=8, temperature=0)["choices"]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(answer, range(2))
    assert first == second and len(cached(cache)) == 1


def test_a_cache_that_cannot_be_written_is_only_warned_of(unpacked: Path, tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("in the way")
    with serving(unpacked, tmp_path / "log", "--cache-dir", str(occupied)) as served:
        assert served.complete(prompt="Once", max_tokens=2)["usage"]["completion_tokens"] == 2
    assert "it is loaded as it is" in served.log and "WARNING" in served.log


def test_a_model_of_the_hub(unpacked: Path, tmp_path: Path) -> None:
    with fake_hub("org/story", unpacked) as hub:
        variables = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        with serving(Path("org/story"), tmp_path / "log", variables=variables) as served:
            assert served.complete(prompt="Once", max_tokens=2)["model"] == "story"
            assert "(org/story, loaded from " in served.log
    message = run_command("serve", "org/other", "--port", "0", HF_HUB_OFFLINE="1").stderr
    assert "error: org/other: no such directory" in message and "hf download" in message


def test_one_file_sets_up_a_guarded_server(packed_model: Path, tmp_path: Path) -> None:
    """Keys, HTTPS and limits from a file, flags and the environment at once."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    (tmp_path / "keys").write_text("first-key\n")
    settings = tmp_path / "server.yaml"
    settings.write_text(
        f"model: {packed_model}\nssl_certfile: {tmp_path / 'server.pem'}\n"
        f"api-key-file: {tmp_path / 'keys'}\nmax_n: 1\nserved_model_name: [story, tale]\n"
    )
    log = tmp_path / "log"
    variables = {"BITSKIP_API_KEY": "second-key", "BITSKIP_PROTECT_METRICS": "true"}
    options = ("--config", str(settings), "--max-prompts", "2")
    with serving(None, log, *options, variables=variables) as served:
        assert served.url.startswith("https://127.0.0.1:")
        assert "2 API keys; probes need none" in served.log
        assert "second-key" not in served.log
        authority.configure_trust(context := httpx.create_ssl_context())
        with httpx.Client(base_url=served.url, verify=context, timeout=60) as client:
            assert client.get("/health").status_code == 200
            assert client.get("/metrics").status_code == 401
            body = {"prompt": "Once", "max_tokens": 2}
            assert client.post("/v1/completions", json=body).status_code == 401
            for key in ("first-key", "second-key"):
                client.headers["authorization"] = f"Bearer {key}"
                assert client.post("/v1/completions", json=body).json()["model"] == "story"
            refused = client.post("/v1/completions", json=body | {"n": 2})
            assert refused.json()["error"]["param"] == "n"
            three = client.post("/v1/completions", json=body | {"prompt": ["a"] * 3})
            assert three.json()["error"]["param"] == "prompt"


def test_a_unix_socket(packed_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "bitskip.sock"
    with serving(packed_model, tmp_path / "log", "--uds", str(path)) as served:
        assert served.url == f"unix:{path}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=60) as client:
            answer = client.post(
                "http://bitskip/v1/completions", json={"prompt": "Once", "max_tokens": 2}
            )
        assert answer.json()["usage"]["completion_tokens"] == 2
        served.terminate()
        assert served.process.wait(30) == 0
        assert not path.exists()


@pytest.fixture(scope="module")
def narrow(packed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProcess]:
    """One choice runs at a time, one may wait."""
    log = tmp_path_factory.mktemp("narrow") / "log"
    limits = ("--max-num-seqs", "1", "--max-queued-requests", "1")
    with serving(packed_model, log, *limits) as served:
        yield served


@contextmanager
def occupied(served: ServedProcess) -> Iterator[None]:
    """The one place is taken for the length of a `with`."""
    wait_until(lambda: served.http.get("/load").json()["server_load"] == 0)
    with served.http.stream("POST", "/v1/completions", json=ENDLESS) as stream:
        parts = stream.iter_raw()  # Dropped, it would close the connection.
        assert next(parts)
        yield


def num_waiting(served: ServedProcess) -> int:
    return served.http.get("/load").json()["num_requests_waiting"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_queue_of_a_real_engine(narrow: ServedProcess, stream: bool) -> None:
    body = {"prompt": "x", "max_tokens": 2, "stream": stream}
    before = narrow.metric("bitskip_request_rejected_total", reason="queue_full")
    with ThreadPoolExecutor(1) as pool:
        with occupied(narrow):
            waiting = pool.submit(narrow.http.post, "/v1/completions", json=body)
            wait_until(lambda: num_waiting(narrow) == 1)
            refused = narrow.http.post("/v1/completions", json=body)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert waiting.result(60).status_code == 200
    assert narrow.metric("bitskip_request_rejected_total", reason="queue_full") == before + 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_patience_of_a_real_server(packed_model: Path, tmp_path: Path, stream: bool) -> None:
    body = {"prompt": "x", "max_tokens": 2, "stream": stream}
    limits = ("--max-num-seqs", "1", "--queue-timeout", "0.1")
    with serving(packed_model, tmp_path / "log", *limits) as served:
        with occupied(served):
            late = served.http.post("/v1/completions", json=body)
        assert late.status_code == 408
        assert late.json()["error"]["code"] == "queue_timeout"
        wait_until(lambda: served.metric("bitskip_num_requests_running") == 0)
        assert served.metric("bitskip_num_requests_waiting") == 0
        assert served.http.post("/v1/completions", json=body).status_code == 200


def test_leaving_the_queue_of_a_real_engine(narrow: ServedProcess) -> None:
    with occupied(narrow):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{narrow.url}/v1/completions", json={"prompt": "x"}, timeout=0.3)
        wait_until(lambda: num_waiting(narrow) == 0)
        wait_until(lambda: narrow.metric("bitskip_num_requests_waiting") == 0)


def test_what_waits_runs_when_its_turn_comes(narrow: ServedProcess) -> None:
    with ThreadPoolExecutor(1) as pool:
        with occupied(narrow):
            waiting = pool.submit(narrow.complete, prompt="x", max_tokens=2, ignore_eos=True)
            wait_until(lambda: num_waiting(narrow) == 1)
        assert waiting.result(60)["usage"]["completion_tokens"] == 2


SLOW_START = """
import sys, time
import engine.checkpoint.pack_cache as pack_cache

def packed_copy(source, directory, progress):
    print("LOADING", file=sys.stderr, flush=True)
    while True:
        if sys.argv[-1] == "patient":
            progress(0, 0)
        time.sleep(0.01)

pack_cache.packed_copy = packed_copy
from server.cli import app
app(sys.argv[1:-1])
"""


@pytest.mark.parametrize("kind", ["patient", "stubborn"])
def test_sigterm_while_the_model_is_loaded(unpacked: Path, tmp_path: Path, kind: str) -> None:
    """It does not wait, whether or not what loads can be told to stop."""
    path, log = tmp_path / "s.sock", tmp_path / "log"
    arguments = ["serve", str(unpacked), "--uds", str(path), kind]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW_START, *arguments],
            cwd=ROOT,
            env=environment(),
            stdout=stderr,
            stderr=stderr,
        )
    try:
        wait_until(lambda: "LOADING" in log.read_text() or process.poll() is not None)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=60) as client:
            early = client.get("http://bitskip/health")
            assert early.status_code == 503 and early.json()["error"]["code"] == "loading"
            assert client.get("http://bitskip/metrics").status_code == 200
        begun_s = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
        assert time.monotonic() - begun_s < 30
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
    assert "shutting down: the model was still being loaded" in log.read_text()
    assert not path.exists()


def test_told_twice_under_load_it_leaves_without_tracebacks(
    packed_model: Path, tmp_path: Path
) -> None:
    with serving(packed_model, tmp_path / "serve.log") as served:
        with served.http.stream("POST", "/v1/completions", json={**ENDLESS, "n": 64}) as response:
            chunks = response.iter_bytes()
            next(chunks)
            served.terminate()
            wait_until(lambda: "shutting down" in served.log)
            served.terminate()
            assert served.process.wait(20) == 1
        assert "told twice to shut down" in served.log
        assert "Traceback" not in served.log and "Cancel 0" not in served.log, served.log


def test_clients_that_vanish_fill_no_log(packed_model: Path, tmp_path: Path) -> None:
    with serving(packed_model, tmp_path / "serve.log") as served:
        for _ in range(3):
            with served.http.stream(
                "POST", "/v1/completions", json={**ENDLESS, "n": 64}
            ) as response:
                chunks = response.iter_bytes()
                next(chunks)
        wait_until(lambda: not served.metric("bitskip_num_requests_running"))
        served.terminate()
        assert served.process.wait(20) == 0
        assert "WARNING" not in served.log, served.log


def test_a_taken_port_says_what_to_do(unpacked: Path, packed_model: Path, tmp_path: Path) -> None:
    with serving(packed_model, tmp_path / "log") as served:
        port = served.url.rpartition(":")[2]
        done = run_command("serve", unpacked, "--port", port)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()  # Nothing was packed or loaded for it.
    assert "already in use" in line and "--port" in line
