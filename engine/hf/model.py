"""The family's models for transformers: Llama with quantised linears and an exit layer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils import GENERATION_CONFIG_NAME

from engine.checkpoint.loader import load_checkpoint
from engine.checkpoint.names import LINEARS, linear_name, linear_shape
from engine.config import ModelConfig
from engine.errors import ConfigError
from engine.hf.config import (
    BitSkipConfig,
    BitSkipPackedConfig,
    BitSkipV1Config,
    BitSkipV2Config,
    BitSkipV3Config,
)
from engine.hf.exits import Exit, ExitDecoderLayer, ExitRMSNorm
from engine.hf.linear import TernaryLinear, is_ternary
from engine.hf.loading import checkpoint_directory, read_config, read_state, refuse_gaps

_CACHE_ARGUMENT = 3
"""Where LlamaModel.forward takes the cache by position."""


class BitSkipModel(LlamaModel):
    """Embedding, layers up to the exit, final norm."""

    config_class = BitSkipConfig
    config: BitSkipConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    # By the class's name: `device_map` must not cut a layer in two.
    _no_split_modules: ClassVar[set[str] | list[str] | None] = [ExitDecoderLayer.__name__]

    def __init__(self, config: BitSkipConfig) -> None:
        # Not LlamaModel's own, which would make every layer a second time.
        super(LlamaModel, self).__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.exit = Exit(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            ExitDecoderLayer(config, index, self.exit) for index in range(config.num_hidden_layers)
        )
        self.norm = ExitRMSNorm(config, self.exit)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        numerics = config.model_config()
        if not numerics.is_dense:
            self._quantise_linears(numerics)
        self.post_init()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As Llama's; raises `ValueError` for a cache that another exit layer filled."""
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        if cache is None and len(args) > _CACHE_ARGUMENT:
            cache = args[_CACHE_ARGUMENT]
        if cache is not None:
            self.exit.check_cache(cache)
        return super().forward(*args, **kwargs)

    def _quantise_linears(self, config: ModelConfig) -> None:
        for layer in range(config.num_layers):
            for linear in LINEARS:
                outputs, inputs = linear_shape(config, linear)
                name = linear_name(layer, linear).removesuffix(".weight")
                self.set_submodule(name, TernaryLinear(inputs, outputs, config))


