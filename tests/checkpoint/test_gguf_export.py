from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from engine.checkpoint.gguf_export import export_gguf, interleaved_rows
from engine.checkpoint.loader import load_checkpoint
from engine.checkpoint.names import EMBEDDING, FINAL_NORM, LINEARS, LM_HEAD, linear_name
from engine.checkpoint.packing import pack_checkpoint
from engine.checkpoint.tensor_file import CHUNK_BYTES
from engine.config import ModelConfig, RopeScaling
from engine.errors import CheckpointError
from support.checkpoints import (
    Dtype,
    random_tensors,
    raw_tensor,
    read_safetensors,
    write_checkpoint,
    write_safetensors,
)
from support.gguf_files import GGUFFile, block_config, export
from support.tokenizers import write_tokenizer

WEIGHTS = "model.safetensors"
THEIR_LINEARS = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def write_model(path: Path, config: ModelConfig, dtype: Dtype = "fp32") -> Path:
    return write_tokenizer(write_checkpoint(path, config, 1, dtype), config.vocab_size)


def wide_config(vocab_size: int) -> ModelConfig:
    """Wide residuals between small layers: the embedding and the head are most of the model."""
    return block_config(
        vocab_size=vocab_size,
        hidden_size=2048,
        num_layers=1,
        num_heads=4,
        head_dim=64,
        intermediate_size=256,
    )


