"""The one table that a server prints when it is ready: what it serves, how, and to whom."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from rich.table import Table

from engine.backends.memory import kv_bytes
from engine.checkpoint.files import weight_files
from engine.config import ModelConfig
from server.auth import key_hashes
from server.engine_api import Engine
from server.settings import ServerSettings


def summary(engine: Engine, settings: ServerSettings, loaded_from: Path, address: str) -> Table:
    """What is being served, and where; `loaded_from` is the directory that was opened."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for label, text in (
        ("model", _model(settings, loaded_from)),
        ("variant", _variant(engine.model_config)),
        ("backend", _backend(engine, settings)),
        ("numbers", _numbers(engine)),
        ("exits", _exits(engine.model_config)),
        ("drafts", _drafts(engine, settings)),
        ("memory", _memory(engine, loaded_from)),
        ("limits", _limits(engine, settings)),
        ("access", _access(settings)),
        ("address", address),
    ):
        # Paths and names may hold what rich takes for markup.
        table.add_row(label, text.replace("[", r"\["))
    return table


def _model(settings: ServerSettings, loaded_from: Path) -> str:
    source = settings.model or str(loaded_from)
    packed = "" if str(loaded_from) == source else f", loaded from {loaded_from}"
    return f"{' = '.join(settings.model_names)} ({source}{packed})"


def _variant(model: ModelConfig) -> str:
    return (
        f"{model.variant}, {model.num_layers} layers of {model.hidden_size}, "
        f"vocabulary of {model.vocab_size:,}, trained context {model.max_position_embeddings:,}"
    )


def _backend(engine: Engine, settings: ServerSettings) -> str:
    if settings.backend != "auto":
        why = "as asked for"
    elif engine.backend_name == "reference":
        why = "auto: the native kernels are not compiled; many times slower"
    else:
        why = "auto: the fastest that runs here"
    return f"{engine.backend_name}, {engine.backend_description} ({why})"


def _numbers(engine: Engine) -> str:
    return f"linears {engine.linear_dtype}, head {engine.head_dtype}, K/V {engine.kv_dtype}"


def _exits(model: ModelConfig) -> str:
    return f"1 to {model.num_layers}, for instance {', '.join(map(str, model.suggested_exits))}"


def _drafts(engine: Engine, settings: ServerSettings) -> str:
    config = engine.config
    if not config.speculative:
        return "none unless a request asks for them"
    if settings.draft_exit_layer is not None:
        why = "as asked for"
    elif engine.model_config.draft_exit_layer is not None:
        why = "the checkpoint's choice"
    else:
        why = "a quarter of the layers"
    how_many = "as many as pay, decided round by round; n-grams first"
    if config.num_speculations is not None:
        how_many = f"{config.num_speculations} per round"
    return f"at layer {config.draft_exit_layer} ({why}), {how_many}"


def _memory(engine: Engine, loaded_from: Path) -> str:
    num_bytes = sum(file.stat().st_size for file in weight_files(loaded_from))
    config = engine.config
    num_tokens = config.kv_cache_tokens or 0
    kv = kv_bytes(engine.model_config, engine.kv_dtype, config.num_blocks * config.block_size)
    return (
        f"weights {num_bytes / 2**20:.0f} MiB on disk, K/V up to {kv / 2**20:.0f} "
        f"MiB for {num_tokens:,} tokens; resident now {resident_mib()} MiB"
    )


def _limits(engine: Engine, settings: ServerSettings) -> str:
    wait = "" if settings.queue_timeout is None else f" for {settings.queue_timeout:g} s at most"
    return (
        f"{engine.config.max_model_len:,} tokens per choice, {engine.config.max_num_seqs:,} "
        f"choices at once, {settings.max_queued_requests:,} may wait{wait}"
    )


def _access(settings: ServerSettings) -> str:
    num_keys = len(key_hashes(settings))
    who = "no API key: whoever reaches the address is answered"
    if num_keys:
        others = "probes" if settings.protect_metrics else "probes and metrics"
        who = f"{num_keys} API key{'s'[: num_keys != 1]}; {others} need none"
    origins = ", ".join(settings.allowed_origins) or "none but our own"
    return f"{who}; web pages: {origins}"


def resident_mib() -> int:
    """This process's memory, in MiB; its peak where the present value is not to be had."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
