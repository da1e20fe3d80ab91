"""Models of the Hugging Face hub: only the files that a model here is made of are fetched."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from engine.checkpoint.packing import COPIED_FILES
from engine.errors import CheckpointError
from engine.tokenizer_files import SENTENCEPIECE_FILE

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    SENTENCEPIECE_FILE,
    *COPIED_FILES,
)
"""Patterns of what is fetched: never code, never pickles."""


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub model's id, org/name."""
    return _ID.fullmatch(name) is not None


def download_model(
    name: str,
    revision: str | None = None,
    *,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The directory of a hub model, fetched unless it is in huggingface_hub's cache already.

    The options are `snapshot_download`'s, and that library's environment variables apply
    (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE).
    Raises `CheckpointError` that says how to get the model by other means.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise CheckpointError(
            _message(name, "huggingface_hub, which could fetch it, is not installed")
        ) from error
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        directory = snapshot_download(
            name,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=list(FILES),
        )
        return Path(directory)
    except GatedRepoError as error:
        reason = "its owners ask you to accept their terms there, and for your HF_TOKEN here"
        raise CheckpointError(_message(name, reason)) from error
    except RepositoryNotFoundError as error:
        reason = "the hub has no such model, or only for those who send an HF_TOKEN"
        raise CheckpointError(_message(name, reason)) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(_message(name, f"the hub has no revision {revision!r}")) from error
    except LocalEntryNotFoundError as error:
        reason = "the hub cannot be reached, and no earlier download is in the cache"
        raise CheckpointError(_message(name, reason)) from error
    except (OSError, ValueError) as error:  # The library's HTTP errors are OSErrors.
        first_line = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(_message(name, first_line)) from error


def _message(name: str, reason: str) -> str:
    return (
        f"{name}: no such directory, and as a model of the Hugging Face hub it cannot be fetched: "
        f"{reason}. Where there is a network, `hf download {name} --local-dir DIR` fetches it; "
        "then give DIR instead"
    )
