"""The decoder's arithmetic on single numbers and rows, but for the linears."""

import math

import numpy as np
import pytest
import torch

from engine.model.ops import RMSNorm, rotary_tables, rotate, rowwise, silu, single_threaded
from engine.model.rotary import rotary_angles
from support.checkpoints import tiny_config

CPU = torch.device("cpu")


def test_rms_norm_and_silu_against_float64():
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((9, 40)) * 7).astype(np.float32)
    gain = rng.uniform(0.5, 2, 40).astype(np.float32)
    exact = x.astype(np.float64)
    normed = exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + 1e-5) * gain
    actual = RMSNorm(torch.from_numpy(gain), 1e-5)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(actual, normed, rtol=1e-6)
    np.testing.assert_allclose(
        silu(torch.from_numpy(x)).numpy(), exact / (1 + np.exp(-exact)), rtol=1e-5, atol=1e-10
    )


def test_rms_norm_of_a_zero_row_is_zero():
    assert RMSNorm(torch.ones(4), 1e-6)(torch.zeros(1, 4)).tolist() == [[0.0] * 4]


def test_rotation_turns_pairs_by_position_times_frequency():
    head_dim, theta, position = 6, 100.0, 5
    config = tiny_config(head_dim=head_dim, rope_theta=theta, max_position_embeddings=8)
    cos, sin = rotary_tables(rotary_angles(config), CPU)
    x = torch.arange(1.0, 7.0)
    turned = rotate(x, cos[position], sin[position])
    for pair in range(3):
        angle = position * theta ** (-2 * pair / head_dim)
        low, high = x[pair].item(), x[pair + 3].item()
        expected_low = low * math.cos(angle) - high * math.sin(angle)
        expected_high = high * math.cos(angle) + low * math.sin(angle)
        assert turned[pair].item() == pytest.approx(expected_low, abs=1e-6)
        assert turned[pair + 3].item() == pytest.approx(expected_high, abs=1e-6)


def test_rotation_at_position_zero_changes_nothing():
    cos, sin = rotary_tables(rotary_angles(tiny_config(head_dim=8)), CPU)
    x = torch.randn(8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotate(x, cos[0], sin[0]), x)


def test_rowwise_runs_on_one_thread_and_on_copies():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen: list[int] = []
        x = torch.ones(3, 2)

        def scribble(row: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return row.mul_(2.0)

        assert rowwise(scribble, x).tolist() == [[2.0, 2.0]] * 3
        assert x.tolist() == [[1.0, 1.0]] * 3
        assert seen == [1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_single_threaded_restores_the_thread_count_after_an_error():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError), single_threaded():
            raise RuntimeError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
