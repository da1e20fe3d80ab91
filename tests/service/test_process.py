"""The life of a served process: clients that leave, SIGTERM, and what it says meanwhile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.live_server import wait_until
from support.served_process import ENDLESS, ROOT, ServedProcess, environment, serving
from support.sse import parse_events


@pytest.fixture
def own(packed_model: Path, tmp_path: Path) -> Iterator[ServedProcess]:
    """A server of the test's own, to be ended."""
    with serving(packed_model, tmp_path / "own.log", "--served-model-name", "own") as running:
        yield running


def is_idle(served: ServedProcess) -> bool:
    metrics = served.metrics()
    return (
        metrics[("bitskip_num_requests_running",)] == 0
        and metrics[("bitskip_kv_cache_usage_ratio",)] == 0
    )


@pytest.mark.parametrize("num_choices", [1, 3])
def test_leaving_a_stream_frees_its_blocks(served: ServedProcess, num_choices: int) -> None:
    wait_until(lambda: is_idle(served))
    aborted = served.metric("bitskip_request_success_total", finished_reason="abort")
    with served.http.stream("POST", "/v1/completions", json=ENDLESS | {"n": num_choices}) as stream:
        parts = stream.iter_raw()
        assert next(parts)
        wait_until(lambda: served.metric("bitskip_num_requests_running") == num_choices)
        assert served.metric("bitskip_kv_cache_usage_ratio") > 0
    wait_until(lambda: is_idle(served))
    ended = served.metric("bitskip_request_success_total", finished_reason="abort") - aborted
    assert ended == num_choices
    assert served.complete(prompt="Once", max_tokens=2)["usage"]["completion_tokens"] <= 2


def test_leaving_a_whole_answer_frees_its_blocks(served: ServedProcess) -> None:
    wait_until(lambda: is_idle(served))
    before = served.metric("bitskip_request_success_total", finished_reason="abort")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/completions", json=ENDLESS | {"stream": False}, timeout=0.3)
    wait_until(lambda: is_idle(served))
    assert served.metric("bitskip_request_success_total", finished_reason="abort") == before + 1


def test_sigterm_lets_a_stream_finish_and_refuses_others(own: ServedProcess) -> None:
    with (
        httpx.Client(base_url=own.url, timeout=60) as other,
        own.http.stream("POST", "/v1/completions", json=ENDLESS | {"max_tokens": 300}) as stream,
    ):
        parts = stream.iter_raw()
        received = next(parts)
        own.terminate()
        wait_until(lambda: other.get("/health").status_code == 503)
        refused = other.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert int(refused.headers["retry-after"]) > 0
        assert other.get("/metrics").status_code == 200
        received += b"".join(parts)
    events = parse_events(received)
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert len(events) > 100
    assert own.process.wait(30) == 0
    assert "Traceback" not in own.log


def test_what_is_printed_is_plain_and_useful(packed_model: Path, own: ServedProcess) -> None:
    own.complete(prompt="x", max_tokens=1, misspelt=True)
    own.metrics()
    assert own.http.get("/health").status_code == 200
    own.terminate()
    assert own.process.wait(30) == 0
    lines = [line.rstrip() for line in own.log.splitlines()]
    for label, value in {
        "model": str(packed_model),
        "variant": "v1, 6 layers of 48",
        "backend": "cpu",
        "exits": "1 to 6",
        "memory": "MiB",
        "address": own.url,
    }.items():
        (line,) = [line for line in lines if line.split()[:1] == [label]]
        assert value in line
    (warning,) = [line for line in lines if "WARNING" in line]
    assert "misspelt" in warning and "ignored" in warning
    assert not [line for line in lines if "/health" in line or "/metrics" in line]
    (access,) = [line for line in lines if "POST /v1/completions" in line]
    assert "200" in access and "INFO" in access
    assert any("shutting down" in line for line in lines)


CONTROL_PLANE = """
import asyncio
import sys
from concurrent.futures import Future
import httpx
from prometheus_client import CollectorRegistry
import engine
import engine.async_engine
import engine.build
from engine.async_engine import AsyncEngine
from engine.build import LoadedModel, join_parts
from engine.config import EngineConfig
from engine.tokenizer import Tokenizer
from pathlib import Path
from server.app import create_app
from server.lifecycle import Lifecycle
from server.listener import address_of, bind
from server.settings import ServerSettings
from support.fake_backend import FakeBackend, fake_config
from support.tokenizers import write_tokenizer

tokenizer = Tokenizer.from_directory(write_tokenizer(Path(sys.argv[1]), 300))
config = fake_config(vocab_size=300, eos_token_ids=(299,))
parts = join_parts(LoadedModel(config, tokenizer, FakeBackend(config)), EngineConfig())
served = AsyncEngine(parts.core, parts.intake, parts.backend)
bound = bind("127.0.0.1", 0)
app = create_app(ServerSettings(), CollectorRegistry())
loading = Future()
loading.set_result(served)
lifecycle = Lifecycle(loading, app, ServerSettings(), bound)

async def main():
    started = asyncio.Event()
    serving = asyncio.create_task(lifecycle.serve(lambda _: started.set()))
    await started.wait()
    async with httpx.AsyncClient(base_url=address_of(bound)) as http:
        body = {"prompt": "x", "max_tokens": 20, "ignore_eos": True}
        response = await http.post("/v1/completions", json=body)
        print(response.json()["usage"]["completion_tokens"])
    lifecycle.request_shutdown()
    await serving

asyncio.run(main())
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""


def test_serving_without_a_tensor_imports_no_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONTROL_PLANE, str(tmp_path)],
        env=environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["20", "[]"]
