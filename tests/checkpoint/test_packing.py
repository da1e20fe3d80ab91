from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from engine.checkpoint.loader import Checkpoint, PackedCheckpoint, load_checkpoint
from engine.checkpoint.names import EMBEDDING, FINAL_NORM, LINEARS, LM_HEAD, is_linear
from engine.checkpoint.packed_file import overwrite_scales
from engine.checkpoint.packing import COPIED_FILES, pack_checkpoint
from engine.checkpoint.tensor_file import CHUNK_BYTES
from engine.checkpoint.ternary import pack_trits
from engine.config import ModelConfig
from engine.errors import CheckpointError
from support.checkpoints import (
    Dtype,
    raw_tensor,
    read_safetensors,
    tiny_config,
    write_checkpoint,
    write_safetensors,
)
from support.variants import VARIANTS, variant_config

DTYPES: tuple[Dtype, ...] = ("fp32", "fp16", "bf16")
WEIGHTS = "model.safetensors"


def open_packed(path: Path) -> PackedCheckpoint:
    checkpoint = load_checkpoint(path)
    assert isinstance(checkpoint, PackedCheckpoint) and checkpoint.is_packed
    return checkpoint


def float_names(checkpoint: Checkpoint) -> list[str]:
    names = [EMBEDDING, FINAL_NORM, LM_HEAD]
    for layer in range(checkpoint.config.num_layers):
        names += [f"layers.{layer}.{kind}_layernorm.weight" for kind in ("input", "post_attention")]
    return names


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "dense"])
def test_packing_keeps_the_variant(tmp_path: Path, variant: str) -> None:
    config = variant_config(variant)
    source = write_checkpoint(tmp_path / "m", config)
    pack_checkpoint(source, tmp_path / "packed")
    with load_checkpoint(source) as latent, open_packed(tmp_path / "packed") as packed:
        assert packed.config == replace(config, weights="ternary")
        assert packed.config.variant == latent.config.variant == variant


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("num_shards", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_and_latent_are_equal_bit_for_bit(
    tmp_path: Path, dtype: Dtype, num_shards: int, tied: bool
) -> None:
    config = tiny_config(tie_word_embeddings=tied)
    source = write_checkpoint(tmp_path / "m", config, 1, dtype, num_shards=num_shards)
    pack_checkpoint(source, tmp_path / "packed")
    with load_checkpoint(source) as latent, open_packed(tmp_path / "packed") as packed:
        assert packed.config == replace(config, weights="ternary")
        for layer in range(config.num_layers):
            for linear in LINEARS:
                one, two = latent.linear(layer, linear), packed.linear(layer, linear)
                assert np.array_equal(one.trits, two.trits)
                assert one.scale.tobytes() == two.scale.tobytes()
                codes = packed.packed_linear(layer, linear)
                assert codes.shape == one.trits.shape and codes.scale == one.scale
                assert np.array_equal(codes.codes, pack_trits(one.trits))
                assert not codes.codes.flags.owndata and not codes.codes.flags.writeable
        for name in float_names(latent):
            assert packed.stored_dtype(name) == latent.stored_dtype(name) == dtype
            assert packed.tensor(name).tobytes() == latent.tensor(name).tobytes()
        with pytest.raises(KeyError, match="packed"):
            packed.tensor("layers.0.mlp.up_proj.weight")


def test_a_packed_ternary_export_equals_the_packed_latent_model(tmp_path: Path) -> None:
    for weights in ("latent", "ternary"):
        source = write_checkpoint(tmp_path / weights, tiny_config(weights=weights), 2)
        pack_checkpoint(source, tmp_path / f"{weights}-packed")
    one, two = ((tmp_path / f"{w}-packed" / WEIGHTS).read_bytes() for w in ("latent", "ternary"))
    assert one == two


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_embedding_and_the_head_can_be_halved(tmp_path: Path, dtype: Dtype) -> None:
    source = write_checkpoint(tmp_path / "m", tiny_config(), 1, dtype)
    pack_checkpoint(source, tmp_path / "packed", dtype="fp16")
    with load_checkpoint(source) as latent, open_packed(tmp_path / "packed") as packed:
        for name in float_names(latent):
            values = latent.tensor(name)
            if name in (EMBEDDING, LM_HEAD):
                values = values.astype(np.float16)
            assert packed.tensor(name).tobytes() == values.tobytes()


def test_halving_refuses_values_that_do_not_fit(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", tiny_config())
    tensors, _ = read_safetensors(source / WEIGHTS)
    tensors["lm_head.weight"] = raw_tensor(np.full((61, 48), 1e5, dtype=np.float32), "fp32")
    write_safetensors(source / WEIGHTS, tensors)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: holds values too large for fp16"):
        pack_checkpoint(source, tmp_path / "packed", dtype="fp16")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m"]


def test_the_safetensors_library_reads_the_file_and_its_layout(tmp_path: Path) -> None:
    config = tiny_config()
    source = write_checkpoint(tmp_path / "m", config, dtype="fp16")
    summary = pack_checkpoint(source, tmp_path / "packed")
    file = tmp_path / "packed" / WEIGHTS
    with safe_open(file, framework="numpy") as reader, load_checkpoint(source) as latent:
        metadata = reader.metadata()
        assert metadata["format"] == "bitskip-packed" and metadata["version"] == "1"
        assert metadata["layout"]
        weight = latent.linear(2, "down_proj")
        name = "layers.2.mlp.down_proj.weight"
        assert np.array_equal(reader.get_tensor(name), pack_trits(weight.trits))
        assert reader.get_tensor(name + "_scale") == [weight.scale]
        assert np.array_equal(reader.get_tensor(EMBEDDING), latent.tensor(EMBEDDING))
        in_order = reader.offset_keys()
    is_code = [is_linear(name) for name in in_order]
    assert is_code == sorted(is_code, reverse=True)
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert start % 64 == 0
    assert summary.packed_bytes == len(content)
    assert (tmp_path / "packed" / WEIGHTS).stat().st_size == len(content)


def test_mixed_dtypes_stay_aligned(tmp_path: Path) -> None:
    """An odd number of halves must not push floats to places where they cannot be mapped."""
    config = tiny_config(vocab_size=61, hidden_size=47)
    source = write_checkpoint(tmp_path / "m", config, dtype="fp32")
    tensors, _ = read_safetensors(source / WEIGHTS)
    values = np.ones((61, 47), dtype=np.float32)
    tensors["model.embed_tokens.weight"] = raw_tensor(values, "fp16")
    write_safetensors(source / WEIGHTS, tensors)
    pack_checkpoint(source, tmp_path / "packed")
    with open_packed(tmp_path / "packed") as packed:
        for name in float_names(packed):
            assert not packed.tensor(name).flags.owndata
        assert packed.stored_dtype(EMBEDDING) == "fp16"
        packed.linear(2, "down_proj")


def test_the_summary_and_the_progress_add_up(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", tiny_config())
    calls: list[tuple[int, int]] = []
    summary = pack_checkpoint(source, tmp_path / "p", lambda *call: calls.append(call))
    assert summary.path == tmp_path / "p"
    assert summary.num_linears == 21
    tensors, _ = read_safetensors(source / WEIGHTS)
    total = sum(len(tensor.data) for tensor in tensors.values())
    assert summary.source_bytes == total
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert {of for _, of in calls} == {total} and calls[-1] == (total, total)
    with load_checkpoint(source) as latent:
        trits = [latent.linear(i, linear).trits for i in range(3) for linear in LINEARS]
    counts = [sum(int(np.sum(t == value)) for t in trits) for value in (-1, 0, 1)]
    assert [summary.num_minus, summary.num_zero, summary.num_plus] == counts


def test_config_keys_and_side_files_come_along(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", tiny_config())
    raw = json.loads((source / "config.json").read_text())
    del raw["weights"]
    raw |= {"torch_dtype": "float32", "note": "für später", "tie_word_embeddings": True}
    (source / "config.json").write_text(json.dumps(raw))
    for name in (*COPIED_FILES, "optimizer.pt", "training.log"):
        (source / name).write_text(f"content of {name}")
    pack_checkpoint(source, tmp_path / "p")
    names = {file.name for file in (tmp_path / "p").iterdir()}
    assert names == {*COPIED_FILES, "config.json", WEIGHTS}
    for name in COPIED_FILES:
        assert (tmp_path / "p" / name).read_text() == f"content of {name}"
    packed = json.loads((tmp_path / "p" / "config.json").read_text())
    settled = {"weights": "ternary", "tie_word_embeddings": False, "model_type": "bitskip_packed"}
    assert packed == raw | settled


@pytest.mark.parametrize(
    ("model_type", "told"),
    [
        ("bitskip_v1_earlyexit", {"activation_bits": 8, "hadamard": False}),
        ("bitskip_v2_earlyexit", {"activation_bits": 4, "hadamard": "before"}),
        ("bitskip_v3_earlyexit", {"activation_bits": 8, "hadamard": "before"}),
    ],
)
def test_what_the_model_type_told_is_spelt_out(
    model_type: str, told: dict[str, object], tmp_path: Path
) -> None:
    config = tiny_config(hidden_size=64, num_heads=8, intermediate_size=128)
    source = write_checkpoint(tmp_path / "m", config)
    raw = json.loads((source / "config.json").read_text()) | {"model_type": model_type}
    for name in told:
        del raw[name]
    (source / "config.json").write_text(json.dumps(raw))
    pack_checkpoint(source, tmp_path / "p")
    packed = json.loads((tmp_path / "p" / "config.json").read_text())
    assert packed["model_type"] == "bitskip_packed"
    assert {name: packed[name] for name in told} == told
    with load_checkpoint(source) as one, load_checkpoint(tmp_path / "p") as two:
        assert replace(one.config, weights="ternary") == two.config


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("existing", [True, False])
def test_an_interrupted_pack_leaves_nothing(tmp_path: Path, existing: bool) -> None:
    source = write_checkpoint(tmp_path / "m", tiny_config())
    out = tmp_path / "p"
    if existing:
        out.mkdir()

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        pack_checkpoint(source, out, interrupt)
    assert sorted(file.name for file in tmp_path.rglob("*")) == sorted(
        ["m", "config.json", WEIGHTS] + (["p"] if existing else [])
    )
    pack_checkpoint(source, out)
    open_packed(out).close()


def test_out_appears_only_when_complete(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", tiny_config())
    out = tmp_path / "deep" / "p"

    def look(done: int, total: int) -> None:
        assert not out.exists()

    pack_checkpoint(source, out, look)
    assert sorted(file.name for file in out.iterdir()) == ["config.json", WEIGHTS]


def test_an_occupied_out_is_refused_and_kept(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", tiny_config())
    out = tmp_path / "p"
    pack_checkpoint(source, out)
    before = (out / WEIGHTS).read_bytes()
    with pytest.raises(CheckpointError, match=f"{out}: is not empty"):
        pack_checkpoint(source, out)
    assert (out / WEIGHTS).read_bytes() == before
    with pytest.raises(CheckpointError, match="is not empty"):
        pack_checkpoint(source, source)
    with pytest.raises(CheckpointError, match="is a file"):
        pack_checkpoint(source, out / WEIGHTS)


def test_a_packed_source_is_refused(tmp_path: Path) -> None:
    pack_checkpoint(write_checkpoint(tmp_path / "m", tiny_config()), tmp_path / "p")
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'p'}: is a packed checkpoint already"):
        pack_checkpoint(tmp_path / "p", tmp_path / "q")
    assert not (tmp_path / "q").exists()


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    pack_checkpoint(write_checkpoint(tmp_path / "m", tiny_config()), tmp_path / "p")
    return tmp_path / "p"


@pytest.mark.parametrize(("key", "value"), [("version", "2"), ("layout", "rows-of-beans")])
def test_an_unknown_packed_format_is_refused(packed: Path, key: str, value: str) -> None:
    tensors, metadata = read_safetensors(packed / WEIGHTS)
    write_safetensors(packed / WEIGHTS, tensors, {**metadata, key: value})
    with pytest.raises(CheckpointError, match=f"{packed / WEIGHTS}: .*{key} '{value}'"):
        load_checkpoint(packed)


def test_every_offender_of_a_packed_file_is_listed(packed: Path) -> None:
    tensors, metadata = read_safetensors(packed / WEIGHTS)
    del tensors["layers.0.mlp.up_proj.weight_scale"]
    up = tensors.pop("layers.1.mlp.up_proj.weight")
    tensors["layers.1.mlp.upper_proj.weight"] = up
    gate = tensors["layers.1.mlp.gate_proj.weight"]
    tensors["layers.1.mlp.gate_proj.weight"] = gate._replace(shape=(1, *gate.shape[:3], 32))
    write_safetensors(packed / WEIGHTS, tensors, metadata)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(packed)
    message = str(caught.value)
    assert message.startswith(f"{packed}: 4 tensors")
    assert "layers.0.mlp.up_proj.weight_scale: missing, expected F32 [1]" in message
    assert "layers.1.mlp.up_proj.weight: missing, expected U8 [35, 1, 4, 32]" in message
    assert "layers.1.mlp.upper_proj.weight: found U8 [35, 1, 4, 32]" in message
    assert "gate_proj.weight: found U8 [1, 35, 1, 4, 32], expected U8 [35, 1, 4, 32]" in message


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_an_impossible_scale_names_itself(packed: Path, value: float) -> None:
    tensors, metadata = read_safetensors(packed / WEIGHTS)
    name = "layers.0.self_attn.o_proj.weight_scale"
    tensors[name] = tensors[name]._replace(data=np.float32(value).tobytes())
    write_safetensors(packed / WEIGHTS, tensors, metadata)
    with open_packed(packed) as checkpoint, pytest.raises(CheckpointError, match=name):
        checkpoint.packed_linear(0, "o_proj")


def test_a_code_3_names_its_tensor(packed: Path) -> None:
    tensors, metadata = read_safetensors(packed / WEIGHTS)
    name = "layers.2.self_attn.v_proj.weight"
    data = tensors[name].data[:-1] + b"\xc0"
    tensors[name] = tensors[name]._replace(data=data)
    write_safetensors(packed / WEIGHTS, tensors, metadata)
    with open_packed(packed) as checkpoint:
        for read in (checkpoint.linear, checkpoint.packed_linear):
            with pytest.raises(CheckpointError, match=f"{name}: .*a 3"):
                read(2, "v_proj")
        checkpoint.linear(2, "k_proj")


def peak_bytes(directory: Path, config: ModelConfig, **options: Any) -> int:
    source = write_checkpoint(directory / "m", config)
    tracemalloc.start()
    try:
        pack_checkpoint(source, directory / "p", **options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    wide = tiny_config(num_layers=2, hidden_size=256, intermediate_size=512)
    shallow = peak_bytes(tmp_path / "2", wide)
    deep = peak_bytes(tmp_path / "6", replace(wide, num_layers=6))
    # What may grow is the header: a few hundred bytes for each of nine tensors a layer.
    largest_linear = 512 * 256 * 4
    assert deep - shallow < 4 * 20_000 < largest_linear


@pytest.mark.parametrize("dtype", ["keep", "fp16"])
def test_a_large_embedding_passes_in_pieces(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(num_layers=1, vocab_size=120_000)
    embedding = 120_000 * 48 * 4
    assert peak_bytes(tmp_path, config, dtype=dtype) < 3 * CHUNK_BYTES < embedding


def test_scales_are_overwritten_in_place(packed: Path) -> None:
    file = packed / WEIGHTS
    before = file.read_bytes()
    changes = {"layers.0.self_attn.o_proj.weight": 0.75, "layers.2.mlp.down_proj.weight": 0.5}
    with open_packed(packed) as opened:
        plain = opened.linear(0, "o_proj")
        overwrite_scales(file, changes)
        assert opened.linear(0, "o_proj").scale == np.float32(0.75)
        assert opened.linear(2, "down_proj").scale == np.float32(0.5)
        assert np.array_equal(opened.linear(0, "o_proj").trits, plain.trits)
    after = file.read_bytes()
    assert len(after) == len(before)
    assert 0 < sum(old != new for old, new in zip(before, after, strict=True)) <= 8
    with pytest.raises(KeyError, match=r"layers\.9"):
        overwrite_scales(file, {**dict.fromkeys(changes, 1.0), "layers.9.o_proj.weight": 1.0})
    assert file.read_bytes() == after
