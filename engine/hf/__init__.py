"""Hugging Face transformers' classes for the family. Importing this registers them.

    import engine.hf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(PATH)
    model.set_exit_layer(6)

Registered are the family's own model_types. A dense `llama`, LayerSkip's checkpoints among
them, stays transformers' own to the auto classes; `BitSkipForCausalLM.from_pretrained` opens it
with an exit layer.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from engine.hf.config import (
    BitSkipConfig,
    BitSkipPackedConfig,
    BitSkipV1Config,
    BitSkipV2Config,
    BitSkipV3Config,
)
from engine.hf.model import (
    MODELS,
    BitSkipForCausalLM,
    BitSkipPackedForCausalLM,
    BitSkipV1ForCausalLM,
    BitSkipV2ForCausalLM,
    BitSkipV3ForCausalLM,
)

__all__ = [
    "BitSkipConfig",
    "BitSkipForCausalLM",
    "BitSkipPackedConfig",
    "BitSkipPackedForCausalLM",
    "BitSkipV1Config",
    "BitSkipV1ForCausalLM",
    "BitSkipV2Config",
    "BitSkipV2ForCausalLM",
    "BitSkipV3Config",
    "BitSkipV3ForCausalLM",
]

for _config, _model in MODELS.items():
    if _config is not BitSkipConfig:
        AutoConfig.register(_config.model_type, _config)
        AutoModelForCausalLM.register(_config, _model)
        AutoTokenizer.register(_config, fast_tokenizer_class=PreTrainedTokenizerFast)
