"""Configurations: what is read, what is refused, and what is decided for whoever is silent."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig, ModelConfig, RopeScaling
from engine.errors import CheckpointError, ConfigError
from support.fake_backend import fake_config

RAW: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


def test_silent_fields_get_the_familys_defaults() -> None:
    assert ModelConfig.from_dict(RAW) == ModelConfig(
        vocab_size=1000,
        hidden_size=64,
        num_layers=8,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        intermediate_size=128,
        max_position_embeddings=512,
        rope_theta=10_000.0,
        rms_norm_eps=1e-6,
        exit_norm=True,
        tie_word_embeddings=False,
        activation_bits=8,
        weights="latent",
        eos_token_ids=(),
        bos_token_id=None,
    )


def test_null_is_silence() -> None:
    silent = {
        "num_key_value_heads": None,
        "head_dim": None,
        "rope_theta": None,
        "rope_parameters": None,
        "rope_scaling": None,
        "eos_token_id": None,
        "exit_norm": None,
        "hadamard": False,
    }
    assert ModelConfig.from_dict({**RAW, **silent}) == ModelConfig.from_dict(RAW)


def test_what_is_said_is_heard() -> None:
    config = ModelConfig.from_dict(
        {
            **RAW,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_theta": 500_000},
            "rms_norm_eps": 1e-5,
            "exit_norm": False,
            "tie_word_embeddings": True,
            "weights": "ternary",
            "eos_token_id": [3, 4],
            "bos_token_id": 3,
        }
    )
    assert (config.num_kv_heads, config.head_dim) == (2, 32)
    assert (config.q_size, config.kv_size) == (128, 64)
    assert (config.max_position_embeddings, config.rope_theta) == (2048, 500_000.0)
    assert (config.rms_norm_eps, config.exit_norm) == (1e-5, False)
    assert (config.tie_word_embeddings, config.weights) == (True, "ternary")
    assert (config.eos_token_ids, config.bos_token_id) == ((3, 4), 3)


@pytest.mark.parametrize("eos", [None, 5, [5, 6], []])
def test_to_dict_is_read_back_unchanged(eos: object) -> None:
    raw = {**RAW, "num_key_value_heads": 2, "rope_theta": 5e5, "eos_token_id": eos}
    config = ModelConfig.from_dict({**raw, "exit_norm": False, "weights": "ternary"})
    through_json = json.loads(json.dumps(config.to_dict()))
    assert ModelConfig.from_dict(through_json) == config


@pytest.mark.parametrize("name", RAW)
def test_missing_fields_are_named(name: str) -> None:
    raw = {key: value for key, value in RAW.items() if key != name}
    with pytest.raises(ConfigError, match=f"lacks {name}"):
        ModelConfig.from_dict(raw)


SIZES = (*RAW, "num_key_value_heads", "head_dim", "max_position_embeddings", "activation_bits")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
NUMBERS = ("rope_theta", "rms_norm_eps")


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", ["x", "8", 1.5, True, [8], {}, 0, -8])
def test_wrong_sizes_are_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        ModelConfig.from_dict({**RAW, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("vocab_size", 1 << 31), ("num_hidden_layers", 10**7), ("max_position_embeddings", 1 << 25)],
)
def test_sizes_beyond_all_measure_are_named(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at most"):
        ModelConfig.from_dict({**RAW, name: value})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["big", True, [1], {}, 0, -1.0, math.nan, math.inf, 10**400])
def test_wrong_numbers_are_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        ModelConfig.from_dict({**RAW, name: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eos_token_id": "a"}, "eos_token_id"),
        ({"eos_token_id": ["a"]}, "eos_token_id"),
        ({"eos_token_id": [[1]]}, "eos_token_id"),
        ({"eos_token_id": True}, "eos_token_id"),
        ({"eos_token_id": 1000}, "eos_token_id 1000"),
        ({"eos_token_id": -1}, "eos_token_id -1"),
        ({"bos_token_id": "a"}, "bos_token_id"),
        ({"exit_norm": "false"}, "exit_norm"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_parameters": {"rope_theta": "big"}}, "rope_theta"),
        ({"weights": "int4"}, "weights"),
        ({"weights": ["latent"]}, "weights"),
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"model_type": 7}, "model_type '7'"),
        ({"hadamard": True, "head_dim": 12}, "num_attention_heads x head_dim is 48"),
        ({"hadamard": "twice"}, "hadamard .* 'twice'"),
        ({"hadamard": True, "model_type": "llama"}, "hadamard is for ternary weights"),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "rope_scaling .* 'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2}}, "low_freq_factor"),
        (
            {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4}},
            "rope_theta has several values: 10000.0, 500000.0",
        ),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": LLAMA3},
            "rope_parameters and rope_scaling scale differently",
        ),
        (
            {"rope_parameters": LLAMA3, "rope_scaling": {**LLAMA3, "factor": 4.0}},
            "rope_parameters and rope_scaling scale differently",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"activation_bits": 2}, "activation_bits .* 2"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim"),
        ({"intermediate_size": 1 << 18}, "width"),
    ],
)
def test_impossible_models_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict({**RAW, **fields})


def test_rotary_positions_may_be_told_in_several_places() -> None:
    """transformers reads a theta beside a scaling, too."""
    once = ModelConfig.from_dict({**RAW, "rope_theta": 5e5, "rope_scaling": LLAMA3})
    assert (once.rope_theta, once.rope_scaling) == (5e5, RopeScaling(8.0, 1.0, 4.0, 64))
    both = {**LLAMA3, "rope_theta": 5e5}
    for fields in (
        {"rope_scaling": both},
        {"rope_parameters": both},
        {"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": LLAMA3},
        {"rope_theta": 5e5, "rope_parameters": both, "rope_scaling": both},
    ):
        assert ModelConfig.from_dict({**RAW, **fields}) == once


def test_a_config_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RAW), encoding="utf-8")
    assert ModelConfig.from_directory(tmp_path) == ModelConfig.from_dict(RAW)


@pytest.mark.parametrize("text", [None, "{", "[]", "[" * 100_000, '{"vocab_size": 3}', "\udcff"])
def test_a_broken_config_file_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        content = text.encode(errors="surrogateescape")
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelConfig.from_directory(tmp_path)


# --- the engine's ----------------------------------------------------------------------------

MODEL = fake_config(num_layers=8, max_position_embeddings=512)


def test_resolve_decides_what_was_left_open() -> None:
    config = EngineConfig().resolve(MODEL)
    assert (config.max_model_len, config.kv_cache_tokens, config.draft_exit_layer) == (
        512,
        16_384,
        2,
    )
    assert config.num_blocks == 1024
    assert config.num_exit_states == 256 * 16


def test_resolve_keeps_what_was_said() -> None:
    said = EngineConfig(max_model_len=100, kv_cache_tokens=101, draft_exit_layer=8, block_size=4)
    config = said.resolve(MODEL)
    assert config == said
    assert config.num_blocks == 26
    assert config.resolve(MODEL) == config


def test_resolve_fits_long_contexts_and_shallow_models() -> None:
    config = EngineConfig().resolve(fake_config(num_layers=1, max_position_embeddings=8192))
    assert (config.kv_cache_tokens, config.draft_exit_layer) == (4 * 8192, 1)
    for context, tokens in ((16_384, 65_536), (40_000, 65_536), (131_072, 131_072)):
        model = fake_config(max_position_embeddings=context)
        assert EngineConfig().resolve(model).kv_cache_tokens == tokens


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"block_size": 0}, "block_size"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_batched_tokens": 0}, "max_batched_tokens"),
        ({"draft_vocab_size": 0}, "draft_vocab_size"),
        ({"num_speculations": 17}, "num_speculations"),
        ({"num_speculations": -1}, "num_speculations"),
        ({"ngram_min": 0}, "ngram_min"),
        ({"ngram_min": 3, "ngram_max": 2}, "ngram_min"),
        ({"max_model_len": 513}, "max_model_len"),
        ({"max_model_len": 0}, "max_model_len"),
        ({"max_model_len": -5}, "max_model_len"),
        ({"kv_cache_tokens": 511}, "kv_cache_tokens 511"),
        ({"kv_cache_tokens": 0}, "kv_cache_tokens 0"),
        ({"draft_exit_layer": 9}, "draft_exit_layer"),
        ({"draft_exit_layer": 0}, "draft_exit_layer"),
        ({"draft_exit_layer": -1}, "draft_exit_layer"),
        ({"dense_dtype": "bf16"}, "dense_dtype bf16 .* ternary"),
        ({"prefill_budget_s": math.nan}, "prefill_budget_s"),
        ({"prefill_budget_s": math.inf}, "prefill_budget_s"),
        ({"prefill_budget_s": -0.1}, "prefill_budget_s"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        EngineConfig(**fields).resolve(MODEL)


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [(24, (6, 12, 18, 24)), (12, (3, 6, 9, 12)), (6, (1, 3, 4, 6)), (2, (1, 2)), (1, (1,))],
)
def test_suggested_exits_are_the_quarters(num_layers: int, expected: tuple[int, ...]) -> None:
    assert fake_config(num_layers=num_layers).suggested_exits == expected
