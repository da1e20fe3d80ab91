"""Whatever it is given, native code answers with an exception, and goes on."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from engine.backends.cpu.backend import CpuBackend, instruction_sets
from engine.backends.protocol import Row, Sweep
from engine.errors import ConfigError
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.sequences import assert_same_bits, sequence_logits, token_rows

CONFIG = tiny_config(num_layers=2)
CHECKPOINT = MemoryCheckpoint(CONFIG)
TOKENS = list(range(12))
X = np.zeros((2, 32), dtype=np.float32)


@pytest.fixture
def backend() -> Iterator[CpuBackend]:
    backend = CpuBackend(CHECKPOINT, draft_vocab_size=8, threads=2)
    expected = sequence_logits(backend, TOKENS, 2)
    yield backend
    assert_same_bits(sequence_logits(backend, TOKENS, 2), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"head_dtype": "fp16"},
        {"kv_dtype": "bf16"},
        {"isa": "mmx"},
        {"isa": ""},
        {"threads": 0},
        {"threads": -1},
        {"threads": 1025},
        {"threads": 2**70},
    ],
    ids=str,
)
def test_options_that_do_not_exist(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        CpuBackend(CHECKPOINT, draft_vocab_size=8, **options)


def test_an_instruction_set_is_used_as_named() -> None:
    assert instruction_sets()[-1] == "scalar"
    for isa in instruction_sets():
        assert CpuBackend(CHECKPOINT, draft_vocab_size=8, threads=1, isa=isa).isa == isa
    best = CpuBackend(CHECKPOINT, draft_vocab_size=8, threads=1)
    # Of the two ways that AVX2 has, measuring chooses.
    assert best.isa.removesuffix("-lookup") == instruction_sets()[0]


@pytest.mark.parametrize(
    ("sizes", "error"),
    [
        ((-1, 4, 1), ValueError),
        ((1, 0, 1), ValueError),
        ((1, -4, 1), ValueError),
        ((1, 4, -1), ValueError),
        ((2**40, 4, 1), TypeError),
        ((1, 4.5, 1), TypeError),
        ((1, 4, None), TypeError),
        ((2**31 - 1, 2**31 - 1, 1), MemoryError),
        ((2**31 - 1, 2**22, 1), MemoryError),
    ],
)
def test_memory_that_cannot_be(
    backend: CpuBackend, sizes: tuple[Any, ...], error: type[Exception]
) -> None:
    """Nor may a later sweep believe that it is there."""
    backend.allocate(2, 4, 1)
    with pytest.raises(error):
        backend.allocate(*sizes)
    row = Row(0, 0, 0, 2, 1)
    if error is MemoryError:
        with pytest.raises(ValueError, match="not allocated"):
            backend.sweep(Sweep([row], {0: [0]}))
    else:
        backend.sweep(Sweep([row], {0: [1]}))


ROW: Any = Row(0, 0, 0, 2, 1)


@pytest.mark.parametrize(
    ("rows", "tables", "error"),
    [
        (None, {0: [0]}, TypeError),
        (7, {0: [0]}, TypeError),
        ([1, 2], {0: [0]}, ValueError),
        ([ROW[:6]], {0: [0]}, ValueError),
        ([[*ROW]], {0: [0]}, ValueError),
        ([ROW._replace(position="0")], {0: [0]}, TypeError),
        ([ROW._replace(position=0.0)], {0: [0]}, TypeError),
        ([ROW._replace(token="a")], {0: [0]}, TypeError),
        ([ROW._replace(last=None)], {0: [0]}, TypeError),
        ([ROW._replace(sequence="a")], {"a": [0]}, TypeError),
        ([ROW._replace(sequence=2**70)], {2**70: [0]}, ValueError),
        ([ROW], {}, KeyError),
        ([ROW], {0: None}, TypeError),
        ([ROW], {0: 5}, TypeError),
        ([ROW], {0: ["0"]}, TypeError),
        ([ROW], {0: [2]}, ValueError),
        ([ROW], {0: [0, -(2**63)]}, ValueError),
        ([ROW], None, TypeError),
        ([ROW], 5, TypeError),
        ([ROW], "ab", TypeError),
    ],
)
def test_sweeps_of_wrong_things(
    backend: CpuBackend, rows: Any, tables: Any, error: type[Exception]
) -> None:
    backend.allocate(2, 4, 1)
    with pytest.raises(error):
        backend.sweep(Sweep(rows, tables))


@pytest.mark.parametrize(
    ("residuals", "rows", "depths", "error"),
    [
        (None, [0], [2], TypeError),
        (X[0], [0], [2], TypeError),
        (X[None], [0], [2], TypeError),
        (X.astype(np.complex64), [0], [2], TypeError),
        (X[:, :31].copy(), [0], [2], ValueError),
        (np.zeros((2, 0), np.float32), [0], [2], ValueError),
        (X, [2], [2], ValueError),
        (X, [-1], [2], ValueError),
        (X, [2**70], [2], ValueError),
        (X, ["0"], [2], TypeError),
        (X, [0], [0], ValueError),
        (X, [0], [3], ValueError),
        (X, [0], [-(2**70)], ValueError),
        (X, [0], [], ValueError),
        (X, None, [2], TypeError),
    ],
)
def test_heads_of_wrong_things(
    backend: CpuBackend, residuals: Any, rows: Any, depths: Any, error: type[Exception]
) -> None:
    for head in (backend.head, backend.draft_head):
        with pytest.raises(error):
            head(residuals, rows, depths)
    with pytest.raises(error):
        backend.draw(residuals, rows, depths, [(0.0, 1, 1)])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("draws", "error"),
    [
        ([], ValueError),
        ([None], ValueError),
        ([(0.0, 1)], ValueError),
        ([("a", 1, 1)], TypeError),
        ([(0.0, "a", 1)], TypeError),
        ([(0.0, 1, 1.5)], TypeError),
        (None, TypeError),
    ],
)
def test_draws_of_wrong_things(backend: CpuBackend, draws: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        backend.draw(X, [0], [2], draws)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(np.float64),
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: np.asfortranarray(x),
        lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
    ],
    ids=["float64", "strided", "column-major", "read-only"],
)
def test_residuals_in_other_forms_are_the_same(
    backend: CpuBackend, convert: Callable[[np.ndarray], np.ndarray]
) -> None:
    x = np.random.default_rng(3).standard_normal((5, 32)).astype(np.float32)
    expected = backend.head(x, range(5), [2] * 5)
    assert_same_bits(backend.head(convert(x), range(5), [2] * 5), expected)


def test_results_outlive_the_backend() -> None:
    backend = CpuBackend(CHECKPOINT, draft_vocab_size=8, threads=2)
    backend.allocate(1, 16, 0)
    residuals = backend.sweep(Sweep(token_rows(TOKENS, 0, 12, 2), {0: [0]}))
    copy = residuals.copy()
    backend.close()
    backend.close()
    assert_same_bits(residuals, copy)


def test_weights_outlive_what_they_were_made_from() -> None:
    """The native model keeps the arrays that it reads."""
    expected = sequence_logits(CpuBackend(CHECKPOINT, draft_vocab_size=8), TOKENS, 2)
    for isa in instruction_sets():
        backend = CpuBackend(MemoryCheckpoint(CONFIG), draft_vocab_size=8, isa=isa)
        _ = [np.full((96, 32), 9.0, np.float32) for _ in range(50)]
        assert_same_bits(sequence_logits(backend, TOKENS, 2), expected)


def test_threads_of_python_take_turns(backend: CpuBackend) -> None:
    """One call at a time: others that come meanwhile are refused, and disturb nothing."""
    backend.allocate(8, 16, 0)
    rows = token_rows([p % 90 for p in range(100)], 0, 100, 2)
    expected = backend.sweep(Sweep(rows, {0: range(8)}))
    answers: list[np.ndarray] = []
    refusals: list[RuntimeError] = []

    def work() -> None:
        for _ in range(30):
            try:
                answers.append(backend.sweep(Sweep(rows, {0: range(8)})))
            except RuntimeError as error:
                refusals.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) + len(refusals) == 90
    assert answers
    for answer in answers:
        assert_same_bits(answer, expected)


def test_a_sweep_may_not_begin_inside_another(backend: CpuBackend) -> None:
    class Reentrant(dict[int, list[int]]):
        def __getitem__(self, key: int) -> list[int]:
            backend.sweep(Sweep([ROW], {0: [0]}))
            return [0]

    backend.allocate(2, 4, 1)
    with pytest.raises(RuntimeError, match="using this model"):
        backend.sweep(Sweep([ROW], Reentrant({0: [0]})))


def test_a_system_without_threads_to_give_is_an_error() -> None:
    """And those that were made already end with it."""
    code = """
import resource, threading
from engine.backends.cpu import _native
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 27), -1))
sizes = dict(layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=32, vocab=10, positions=8)
numerics = dict(eps=1e-6, exit_norm=True, linears="ternary", activation_max=127, hadamard="none")
try:
    _native.Model(**sizes, **numerics, threads=1000, isa="scalar")
except (RuntimeError, MemoryError) as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused:")