class BitSkipForCausalLM(LlamaForCausalLM):
    """A language model whose head can read the next token off any layer.

    `from_pretrained` opens every checkpoint of the family, packed ones and LayerSkip's Llamas
    among them, and makes the class that goes with its model_type. All tensors are checked as
    the engine checks them, no weight is left as it was initialised, and no code of a checkpoint
    is run, whatever `trust_remote_code` says.
    """

    config_class = BitSkipConfig
    config: BitSkipConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    model: BitSkipModel

    def __init__(self, config: BitSkipConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = BitSkipModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def exit_layer(self) -> int:
        """How many layers answer."""
        return self.model.exit.layer

    def set_exit_layer(self, exit_layer: int) -> None:
        """Answer from the first `exit_layer` layers, the final norm and the head.

        The other layers stay, to be returned to and to be saved; the configuration does not
        change. Raises `ValueError` for a number that is not in 1..num_hidden_layers.
        """
        num_layers = self.model.exit.num_layers
        if isinstance(exit_layer, bool) or exit_layer not in range(1, num_layers + 1):
            raise ValueError(f"exit_layer must be an integer in 1..{num_layers}, not {exit_layer}")
        self.model.exit.layer = exit_layer

    @contextmanager
    def held_ternary(self) -> Iterator[None]:
        """Ternarise every weight once and not at every use, within the block.

        Weights must not change in it. `generate` does this; a loop of one's own over `forward`
        gains as much from it. Takes a byte per weight.
        """
        linears = [one for one in self._ternary_linears().values() if not one.is_holding]
        try:
            for linear in linears:
                linear.hold(True)
            yield
        finally:
            for linear in linears:
                linear.hold(False)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own, from the exit layer."""
        with self.held_ternary():
            return super().generate(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: LlamaConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The model in a directory, latent or packed, or of a hub id (`org/name`).

        `dtype` is what embedding, norms, head and activations are held in: float32 unless asked
        otherwise, for dense models as stored. Weights that are ternarised keep the type that
        they are stored in, since another would ternarise differently. `revision`, `cache_dir`,
        `token`, `local_files_only` and `force_download` say where a hub id comes from; other
        arguments are transformers'. Raises `CheckpointError`, naming every tensor at fault, for
        what is missing, unexpected, mis-shaped or not finite; `ConfigError` for options that
        cannot be honoured, and for a directory that is another class's.
        """
        source = checkpoint_directory(pretrained_model_name_or_path, kwargs)
        settings, kwargs = read_config(source, config, kwargs)
        model_class = cls._class_for(settings, source)
        with load_checkpoint(source) as checkpoint:
            settings.tie_word_embeddings = checkpoint.config.tie_word_embeddings
            if checkpoint.is_packed:
                settings.weights = "ternary"
            state = read_state(checkpoint)
        if "generation_config" not in kwargs and (source / GENERATION_CONFIG_NAME).exists():
            kwargs["generation_config"] = GenerationConfig.from_pretrained(source)
        chosen = dtype if dtype is not None else torch_dtype
        if chosen is None:
            chosen = "auto" if settings.weights == "dense" else torch.float32
        loaded: Any = super(BitSkipForCausalLM, model_class).from_pretrained(
            None,
            *model_args,
            config=settings,
            state_dict=state,
            dtype=chosen,
            output_loading_info=True,
            **kwargs,
        )
        model, report = loaded
        refuse_gaps(source, report)
        model.config.name_or_path = model.name_or_path = str(pretrained_model_name_or_path)
        model._restore_stored(state)
        return (model, report) if output_loading_info else model

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Write all layers, whatever the exit, as transformers does.

        config.json says what the weights then are: ternary if all linears hold only −s, 0 and
        +s, as those from a packed directory do, latent otherwise.
        """
        if linears := self._ternary_linears():
            ternary = all(is_ternary(linear.weight) for linear in linears.values())
            self.config.weights = "ternary" if ternary else "latent"
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def _class_for(cls, config: BitSkipConfig, source: Path) -> type[BitSkipForCausalLM]:
        """The class that a configuration calls for: this one, or one below it."""
        if type(config) is cls.config_class:
            return cls
        model_class = MODELS[type(config)]
        if not issubclass(model_class, cls):
            raise ConfigError(
                f"{source}: model_type {config.model_type!r} is {model_class.__name__}'s, not "
                f"{cls.__name__}'s: BitSkipForCausalLM and AutoModelForCausalLM open it"
            )
        return model_class

    def _ternary_linears(self) -> dict[str, TernaryLinear]:
        modules = self.named_modules()
        return {name: module for name, module in modules if isinstance(module, TernaryLinear)}

    def _restore_stored(self, state: Mapping[str, Tensor]) -> None:
        """Undo what `dtype` did to weights that are ternarised by their stored values."""
        for name, linear in self._ternary_linears().items():
            stored = state[f"{name}.weight"]
            if stored.dtype != linear.weight.dtype:
                linear.weight = nn.Parameter(stored.to(linear.weight.device))


class BitSkipV1ForCausalLM(BitSkipForCausalLM):
    """8-bit activations."""

    config_class = BitSkipV1Config


class BitSkipV2ForCausalLM(BitSkipForCausalLM):
    """4-bit activations of Hadamard-transformed inputs."""

    config_class = BitSkipV2Config


class BitSkipV3ForCausalLM(BitSkipForCausalLM):
    """8-bit activations of Hadamard-transformed inputs."""

    config_class = BitSkipV3Config


class BitSkipPackedForCausalLM(BitSkipForCausalLM):
    """Any ternary variant, from the directory that `bitskip pack` wrote; unpacked in memory."""

    config_class = BitSkipPackedConfig


MODELS: dict[type[BitSkipConfig], type[BitSkipForCausalLM]] = {
    BitSkipConfig: BitSkipForCausalLM,
    BitSkipV1Config: BitSkipV1ForCausalLM,
    BitSkipV2Config: BitSkipV2ForCausalLM,
    BitSkipV3Config: BitSkipV3ForCausalLM,
    BitSkipPackedConfig: BitSkipPackedForCausalLM,
}
"""By configuration."""