def in_our_order(rows: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """Undo llama.cpp's order of q's and k's rows, one row at a time, as its rotary pairs them."""
    ours = np.empty_like(rows)
    for index, row in enumerate(rows):
        head, place = divmod(index, head_dim)
        pair, is_second = divmod(place, 2)
        ours[head * head_dim + pair + (head_dim // 2 if is_second else 0)] = row
    return ours


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_linears_are_exact_but_for_the_scales_rounding(
    tmp_path: Path, dtype: Dtype, is_packed: bool
) -> None:
    source = write_model(tmp_path / "m", block_config(), dtype)
    if is_packed:
        pack_checkpoint(source, tmp_path / "p")
        source = tmp_path / "p"
    summary = export_gguf(source, tmp_path / "m.gguf")
    file = GGUFFile(summary.path)
    errors = []
    with load_checkpoint(source) as checkpoint:
        for layer in range(2):
            for linear in LINEARS:
                name = f"blk.{layer}.{THEIR_LINEARS[linear]}.weight"
                assert file.kind(name) is gguf.GGMLQuantizationType.TQ2_0
                found, weight = file.values(name), checkpoint.linear(layer, linear)
                if linear in ("q_proj", "k_proj"):
                    found = in_our_order(found, 64)
                scale = np.float32(np.float16(weight.scale))
                assert np.array_equal(found, weight.trits * scale)
                errors.append(abs(float(scale) / float(weight.scale) - 1))
    assert summary.scale_error == max(errors) <= 2**-11


def test_blocks_are_those_of_the_formats_own_quantiser(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", block_config(weights="ternary"))
    file = export(source)
    with load_checkpoint(source) as checkpoint:
        weight = checkpoint.linear(0, "down_proj")
    values = weight.trits * weight.scale
    expected = gguf.quantize(values, gguf.GGMLQuantizationType.TQ2_0)
    assert np.abs(values).reshape(256, 3, 256).max(axis=2).all(), "a block would have no scale"
    assert np.array_equal(file.raw("blk.0.ffn_down.weight"), expected)


def test_their_rotary_positions_give_our_attention_scores() -> None:
    """Rotate-half of q and k, and the interleaved kind of their reordered rows."""
    rng = np.random.default_rng(0)
    num_heads, head_dim, half = 3, 8, 4
    query, key = rng.standard_normal((2, num_heads * head_dim))
    frequencies = 10_000.0 ** (-np.arange(half) / half)

    def ours(vector: NDArray[np.float64], position: int) -> NDArray[np.float64]:
        low, high = vector.reshape(num_heads, 2, half).transpose(1, 0, 2)
        turned = (low + 1j * high) * np.exp(1j * position * frequencies)
        return np.concatenate((turned.real, turned.imag), axis=1)

    def theirs(vector: NDArray[np.float64], position: int) -> NDArray[np.float64]:
        first, second = vector.reshape(num_heads, half, 2).transpose(2, 0, 1)
        turned = (first + 1j * second) * np.exp(1j * position * frequencies)
        return np.stack((turned.real, turned.imag), axis=2).reshape(num_heads, head_dim)

    rows = interleaved_rows(num_heads, head_dim)
    assert sorted(rows) == list(range(num_heads * head_dim))
    expected = (ours(query, 9) * ours(key, 4)).sum(axis=1)
    found = (theirs(query[rows], 9) * theirs(key[rows], 4)).sum(axis=1)
    assert np.allclose(found, expected, rtol=1e-12)
    unordered = (theirs(query, 9) * theirs(key, 4)).sum(axis=1)
    assert not np.allclose(unordered, expected, rtol=1e-2)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_embedding_and_the_head_are_within_8_bits(tmp_path: Path, dtype: Dtype) -> None:
    # Larger than a piece of the source, and no whole number of pieces.
    config = wide_config(vocab_size=CHUNK_BYTES // (2 * 2048) + 77)
    source = write_checkpoint(tmp_path / "m", config, 1, dtype)
    file = export(source)
    with load_checkpoint(source) as checkpoint:
        for theirs, ours in (("token_embd.weight", EMBEDDING), ("output.weight", LM_HEAD)):
            assert file.kind(theirs) is gguf.GGMLQuantizationType.Q8_0
            values = checkpoint.tensor(ours).astype(np.float32)
            expected = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            assert np.array_equal(file.raw(theirs), expected)
            peaks = np.abs(values).reshape(-1, 32).max(axis=1).repeat(32)
            # Half a step of the codes, and the step's own rounding to fp16 (times 127 codes).
            bound = (0.5 / 127 + 2**-11) * peaks.reshape(values.shape) + 1e-6
            assert np.all(np.abs(file.values(theirs) - values) <= bound)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_norms_are_exact(tmp_path: Path, dtype: Dtype) -> None:
    source = write_model(tmp_path / "m", block_config(), dtype)
    file = export(source)
    places = {
        "output_norm.weight": FINAL_NORM,
        "blk.1.attn_norm.weight": "layers.1.input_layernorm.weight",
        "blk.1.ffn_norm.weight": "layers.1.post_attention_layernorm.weight",
    }
    with load_checkpoint(source) as checkpoint:
        for theirs, ours in places.items():
            assert file.kind(theirs) is gguf.GGMLQuantizationType.F32
            assert np.array_equal(file.values(theirs), checkpoint.tensor(ours))


def test_metadata(tmp_path: Path) -> None:
    config = block_config(rope_theta=50_000.0, rms_norm_eps=1e-3)
    found = export(write_model(tmp_path / "m", config)).metadata
    tokenizer = {name for name in found if name.startswith("tokenizer.")}
    assert len(tokenizer) == 9
    assert {name: value for name, value in found.items() if name not in tokenizer} == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "m",
        "general.file_type": gguf.LlamaFileType.MOSTLY_TQ2_0,
        "general.quantization_version": 2,
        "llama.vocab_size": 320,
        "llama.context_length": 64,
        "llama.embedding_length": 256,
        "llama.block_count": 2,
        "llama.feed_forward_length": 768,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 64,
        "llama.attention.value_length": 64,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-3),
        "llama.rope.dimension_count": 64,
        "llama.rope.freq_base": 50_000.0,
    }


def test_a_tied_head_is_left_out(tmp_path: Path) -> None:
    file = export(write_model(tmp_path / "m", block_config(tie_word_embeddings=True)))
    untied = export(write_model(tmp_path / "u", block_config()))
    assert untied.names - file.names == {"output.weight"}
    assert file.names < untied.names


def test_the_first_layers_make_a_model_of_their_own(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", block_config(num_layers=3))
    full, draft = export(source), GGUFFile(export_gguf(source, tmp_path / "d", num_layers=1).path)
    assert draft.names == {name for name in full.names if not name.startswith(("blk.1", "blk.2"))}
    for name in draft.names:
        assert np.array_equal(draft.raw(name), full.raw(name))
    assert draft.metadata == full.metadata | {"llama.block_count": 1}


def test_all_layers_asked_for_is_the_whole_model(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", block_config(exit_norm=False))
    whole = export(source).path.read_bytes()
    assert export_gguf(source, tmp_path / "d", num_layers=2).num_bytes == len(whole)
    assert (tmp_path / "d").read_bytes() == whole


def test_packing_first_changes_nothing(tmp_path: Path) -> None:
    source = write_model(tmp_path / "latent" / "m", block_config())
    pack_checkpoint(source, tmp_path / "packed" / "m")
    one, two = export(source), export(tmp_path / "packed" / "m")
    assert one.path.read_bytes() == two.path.read_bytes()


def test_the_progress_and_the_summary_add_up(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", block_config(), "bf16")
    calls: list[tuple[int, int]] = []
    summary = export_gguf(source, tmp_path / "o", lambda *call: calls.append(call))
    tensors, _ = read_safetensors(source / WEIGHTS)
    total = sum(len(tensor.data) for tensor in tensors.values())
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert {of for _, of in calls} == {total} and calls[-1] == (total, total)
    assert (summary.path, summary.num_layers) == (tmp_path / "o", 2)
    assert summary.num_bytes == (tmp_path / "o").stat().st_size


@pytest.mark.parametrize("num_layers", [0, 3])
def test_layers_that_are_not_there_are_refused(tmp_path: Path, num_layers: int) -> None:
    source = write_model(tmp_path / "m", block_config())
    with pytest.raises(CheckpointError, match=f"{source}: has 2 layers; {num_layers} cannot"):
        export_gguf(source, tmp_path / "o", num_layers=num_layers)


def test_exits_without_the_final_norm_are_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", block_config(exit_norm=False))
    with pytest.raises(CheckpointError, match="exit_norm"):
        export_gguf(source, tmp_path / "o", num_layers=1)


def test_widths_that_fill_no_block_are_refused_by_name(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", block_config(head_dim=24, intermediate_size=640))
    with pytest.raises(CheckpointError) as caught:
        export_gguf(source, tmp_path / "o")
    assert str(caught.value) == (
        f"{source}: TQ2_0 needs a multiple of 256 inputs; in every layer, as in the first:\n"
        "  layers.0.self_attn.o_proj.weight: has 192 inputs\n"
        "  layers.0.mlp.down_proj.weight: has 640 inputs"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_bits": 4}, "v1-4bit .*: llama.cpp rounds activations to 8 bits, not to 4"),
        ({"hadamard": "before"}, "v3 .*: llama.cpp multiplies no Hadamard-transformed"),
        ({"hadamard": "after"}, "v3-quantise-first .*: llama.cpp multiplies no Hadamard-"),
        ({"hadamard": "before", "activation_bits": 4}, "v2 .*: llama.cpp multiplies no Hadamard-"),
        ({"weights": "dense"}, "dense .*: its linears are dense"),
        ({"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 32)}, "v1 .*: its rotary positions are"),
    ],
)
def test_variants_that_llama_cpp_cannot_compute_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    powers_of_two = {"intermediate_size": 512, "num_heads": 8, "head_dim": 64}
    source = write_model(tmp_path / "m", block_config(**powers_of_two, **changes))
    with pytest.raises(CheckpointError, match=message) as caught:
        export_gguf(source, tmp_path / "o")
    assert str(source) in str(caught.value) and "cannot be exported to GGUF" in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("value", [1e5, 1e-9])
def test_a_scale_beyond_fp16_names_its_tensor(tmp_path: Path, value: float) -> None:
    pack_checkpoint(write_model(tmp_path / "m", block_config()), tmp_path / "p")
    tensors, metadata = read_safetensors(tmp_path / "p" / WEIGHTS)
    name = linear_name(1, "up_proj")
    tensors[f"{name}_scale"] = raw_tensor(np.array([value], dtype=np.float32), "fp32")
    write_safetensors(tmp_path / "p" / WEIGHTS, tensors, metadata)
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'p'}: {name}: its scale {value:g} "):
        export_gguf(tmp_path / "p", tmp_path / "o")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m", "p"]


def test_values_beyond_q8_0_name_their_tensor(tmp_path: Path) -> None:
    config = block_config()
    source = write_model(tmp_path / "m", config)
    tensors, _ = read_safetensors(source / WEIGHTS)
    head = random_tensors(config)[LM_HEAD]
    head[200, 7] = -9e6
    tensors[LM_HEAD] = raw_tensor(head, "fp32")
    write_safetensors(source / WEIGHTS, tensors)
    with pytest.raises(CheckpointError, match=rf"{source}: lm_head\.weight: holds values too"):
        export_gguf(source, tmp_path / "o")


class Interrupted(Exception):
    pass


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", block_config())

    def interrupt(done: int, total: int) -> None:
        assert not (tmp_path / "o").exists()
        if done > total // 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        export_gguf(source, tmp_path / "o", interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["m"]
    export_gguf(source, tmp_path / "deep" / "o")
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["o"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", block_config())
    out = tmp_path / "o"
    out.write_text("dear")
    with pytest.raises(CheckpointError, match=f"{out}: exists already"):
        export_gguf(source, out)
    out.unlink()

    def interfere(done: int, total: int) -> None:
        out.write_text("dear")

    with pytest.raises(FileExistsError):
        export_gguf(source, out, interfere)
    assert out.read_text() == "dear"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m", "o"]


def peak_bytes(directory: Path, config: ModelConfig) -> int:
    source = write_checkpoint(directory / "m", config)
    tracemalloc.start()
    try:
        export_gguf(source, directory / "o")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    shallow = peak_bytes(tmp_path / "2", block_config(num_layers=2))
    deep = peak_bytes(tmp_path / "8", block_config(num_layers=8))
    smallest_linear = 128 * 256 * 4
    assert deep - shallow < smallest_linear


def test_the_head_is_held_in_8_bits_alone(tmp_path: Path) -> None:
    size = 8000 * 2048
    texts = 4_000_000  # The names of so many tokens, as Python strings and as metadata.
    bound = size * 34 // 32 + 5 * CHUNK_BYTES + texts
    assert peak_bytes(tmp_path, wide_config(vocab_size=8000)) < bound < size * 4
