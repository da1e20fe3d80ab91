"""`bitskip export --format hf`: what it writes, and what it refuses. Round trips: tests/hf."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from engine.checkpoint.hf_export import export_huggingface
from engine.checkpoint.loader import load_checkpoint
from engine.checkpoint.packing import pack_checkpoint
from engine.checkpoint.ternary import round_to
from engine.errors import CheckpointError
from server.cli import app
from support.checkpoints import raw_tensor, read_safetensors, stored_values, write_safetensors
from support.family import write_family

WEIGHTS = "model.safetensors"


def export(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments), "--format", "hf"])


def change_tensor(path: Path, name: str, values: np.ndarray) -> None:
    tensors, metadata = read_safetensors(path / WEIGHTS)
    tensors[name] = raw_tensor(values.astype(np.float32), "fp32")
    write_safetensors(path / WEIGHTS, tensors, metadata)


def read_json(file: Path) -> dict[str, object]:
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_directory_is_whole(tmp_path: Path) -> None:
    source = write_family(tmp_path / "source")
    raw = read_json(source / "config.json")
    raw |= {"auto_map": {"AutoModelForCausalLM": "x.Y"}, "torch_dtype": "bfloat16", "extra": 7}
    (source / "config.json").write_text(json.dumps(raw))
    pack_checkpoint(source, tmp_path / "packed")
    result = export(tmp_path / "packed", tmp_path / "out")
    assert result.exit_code == 0
    size = (tmp_path / "out" / WEIGHTS).stat().st_size
    assert f"exported ternary weights to {tmp_path / 'out'}: {size / 1e6:.1f} MB" in result.stderr
    assert "moved" not in result.stderr
    names = {file.name for file in (tmp_path / "out").iterdir()}
    files = {"config.json", WEIGHTS, "generation_config.json"}
    assert names == files | {"tokenizer.json", "tokenizer_config.json"}
    config = read_json(tmp_path / "out" / "config.json")
    assert config["model_type"] == "bitskip_v1_earlyexit"
    assert (config["weights"], config["dtype"], config["extra"]) == ("ternary", "float32", 7)
    assert "auto_map" not in config and "torch_dtype" not in config
    assert read_json(tmp_path / "out" / "generation_config.json") == {"eos_token_id": 299}
    tensors, metadata = read_safetensors(tmp_path / "out" / WEIGHTS)
    assert metadata == {"format": "pt"}
    assert {tensor.tag for tensor in tensors.values()} == {"F32"}
    assert "model.layers.3.self_attn.o_proj.weight" in tensors and "lm_head.weight" in tensors


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_floats_and_scales_are_rounded_to_the_dtype(dtype: str, tmp_path: Path) -> None:
    source = write_family(tmp_path / "source", "v2", weights="ternary")
    result = export(source, tmp_path / "out", "--dtype", dtype)
    assert result.exit_code == 0 and f"{dtype} moved scales by at most 0." in result.stderr
    with load_checkpoint(source) as before, load_checkpoint(tmp_path / "out") as after:
        one, two = before.linear(2, "k_proj"), after.linear(2, "k_proj")
        assert np.array_equal(one.trits, two.trits)
        assert two.scale == round_to(float(one.scale), dtype)  # pyright: ignore[reportArgumentType]
        for name in ("embed_tokens.weight", "norm.weight", "lm_head.weight"):
            assert after.stored_dtype(name) == dtype
            rounded = stored_values(before.tensor(name), dtype)  # pyright: ignore[reportArgumentType]
            assert np.array_equal(after.tensor(name), rounded)


@pytest.mark.parametrize(("weights", "told"), [("latent", "latent"), ("ternary", "ternary")])
def test_what_the_weights_are_is_found_out(weights: str, told: str, tmp_path: Path) -> None:
    source = write_family(tmp_path / "source", weights=weights)
    raw = read_json(source / "config.json")
    (source / "config.json").write_text(json.dumps(raw | {"weights": "latent"}))
    assert export_huggingface(source, tmp_path / "out").weights == told
    assert read_json(tmp_path / "out" / "config.json")["weights"] == told


def test_a_dense_model(tmp_path: Path) -> None:
    source = write_family(tmp_path / "source", "dense", dtype="bf16")
    summary = export_huggingface(source, tmp_path / "out")
    config = read_json(tmp_path / "out" / "config.json")
    assert (summary.weights, config["weights"], config["model_type"]) == ("dense", "dense", "llama")
    with load_checkpoint(source) as before, load_checkpoint(tmp_path / "out") as after:
        for name in ("layers.0.mlp.down_proj.weight", "lm_head.weight"):
            assert np.array_equal(before.tensor(name), after.tensor(name))


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    export_huggingface(
        write_family(tmp_path / "source"), tmp_path / "out", lambda *step: steps.append(step)
    )
    done, totals = zip(*steps, strict=True)
    assert list(done) == sorted(done) and done[-1] == totals[-1] and len(set(totals)) == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lm_head.weight", 1e5, "lm_head.weight: holds values too large for fp16"),
        ("model.layers.1.mlp.up_proj.weight", 1e6, "its scale 1e+06 does not fit in fp16"),
        ("model.layers.1.mlp.up_proj.weight", 1e-9, "its scale 1e-09 does not fit in fp16"),
        ("model.norm.weight", np.nan, "norm.weight: holds NaN"),
    ],
)
def test_values_that_do_not_fit_leave_nothing_behind(
    name: str, value: float, message: str, tmp_path: Path
) -> None:
    source = write_family(tmp_path / "source", weights="ternary")
    tensors, _ = read_safetensors(source / WEIGHTS)
    change_tensor(source, name, np.full(tensors[name].shape, value))
    with pytest.raises(CheckpointError, match=message.replace("+", r"\+")):
        export_huggingface(source, tmp_path / "out", dtype="fp16")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = write_family(tmp_path / "source")
    result = export(source, source)
    assert result.exit_code == 1 and "is not empty" in result.stderr
    (tmp_path / "empty").mkdir()
    assert export(source, tmp_path / "empty").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "onnx"), "must be gguf or hf"),
        (("--format", "hf", "--dtype", "int8"), "must be one of fp32, bf16, fp16"),
        (("--dtype", "fp16"), "is for --format hf"),
        (("--format", "hf", "--layers", "2"), "is for --format gguf"),
    ],
)
def test_options_that_make_no_sense(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    source = write_family(tmp_path / "source")
    result = CliRunner().invoke(app, ["export", str(source), str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
