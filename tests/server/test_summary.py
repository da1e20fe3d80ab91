"""What a server says of itself when it is ready."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from engine.config import EngineConfig
from server.settings import ServerSettings
from server.summary import summary
from support.fake_async_engine import FakeAsyncEngine


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with weights of 3 MiB, by their name and size."""
    path = tmp_path / "model[1]"
    path.mkdir()
    (path / "model.safetensors").write_bytes(bytes(3 << 20))
    return path


def lines(
    loaded_from: Path, engine: FakeAsyncEngine | None = None, **options: Any
) -> dict[str, str]:
    """The table as a log shows it: label → text."""
    settings = ServerSettings(**{"model": str(loaded_from), **options})
    table = summary(engine or FakeAsyncEngine(), settings, loaded_from, "http://127.0.0.1:8000")
    console = Console(width=500)
    with console.capture() as capture:
        console.print(table)
    pairs = (line.split(maxsplit=1) for line in capture.get().splitlines())
    return {label: text.strip() for label, text in pairs}


def test_everything_that_was_decided_is_told(model: Path) -> None:
    told = lines(model)
    assert list(told) == [
        *("model", "variant", "backend", "numbers", "exits"),
        *("drafts", "memory", "limits", "access", "address"),
    ]
    assert told["model"] == f"model[1] ({model})"
    assert told["variant"].startswith("v1, 8 layers of 64")
    assert told["backend"] == "fake, by heart (auto: the fastest that runs here)"
    assert told["numbers"] == "linears ternary, head int8, K/V fp16"
    assert told["exits"] == "1 to 8, for instance 2, 4, 6, 8"
    assert told["address"] == "http://127.0.0.1:8000"
    assert "1,024 may wait" in told["limits"] and "256 choices at once" in told["limits"]


def test_why_this_backend(model: Path) -> None:
    engine = FakeAsyncEngine()
    assert "as asked for" in lines(model, backend="fake")["backend"]
    engine.backend_name = "reference"
    assert "not compiled" in lines(model, engine)["backend"]
    assert "not compiled" not in lines(model, engine, backend="reference")["backend"]


def test_why_this_draft_exit(model: Path) -> None:
    assert lines(model)["drafts"].startswith("at layer 2 (a quarter of the layers), as many as pay")
    engine = FakeAsyncEngine()
    engine.model_config = replace(engine.model_config, draft_exit_layer=3)
    engine.config = EngineConfig(num_speculations=4).resolve(engine.model_config)
    told = lines(model, engine)["drafts"]
    assert told == "at layer 3 (the checkpoint's choice), 4 per round"
    assert "(as asked for)" in lines(model, engine, draft_exit_layer=3)["drafts"]
    engine.config = EngineConfig(speculative=False).resolve(engine.model_config)
    assert lines(model, engine)["drafts"] == "none unless a request asks for them"


@pytest.mark.parametrize(("dtype", "head_bytes"), [("fp32", 64), ("fp16", 32), ("int8", 20)])
def test_memory_is_what_it_will_be(model: Path, dtype: str, head_bytes: int) -> None:
    """16,384 positions of 8 layers: keys and values of 2 heads of 16, int8 with a scale each."""
    engine = FakeAsyncEngine()
    engine.kv_dtype = dtype
    told = lines(model, engine)["memory"]
    num_bytes = 16_384 * 8 * 2 * 2 * head_bytes
    assert f"K/V up to {num_bytes / 2**20:.0f} MiB for 16,384 tokens" in told
    assert "weights 3 MiB" in told and "resident now" in told


def test_who_is_let_in(model: Path) -> None:
    assert lines(model)["access"].startswith("no API key: whoever reaches the address")
    told = lines(model, api_key=("a", "b"), allowed_origins=("https://p.example",))["access"]
    assert told == "2 API keys; probes and metrics need none; web pages: https://p.example"
    told = lines(model, api_key=("a",), protect_metrics=True)["access"]
    assert told == "1 API key; probes need none; web pages: none but our own"


def test_a_packed_copy_is_named(model: Path) -> None:
    told = lines(model, model="org/name", served_model_name=("a", "b"), queue_timeout=2.5)
    assert told["model"] == f"a = b (org/name, loaded from {model})"
    assert told["limits"].endswith("for 2.5 s at most")
