"""From what the user calls the model to a directory that loads fast."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from engine.build import demo_model_path
from engine.checkpoint.hub import download_model, is_hub_id
from engine.checkpoint.pack_cache import packed_copy
from engine.config import ModelConfig
from server.loading import CheckCancelled
from server.settings import ServerSettings

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 5.0
"""Between lines about a long packing."""


def find_model(settings: ServerSettings, check_cancelled: CheckCancelled) -> Path:
    """The directory to load: fetched from the hub if need be, and packed unless told not to.

    Raises `CheckpointError`, `TokenizerError` or `ConfigError` for a model that cannot be had or
    used, and what `check_cancelled` raises. A cache that cannot be written is only warned of.
    """
    if settings.model is None:
        return demo_model_path()
    path = Path(settings.model)
    if is_hub_id(settings.model) and not path.exists():
        path = download_model(settings.model, settings.revision)
    # An impossible configuration should not wait for a model to be packed.
    settings.engine_config().resolve(ModelConfig.from_directory(path))
    if not settings.pack_cache:
        return path
    try:
        return packed_copy(path, cache_directory(settings), _Progress(path, check_cancelled))
    except OSError as error:
        logger.warning(
            "%s cannot be packed into %s (%s): it is loaded as it is; --cache-dir chooses another "
            "directory, --no-pack-cache avoids this",
            *(path, cache_directory(settings), error.strerror or error),
        )
        return path


def cache_directory(settings: ServerSettings) -> Path:
    """Where packed models are kept: as the option says, or by the XDG rules."""
    if settings.cache_dir is not None:
        return Path(settings.cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The rules say that a relative path is to be ignored.
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "bitskip"


class _Progress:
    """Logs how far packing is, now and then, and lets it be cancelled."""

    def __init__(self, path: Path, check_cancelled: CheckCancelled) -> None:
        self._path = path
        self._check_cancelled = check_cancelled
        self._next_s = 0.0

    def __call__(self, num_done: int, num_total: int) -> None:
        self._check_cancelled()
        if not num_total:
            return  # Another server packs, and this one waits.
        now_s = time.monotonic()
        if now_s >= self._next_s or num_done == num_total:
            self._next_s = now_s + PROGRESS_INTERVAL_S
            share, total = num_done / max(1, num_total), num_total / 1e6
            logger.info("packing %s: %.0f%% of %.0f MB", self._path, 100 * share, total)
