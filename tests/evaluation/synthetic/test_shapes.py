from __future__ import annotations

import pytest

from engine.errors import ConfigError
from engine.evaluation.synthetic.shapes import parse_shape


def test_v1_is_bitskip_v1_at_its_full_size() -> None:
    config = parse_shape("v1")
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (24, 2048, 4096)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (32, 8, 64)
    assert (config.vocab_size, config.max_position_embeddings) == (50_257, 512)
    assert config.eos_token_ids == (50_256,) and not config.tie_word_embeddings


def test_free_shapes_have_the_proportions_of_v1() -> None:
    assert parse_shape("24x2048") == parse_shape("v1")
    config = parse_shape("12x1024")
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (12, 1024, 2048)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (16, 4, 64)


def test_tiny_is_small() -> None:
    config = parse_shape("tiny")
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (8, 256, 512)
    assert (config.num_heads, config.num_kv_heads, config.vocab_size) == (4, 2, 2048)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v2", "not known"),
        ("", "not known"),
        ("12x1024x3", "not known"),
        ("-2x256", "not known"),
        ("1x256", "at least 2 layers"),
        ("4x0", "multiple of 256"),
        ("4x320", "multiple of 256"),
    ],
)
def test_other_shapes_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_shape(text)
