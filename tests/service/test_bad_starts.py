"""What keeps a server from starting is said in one clear message, and ends it with code 1."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.checkpoints import RawTensor, raw_tensor, read_safetensors, write_safetensors
from support.served_process import NUM_LAYERS, run_command, write_model, write_packed_model
from support.variants import POWERS_OF_TWO, VARIANTS

WEIGHTS = "model.safetensors"
NAME = "model.layers.1.mlp.down_proj.weight"

Tensors = dict[str, RawTensor]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def refusal(*arguments: str | Path, code: int = 1, **variables: str) -> str:
    """What a server that must not start says."""
    done = run_command("serve", *arguments, **variables)
    assert done.returncode == code, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr, done.stderr
    if code == 1:
        # What the log said before is another matter.
        first, *rest = [line for line in done.stderr.splitlines() if " INFO " not in line]
        assert first.startswith("error: ")
        # Only a list of tensors goes on below the first line.
        assert all(line.startswith("  ") for line in rest), done.stderr
        return "\n".join([first, *rest])
    return done.stderr


def change_tensors(change: Callable[[Tensors], object]) -> Callable[[Path], object]:
    def apply(model: Path) -> None:
        tensors, _ = read_safetensors(model / WEIGHTS)
        change(tensors)
        write_safetensors(model / WEIGHTS, tensors)

    return apply


def rename(tensors: Tensors) -> None:
    tensors[NAME.replace("down_proj", "lower_proj")] = tensors.pop(NAME)


def transpose(tensors: Tensors) -> None:
    tensors[NAME] = tensors[NAME]._replace(shape=tensors[NAME].shape[::-1])


def put_nan(tensors: Tensors) -> None:
    values = np.zeros(tensors[NAME].shape, np.float32)
    values[3, 5] = np.nan
    tensors[NAME] = raw_tensor(values, "fp32")


def truncate(model: Path) -> None:
    file = model / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


def pickle_instead(model: Path) -> None:
    (model / WEIGHTS).unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def change_config(**fields: Any) -> Callable[[Path], object]:
    def apply(model: Path) -> None:
        file = model / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return apply


DAMAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no directory": (shutil.rmtree, ("no such directory",)),
    "truncated": (truncate, (WEIGHTS, "not a complete safetensors file")),
    "renamed": (change_tensors(rename), ("down_proj", "missing", "lower_proj")),
    "transposed": (change_tensors(transpose), (NAME, "[140, 48]", "[48, 140]")),
    "NaN": (change_tensors(put_nan), (WEIGHTS, "layers.1.mlp.down_proj", "NaN")),
    "pickle": (pickle_instead, ("pytorch_model.bin", "pickle")),
    "no weights": (lambda model: (model / WEIGHTS).unlink(), (WEIGHTS,)),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), ("tokenizer.json",)),
    "broken tokenizer": (
        lambda model: (model / "tokenizer.json").write_text("{"),
        ("tokenizer.json", "not a usable tokenizer"),
    ),
    "no config": (lambda model: (model / "config.json").unlink(), ("config.json",)),
    "broken config": (
        lambda model: (model / "config.json").write_text("{'a'"),
        ("config.json", "not valid JSON"),
    ),
    "another family": (change_config(model_type="gpt2"), ("config.json", "'gpt2'")),
    "a word for a number": (change_config(rope_theta="x"), ("config.json", "rope_theta", "'x'")),
    "a word for an id": (change_config(eos_token_id="x"), ("config.json", "eos_token_id", "'x'")),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_a_model_that_cannot_be_served(
    model: Path, damage: Callable[[Path], object], words: tuple[str, ...]
) -> None:
    damage(model)
    message = refusal(model, "--port", "0")
    for word in (str(model), *words):
        assert word in message


FAMILY_DAMAGES = [
    ("v2", "truncated"),
    ("v3", "NaN"),
    ("v3-quantise-first", "renamed"),
    ("dense", "NaN"),
    ("dense", "renamed"),
    ("dense", "pickle"),
]


@pytest.mark.parametrize(("variant", "damage"), FAMILY_DAMAGES)
def test_a_variant_that_cannot_be_served(variant: str, damage: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", **POWERS_OF_TWO, **VARIANTS[variant])
    apply, words = DAMAGES[damage]
    apply(model)
    message = refusal(model, "--port", "0", "--backend", "reference")
    for word in (str(model), *words):
        assert word in message


def test_a_packed_model_with_a_broken_scale(tmp_path: Path) -> None:
    model = write_packed_model(tmp_path / "model", **POWERS_OF_TWO, **VARIANTS["v2"])
    tensors, metadata = read_safetensors(model / WEIGHTS)
    name = "layers.1.mlp.down_proj.weight_scale"
    tensors[name] = raw_tensor(np.array([np.nan], np.float32), "fp32")
    write_safetensors(model / WEIGHTS, tensors, metadata)
    message = refusal(model, "--port", "0", "--backend", "reference")
    assert f"{model / WEIGHTS}: {name}: must be a positive number, not nan" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--backend", "abacus"), ("'abacus'", "reference")),
        (("--draft-exit-layer", "7"), ("draft_exit_layer", f"1..{NUM_LAYERS}")),
        (("--draft-exit-layer", "0"), ("draft_exit_layer", f"1..{NUM_LAYERS}")),
        (("--max-model-len", "0"), ("max_model_len",)),
        (("--log-level", "loud"), ("log_level", "'debug'")),
        (("--host", "no.such.host.invalid"), ("no.such.host.invalid",)),
    ],
)
def test_options_that_cannot_be_served(
    sound: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    message = refusal(sound, "--port", "0", *options)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message


def test_options_that_make_no_sense(sound: Path) -> None:
    assert "--draft-exit-layer" in refusal(sound, "--draft-exit-layer", "x", code=2)
    assert "--tensor-parallel" in refusal(sound, "--tensor-parallel", "2", code=2)


def test_a_taken_port(sound: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refusal(sound, "--port", str(port))
    assert f"127.0.0.1:{port}" in message and "in use" in message


def test_several_workers(sound: Path) -> None:
    message = refusal(sound, "--port", "0", WEB_CONCURRENCY="2")
    assert "WEB_CONCURRENCY" in message and "one worker" in message
