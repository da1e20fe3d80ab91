"""`bitskip serve`: a model behind OpenAI-style endpoints."""

from __future__ import annotations

import logging
import threading
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from server.commands import clean_errors
from server.interpreter import settle_interpreter
from server.settings import ServerSettings, env_name, load_settings

if TYPE_CHECKING:
    from server.engine_api import Engine


def _help(field: str) -> dict[str, Any]:
    """Help text of a setting, with its default and its environment variable."""
    info = ServerSettings.model_fields[field]
    default = "" if info.default in (None, ()) else f"default: {_shown(info.default)}; "
    return {"help": f"{info.description} ({default}env: {env_name(field)})", "show_default": False}


def _shown(default: object) -> str:
    return {True: "on", False: "off"}[default] if isinstance(default, bool) else str(default)


def _option(field: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, metavar=metavar, **_help(field))


def serve(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", **_help("model"))] = None,
    host: Annotated[str | None, _option("host", "--host")] = None,
    port: Annotated[int | None, _option("port", "--port")] = None,
    served_model_name: Annotated[
        list[str] | None, _option("served_model_name", "--served-model-name", metavar="NAME")
    ] = None,
    backend: Annotated[str | None, _option("backend", "--backend")] = None,
    head_dtype: Annotated[str | None, _option("head_dtype", "--head-dtype")] = None,
    kv_dtype: Annotated[str | None, _option("kv_dtype", "--kv-dtype")] = None,
    chat_template: Annotated[
        str | None, _option("chat_template", "--chat-template", metavar="FILE")
    ] = None,
    max_model_len: Annotated[int | None, _option("max_model_len", "--max-model-len")] = None,
    max_num_seqs: Annotated[int | None, _option("max_num_seqs", "--max-num-seqs")] = None,
    kv_cache_tokens: Annotated[int | None, _option("kv_cache_tokens", "--kv-cache-tokens")] = None,
    block_size: Annotated[int | None, _option("block_size", "--block-size")] = None,
    prefill_budget_ms: Annotated[
        float | None, _option("prefill_budget_ms", "--prefill-budget-ms")
    ] = None,
    speculative: Annotated[
        bool | None, _option("speculative", "--speculative/--no-speculative")
    ] = None,
    draft_exit_layer: Annotated[
        int | None, _option("draft_exit_layer", "--draft-exit-layer")
    ] = None,
    num_speculations: Annotated[
        int | None, _option("num_speculations", "--num-speculations")
    ] = None,
    draft_vocab_size: Annotated[
        int | None, _option("draft_vocab_size", "--draft-vocab-size")
    ] = None,
    prefix_caching: Annotated[
        bool | None, _option("prefix_caching", "--prefix-caching/--no-prefix-caching")
    ] = None,
    threads: Annotated[int | None, _option("threads", "--threads")] = None,
    shutdown_timeout: Annotated[
        float | None, _option("shutdown_timeout", "--shutdown-timeout")
    ] = None,
    log_level: Annotated[str | None, _option("log_level", "--log-level")] = None,
    vllm_metrics: Annotated[
        bool | None, _option("vllm_metrics", "--vllm-metrics/--no-vllm-metrics")
    ] = None,
    ping_interval: Annotated[float | None, _option("ping_interval", "--ping-interval")] = None,
) -> None:
    """Serve MODEL over OpenAI-style endpoints; without MODEL, the bundled demo."""
    # The parameters above only declare the options: each is a setting of the same name.
    given = {name: value for name, value in context.params.items() if value not in (None, [], ())}
    with clean_errors():
        settings = load_settings(**given)
        _configure_logging(settings.log_level)
        code = _run(settings)
    raise typer.Exit(code)


UNBOUNDED_WIDTH = 500
"""Columns for tables that go to a file, where a wrapped path cannot be copied."""
PROBES = ("/health", "/ping", "/metrics")
"""What monitors ask every few seconds; an answer of 200 is not worth a line."""


def _configure_logging(level: str) -> None:
    console = Console(stderr=True)
    if console.is_terminal:
        handler, line = RichHandler(console=console, show_path=False), "%(message)s"
    else:
        # One line per message, for files and for tools that collect logs.
        handler, line = logging.StreamHandler(), "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=level.upper(), format=line, handlers=[handler], force=True)
    logging.getLogger("uvicorn.access").addFilter(_is_worth_a_line)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Leave answered probes out; uvicorn logs (client, method, path, HTTP version, status)."""
    if not isinstance(record.args, tuple) or len(record.args) != 5:
        return True
    _, _, path, _, status = record.args
    return path not in PROBES or status != 200


def _run(settings: ServerSettings) -> int:
    """Load, listen and serve; returns the exit code."""
    from prometheus_client import CollectorRegistry

    from server.lifecycle import Lifecycle, address_of, bind

    # Bound before the model is loaded: a port that is taken should not cost that wait.
    with bind(settings.host, settings.port) as bound:
        # FastAPI takes as long to import as a model to load, and loading is mostly native work.
        imports = threading.Thread(target=import_module, args=("server.app",))
        imports.start()
        from engine.build import build_engine, demo_model_path

        path = Path(settings.model) if settings.model else demo_model_path()
        engine = build_engine(
            path, settings.engine_config(), backend=settings.backend, threads=settings.threads
        )
        imports.join()
        from server.app import create_app

        app = create_app(engine, settings, CollectorRegistry())

        def announce() -> None:
            console = Console(stderr=True)
            if not console.is_terminal:
                console.width = UNBOUNDED_WIDTH
            settle_interpreter()
            console.print(summary(engine, path, address_of(bound)))

        return Lifecycle(engine, app, settings, bound).run(on_ready=announce)


def summary(engine: Engine, path: Path, address: str) -> Table:
    """What is being served, and where."""
    model, config = engine.model_config, engine.config
    exits = ", ".join(map(str, model.suggested_exits))
    drafts = f"drafts at layer {config.draft_exit_layer}" if config.speculative else "no drafts"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("model", str(path))
    table.add_row("variant", f"{model.variant}, {model.num_layers} layers of {model.hidden_size}")
    table.add_row("backend", engine.backend_name)
    table.add_row("exits", f"1 to {model.num_layers}, for instance {exits}; {drafts}")
    table.add_row("memory", f"{_resident_mib()} MiB, K/V for {config.kv_cache_tokens:,} tokens")
    table.add_row("address", address)
    return table


def _resident_mib() -> int:
    """This process's memory, in MiB; its peak where the present value is not to be had."""
    import os
    import resource

    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
