"""From a checkpoint, checked as the engine checks it, to what transformers makes a model of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig

from engine.checkpoint.hub import download_model, is_hub_id
from engine.checkpoint.loader import Checkpoint, PackedCheckpoint
from engine.checkpoint.names import expected_shapes, linear_places, published_name
from engine.errors import CheckpointError, ConfigError
from engine.hf.config import CONFIGS, BitSkipConfig

_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
_DROPPED_OPTIONS = ("trust_remote_code", "code_revision", "_from_auto", "adapter_kwargs")
"""What the auto classes pass along, and what asks for code: there is none to run."""
_REFUSED_OPTIONS = (
    "gguf_file",
    "ignore_mismatched_sizes",
    "key_mapping",
    "quantization_config",
    "state_dict",
    "subfolder",
    "variant",
)


def checkpoint_directory(name: str | os.PathLike[str], options: dict[str, Any]) -> Path:
    """Where a checkpoint lies, fetched from the hub if `name` is an id and no directory.

    Takes the options that are answered here out of `options`. Raises `ConfigError` for those
    that cannot be honoured, `CheckpointError` where nothing is found.
    """
    for option in _DROPPED_OPTIONS:
        options.pop(option, None)
    for option in _REFUSED_OPTIONS:
        if options.pop(option, None):
            raise ConfigError(f"{option} is not supported: weights are read as the engine does")
    if options.pop("use_safetensors", None) is False:
        raise ConfigError("use_safetensors false is not supported: pickles are never opened")
    hub = {option: options.pop(option) for option in _HUB_OPTIONS if option in options}
    path = Path(name)
    if not path.exists() and is_hub_id(os.fspath(name)):
        return download_model(os.fspath(name), **hub)
    return path


def read_config(
    source: Path, config: LlamaConfig | None, options: dict[str, Any]
) -> tuple[BitSkipConfig, dict[str, Any]]:
    """The configuration to be used, and the options that are not fields of it.

    That is the given one, or the directory's with the fields that `options` gives otherwise.
    Raises `ConfigError` for a model_type that has no class here.
    """
    if config is None:
        raw, _ = LlamaConfig.get_config_dict(source)
        config_class = CONFIGS.get(raw.get("model_type", ""))
        if config_class is None:
            raise ConfigError(
                f"{source}: model_type {raw.get('model_type')!r} is not one of {', '.join(CONFIGS)}"
            )
        loaded: Any = config_class.from_dict(raw, return_unused_kwargs=True, **options)
        ours, options = loaded
    else:
        ours = (
            config
            if isinstance(config, BitSkipConfig)
            else BitSkipConfig.from_dict(config.to_dict())
        )
    # Code that a checkpoint brings is never run, nor will it be where this model is saved.
    vars(ours).pop("auto_map", None)
    return ours, options


def read_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Every tensor under the name that transformers' Llama gives it, in its stored dtype.

    Packed linears become float32, each element −s, 0 or +s.
    """
    places = linear_places(checkpoint.config)
    state = {}
    for name, shape in expected_shapes(checkpoint.config).items():
        if name in places and isinstance(checkpoint, PackedCheckpoint):
            weight = checkpoint.linear(*places[name])
            tensor = torch.from_numpy(weight.trits * weight.scale)
        else:
            if name in places and checkpoint.config.weights == "ternary":
                checkpoint.linear(*places[name])  # Raises unless it is.
            values = np.concatenate(list(checkpoint.stored_chunks(name)))
            tensor = torch.from_numpy(values.reshape(shape))
            if checkpoint.stored_dtype(name) == "bf16":
                tensor = tensor.view(torch.bfloat16)
        state[published_name(name)] = tensor
    return state


def refuse_gaps(source: Path, report: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` if a weight of the model is none of the checkpoint's, or the reverse.

    `report` is transformers' loading info.
    """
    problems = [
        f"{name}: {problem}"
        for problem in ("missing", "unexpected", "mismatched")
        for name in sorted(map(str, report[f"{problem}_keys"]))
    ]
    if problems:
        raise CheckpointError(
            f"{source}: does not fill the model that was asked for:\n  " + "\n  ".join(problems)
        )
