"""What a checkpoint holds, checked against what its configuration calls for.

Only headers are looked at. Everything that does not fit is reported in one error.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from engine.checkpoint.names import LM_HEAD, canonical_name, expected_shapes, is_linear
from engine.checkpoint.tensor_file import FLOAT_TAGS, TensorEntry, TensorFile
from engine.checkpoint.ternary import LAYOUT, packed_shape
from engine.config import ModelConfig
from engine.errors import CheckpointError

PACKED_FORMAT = "bitskip-packed"
PACKED_VERSION = "1"
SCALE_SUFFIX = "_scale"
"""A linear's scale is stored under the linear's name and this."""

_FLOATS = tuple(FLOAT_TAGS.values())

_logger = logging.getLogger(__name__)


class StoredTensor(NamedTuple):
    """Where a tensor lies."""

    file: TensorFile
    entry: TensorEntry


@dataclass(frozen=True, slots=True)
class Inventory:
    """The tensors of a checkpoint that fits its configuration."""

    config: ModelConfig
    """With `tie_word_embeddings` as the files have it."""
    tensors: dict[str, StoredTensor]
    """By canonical name."""
    scales: dict[str, StoredTensor]
    """Stored scales, by the canonical name of their linear; optional beside float weights."""
    ignored: tuple[StoredTensor, ...] = ()
    """What `canonical_name` folds to nothing: rotary buffers, scales beside float weights."""


class _Expectation(NamedTuple):
    tags: tuple[str, ...]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{' or '.join(self.tags)} {list(self.shape)}"


def packed_metadata() -> dict[str, str]:
    """The header metadata by which packed files are known."""
    return {"format": PACKED_FORMAT, "version": PACKED_VERSION, "layout": LAYOUT}


def is_packed_file(file: TensorFile) -> bool:
    """Whether a file is in our packed format; `CheckpointError` if in one we do not know."""
    if file.metadata.get("format") != PACKED_FORMAT:
        return False
    ours = packed_metadata()
    for key in ("version", "layout"):
        if file.metadata.get(key) != ours[key]:
            raise CheckpointError(
                f"{file.path}: packed format {key} {file.metadata.get(key)!r} is not known: only "
                f"{ours[key]!r} can be read"
            )
    return True


def latent_inventory(path: Path, config: ModelConfig, files: Sequence[TensorFile]) -> Inventory:
    """Match the files of a Hugging Face checkpoint with its configuration.

    Raises one `CheckpointError` that lists every tensor that is unmapped, duplicate, missing,
    wrongly shaped or of an unsupported dtype.
    """
    found: dict[str, list[StoredTensor]] = {}
    scales: dict[str, StoredTensor] = {}
    ignored: list[StoredTensor] = []
    for file in files:
        for name, entry in file.entries.items():
            tensor = StoredTensor(file, entry)
            canonical = canonical_name(name)
            if canonical is None and config.is_dense and name.endswith(SCALE_SUFFIX):
                canonical = name  # Weights that come with scales are not to be used as they are.
            if canonical is not None:
                found.setdefault(canonical, []).append(tensor)
                continue
            ignored.append(tensor)
            if name.endswith(SCALE_SUFFIX):
                owner = canonical_name(name.removesuffix(SCALE_SUFFIX))
                if owner is not None and is_linear(owner):
                    scales[owner] = tensor
    config = _tie_as_found(path, config, LM_HEAD in found)
    expected = {
        name: _Expectation(_FLOATS, shape) for name, shape in expected_shapes(config).items()
    }
    return Inventory(config, _match(path, expected, found), scales, tuple(ignored))


def packed_inventory(path: Path, config: ModelConfig, file: TensorFile) -> Inventory:
    """Match a packed file with its configuration; errors as for `latent_inventory`."""
    if config.is_dense:
        raise CheckpointError(
            f"{file.path}: holds packed ternary weights, but by config.json they are dense"
        )
    found = {name: [StoredTensor(file, entry)] for name, entry in file.entries.items()}
    config = replace(_tie_as_found(path, config, LM_HEAD in found), weights="ternary")
    expected: dict[str, _Expectation] = {}
    for name, shape in expected_shapes(config).items():
        if is_linear(name):
            expected[name] = _Expectation(("U8",), packed_shape(shape))
            expected[name + SCALE_SUFFIX] = _Expectation(("F32",), (1,))
        else:
            expected[name] = _Expectation(_FLOATS, shape)
    tensors = _match(path, expected, found)
    scales = {name: tensors.pop(name + SCALE_SUFFIX) for name in list(tensors) if is_linear(name)}
    return Inventory(config, tensors, scales)


def _tie_as_found(path: Path, config: ModelConfig, has_head: bool) -> ModelConfig:
    """The files decide whether the head is tied: it is exactly if they hold none."""
    if config.tie_word_embeddings is has_head:
        state = "is tied to the embedding" if not has_head else "is a tensor of its own"
        _logger.warning(
            "%s: config.json has tie_word_embeddings %s, but by the files the head %s",
            path,
            config.tie_word_embeddings,
            state,
        )
    return replace(config, tie_word_embeddings=not has_head)


def _match(
    path: Path, expected: dict[str, _Expectation], found: dict[str, list[StoredTensor]]
) -> dict[str, StoredTensor]:
    problems: list[str] = []
    for name, tensors in found.items():
        first = tensors[0].entry
        found_text = f"found {first.tag} {list(first.shape)}"
        if name not in expected:
            problems += [
                f"{tensor.entry.name}: {found_text}, expected no such tensor" for tensor in tensors
            ]
            continue
        want = expected[name]
        if len(tensors) > 1:
            places = " and ".join(f"{entry.name} in {file.path.name}" for file, entry in tensors)
            problems.append(f"{name}: found {len(tensors)} times, as {places}, expected one")
        elif first.shape != want.shape or first.tag not in want.tags:
            problems.append(f"{first.name}: {found_text}, expected {want}")
    problems += [
        f"{name}: missing, expected {want}" for name, want in expected.items() if name not in found
    ]
    if problems:
        count = f"{len(problems)} tensor{'s' if len(problems) > 1 else ''}"
        raise CheckpointError(
            f"{path}: {count} at odds with config.json:\n  " + "\n  ".join(problems)
        )
    return {name: found[name][0] for name in expected}
