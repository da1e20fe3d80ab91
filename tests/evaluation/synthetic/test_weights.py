"""Random tensors: their distribution, and that they are made one by one."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.checkpoint.names import EMBEDDING, FINAL_NORM, LINEARS, LM_HEAD, linear_name
from engine.checkpoint.packed_file import write_packed_file
from engine.evaluation.synthetic.shapes import parse_shape
from engine.evaluation.synthetic.vocabulary import frequent_ids
from engine.evaluation.synthetic.weights import SyntheticWeights, linear_scales

TINY = parse_shape("tiny")


def test_trits_are_uniform_and_differ_between_linears() -> None:
    weights = SyntheticWeights(TINY, 0, 2, 0.1)
    codes = {
        (layer, linear): weights.packed_linear(layer, linear)[0]
        for layer in range(2)
        for linear in LINEARS
    }
    for packed in codes.values():
        shares = [np.mean((packed[..., None] >> np.arange(0, 8, 2)) & 3 == c) for c in range(4)]
        assert shares == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=0.01)
    assert len({packed.tobytes() for packed in codes.values()}) == len(codes)


def test_tensors_do_not_depend_on_each_other() -> None:
    one, two = SyntheticWeights(TINY, 5, 2, 0.1), SyntheticWeights(TINY, 5, 2, 0.1)
    one.packed_linear(0, "q_proj")
    assert np.array_equal(one.packed_linear(7, "o_proj")[0], two.packed_linear(7, "o_proj")[0])
    other_seed = SyntheticWeights(TINY, 6, 2, 0.1)
    assert np.any(two.packed_linear(3, "o_proj")[0] != other_seed.packed_linear(3, "o_proj")[0])


def test_only_what_deep_layers_add_is_scaled() -> None:
    plain, scaled = linear_scales(TINY, 3, 1.0), linear_scales(TINY, 3, 0.25)
    for layer in range(TINY.num_layers):
        for linear in LINEARS:
            name = linear_name(layer, linear)
            factor = 0.25 if layer >= 3 and linear in ("o_proj", "down_proj") else 1.0
            assert scaled[name] == factor * plain[name]


def test_a_unit_input_stays_a_unit_input() -> None:
    weights = SyntheticWeights(TINY, 0, 2, 1.0)
    codes, scale = weights.packed_linear(0, "up_proj")
    trits = ((codes[..., None] >> np.arange(0, 8, 2)) & 3).astype(np.float64) - 1
    assert scale**2 * TINY.hidden_size * np.mean(trits**2) == pytest.approx(1.0, rel=0.02)


def test_the_head_damps_what_is_not_to_be_written() -> None:
    config = parse_shape("2x256")
    weights = SyntheticWeights(config, 0, 1, 0.1)
    head = np.concatenate(list(weights.float_chunks(LM_HEAD))).astype(np.float32)
    embedding = np.concatenate(list(weights.float_chunks(EMBEDDING))).astype(np.float32)
    assert head.shape == embedding.shape == (config.vocab_size, config.hidden_size)
    frequent = frequent_ids(config.vocab_size)
    deviations = head.std(axis=1) * np.sqrt(config.hidden_size)
    assert deviations[frequent.start : frequent.stop].min() > 6.0
    assert max(deviations[: frequent.start].max(), deviations[frequent.stop :].max()) < 2.6
    assert embedding.std() == pytest.approx(1.0, rel=0.01)
    assert np.all(next(weights.float_chunks(FINAL_NORM)) == 1.0)


def test_unaligned_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="whole blocks"):
        SyntheticWeights(replace(TINY, intermediate_size=500), 0, 2, 0.1)


def test_a_large_model_is_written_in_pieces(tmp_path: Path) -> None:
    config = parse_shape("2x256")
    calls: list[tuple[int, int]] = []
    tracemalloc.start()
    try:
        source = SyntheticWeights(config, 0, 1, 0.1, lambda *call: calls.append(call))
        size = write_packed_file(tmp_path / "model.safetensors", source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 51_000_000 and peak < 5_000_000
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    (total,) = {of for _, of in calls}
    assert calls[-1] == (total, total) and size - 20_000 < total < size
