"""The shape of the project: what lies at the top, and who may import whom."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.imports import Import, imports_below, is_within

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("engine", "server", "clients")
TOP_LEVEL = {
    ".ci",
    ".dockerignore",
    ".gitignore",
    "LICENSE",
    "Makefile",
    "README.md",
    "clients",
    "docker",
    "engine",
    "pyproject.toml",
    "server",
    "tests",
}

# The control plane: tested in milliseconds, because nothing in it needs a tensor.
TORCH_FREE = (
    "engine.cache",
    "engine.request",
    "engine.sampling",
    "engine.scheduler",
    "engine.speculative.controller",
)
HEAVY = ("torch", "transformers")
KNOWS_REQUESTS = (
    "engine.async_engine",
    "engine.build",
    "engine.cache",
    "engine.core",
    "engine.llm",
    "engine.request",
    "engine.scheduler",
)


@dataclass(frozen=True)
class Rule:
    """A promise of the design: no import that `applies` picks is of one of `targets`.

    `breach` is a file, its path and source, with one import that breaks the promise.
    """

    name: str
    applies: Callable[[Import], bool]
    targets: tuple[str, ...]
    breach: tuple[str, str]

    def broken_by(self, imports: Iterable[Import]) -> list[str]:
        return [
            str(line)
            for line in imports
            if self.applies(line) and any(is_within(line.target, name) for name in self.targets)
        ]


def within(*packages: str) -> Callable[[Import], bool]:
    return lambda line: any(is_within(line.module, package) for package in packages)


def outside(package: str) -> Callable[[Import], bool]:
    """Everything that may not use `package`: a server command may, once it runs."""

    def applies(line: Import) -> bool:
        is_command = is_within(line.module, "server.commands") and not line.at_import
        return not is_within(line.module, package) and not is_command

    return applies


RULES = (
    Rule(
        name="the engine knows neither server nor clients",
        applies=within("engine"),
        targets=("server", "clients"),
        breach=("engine/core.py", "def run():\n    from server import app\n"),
    ),
    Rule(
        name="clients speak HTTP alone",
        applies=within("clients"),
        targets=("engine", "server"),
        breach=("clients/sync.py", "import engine.types as types\n"),
    ),
    Rule(
        name="the control plane knows no torch",
        applies=within(*TORCH_FREE),
        targets=HEAVY,
        breach=("engine/cache/pool.py", "def run():\n    import torch.nn\n"),
    ),
    Rule(
        name="models and backends know nothing of requests",
        applies=within("engine.model", "engine.backends"),
        targets=KNOWS_REQUESTS,
        breach=("engine/backends/cpu/__init__.py", "from ... import request\n"),
    ),
    Rule(
        name="transformers, and what needs it, is imported on purpose only",
        applies=outside("engine.hf"),
        targets=("engine.hf", "transformers"),
        breach=("engine/llm.py", "def run():\n    from engine import hf\n"),
    ),
    Rule(
        name="nothing uses training",
        applies=outside("engine.training"),
        targets=("engine.training",),
        breach=("server/commands/train.py", "from engine.training import recipe\n"),
    ),
    Rule(
        name="nothing uses evaluation",
        applies=outside("engine.evaluation"),
        targets=("engine.evaluation",),
        breach=("engine/training/loop.py", "from ..evaluation.perplexity import run\n"),
    ),
)


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return imports_below(ROOT, PACKAGES)


def git(*arguments: str) -> str:
    """What git says about this checkout; skips the test where there is none."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return done.stdout


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_top_level_is_exactly_as_designed() -> None:
    if Path(git("rev-parse", "--show-toplevel").strip()).resolve() != ROOT:
        pytest.skip("the sources lie inside another repository")
    tracked = {name.partition("/")[0] for name in git("ls-files", "-z").split("\0") if name}
    assert tracked == TOP_LEVEL


def test_docker_is_not_a_package() -> None:
    """As one it would hide the Docker SDK, which is imported by the same name."""
    assert (ROOT / "docker").is_dir()
    assert not (ROOT / "docker" / "__init__.py").exists()


def test_tests_are_not_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_import_directions(rule: Rule, imports: list[Import]) -> None:
    assert rule.broken_by(imports) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_breach_of_each_rule_is_seen(rule: Rule, tmp_path: Path) -> None:
    name, source = rule.breach
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert len(rule.broken_by(imports_below(tmp_path, PACKAGES))) == 1


def test_a_server_command_may_train_once_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "server" / "commands" / "train.py"
    path.parent.mkdir(parents=True)
    path.write_text("def run():\n    from engine.training import recipe\n")
    found = imports_below(tmp_path, PACKAGES)
    assert [line.target for line in found] == ["engine.training.recipe"]
    assert all(rule.broken_by(found) == [] for rule in RULES)


def test_packages_use_no_private_name_of_another(imports: list[Import]) -> None:
    """`_name` belongs to its own package: engine.cache, engine.core, server …"""

    def owner(name: str) -> tuple[str, ...]:
        parts = name.split(".")
        return tuple(parts[:2] if parts[0] == "engine" else parts[:1])

    def is_private(target: str) -> bool:
        return any(part.startswith("_") and not part.endswith("__") for part in target.split("."))

    first_party = [line for line in imports if line.target.partition(".")[0] in PACKAGES]
    assert first_party
    assert [
        str(line)
        for line in first_party
        if is_private(line.target) and owner(line.module) != owner(line.target)
    ] == []


def test_importing_the_engine_loads_no_framework() -> None:
    loaded = run_python(
        "import engine, engine.config, engine.errors, engine.metrics, engine.types, sys\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_the_control_plane_loads_no_framework() -> None:
    """Nor does anything that it imports in turn, which reading one file does not tell."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "engine").rglob("*.py"))
    ]
    control_plane = [name for name in modules if any(is_within(name, area) for area in TORCH_FREE)]
    assert control_plane
    loaded = run_python(
        f"import importlib, sys\n"
        f"for name in {control_plane}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert loaded.strip() == "[]"
