"""Which files a checkpoint directory is made of."""

from __future__ import annotations

import json
from pathlib import Path

from engine.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def weight_files(path: Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint directory: one, or the shards that its index names.

    Raises `CheckpointError`, naming the file at fault: no directory, no weights, an index that
    cannot be used, shards that are not there, or pickles, which are never opened.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such directory")
    if not path.is_dir():
        raise CheckpointError(f"{path}: a checkpoint is a directory, and this is a file")
    single, index = path / WEIGHTS_FILE, path / INDEX_FILE
    if single.exists():
        return (single,)
    if index.exists():
        return _shards(path, index)
    if pickles := sorted(file.name for pattern in _PICKLES for file in path.glob(pattern)):
        raise CheckpointError(
            f"{path}: {', '.join(pickles)}: pickle checkpoints are refused, since loading one can "
            f"run any code; convert it to {WEIGHTS_FILE}"
        )
    raise CheckpointError(f"{path}: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there")


def _shards(path: Path, index: Path) -> tuple[Path, ...]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index}: not valid JSON ({error})") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index}: has no weight_map")
    for name in places.values():
        # An index comes from strangers: it must not lead out of the checkpoint's directory.
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: {name!r} is not the name of a file beside it")
    names = sorted(set(places.values()))
    if missing := [name for name in names if not (path / name).is_file()]:
        raise CheckpointError(f"{index}: missing shards: {', '.join(missing)}")
    return tuple(path / name for name in names)
