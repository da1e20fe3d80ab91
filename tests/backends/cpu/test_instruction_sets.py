"""Every instruction set gives the scalar code's bits.

Those that this machine has are compared through whole models, and function by function. Kernels
for other processors run emulated where the tools for it are installed: AVX-512 VNNI and AVX-VNNI
by SIMDe, NEON by a cross compiler and qemu.
"""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from engine.backends.cpu.backend import CpuBackend, HeadDtype, KVDtype, instruction_sets
from engine.backends.protocol import Sweep
from support.memory_checkpoint import MemoryCheckpoint, tiny_config
from support.programs import cross_tool, program
from support.sequences import assert_same_bits, token_rows

SOURCE = Path(__file__).parent / "native" / "emulated"
ROUNDS = 60
# Compilers may have to share their processor with much else.
pytestmark = pytest.mark.timeout(900)

SHAPES = {
    "odd": tiny_config(
        num_layers=2, hidden_size=50, num_heads=6, num_kv_heads=3, head_dim=6, vocab_size=101
    ),
    "wide": tiny_config(
        num_layers=2,
        vocab_size=300,
        hidden_size=264,
        intermediate_size=1400,
        num_heads=8,
        num_kv_heads=2,
        head_dim=34,
    ),
}


def build(directory: Path, *options: str) -> Path:
    """Compile `isa_compare`, with warnings as errors, and return its path."""
    cmake, ninja = program("cmake", "cmake"), program("ninja", "ninja")
    configure = [cmake, "-S", str(SOURCE), "-B", str(directory), "-G", "Ninja"]
    run([*configure, f"-DCMAKE_MAKE_PROGRAM={ninja}", *options])
    run([cmake, "--build", str(directory)])
    return directory / "isa_compare"


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_all_equal(report: str, names: list[str]) -> None:
    """`report` says of each of `names`, and of nothing else, that all cases were equal."""
    lines = report.splitlines()
    assert [line.split(":")[0] for line in lines] == names
    assert all(re.search(r"\d+ functions, \d{3,} cases, all equal$", line) for line in lines)


def exported_symbols(directory: Path) -> dict[str, list[str]]:
    """Object file's stem → what of it other objects see, of all kernels built in `directory`."""
    cache = (directory / "CMakeCache.txt").read_text()
    nm = re.search(r"^CMAKE_NM:FILEPATH=(.+)$", cache, re.MULTILINE)
    assert nm
    return {
        path.name.split(".")[0]: [
            line.split(maxsplit=2)[2]
            for line in run([nm[1], "-gC", "--defined-only", str(path)]).splitlines()
        ]
        for path in directory.rglob("kernels_*.o")
    }


def assert_only_accessors(directory: Path) -> None:
    """A function in two objects is linked from either, whatever instructions that has."""
    symbols = exported_symbols(directory)
    assert len(symbols) >= 2
    for stem, names in symbols.items():
        accessors = rf"bitskip::{stem.removeprefix('kernels_')}(_\w+)?_kernels\(\)"
        assert names and all(re.fullmatch(accessors, name) for name in names)


@pytest.fixture(scope="module")
def native_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("native"))


def test_functions_of_this_machine(native_build: Path) -> None:
    assert_all_equal(run([str(native_build), str(ROUNDS)]), instruction_sets())


def test_the_comparison_finds_a_mutant(native_build: Path) -> None:
    """Sums in another order, and a product that misses a block."""
    command = [str(native_build), str(ROUNDS), "mutant"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert set(re.findall(r"^mutant: (\w+): \d+ of \d+ cases differ$", done.stdout, re.M)) == {
        "sum_exp",
        "ternary",
    }


def test_objects_share_no_functions(native_build: Path) -> None:
    assert_only_accessors(native_build.parent)


def test_vnni_under_simde(tmp_path: Path) -> None:
    if platform.machine() != "x86_64" or "avx2" not in instruction_sets():
        pytest.skip("the emulation is made of AVX2 instructions")
    if not Path("/usr/include/simde/x86/avx512.h").exists():
        pytest.skip("SIMDe is not installed")
    comparison = build(tmp_path, "-DEMULATE=ON")
    names = ["avx512vnni", "avxvnni"]
    assert_all_equal(run([str(comparison), str(ROUNDS), *names]), names)


def test_neon_under_qemu(tmp_path: Path) -> None:
    qemu = cross_tool("qemu-aarch64", "qemu-aarch64-static")
    comparison = build(
        tmp_path,
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={cross_tool('aarch64-linux-gnu-g++')}",
    )
    assert_all_equal(run([qemu, str(comparison), str(ROUNDS)]), ["neon", "scalar"])
    assert_only_accessors(tmp_path)


@pytest.mark.parametrize(("head_dtype", "kv_dtype"), [("int8", "fp16"), ("bf16", "int8")])
@pytest.mark.parametrize("shape", SHAPES)
def test_models_of_this_machine(shape: str, head_dtype: HeadDtype, kv_dtype: KVDtype) -> None:
    """Residuals and logits after sweeps of one row, of a few and of many."""
    config = SHAPES[shape]
    tokens = np.random.default_rng(5).integers(0, config.vocab_size, 40).tolist()

    def outputs(isa: str) -> list[np.ndarray]:
        backend = CpuBackend(
            MemoryCheckpoint(config),
            draft_vocab_size=32,
            threads=2,
            head_dtype=head_dtype,
            kv_dtype=kv_dtype,
            isa=isa,
        )
        backend.allocate(3, 16, 0)
        results: list[np.ndarray] = []
        for first, last in ((0, 1), (1, 6), (6, 40)):
            rows = token_rows(tokens, first, last, config.num_layers)
            residuals = backend.sweep(Sweep(rows, {0: [2, 0, 1]}))
            depths = [config.num_layers] * len(rows)
            results += [residuals, backend.head(residuals, range(len(rows)), depths)]
        backend.close()
        return results

    expected = outputs("scalar")
    for isa in instruction_sets():
        for actual, reference in zip(outputs(isa), expected, strict=True):
            assert_same_bits(actual, reference)
