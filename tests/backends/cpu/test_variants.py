"""Variants beside v1 on every instruction set, what dense linears are rounded to, and extremes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.backends.cpu import _native
from engine.backends.cpu.backend import CpuBackend, DenseDtype, instruction_sets
from engine.backends.memory import serving_memory
from engine.backends.protocol import Sweep
from engine.checkpoint.names import LINEARS, linear_name, norm_names
from engine.config import EngineConfig, ModelConfig
from engine.errors import ConfigError
from support.checkpoints import bf16_bits
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.sequences import assert_same_bits, sequence_logits, token_rows
from support.variants import VARIANTS

DENSE_DTYPES: tuple[DenseDtype, ...] = ("bf16", "int8", "fp32")
TOKENS = np.random.default_rng(5).integers(0, 90, 40).tolist()
GOOD, BAD_TOKEN = TOKENS[:20], 95
OTHERS = [name for name in VARIANTS if name != "v1"]
POWERS = tiny_config(
    num_layers=2, hidden_size=256, intermediate_size=512, num_heads=8, num_kv_heads=2, head_dim=32
)
NARROW = tiny_config(
    num_layers=2, hidden_size=4, intermediate_size=2, num_heads=1, num_kv_heads=1, head_dim=2
)
ODD = tiny_config(
    num_layers=2, hidden_size=50, num_heads=6, num_kv_heads=3, head_dim=6, intermediate_size=70
)
MODELS: dict[str, tuple[ModelConfig, DenseDtype]] = {
    **{name: (replace(POWERS, **VARIANTS[name]), "bf16") for name in OTHERS},
    **{
        f"{name}, narrow": (replace(NARROW, **VARIANTS[name]), "bf16")
        for name in ("v2", "v3-quantise-first")
    },
    **{f"dense {dtype}, odd": (replace(ODD, weights="dense"), dtype) for dtype in DENSE_DTYPES},
    "dense int8": (replace(POWERS, weights="dense"), "int8"),
}


def dense_checkpoint(config: ModelConfig = ODD) -> MemoryCheckpoint:
    return MemoryCheckpoint(replace(config, weights="dense"), seed=3)


def make(checkpoint: MemoryCheckpoint, **options: Any) -> CpuBackend:
    return CpuBackend(checkpoint, draft_vocab_size=32, **{"threads": 2, **options})


@pytest.mark.parametrize("name", MODELS)
def test_instruction_sets_give_the_same_bits(name: str) -> None:
    """Residuals and logits after sweeps of one row, of a few and of many."""
    config, dense_dtype = MODELS[name]

    def outputs(isa: str, threads: int) -> list[np.ndarray]:
        backend = make(MemoryCheckpoint(config), isa=isa, threads=threads, dense_dtype=dense_dtype)
        backend.allocate(3, 16, 0)
        results: list[np.ndarray] = []
        for first, last in ((0, 1), (1, 6), (6, 40)):
            rows = token_rows(TOKENS, first, last, config.num_layers)
            residuals = backend.sweep(Sweep(rows, {0: [2, 0, 1]}))
            depths = [config.num_layers] * len(rows)
            results += [residuals, backend.head(residuals, range(len(rows)), depths)]
        backend.close()
        return results

    expected = outputs("scalar", 1)
    for threads, isa in enumerate(instruction_sets(), start=1):
        for actual, reference in zip(outputs(isa, threads), expected, strict=True):
            assert_same_bits(actual, reference)


def with_weights(checkpoint: MemoryCheckpoint, change: Any) -> MemoryCheckpoint:
    """The same model with every linear put through `change`."""
    tensors = dict(checkpoint._tensors)
    for layer in range(checkpoint.config.num_layers):
        for linear in LINEARS:
            name = linear_name(layer, linear)
            tensors[name] = change(tensors[name])
    return MemoryCheckpoint.of(checkpoint.config, {}, tensors)


def test_bfloat16_linears_are_the_float_ones_of_rounded_weights() -> None:
    checkpoint = dense_checkpoint()

    def rounded(values: np.ndarray) -> np.ndarray:
        return (bf16_bits(values).astype(np.uint32) << np.uint32(16)).view(np.float32)

    expected = sequence_logits(
        make(with_weights(checkpoint, rounded), dense_dtype="fp32"), TOKENS, 2
    )
    assert_same_bits(sequence_logits(make(checkpoint, dense_dtype="bf16"), TOKENS, 2), expected)
    exact = sequence_logits(make(checkpoint, dense_dtype="fp32"), TOKENS, 2)
    assert not np.array_equal(exact, expected), "nothing was rounded"


def test_float16_linears_are_read_as_they_are() -> None:
    halves = with_weights(dense_checkpoint(), lambda values: values.astype(np.float16))
    floats = with_weights(halves, lambda values: values.astype(np.float32))
    for dtype in DENSE_DTYPES:
        expected = sequence_logits(make(floats, dense_dtype=dtype), TOKENS, 2)
        assert_same_bits(sequence_logits(make(halves, dense_dtype=dtype), TOKENS, 2), expected)


def test_int8_linears_round_each_row_by_its_own_scale() -> None:
    """Weights of 255 levels a row stay as they are; of others, so many steps are taken."""

    def levels(values: np.ndarray) -> np.ndarray:
        scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
        return (np.rint(values / scale) * scale).astype(np.float32)

    checkpoint = dense_checkpoint()
    exact = sequence_logits(make(with_weights(checkpoint, levels), dense_dtype="fp32"), TOKENS, 2)
    packed = sequence_logits(make(checkpoint, dense_dtype="int8"), TOKENS, 2)
    unrounded = sequence_logits(make(checkpoint, dense_dtype="fp32"), TOKENS, 2)
    # What is left is the rounding of inputs to 14 bits, and of K/V to float16.
    assert np.abs(packed - exact).max() < 0.02 * exact.std()
    assert np.abs(packed - unrounded).max() > 0.02 * exact.std()
    assert np.abs(packed - unrounded).mean() < 0.1 * exact.std()


@pytest.mark.parametrize("dtype", DENSE_DTYPES)
def test_weights_that_are_not_copied_outlive_what_they_were_made_from(dtype: DenseDtype) -> None:
    expected = sequence_logits(make(dense_checkpoint(), dense_dtype=dtype), TOKENS, 2)
    backend = make(dense_checkpoint(), dense_dtype=dtype)
    _ = [np.full((96, 50), 9.0, np.float32) for _ in range(50)]
    assert_same_bits(sequence_logits(backend, TOKENS, 2), expected)


def anonymous_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))


def test_dense_linears_take_what_is_foretold() -> None:
    config = tiny_config(
        num_layers=2, hidden_size=1040, intermediate_size=4000, num_heads=8, head_dim=128
    )
    checkpoint = dense_checkpoint(config)
    memory = serving_memory(
        "cpu", checkpoint.config, EngineConfig().resolve(checkpoint.config), range(32)
    )
    before = anonymous_bytes()
    backend = make(checkpoint)
    taken = anonymous_bytes() - before
    assert memory.linear_dtype == backend.linear_dtype == "bf16"
    # Stacks, buffers and the draft ids come on top, but they are small.
    assert 0.95 * memory.weights < taken < 1.15 * memory.weights


# --- extremes -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 1e20])
@pytest.mark.parametrize("name", MODELS)
def test_a_token_beyond_the_range_fails_alone(name: str, value: float) -> None:
    config, dense_dtype = MODELS[name]
    checkpoint = MemoryCheckpoint(config, seed=2)
    expected = sequence_logits(make(checkpoint, dense_dtype=dense_dtype), GOOD, 2)
    checkpoint.tensor("embed_tokens.weight")[BAD_TOKEN, 1] = value
    backend = make(checkpoint, dense_dtype=dense_dtype)
    for company in ([BAD_TOKEN], [BAD_TOKEN, *GOOD]):
        with pytest.raises(FloatingPointError):
            sequence_logits(backend, company, 2)
        assert_same_bits(sequence_logits(backend, GOOD, 2), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("linear", [*LINEARS, *norm_names(1)])
@pytest.mark.parametrize("name", ["v2", "v3-quantise-first", "dense", "dense int8"])
def test_weights_that_are_not_finite_are_noticed(name: str, linear: str, value: float) -> None:
    config, dense_dtype = MODELS[name]
    checkpoint = MemoryCheckpoint(config, seed=2)
    if linear not in LINEARS:
        checkpoint.tensor(linear)[1] = value
    elif config.is_dense:
        checkpoint.tensor(linear_name(1, linear))[1, 1] = value
    else:
        original = checkpoint._linears[1, linear]
        checkpoint._linears[1, linear] = replace(original, scale=np.float32(value))
    backend = make(checkpoint, dense_dtype=dense_dtype)
    with pytest.raises(FloatingPointError):
        sequence_logits(backend, GOOD, 2)
    # What is wrong in layer 1 leaves layer 0 well.
    well = make(MemoryCheckpoint(config, seed=2), dense_dtype=dense_dtype)
    assert_same_bits(sequence_logits(backend, GOOD, 1), sequence_logits(well, GOOD, 1))


@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-12, 1e12])
@pytest.mark.parametrize("name", MODELS)
def test_tiny_and_large_embeddings_are_numbers_like_others(name: str, scale: float) -> None:
    config, dense_dtype = MODELS[name]
    checkpoint = MemoryCheckpoint(config, seed=2)
    checkpoint.tensor("embed_tokens.weight")[:] *= np.float32(scale)
    outcomes = [
        sequence_logits(make(checkpoint, isa=isa, dense_dtype=dense_dtype), GOOD, 2)
        for isa in instruction_sets()
    ]
    assert np.isfinite(outcomes[0]).all()
    for outcome in outcomes[:-1]:
        assert_same_bits(outcome, outcomes[-1])


@pytest.mark.parametrize("name", OTHERS)
def test_inputs_all_at_their_peak_are_exact_sums(name: str) -> None:
    """The widest integers there are: transforms gather a whole row in one element."""
    config, _ = MODELS[name]
    checkpoint = MemoryCheckpoint(config, seed=2)
    checkpoint.tensor("embed_tokens.weight")[:] = np.float32(1.0)
    for norm in norm_names(0):
        checkpoint.tensor(norm)[:] = np.float32(1.0)
    for linear in LINEARS[:3] if not config.is_dense else ():
        checkpoint._linears[0, linear].trits[:] = 1
    outcomes = [sequence_logits(make(checkpoint, isa=isa), GOOD, 1) for isa in instruction_sets()]
    for outcome in outcomes[:-1]:
        assert_same_bits(outcome, outcomes[-1])


# --- wrong things ---------------------------------------------------------------------------


def native_model(**changes: Any) -> _native.Model:
    sizes = {"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "ffn": 32}
    numerics = {"eps": 1e-6, "exit_norm": True, "linears": "ternary", "activation_max": 127}
    others = {"vocab": 10, "positions": 8, "hadamard": "none", "threads": 1, "isa": "scalar"}
    return _native.Model(**{**sizes, **numerics, **others, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"linears": "fp16"},
        {"hadamard": "both"},
        {"activation_max": 0},
        {"activation_max": 128},
        {"hadamard": "before", "hidden": 48},
        {"hadamard": "after", "ffn": 48},
        {"hadamard": "before", "head_dim": 12},
        {"hadamard": "after", "ffn": 1 << 18},
    ],
    ids=str,
)
def test_numerics_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        native_model(**changes)


def test_layers_of_the_other_kind_or_of_a_wrong_shape() -> None:
    norm = np.ones(32, np.float32)
    weights = [np.zeros((rows, 32), np.float32) for rows in (32, 16, 16, 32, 32, 32, 32)]
    with pytest.raises(ValueError, match="ternary"):
        native_model().set_dense_layer(0, norm, norm, weights)
    model = native_model(linears="bf16")
    model.set_dense_layer(0, norm, norm, weights)
    with pytest.raises(ValueError, match="dense"):
        model.set_ternary_layer(0, norm, norm, [], [])
    for wrong in (
        weights[:6],
        [*weights[:6], weights[6][:31]],
        [*weights[:6], np.zeros((32, 48), np.float32)],
        [*weights[:6], weights[6].astype(np.float64)],
    ):
        with pytest.raises(ValueError):
            model.set_dense_layer(0, norm, norm, wrong)
    with pytest.raises(ValueError):
        model.set_dense_layer(1, norm, norm, weights)


def test_a_dense_dtype_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="dense_dtype"):
        make(dense_checkpoint(), dense_dtype="fp16")
