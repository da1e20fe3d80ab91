"""Directories that appear only when they are complete, and never replace anything."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.checkpoint.files import WEIGHTS_FILE
from engine.errors import CheckpointError


@contextmanager
def staged_directory(out: Path) -> Iterator[Path]:
    """A directory to fill with a checkpoint; it becomes `out` when the block ends well.

    When the block raises, what was written is removed. An empty directory `out` is filled.
    Raises `CheckpointError`, before anything is made, for an `out` that is a file or holds
    something; `OSError` when writing fails or somebody else made `out` meanwhile.
    """
    _refuse_occupied(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # An existing directory may be a mount point, which can be filled but not replaced.
    into_existing = out.exists()
    staging = (out if into_existing else out.parent) / f".{out.name}.{uuid.uuid4().hex}.partial"
    try:
        staging.mkdir()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out)) from error
    try:
        yield staging
        if into_existing:
            _move_up(staging, out)
        else:
            staging.rename(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _refuse_occupied(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out}: is a file; a checkpoint is written as a directory")
    if out.exists() and (first := next(iter(sorted(out.iterdir())), None)) is not None:
        raise CheckpointError(
            f"{out}: is not empty (it holds {first.name}); nothing is overwritten"
        )


def _move_up(staging: Path, out: Path) -> None:
    """Move files out of a staging directory; the weights go last, and complete the checkpoint."""
    for file in sorted(staging.iterdir(), key=lambda file: file.name == WEIGHTS_FILE):
        file.rename(out / file.name)
    staging.rmdir()
