"""`bitskip inspect`: counts against independent ones, and a broken model for each warning."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from engine.checkpoint.names import LM_HEAD, expected_shapes, is_linear, published_name
from engine.checkpoint.packing import pack_checkpoint
from engine.config import ModelConfig
from server.cli import app
from support.checkpoints import (
    Dtype,
    random_tensors,
    raw_tensor,
    read_safetensors,
    stored_values,
    tiny_config,
    write_checkpoint,
    write_safetensors,
)
from support.served_process import ROOT, write_model
from support.tokenizers import write_tokenizer
from support.variants import LLAMA3_ROPE, variant_config

VOCAB_SIZE = 320
LINEAR = "layers.1.mlp.up_proj.weight"
HELDOUT = ROOT / "tests" / "data" / "heldout_stories.txt"

Values = NDArray[np.float32]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)], env={"COLUMNS": "100"})


def report_of(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def config() -> ModelConfig:
    return tiny_config(vocab_size=VOCAB_SIZE, eos_token_ids=(VOCAB_SIZE - 1,))


def write_changed(path: Path, change: Callable[[str, Values], Values], **fields: Any) -> Path:
    """A random model whose tensors went through `change`."""
    model = ModelConfig.from_dict(config().to_dict() | fields)
    write_tokenizer(write_checkpoint(path, model), VOCAB_SIZE)
    tensors = {
        published_name(name): raw_tensor(change(name, values), "fp32")
        for name, values in random_tensors(model).items()
    }
    write_safetensors(path / "model.safetensors", tensors)
    return path


def counted(weight: Values) -> dict[str, int]:
    """Trits by the definition, element by element."""
    scale = np.float32(np.abs(weight).mean(dtype=np.float64))
    signs = [0 if abs(w) <= scale / 2 else int(np.sign(w)) for w in weight.ravel()]
    return {f"num_{n}": signs.count(s) for n, s in (("minus", -1), ("zero", 0), ("plus", 1))}


def test_counts_and_sizes_are_those_of_the_weights(tmp_path: Path) -> None:
    source = write_changed(tmp_path / "latent", lambda _, values: values)
    packed = tmp_path / "packed"
    pack_checkpoint(source, packed)
    latent_report, packed_report = report_of(source), report_of(packed)
    truth = random_tensors(config())
    for report, of_us in ((latent_report, False), (packed_report, True)):
        assert report["is_packed"] is of_us and report["is_usable"] and report["warnings"] == []
        assert [each["name"] for each in report["tensors"]] == list(truth)
        for each in report["tensors"]:
            values = truth[each["name"]]
            assert each["shape"] == list(values.shape)
            assert each["unpacked_bytes"] == values.nbytes
            if is_linear(each["name"]):
                assert each["trits"] == counted(values)
                assert each["scale"] == pytest.approx(np.abs(values).mean(dtype=np.float64))
            else:
                assert each["trits"] is None
                assert each["largest"] == np.abs(values).max()
        stored, metadata = read_safetensors(Path(report["path"]) / "model.safetensors")
        assert metadata is not None
        assert report["num_bytes"] == sum(len(tensor.data) for tensor in stored.values())
    assert latent_report["packed_bytes"] == packed_report["num_bytes"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_dense_models_have_no_trits(tmp_path: Path, dtype: Dtype) -> None:
    model = tiny_config(
        weights="dense", vocab_size=VOCAB_SIZE, num_layers=2, rope_scaling=LLAMA3_ROPE
    )
    path = write_tokenizer(write_checkpoint(tmp_path / "model", model, dtype=dtype), VOCAB_SIZE)
    report = report_of(path)
    assert (report["variant"], report["warnings"], report["packed_bytes"]) == ("dense", [], None)
    for each in report["tensors"]:
        values = np.abs(stored_values(random_tensors(model)[each["name"]], dtype))
        assert (each["is_ternary"], each["trits"], each["scale"]) == (False, None, None)
        assert each["largest"] == values.max() and each["smallest"] == values[values > 0].min()
        assert each["num_bytes"] == values.size * (4 if dtype == "fp32" else 2)
        assert each["packed_bytes"] is None
    shown = run(path, "--tensors").stdout
    assert "dense weights" in shown and "packed MB" not in shown and "ternary" not in shown
    assert "stretched 8 times from 100" in shown


@pytest.mark.parametrize("variant", ["v2", "v3-quantise-first"])
def test_the_variant_is_told(tmp_path: Path, variant: str) -> None:
    model = variant_config(variant, vocab_size=VOCAB_SIZE)
    path = write_tokenizer(write_checkpoint(tmp_path / "model", model), VOCAB_SIZE)
    report = report_of(path)
    assert report["variant"] == variant and report["warnings"] == []
    for each in report["tensors"]:
        if is_linear(each["name"]):
            assert each["trits"] == counted(random_tensors(model)[each["name"]])
    order = {"v2": "before", "v3-quantise-first": "after"}[variant]
    bits = {"v2": 4, "v3-quantise-first": 8}[variant]
    shown = " ".join(run(path).stdout.split())
    assert f"{bits}-bit activations, Hadamard-transformed {order} quantisation" in shown


def test_ternary_weights_that_are_called_dense(tmp_path: Path) -> None:
    def ternary(name: str, values: Values) -> Values:
        return np.sign(np.round(values * 9)) * np.float32(0.5) if name == LINEAR else values

    (warning,) = report_of(write_changed(tmp_path / "model", ternary, weights="dense"))["warnings"]
    assert warning.startswith(f"{LINEAR}: holds only 0 and ±0.5: ")


def test_names_that_are_mapped_and_ignored(tmp_path: Path) -> None:
    def rename(name: str) -> str:
        return "_orig_mod." + published_name(name).replace(".mlp.", ".feed_forward.")

    path = write_tokenizer(write_checkpoint(tmp_path / "model", config(), rename=rename), 320)
    tensors, _ = read_safetensors(path / "model.safetensors")
    extra = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors[extra] = raw_tensor(np.ones(4, np.float32), "fp32")
    write_safetensors(path / "model.safetensors", tensors)
    report = report_of(path)
    assert report["ignored"] == [extra]
    names = {each["name"]: each["stored_name"] for each in report["tensors"]}
    assert names == {name: rename(name) for name in expected_shapes(config())}
    shown = run(path).stdout
    assert extra in shown.replace("\n", "")
    assert "_orig_mod.model.layers.*.feed_forward.up_proj.weight" in shown


def test_memory_is_bounded_by_pieces_not_by_tensors(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model", tiny_config(vocab_size=200_000))
    report_of(path)  # What is imported on the way does not count.
    tracemalloc.start()
    try:
        report = report_of(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    largest = max(each["num_bytes"] for each in report["tensors"])
    assert largest == 200_000 * 48 * 4 and peak < largest / 2


def test_every_tensor_is_shown_on_request(tmp_path: Path) -> None:
    path = write_changed(tmp_path / "model", lambda _, values: values)
    name = "layers.2.self_attn.k_proj.weight"
    assert name in run(path, "--tensors").stdout and name not in run(path).stdout
    minus, zero, plus = (share / 768 for share in counted(random_tensors(config())[name]).values())
    (line,) = (line for line in run(path, "--tensors").stdout.splitlines() if name in line)
    assert line.split()[1:4] == [f"{share:.1%}" for share in (minus, zero, plus)]


def test_a_tied_head(tmp_path: Path) -> None:
    path = tmp_path / "tied"
    write_tokenizer(
        write_checkpoint(path, tiny_config(vocab_size=320, tie_word_embeddings=True)), 320
    )
    report = report_of(path)
    assert LM_HEAD not in [each["name"] for each in report["tensors"]]
    assert "tied to the embedding" in run(path).stdout
    assert report["memory"][1]["head"] == 0, "the reference backend holds the embedding alone"


def zeros(values: Values) -> Values:
    sparse = np.zeros_like(values)
    sparse.flat[0], sparse.flat[1] = 0.1, -0.1
    return sparse


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (zeros, "of its weights are zero"),
        (np.zeros_like, "a scale of 1e-06 makes it nothing"),
        (np.abs, "nearly all of its weights that are not zero are +1"),
        (lambda values: -np.abs(values), "nearly all of its weights that are not zero are −1"),
        (np.sign, "0.0% of its weights are zero: these are two values"),
        (lambda values: values * np.float32(1e4), "is huge"),
    ],
)
def test_weights_that_no_training_leaves(
    tmp_path: Path, broken: Callable[[Values], Values], message: str
) -> None:
    path = write_changed(
        tmp_path / "model", lambda name, values: broken(values) if name == LINEAR else values
    )
    report = report_of(path)
    assert report["is_usable"]
    assert all(warning.startswith(f"{LINEAR}: ") for warning in report["warnings"])
    assert any(message in warning for warning in report["warnings"])
    assert f"warning: {LINEAR}" in run(path).stdout


def test_lost_scales_and_an_empty_head(tmp_path: Path) -> None:
    def change(name: str, values: Values) -> Values:
        if name == LM_HEAD:
            return np.zeros_like(values)
        return np.sign(np.round(values * 9)) if is_linear(name) else values

    warnings = report_of(write_changed(tmp_path / "model", change))["warnings"]
    assert f"{LM_HEAD}: all of it is zero" in warnings
    assert any("every linear is exactly 1" in warning for warning in warnings)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_stored_scale_that_cannot_be(tmp_path: Path, value: float) -> None:
    pack_checkpoint(write_changed(tmp_path / "latent", lambda _, values: values), tmp_path / "bad")
    tensors, metadata = read_safetensors(tmp_path / "bad" / "model.safetensors")
    tensors[f"{LINEAR}_scale"] = raw_tensor(np.array([value], np.float32), "fp32")
    write_safetensors(tmp_path / "bad" / "model.safetensors", tensors, metadata)
    report = report_of(tmp_path / "bad", "--data", HELDOUT, code=1)
    (bad,) = (each for each in report["tensors"] if each["error"])
    assert bad["name"] == LINEAR and bad["scale"] is bad["trits"] is None
    (warning,) = report["warnings"]
    assert "cannot be used" in warning and "must be a positive number" in warning
    assert report["exits"] is None, "nothing is computed with such a tensor"


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    path = write_changed(
        tmp_path / "model", lambda name, v: v * np.float32(np.nan) if name == LM_HEAD else v
    )
    assert any("lm_head.weight: holds NaN" in each for each in report_of(path, code=1)["warnings"])


def test_what_is_no_model(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "missing", "no such directory"),
        (tmp_path, "neither model.safetensors nor"),
        (HELDOUT, "this is a file"),
    ):
        done = run(path)
        assert done.exit_code == 1 and done.stdout == ""
        assert message in done.stderr and "Traceback" not in done.stderr
    model = write_checkpoint(tmp_path / "model", config())
    (warning,) = report_of(model)["warnings"]
    assert warning.startswith("cannot be served: ") and "tokenizer" in warning
    assert "is not a list" in run(model, "--exits", "1;2").stderr


def test_exits_of_a_random_model_are_not_credible(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model")
    stories = tmp_path / "stories.txt"
    stories.write_text("Once upon a time there was a cat, and it was in the garden.")
    report = report_of(path, "--data", stories, "--exits", "2,4", "--threads", "1")
    exits = report["exits"]
    scores = {score["exit_layer"]: score for score in exits["report"]["exits"]}
    assert list(scores) == [2, 4, 6] and list(exits["other_norm"]) == ["2", "4", "6"]
    assert exits["other_norm"]["6"] == scores[6]["perplexity"], "full depth always has the norm"
    assert exits["other_norm"]["2"] != scores[2]["perplexity"]
    assert any("of guessing evenly" in warning for warning in report["warnings"])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_demo_model_is_credible(backend: str) -> None:
    arguments = ("--data", HELDOUT, "--exits", "3,6", "--max-documents", "3")
    report = report_of(*arguments, "--backend", backend, "--threads", "1")
    assert report["warnings"] == []
    assert report["suggested_exits"] == [3, 6, 9, 12] and report["draft_exit_layer"] == 3
    *early, full = report["exits"]["report"]["exits"]
    assert 10 < full["perplexity"] < 30
    for score in early:
        assert score["chance_agreement"] < 0.1 < 0.6 < score["agreement"]
        assert report["exits"]["other_norm"][str(score["exit_layer"])] > score["perplexity"]
    assert report["exits"]["best"]["exit_layer"] in (3, 6)
