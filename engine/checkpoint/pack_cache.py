"""Packed copies of checkpoints, made once and found again.

    DIRECTORY/packed/NAME-PATH_DIGEST/FILES_DIGEST/     a packed checkpoint
    DIRECTORY/packed/NAME-PATH_DIGEST/lock              held while one is made

A copy is known by the source's path and by the names, sizes and times of its files: change one,
and the next start packs anew and removes the copy that nobody can find any more.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.checkpoint.files import weight_files
from engine.checkpoint.inventory import PACKED_VERSION
from engine.checkpoint.loader import load_checkpoint
from engine.checkpoint.packing import COPIED_FILES, pack_checkpoint
from engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

LOCK_POLL_S = 0.2

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all) now and then; may raise, to stop."""


def packed_copy(source: Path, directory: Path, progress: Progress) -> Path:
    """A packed checkpoint of the same model: `source` itself, a copy made earlier, or a new one.

    A dense model, which cannot be packed, is its own copy too.
    Servers that start at once make one copy: the others wait for it. A copy appears only when
    it is complete. Raises `CheckpointError` or `TokenizerError` for a model that cannot be used,
    `OSError` when the cache cannot be written, and what `progress` raises.
    """
    with load_checkpoint(source) as checkpoint:
        if checkpoint.is_packed or checkpoint.config.is_dense:
            return source
        vocab_size = checkpoint.config.vocab_size
    resolved = source.resolve()
    home = directory / "packed" / f"{resolved.name}-{_digest(str(resolved))}"
    copy = home / _digest(*_facts(resolved))
    if copy.exists():
        return copy
    # Errors in these files should name the source's, and cost no packing.
    Tokenizer.from_directory(source).check_vocab(vocab_size)
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / "lock", progress):
        if not copy.exists():
            _clear(home)
            logger.info("packing %s into %s, once", source, copy)
            started_s = time.monotonic()
            summary = pack_checkpoint(source, copy, progress)
            logger.info(
                "packed in %.1f s: %.1f MB became %.1f MB",
                *(time.monotonic() - started_s, summary.source_bytes / 1e6),
                summary.packed_bytes / 1e6,
            )
    return copy


def _facts(source: Path) -> Iterator[str]:
    """What tells one state of a checkpoint from another, without reading its weights."""
    yield f"packed version {PACKED_VERSION}"
    names = {file.name for file in weight_files(source)} | {"config.json", *COPIED_FILES}
    for name in sorted(names):
        if (source / name).is_file():
            found = (source / name).stat()
            yield f"{name} {found.st_size} {found.st_mtime_ns}"


def _digest(*facts: str) -> str:
    return hashlib.sha256("\n".join(facts).encode(errors="surrogateescape")).hexdigest()[:16]


def _clear(home: Path) -> None:
    """Remove copies of earlier states, and what packers that were killed have left.

    A server that has an old copy open keeps it until it ends: the files are mapped.
    """
    for entry in home.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)


@contextmanager
def _locked(file: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock; `progress` is asked while another holds it, so that waiting can end."""
    with file.open("a") as lock:
        is_waiting = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not is_waiting:
                    logger.info("another server is packing this model: waiting for it")
                is_waiting = True
            progress(0, 0)
            time.sleep(LOCK_POLL_S)
        yield
