"""The models that are measured, each made once and kept in the work folder."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.worker import ROOT, python_environment
from engine.checkpoint.names import expected_shapes, is_linear, published_name
from engine.checkpoint.ternary import packed_shape
from engine.config import ModelConfig


class Models:
    """Makes models on demand with the commands that users have."""

    def __init__(self, folder: Path, shape: str) -> None:
        self._folder = folder / shape
        self._shape = shape

    def synthetic(self, agreement: float) -> Path:
        """A packed random checkpoint whose draft exit agrees so often with full depth."""

        def make(out: Path) -> None:
            bitskip("synth", out, "--shape", self._shape, "--agreement", str(agreement))

        return self._once(f"agreement-{agreement}", make)

    def gguf(self, agreement: float, *, draft: bool = False) -> Path:
        """The same weights for llama.cpp; with `draft`, only the layers up to the draft exit."""
        layers = ("--layers", str(self.draft_exit)) if draft else ()
        name = f"agreement-{agreement}{'-draft' if draft else ''}.gguf"
        source = self.synthetic(agreement)
        return self._once(name, lambda out: bitskip("export", source, out, *layers))

    def latent(self) -> Path:
        """A random checkpoint of float32 latent weights, as training leaves it."""
        config = self.config()
        return self._once(
            "latent", lambda out: write_latent(out, replace(config, weights="latent"))
        )

    def config(self) -> ModelConfig:
        """The shape."""
        return ModelConfig.from_directory(self.synthetic(0.85))

    @property
    def draft_exit(self) -> int:
        """Layers that draft: a quarter, which is everybody's default (6 of v1's 24)."""
        return self.config().num_layers // 4

    def _once(self, name: str, make: Callable[[Path], None]) -> Path:
        """The path of that name, made first if need be: whole, or not at all."""
        path = self._folder / name
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            staging = path.with_name(f"partial-{name}")
            if staging.is_dir():
                shutil.rmtree(staging)
            staging.unlink(missing_ok=True)
            make(staging)
            staging.rename(path)
        return path


def bitskip(*arguments: str | Path) -> None:
    """Run a command of `bitskip`; raises `CalledProcessError` if it fails."""
    subprocess.run(
        [sys.executable, "-m", "server", *map(str, arguments)],
        cwd=ROOT,
        env=python_environment(),
        check=True,
    )


def bytes_per_token(config: ModelConfig) -> int:
    """What any plain decode has to read: ternary linears at 2 bits, the head at 8."""
    linears = sum(
        math.prod(packed_shape(shape))
        for name, shape in expected_shapes(config).items()
        if is_linear(name)
    )
    return linears + config.vocab_size * config.hidden_size


def write_latent(out: Path, config: ModelConfig) -> None:
    """Write random float32 weights, tensor by tensor: the file is larger than it need fit in."""
    rng = np.random.default_rng(0)
    shapes = expected_shapes(config)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[published_name(name)] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    with (out / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            values = rng.standard_normal(shape, dtype=np.float32)
            values *= np.float32(0.02)
            file.write(values.data)
