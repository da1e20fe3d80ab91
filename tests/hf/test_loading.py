"""What loads, what is refused, and that nothing of a checkpoint is ever run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

import engine.hf
from engine.checkpoint.loader import load_checkpoint
from engine.checkpoint.packing import pack_checkpoint
from engine.errors import CheckpointError, ConfigError
from engine.hf import BitSkipForCausalLM
from engine.hf.linear import TernaryLinear, ternarise
from support.checkpoints import raw_tensor, read_safetensors, write_safetensors
from support.family import TERNARY, write_family

WEIGHTS = "model.safetensors"
TOKENS = torch.tensor([[5, 250, 17, 88, 131]])
OPENERS = {"auto": AutoModelForCausalLM, "ours": BitSkipForCausalLM}


def change_config(path: Path, **changes: Any) -> Path:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return path


def change_tensors(path: Path, **changes: np.ndarray | None) -> Path:
    """Tensors by name, with __ for a point; None takes one out."""
    tensors, metadata = read_safetensors(path / WEIGHTS)
    for name, values in changes.items():
        spelt = name.replace("__", ".")
        if values is None:
            del tensors[spelt]
        else:
            tensors[spelt] = raw_tensor(values.astype(np.float32), "fp32")
    write_safetensors(path / WEIGHTS, tensors, metadata)
    return path


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("variant", TERNARY)
@pytest.mark.parametrize("packed", [False, True])
def test_each_model_type_has_its_class(
    variant: str, opener: str, packed: bool, tmp_path: Path
) -> None:
    path = write_family(tmp_path / "m", variant)
    if packed:
        pack_checkpoint(path, tmp_path / "packed")
        path = tmp_path / "packed"
    model = OPENERS[opener].from_pretrained(path)
    name = "Packed" if packed else variant[:2].upper()
    assert type(model).__name__ == f"BitSkip{name}ForCausalLM"
    assert not model.training and model.dtype == torch.float32
    with load_checkpoint(path) as checkpoint:
        assert model.config.model_config() == checkpoint.config
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.decode(tokenizer("the cat")["input_ids"]) == "the cat"


@pytest.mark.parametrize("opener", OPENERS)
def test_older_packed_directories_load_under_their_model_type(opener: str, tmp_path: Path) -> None:
    pack_checkpoint(write_family(tmp_path / "m", "v3"), tmp_path / "packed")
    before = logits_of(OPENERS[opener].from_pretrained(tmp_path / "packed"))
    change_config(tmp_path / "packed", model_type="bitskip_v3_earlyexit")
    model = OPENERS[opener].from_pretrained(tmp_path / "packed")
    assert type(model) is engine.hf.BitSkipV3ForCausalLM
    assert torch.equal(logits_of(model), before)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_dense_llamas_get_an_exit_layer(dtype: str, tied: bool, tmp_path: Path) -> None:
    """As LayerSkip's: the same logits as transformers' own class, and exits besides."""
    path = write_family(tmp_path / "m", "dense", dtype=dtype, tie_word_embeddings=tied)
    file = path / "config.json"
    raw = json.loads(file.read_text())
    ours = ("weights", "exit_norm", "activation_bits", "hadamard")
    llama = {name: value for name, value in raw.items() if name not in ours}
    llama["rope_scaling"] = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    file.write_text(json.dumps(llama | {"architectures": ["LlamaForCausalLM"]}))
    assert type(AutoModelForCausalLM.from_pretrained(path)) is LlamaForCausalLM
    theirs = LlamaForCausalLM.from_pretrained(path)
    model = BitSkipForCausalLM.from_pretrained(path)
    assert type(model) is BitSkipForCausalLM and model.dtype == theirs.dtype
    assert torch.equal(logits_of(model), logits_of(theirs))

    theirs.config.num_hidden_layers = 2
    model.set_exit_layer(2)
    assert torch.equal(logits_of(model), logits_of(theirs))
    assert not any(isinstance(module, TernaryLinear) for module in model.modules())
    model.save_pretrained(tmp_path / "saved")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "saved")
    model.set_exit_layer(4)
    assert torch.equal(logits_of(again), logits_of(model))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"] == [
        "LlamaForCausalLM"
    ]


def test_device_maps_keep_layers_whole(tmp_path: Path) -> None:
    """They know them by their class's name; a residual cannot cross from device to device."""
    model = AutoModelForCausalLM.from_pretrained(write_family(tmp_path / "m"))
    layers = {type(layer).__name__ for layer in model.model.layers}
    for part in (model, model.model):
        assert layers <= set(part._no_split_modules or ())


