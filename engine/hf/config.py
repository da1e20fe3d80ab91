"""Configurations for transformers: Llama's, with the family's fields; one for each model_type."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from transformers import LlamaConfig

from engine.config import PACKED_MODEL_TYPE, ModelConfig


class BitSkipConfig(LlamaConfig):
    """A dense early-exit Llama, LayerSkip's kind, and the base of the ternary variants.

    Sizes default to the published models'. Constructing one raises, through transformers'
    validation, for what `ModelConfig.from_dict` refuses.
    """

    model_type = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"
    """The class that config.json names."""

    vocab_size: int = 50_257
    hidden_size: int = 2048
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    max_position_embeddings: int = 2048
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    weights: str = "dense"
    """latent, ternary or dense, as `ModelConfig.weights`."""
    activation_bits: int = 8
    hadamard: bool | str = False
    """false, true (before), before or after, as config.json has it."""
    exit_norm: bool = True
    """Whether the final norm is applied at early exits too."""
    draft_exit_layer: int | None = None

    def model_config(self) -> ModelConfig:
        """The same as the engine reads it; raises `ConfigError` for what nothing here can run."""
        return ModelConfig.from_dict(self.to_dict())

    def validate_architecture(self) -> None:
        """Part of transformers' validation, when one is made and when one is saved."""
        self.model_config()

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write config.json under the published model_type of these numerics."""
        published = CONFIGS[self.model_config().model_type]
        saved = self
        if type(self) is not published:
            saved = published.from_dict(self.to_dict() | {"model_type": published.model_type})
        saved.architectures = [published.architecture]
        super(BitSkipConfig, saved).save_pretrained(save_directory, push_to_hub, **kwargs)


class BitSkipV1Config(BitSkipConfig):
    """8-bit activations."""

    model_type = "bitskip_v1_earlyexit"
    architecture = "BitSkipV1ForCausalLM"

    max_position_embeddings: int = 512
    weights: str = "latent"


class BitSkipV2Config(BitSkipConfig):
    """4-bit activations of Hadamard-transformed inputs."""

    model_type = "bitskip_v2_earlyexit"
    architecture = "BitSkipV2ForCausalLM"

    max_position_embeddings: int = 512
    weights: str = "latent"
    activation_bits: int = 4
    hadamard: bool | str = "before"


class BitSkipV3Config(BitSkipConfig):
    """8-bit activations of Hadamard-transformed inputs."""

    model_type = "bitskip_v3_earlyexit"
    architecture = "BitSkipV3ForCausalLM"

    max_position_embeddings: int = 512
    weights: str = "latent"
    hadamard: bool | str = "before"


class BitSkipPackedConfig(BitSkipConfig):
    """What `bitskip pack` writes: any of the ternary variants, its numerics spelt out.

    A model is saved unpacked, and so under the model_type of its variant.
    """

    model_type = PACKED_MODEL_TYPE
    architecture = "BitSkipPackedForCausalLM"

    max_position_embeddings: int = 512
    weights: str = "ternary"


CONFIGS: dict[str, type[BitSkipConfig]] = {
    config.model_type: config
    for config in (
        BitSkipConfig,
        BitSkipV1Config,
        BitSkipV2Config,
        BitSkipV3Config,
        BitSkipPackedConfig,
    )
}
"""By model_type."""
