"""Models, health and version; settings and the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from engine.errors import CheckpointError, ConfigError
from server.cli import app
from server.commands import clean_errors
from server.commands import serve as serve_command
from server.commands.serve import summary
from server.errors import unavailable
from server.settings import ServerSettings, load_settings
from server.version import package_version
from support.fake_async_engine import FakeAsyncEngine

REPOSITORY = Path(__file__).parents[2]


def test_models(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["tiny", "tiny-alias"]
    first = listed["data"][0]
    assert first["object"] == "model"
    assert (first["max_model_len"], first["num_layers"]) == (512, 8)
    assert first["exit_layers"] == [2, 4, 6, 8]
    assert client.get("/v1/models/tiny").json() == first


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_health(client: httpx.Client, path: str) -> None:
    assert client.get(path).json() == {"status": "ready"}
    assert client.head(path).status_code == 200


def test_each_status_has_its_own_code() -> None:
    codes = [unavailable(status).code for status in ("loading", "draining", "dead")]
    assert codes == ["loading", "shutting_down", "engine_dead"]


def test_version(client: httpx.Client) -> None:
    assert client.get("/version").json() == {"version": package_version()}


def test_settings_come_from_flags_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITSKIP_PORT", "9000")
    monkeypatch.setenv("BITSKIP_HOST", "0.0.0.0")
    monkeypatch.setenv("BITSKIP_SERVED_MODEL_NAME", "a, b")
    monkeypatch.setenv("BITSKIP_SPECULATIVE", "false")
    monkeypatch.setenv("BITSKIP_THREADS", "")
    settings = load_settings(port=9001, host=None)
    assert (settings.port, settings.host) == (9001, "0.0.0.0")
    assert settings.served_model_name == ("a", "b")
    assert settings.threads is None
    assert settings.engine_config().speculative is False


def test_settings_reach_the_engine() -> None:
    config = load_settings(
        max_model_len=100,
        max_num_seqs=3,
        kv_cache_tokens=4000,
        block_size=8,
        prefill_budget_ms=50,
        speculative=False,
        draft_exit_layer=2,
        num_speculations=5,
        draft_vocab_size=64,
        prefix_caching=False,
    ).engine_config()
    assert (config.max_model_len, config.max_num_seqs, config.kv_cache_tokens) == (100, 3, 4000)
    assert (config.block_size, config.prefill_budget_s) == (8, 0.05)
    assert (config.speculative, config.draft_exit_layer, config.num_speculations) == (False, 2, 5)
    assert (config.draft_vocab_size, config.enable_prefix_caching) == (64, False)


def test_default_name_is_the_directory(tmp_path: Path) -> None:
    assert load_settings(model=f"{tmp_path}/some-model/").default_model_name == "some-model"
    assert load_settings().default_model_name == "bitskip-demo"


@pytest.mark.parametrize(
    ("given", "name"),
    [({"port": 70000}, "port"), ({"log_level": "loud"}, "log_level"), ({"threads": 0}, "threads")],
)
def test_bad_settings_name_the_option(given: dict[str, object], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: "):
        load_settings(**given)


def test_more_than_one_worker_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "1")
    load_settings()
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    with pytest.raises(ConfigError, match=r"WEB_CONCURRENCY.*its own engine"):
        load_settings()


def test_every_setting_is_a_documented_option() -> None:
    result = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "300"})
    assert result.exit_code == 0
    for name, field in ServerSettings.model_fields.items():
        if name == "web_concurrency":
            continue
        assert field.description
        assert f"BITSKIP_{name.upper()}" in result.output
        if name != "model":
            assert f"--{name.replace('_', '-')}" in result.output


def test_flags_and_environment_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServerSettings] = []

    def run(settings: ServerSettings) -> int:
        seen.append(settings)
        return 3

    monkeypatch.setattr(serve_command, "_run", run)
    monkeypatch.setattr(serve_command, "_configure_logging", lambda level: None)
    environment = {"BITSKIP_SERVED_MODEL_NAME": "a,b", "BITSKIP_SPECULATIVE": "0"}
    flags = ["--port", "1234", "--no-vllm-metrics", "--no-prefix-caching"]
    result = CliRunner().invoke(app, ["serve", "some/model", *flags], env=environment)
    assert result.exit_code == 3
    assert CliRunner().invoke(app, ["serve", "--served-model-name", "c"]).exit_code == 3
    first, second = seen
    assert (first.model, first.port, first.served_model_name) == ("some/model", 1234, ("a", "b"))
    assert (first.speculative, first.vllm_metrics, first.prefix_caching) == (False, False, False)
    assert (second.model, second.port, second.served_model_name) == (None, 8000, ("c",))
    assert second.speculative and second.vllm_metrics and second.prefix_caching


def test_errors_at_the_start_are_one_line() -> None:
    result = CliRunner().invoke(app, ["serve", "--port", "70000"])
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines() == [
        "error: port: Input should be less than or equal to 65535"
    ]


def test_clean_errors_keep_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BaseException) as caught, clean_errors():  # typer's Exit
        raise CheckpointError("bad [tensor] name")
    assert getattr(caught.value, "exit_code", None) == 1
    assert capsys.readouterr().err == "error: bad [tensor] name\n"


def test_summary_tells_what_is_served() -> None:
    table = summary(FakeAsyncEngine(), Path("/models/tiny"), "http://127.0.0.1:8000")
    cells = [str(cell) for column in table.columns for cell in column.cells]
    for wanted in ("/models/tiny", "fake", "http://127.0.0.1:8000"):
        assert wanted in cells
    assert any("2, 4, 6, 8" in cell for cell in cells)


def test_the_command_line_is_light() -> None:
    program = """
import sys
from server.cli import app
for arguments in (["--help"], ["--version"], ["serve", "--help"], ["pack", "--help"]):
    try:
        app(arguments)
    except SystemExit as end:
        assert not end.code
heavy = {"torch", "transformers", "fastapi", "uvicorn"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        timeout=60,
    )