def test_llama_stays_transformers_own() -> None:
    assert AutoConfig.for_model("llama").__class__ is LlamaConfig


PROBLEMS: dict[str, tuple[dict[str, np.ndarray | None], str]] = {
    "missing": ({"model__layers__1__mlp__up_proj__weight": None}, r"up_proj\.weight: missing"),
    "misshaped": ({"model__norm__weight": np.ones(65)}, r"norm\.weight: found F32 \[65\]"),
    "extra": ({"model__layers__4__mlp__up_proj__weight": np.ones((2, 2))}, "no such tensor"),
    "not finite": ({"lm_head__weight": np.full((300, 64), np.inf)}, r"lm_head\.weight: holds NaN"),
}


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_weight_is_never_left_as_it_was_initialised(
    problem: str, opener: str, packed: bool, tmp_path: Path
) -> None:
    changes, message = PROBLEMS[problem]
    path = write_family(tmp_path / "m")
    if packed:
        pack_checkpoint(path, tmp_path / "packed")
        path = tmp_path / "packed"
        changes = {name.removeprefix("model__"): values for name, values in changes.items()}
    change_tensors(path, **changes)
    with pytest.raises(CheckpointError, match=message):
        OPENERS[opener].from_pretrained(path)


@pytest.mark.parametrize("opener", OPENERS)
def test_a_larger_model_than_the_checkpoint_fills_is_refused(opener: str, tmp_path: Path) -> None:
    path = write_family(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"layers\.4\.mlp\.up_proj\.weight: missing"):
        OPENERS[opener].from_pretrained(path, num_hidden_layers=5)
    with pytest.raises(CheckpointError, match=r"layers\.3\.mlp\.up_proj\.weight: unexpected"):
        OPENERS[opener].from_pretrained(path, num_hidden_layers=3)


@pytest.mark.parametrize("opener", OPENERS)
def test_fields_can_be_overridden(opener: str, tmp_path: Path) -> None:
    path = write_family(tmp_path / "m", exit_norm=True)
    model = OPENERS[opener].from_pretrained(path, exit_norm=False, activation_bits=4)
    assert (model.config.exit_norm, model.config.activation_bits) == (False, 4)
    assert not torch.equal(logits_of(model), logits_of(OPENERS[opener].from_pretrained(path)))


HOSTILE = "import pathlib\npathlib.Path({mark!r}).touch()\nfrom transformers import {name}\n"


@pytest.mark.parametrize("trust", [None, False, True])
@pytest.mark.parametrize("opener", OPENERS)
def test_code_beside_the_weights_is_never_run(
    opener: str, trust: bool | None, tmp_path: Path
) -> None:
    path, mark = write_family(tmp_path / "m"), tmp_path / "executed"
    change_config(
        path,
        auto_map={
            "AutoConfig": "hostile.LlamaConfig",
            "AutoModelForCausalLM": "hostile.LlamaForCausalLM",
        },
    )
    (path / "hostile.py").write_text(HOSTILE.format(mark=str(mark), name="LlamaForCausalLM"))
    (path / "custom_generate").mkdir()
    generate = HOSTILE.format(mark=str(mark), name="LlamaConfig") + "def generate(model): ...\n"
    (path / "custom_generate" / "generate.py").write_text(generate)
    options = {} if trust is None else {"trust_remote_code": trust}
    model = OPENERS[opener].from_pretrained(path, **options)
    assert type(model) is engine.hf.BitSkipV1ForCausalLM
    model.generate(TOKENS, max_new_tokens=2)
    model.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert not list((tmp_path / "saved").glob("*.py"))
    assert not mark.exists()


