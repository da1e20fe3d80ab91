"""Damaged checkpoints of every variant: each is refused, and the message names the tensor.

They are read as a backend reads them, since values are checked when tensors are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from engine.backends.reference import ReferenceBackend
from engine.checkpoint.loader import load_checkpoint
from engine.checkpoint.packing import pack_checkpoint
from engine.errors import CheckpointError
from support.checkpoints import (
    Dtype,
    RawTensor,
    read_safetensors,
    write_checkpoint,
    write_safetensors,
)
from support.variants import VARIANTS, variant_config

WEIGHTS = "model.safetensors"
LINEAR = "layers.1.mlp.down_proj.weight"
FLOATS = ("embed_tokens.weight", "layers.2.input_layernorm.weight", "lm_head.weight")
NAN: Mapping[str, bytes] = {"F32": b"\0\0\xc0\x7f", "F16": b"\0\x7e", "BF16": b"\xc0\x7f"}

Tensors = dict[str, RawTensor]


@dataclass(frozen=True, slots=True)
class Form:
    """A way in which a model of the family lies on disk."""

    variant: str
    dtype: Dtype = "fp32"
    is_packed: bool = False

    def __str__(self) -> str:
        return f"{self.variant}-{'packed' if self.is_packed else self.dtype}"

    @property
    def is_dense(self) -> bool:
        return self.variant == "dense"

    def write(self, path: Path) -> Path:
        source = path.with_name("source") if self.is_packed else path
        write_checkpoint(source, variant_config(self.variant), dtype=self.dtype)
        if self.is_packed:
            pack_checkpoint(source, path)
        return path

    def stored(self, name: str) -> str:
        """A canonical name as the file spells it."""
        return name if self.is_packed or name == "lm_head.weight" else f"model.{name}"


FORMS = [
    *(Form(variant) for variant in VARIANTS),
    *(Form(variant, "bf16") for variant in ("v1", "v3", "dense")),
    *(Form(variant, "fp16") for variant in ("v2", "dense")),
    *(Form(variant, is_packed=True) for variant in ("v1", "v2", "v3", "v3-quantise-first")),
]
each_form = pytest.mark.parametrize("form", FORMS, ids=str)
each_packed_form = pytest.mark.parametrize(
    "form", [form for form in FORMS if form.is_packed], ids=str
)


def use(path: Path) -> None:
    with load_checkpoint(path) as checkpoint:
        ReferenceBackend(checkpoint, draft_vocab_size=8)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        use(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def change(path: Path, apply: Callable[[Tensors], object]) -> None:
    tensors, metadata = read_safetensors(path / WEIGHTS)
    apply(tensors)
    write_safetensors(path / WEIGHTS, tensors, metadata)


@each_form
def test_sound_ones_are_used(form: Form, tmp_path: Path) -> None:
    use(form.write(tmp_path / "m"))


@each_form
@pytest.mark.parametrize("keep", [-1, 60, 0], ids=["cut", "cut header", "empty"])
def test_truncated(form: Form, keep: int, tmp_path: Path) -> None:
    file = form.write(tmp_path / "m") / WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file}: not a complete safetensors file" in refusal(tmp_path / "m")


@each_form
def test_garbage(form: Form, tmp_path: Path) -> None:
    file = form.write(tmp_path / "m") / WEIGHTS
    file.write_bytes(np.random.default_rng(1).bytes(4096))
    assert f"{file}: not a complete safetensors file" in refusal(tmp_path / "m")


@each_form
def test_renamed(form: Form, tmp_path: Path) -> None:
    path, name = form.write(tmp_path / "m"), form.stored(LINEAR)
    other = name.replace("down_proj", "lower_proj")
    change(path, lambda tensors: tensors.update({other: tensors.pop(name)}))
    message = refusal(path)
    assert f"{LINEAR}: missing" in message and f"{other}: found" in message


@each_form
@pytest.mark.parametrize("name", [LINEAR, *FLOATS])
def test_wrongly_shaped(form: Form, name: str, tmp_path: Path) -> None:
    path, stored = form.write(tmp_path / "m"), form.stored(name)

    def reshape(tensors: Tensors) -> None:
        shape = tensors[stored].shape
        tensors[stored] = tensors[stored]._replace(shape=(*shape[1:], shape[0], 1)[: len(shape)])
        if tensors[stored].shape == shape:
            half = len(tensors[stored].data) // 2
            tensors[stored] = RawTensor(
                tensors[stored].tag, (shape[0] // 2,), tensors[stored].data[:half]
            )

    change(path, reshape)
    message = refusal(path)
    assert f"{stored}: found" in message and "expected" in message


@each_form
def test_of_another_type(form: Form, tmp_path: Path) -> None:
    path, stored = form.write(tmp_path / "m"), form.stored(LINEAR)

    def retype(tensors: Tensors) -> None:
        shape = tensors[stored].shape
        tensors[stored] = RawTensor("I8", shape, bytes(math.prod(shape)))

    change(path, retype)
    assert f"{stored}: found I8" in refusal(path)


@each_form
@pytest.mark.parametrize("name", [LINEAR, *FLOATS])
def test_not_a_number(form: Form, name: str, tmp_path: Path) -> None:
    path, stored = form.write(tmp_path / "m"), form.stored(name)
    if form.is_packed and name == LINEAR:
        stored += "_scale"

    def poison(tensors: Tensors) -> None:
        old = tensors[stored]
        nan = NAN[old.tag]
        middle = len(old.data) // 2 // len(nan) * len(nan)
        data = old.data[:middle] + nan + old.data[middle + len(nan) :]
        tensors[stored] = old._replace(data=data)

    change(path, poison)
    message = refusal(path)
    assert f"{name}: holds NaN or infinite values" in message or f"{stored}: must be" in message


@each_packed_form
def test_codes_that_stand_for_nothing(form: Form, tmp_path: Path) -> None:
    path = form.write(tmp_path / "m")

    def corrupt(tensors: Tensors) -> None:
        data = bytearray(tensors[LINEAR].data)
        data[77] |= 0b1100
        tensors[LINEAR] = tensors[LINEAR]._replace(data=bytes(data))

    change(path, corrupt)
    assert f"{LINEAR}: codes must be 0, 1 or 2" in refusal(path)


@each_form
def test_pickles(form: Form, tmp_path: Path) -> None:
    path = form.write(tmp_path / "m")
    (path / WEIGHTS).rename(path / "pytorch_model.bin")
    message = refusal(path)
    assert "pytorch_model.bin" in message and "pickle" in message


def test_dense_weights_with_scales(tmp_path: Path) -> None:
    """Quantised in somebody else's way: they are not what they seem."""
    path = Form("dense").write(tmp_path / "m")
    name = f"model.{LINEAR}_scale"
    change(path, lambda tensors: tensors.update({name: RawTensor("F32", (1,), b"\0\0\x80\x3f")}))
    assert f"{name}: found F32 [1], expected no such tensor" in refusal(path)


def test_packed_weights_that_are_called_dense(tmp_path: Path) -> None:
    path = Form("v1", is_packed=True).write(tmp_path / "m")
    dense = Form("dense").write(tmp_path / "dense")
    (path / "config.json").write_bytes((dense / "config.json").read_bytes())
    message = refusal(path)
    assert "packed ternary weights" in message and "dense" in message


def test_dense_models_cannot_be_packed(tmp_path: Path) -> None:
    path = Form("dense").write(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"dense.*only ternary ones can be packed"):
        pack_checkpoint(path, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
