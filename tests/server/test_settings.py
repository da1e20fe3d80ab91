"""Settings: flags, environment, file; and the command line made of them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from engine.errors import CheckpointError, ConfigError
from server.cli import app
from server.commands import clean_errors
from server.commands import serve as serve_command
from server.commands.options import flag_of, section_of
from server.settings import (
    ServerSettings,
    key_digest,
    load_settings,
    option_names,
    unknown_variables,
)
from support.options_table import README, replaced

REPOSITORY = Path(__file__).parents[2]


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


VALUES: dict[str, tuple[Any, Any]] = {
    "served_model_name": ("a,b", ("a", "b")),
    "api_key": ("x,y", (key_digest(b"x"), key_digest(b"y"))),
    "allowed_origins": ("https://a.example", ("https://a.example",)),
    "backend": ("reference", "reference"),
    "head_dtype": ("bf16", "bf16"),
    "dense_dtype": ("int8", "int8"),
    "kv_dtype": ("int8", "int8"),
    "uds_permissions": ("600", "600"),
    "log_level": ("DEBUG", "debug"),
    "chat_template": (str(README), README),
    "ssl_keyfile_password": ("secret", SecretStr("secret")),
}
"""What to set a setting to, and what it then is; the others follow from their type."""


def sample(name: str) -> tuple[Any, Any]:
    """(as text, as value) of a value that is not the default."""
    if name in VALUES:
        return VALUES[name]
    info = ServerSettings.model_fields[name]
    kinds = [kind for kind in (bool, int, float) if str(kind.__name__) in str(info.annotation)]
    if bool in kinds:
        return str(not info.default).lower(), not info.default
    if int in kinds or float in kinds:
        return "7", 7
    return "some/text", "some/text"


NAMES = [name for name in option_names() if name != "config"]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BITSKIP_")]:
        monkeypatch.delenv(name)


def served_with(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> ServerSettings:
    """The settings that `bitskip serve` comes to with these arguments."""
    seen: list[ServerSettings] = []
    monkeypatch.setattr(serve_command, "listening", lambda settings: nullcontext())
    monkeypatch.setattr(
        serve_command, "_run", lambda settings, _: (seen.append(settings) or 0, True)
    )
    monkeypatch.setattr(serve_command, "_configure_logging", lambda level: None)
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 0, result.output
    return seen[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_a_flag_a_variable_and_a_key(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text, value = sample(name)
    assert getattr(ServerSettings(), name) != value
    flag = f"--{name.replace('_', '-')}"
    if name == "model":
        arguments = [text]
    elif isinstance(value, bool):
        arguments = [flag if value else flag.replace("--", "--no-", 1)]
    else:
        arguments = [flag, text]
    assert getattr(served_with(monkeypatch, *arguments), name) == value
    file = tmp_path / "settings.yaml"
    quoted = text if isinstance(value, (bool, int)) else f'"{text}"'
    for key in {name, name.replace("_", "-")}:
        file.write_text(f"{key}: {quoted}\n")
        assert getattr(served_with(monkeypatch, "--config", str(file)), name) == value
    monkeypatch.setenv(f"BITSKIP_{name.upper()}", text)
    assert getattr(served_with(monkeypatch), name) == value


def test_flags_come_before_the_environment_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("port: 1\nmax_n: 2\nmax-prompts: 3\nmax_stop_length:\n")
    monkeypatch.setenv("BITSKIP_CONFIG", str(file))
    monkeypatch.setenv("BITSKIP_PORT", "4")
    monkeypatch.setenv("BITSKIP_MAX_N", "5")
    monkeypatch.setenv("BITSKIP_MAX_PROMPTS", "")
    settings = served_with(monkeypatch, "--port", "6")
    assert (settings.port, settings.max_n, settings.max_prompts) == (6, 5, 3)
    assert settings.max_stop_length == 256
    other = tmp_path / "other.yaml"
    other.write_text("max_prompts: 8\nserved_model_name: [a, b]\napi_key: []\n")
    settings = served_with(monkeypatch, "--config", str(other))
    assert (settings.port, settings.max_n, settings.max_prompts) == (4, 5, 8)
    assert (settings.served_model_name, settings.api_key) == (("a", "b"), ())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "prot: 1\nmax_n: 2\nnonsense: 3",
            ["unknown options: prot (did you mean port?)", "nonsense"],
        ),
        ("config: other.yaml", ["unknown option: config"]),
        ("port: 1\nmax-n: 2\nmax_n: 3", ["max_n is set twice"]),
        ("port: 70000", ["port: Input should be less than or equal to 65535"]),
        ("api_key: 12345", ["api_key", "quotes"]),
        ("uds_permissions: 0660", ["uds_permissions", "string"]),
        ("- port", ["must hold options"]),
        ("port", ["must hold options"]),
        ("port: [1", ["not valid YAML", "line 1"]),
        ("port: !!python/object/apply:os.getcwd []", ["not valid YAML"]),
        (None, ["cannot be read", "No such file"]),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: str | None, words: list[str]) -> None:
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_settings(config=str(file))
    assert str(caught.value).startswith(f"{file}: ")
    for word in words:
        assert word in str(caught.value)


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("# nothing yet\n")
    assert load_settings(config=str(file)).port == 8000


def test_errors_say_where_a_value_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITSKIP_MAX_N", "many")
    with pytest.raises(ConfigError, match=r"^BITSKIP_MAX_N: max_n: "):
        load_settings()
    assert load_settings(max_n=3).max_n == 3


def test_variables_that_kubernetes_makes_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITSKIP_PORT", "tcp://10.0.0.7:8000")
    with pytest.raises(ConfigError, match=r"BITSKIP_PORT.*enableServiceLinks"):
        load_settings()


def test_variables_that_are_no_option_are_named() -> None:
    names = ("BITSKIP_PROT", "BITSKIP_PORT", "BITSKIP_CONFIG", "OTHER")
    assert unknown_variables(dict.fromkeys(names, "x")) == ["BITSKIP_PROT"]


def test_every_setting_is_explained_in_help_and_readme() -> None:
    result = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "300"})
    assert result.exit_code == 0
    readme = README.read_text(encoding="utf-8")
    for name in option_names():
        assert ServerSettings.model_fields[name].description
        for text in (f"BITSKIP_{name.upper()}", flag_of(name).partition("/")[0]):
            assert text in result.output and text in readme
    headings = re.findall(r"^(\w.*):$", result.output, flags=re.MULTILINE)
    assert headings == [*dict.fromkeys(map(section_of, option_names())), "Other"]


def test_the_table_in_the_readme_is_up_to_date() -> None:
    readme = README.read_text(encoding="utf-8")
    assert replaced(readme) == readme, "run: PYTHONPATH=tests python -m support.options_table"


def test_flags_and_environment_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServerSettings] = []

    def run(settings: ServerSettings, bound: socket.socket) -> tuple[int, bool]:
        seen.append(settings)
        return 3, True

    monkeypatch.setattr(serve_command, "_run", run)
    monkeypatch.setattr(serve_command, "_configure_logging", lambda level: None)
    environment = {"BITSKIP_SERVED_MODEL_NAME": "a,b", "BITSKIP_SPECULATIVE": "0"}
    flags = ["--port", "0", "--no-vllm-metrics", "--no-prefix-caching"]
    result = CliRunner().invoke(app, ["serve", "some/model", *flags], env=environment)
    assert result.exit_code == 3
    assert CliRunner().invoke(app, ["serve", "--served-model-name", "c"]).exit_code == 3
    first, second = seen
    assert (first.model, first.port, first.served_model_name) == ("some/model", 0, ("a", "b"))
    assert (first.speculative, first.vllm_metrics, first.prefix_caching) == (False, False, False)
    assert (second.model, second.port, second.served_model_name) == (None, 8000, ("c",))
    assert second.speculative and second.vllm_metrics and second.prefix_caching


def test_errors_at_the_start_are_one_line() -> None:
    result = CliRunner().invoke(app, ["serve", "--port", "70000"])
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines() == [
        "error: port: Input should be less than or equal to 65535"
    ]


def test_a_template_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.jinja", tmp_path):
        result = CliRunner().invoke(app, ["serve", "--chat-template", str(path)])
        assert result.exit_code == 1
        assert result.stderr == f"error: chat_template: {path} is no file\n"


def test_clean_errors_keep_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BaseException) as caught, clean_errors():  # typer's Exit
        raise CheckpointError("bad [tensor] name")
    assert getattr(caught.value, "exit_code", None) == 1
    assert capsys.readouterr().err == "error: bad [tensor] name\n"


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
