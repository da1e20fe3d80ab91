"""One table of tensor names, read in both directions.

A tensor's *canonical* name is the Hugging Face Llama name without the `model.` prefix
(`layers.3.mlp.up_proj.weight`); files may use the spellings that `canonical_name` folds
together, exports use `published_name`.
"""

from __future__ import annotations

import re

from engine.config import ModelConfig

EMBEDDING = "embed_tokens.weight"
FINAL_NORM = "norm.weight"
LM_HEAD = "lm_head.weight"

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ATTENTION_LINEARS = LINEARS[:4]

_ALIASES = (
    (re.compile(r"\.feed_forward\."), ".mlp."),
    (re.compile(r"\.attn_norm\."), ".input_layernorm."),
    (re.compile(r"\.ffn_norm\."), ".post_attention_layernorm."),
)
_IGNORED = re.compile(r"(\.weight_scale|rotary_emb\.inv_freq|rotary_emb\.(cos|sin)_cached)$")


def linear_name(layer: int, linear: str) -> str:
    """Canonical name of one of a layer's linears, e.g. `layers.0.self_attn.q_proj.weight`."""
    block = "self_attn" if linear in _ATTENTION_LINEARS else "mlp"
    return f"layers.{layer}.{block}.{linear}.weight"


def linear_places(config: ModelConfig) -> dict[str, tuple[int, str]]:
    """Canonical name → (layer, linear) of all the layers' linears, in the model's order."""
    return {
        linear_name(layer, linear): (layer, linear)
        for layer in range(config.num_layers)
        for linear in LINEARS
    }


def norm_names(layer: int) -> tuple[str, str]:
    """Canonical names of a layer's two norms: before attention, before the feed-forward."""
    return (
        f"layers.{layer}.input_layernorm.weight",
        f"layers.{layer}.post_attention_layernorm.weight",
    )


def is_linear(name: str) -> bool:
    """Whether a canonical name is one of the layers' linears."""
    return name.startswith("layers.") and name.endswith("_proj.weight")


def canonical_name(name: str) -> str | None:
    """Fold a name found in a file to its canonical form; None for tensors to be ignored."""
    name = name.removeprefix("_orig_mod.").removeprefix("model.")
    for pattern, replacement in _ALIASES:
        name = pattern.sub(replacement, name)
    return None if _IGNORED.search(name) else name


def published_name(name: str) -> str:
    """The name under which a canonical tensor is written to a Hugging Face checkpoint."""
    return name if name == LM_HEAD else f"model.{name}"


def linear_shape(config: ModelConfig, linear: str) -> tuple[int, int]:
    """(outputs, inputs) of one of a layer's linears."""
    hidden, ffn = config.hidden_size, config.intermediate_size
    return {
        "q_proj": (config.q_size, hidden),
        "k_proj": (config.kv_size, hidden),
        "v_proj": (config.kv_size, hidden),
        "o_proj": (hidden, config.q_size),
        "gate_proj": (ffn, hidden),
        "up_proj": (ffn, hidden),
        "down_proj": (hidden, ffn),
    }[linear]


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name → shape of every tensor that a checkpoint of this model holds."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_layers):
        for linear in LINEARS:
            shapes[linear_name(layer, linear)] = linear_shape(config, linear)
        for name in norm_names(layer):
            shapes[name] = (config.hidden_size,)
    shapes[FINAL_NORM] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, config.hidden_size)
    return shapes