@pytest.mark.parametrize("variant", ["v1", "v3"])
@pytest.mark.parametrize("stored", ["fp32", "bf16"])
@pytest.mark.parametrize("asked", [torch.bfloat16, torch.float16, "bfloat16", "auto"])
def test_half_precision_moves_no_code_and_no_scale(
    variant: str, stored: str, asked: Any, tmp_path: Path
) -> None:
    path = write_family(tmp_path / "m", variant, dtype=stored)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=asked)
    held = getattr(torch, asked, None) if isinstance(asked, str) else asked
    if asked == "auto":
        held = torch.bfloat16 if stored == "bf16" else torch.float32
    assert model.lm_head.weight.dtype == model.model.norm.weight.dtype == held
    with load_checkpoint(path) as checkpoint:
        weight = checkpoint.linear(2, "down_proj")
    linear = model.model.layers[2].mlp.down_proj
    trits, scale = ternarise(linear.weight)
    assert np.array_equal(trits.numpy(), weight.trits) and scale == float(weight.scale)
    logits, exact = logits_of(model), logits_of(AutoModelForCausalLM.from_pretrained(path))
    assert logits.dtype == held
    assert (logits.float() - exact).abs().mean() < 0.3  # Of a standard deviation of 3.


def test_a_packed_model_is_held_in_half_precision(tmp_path: Path) -> None:
    pack_checkpoint(write_family(tmp_path / "m"), tmp_path / "packed")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "saved")
    with load_checkpoint(tmp_path / "saved") as saved, load_checkpoint(tmp_path / "packed") as one:
        assert saved.linear(1, "k_proj").scale == one.linear(1, "k_proj").scale


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gguf_file": "x.gguf"}, "gguf_file is not supported"),
        ({"variant": "fp16"}, "variant is not supported"),
        ({"subfolder": "x"}, "subfolder is not supported"),
        ({"ignore_mismatched_sizes": True}, "ignore_mismatched_sizes is not supported"),
        ({"use_safetensors": False}, "pickles are never opened"),
    ],
)
def test_options_that_cannot_be_honoured(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        BitSkipForCausalLM.from_pretrained(write_family(tmp_path / "m"), **options)


def test_a_directory_of_another_class(tmp_path: Path) -> None:
    path = write_family(tmp_path / "m", "v2")
    with pytest.raises(ConfigError, match="is BitSkipV2ForCausalLM's, not BitSkipV1ForCausalLM's"):
        engine.hf.BitSkipV1ForCausalLM.from_pretrained(path)
    change_config(path, model_type="gpt2")
    with pytest.raises(ConfigError, match="model_type 'gpt2' is not one of llama, bitskip_v1"):
        BitSkipForCausalLM.from_pretrained(path)


@pytest.mark.parametrize("opener", OPENERS)
def test_impossible_configurations(opener: str, tmp_path: Path) -> None:
    path = change_config(write_family(tmp_path / "m", "v2"), activation_bits=5)
    with pytest.raises(Exception, match="activation_bits must be 4 or 8"):
        OPENERS[opener].from_pretrained(path)


@pytest.mark.parametrize("opener", OPENERS)
def test_without_a_network_hub_ids_say_so(
    opener: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    program = (
        "import sys, engine.hf, transformers\n"
        f"home = engine.hf if {opener == 'ours'} else transformers\n"
        f"opener = home.{OPENERS[opener].__name__}\n"
        "try:\n    opener.from_pretrained('org/bitskip-v1')\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    text = " ".join(done.stdout.split())
    if opener == "ours":
        assert text.startswith("CheckpointError org/bitskip-v1: no such directory, and")
        assert "no earlier download is in the cache" in text
    else:
        assert re.match(r"OSError .*(offline|connect)", text), text


def test_the_package_stays_light() -> None:
    program = (
        "import sys, engine, engine.llm, engine.build\n"
        "print(sorted({'torch', 'transformers', 'engine.hf'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
