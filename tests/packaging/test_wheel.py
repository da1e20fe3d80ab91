"""The wheel: what it holds, and that it works away from the sources it was built from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

from support.served_process import serving

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("engine", "server", "clients")

NOT_SHIPPED = ("clients/playground/screenshot.png", "engine/demo/report/")
"""Files of a package that only this repository's own pages show."""
# Kinds of files that a bundled model has. The builder leaves out whatever .gitignore matches,
# so a pattern such as *.safetensors there would silently ship a server without its model.
MADE_UP = "engine/demo/made_up"
"""A folder of their own: the real model in engine/demo has to be served."""
DEMO_FILES = (
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "packed/weights.bin",
    "training/log.jsonl",
)


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that must succeed, run without this checkout on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree, with made-up files beside the bundled model's own."""
    copy = tmp_path_factory.mktemp("sources")
    for package in (*PACKAGES, "tests", "docker"):
        shutil.copytree(
            ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy)
    for name in DEMO_FILES:
        path = copy / MADE_UP / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made up")
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds of the copy, without a network."""
    out = tmp_path_factory.mktemp("wheel")
    offline = ("--no-index", "--no-deps", "--no-build-isolation")
    run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", out, sources, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment that holds the wheel and sees this one's other packages."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv.parent)
    python = venv / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=venv.parent)

    # Only now, so that pip never takes the packages of the running environment for its own.
    # A folder named by a .pth file is searched, but the .pth files in it (the editable
    # install of this checkout is one) are not read.
    here = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    site = Path(
        run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=venv).strip()
    )
    (site / "running_environment.pth").write_text("\n".join(here))
    return venv


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with ZipFile(wheel) as archive:
        return archive.namelist()


def test_holds_the_three_packages_and_nothing_else(names: list[str]) -> None:
    top = {name.partition("/")[0] for name in names}
    assert top == {*PACKAGES, "bitskip_server-0.1.0.dist-info"}


@pytest.mark.parametrize("package", PACKAGES)
def test_holds_every_file_of_a_package(package: str, names: list[str], sources: Path) -> None:
    """All but what is compiled, of which it holds the outcome instead."""
    csrc = sources / "engine/backends/cpu/csrc"
    expected = {
        path.relative_to(sources).as_posix()
        for path in (sources / package).rglob("*")
        if path.is_file() and csrc not in path.parents and path.suffix != ".so"
    }
    assert expected
    assert any(name.startswith(NOT_SHIPPED) for name in expected) == (package != "server")
    expected = {name for name in expected if not name.startswith(NOT_SHIPPED)}
    held = {name for name in names if name.startswith(f"{package}/")}
    native = {name for name in held if name.startswith("engine/backends/cpu/_native.cpython")}
    assert held - native == expected
    assert len(native) == (package == "engine")


def test_holds_every_kind_of_file_that_a_model_has(names: list[str]) -> None:
    assert {f"{MADE_UP}/{name}" for name in DEMO_FILES} <= set(names)


def test_holds_the_playground(names: list[str]) -> None:
    page = {"index.html", "style.css", "main.mjs", "sse.mjs", "icon.svg"}
    assert {f"clients/playground/{name}" for name in page} <= set(names)


def test_metadata(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        info = "bitskip_server-0.1.0.dist-info"
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        entry_points = ConfigParser()
        entry_points.read_string(archive.read(f"{info}/entry_points.txt").decode())
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert (metadata["Name"], metadata["Version"]) == ("bitskip-server", "0.1.0")
    assert metadata["Requires-Python"] == ">=3.11"
    assert dict(entry_points["console_scripts"]) == {"bitskip": "server.cli:main"}
    always = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not [line for line in always if line.startswith(("pytest", "openai", "scikit"))]


def test_installed_packages_come_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    code = "import clients, engine.config, server\n"
    code += "for module in (clients, engine.config, server): print(module.__file__)"
    files = run(environment / "bin" / "python", "-c", code, cwd=tmp_path).split()
    assert len(files) == 3
    assert all(Path(file).is_relative_to(environment) for file in files), files


def test_command_runs_away_from_the_sources(environment: Path, tmp_path: Path) -> None:
    assert "serve" in run(environment / "bin" / "bitskip", "--help", cwd=tmp_path)


def test_module_runs_away_from_the_sources(environment: Path, tmp_path: Path) -> None:
    assert "serve" in run(environment / "bin" / "python", "-m", "server", "--help", cwd=tmp_path)


def test_serves_the_demo_away_from_the_sources(environment: Path, tmp_path: Path) -> None:
    """No MODEL is named: it is the one that came with the wheel."""
    command = (str(environment / "bin" / "bitskip"),)
    with serving(None, tmp_path / "log", command=command, cwd=tmp_path) as served:
        response = served.complete(
            prompt="Once upon a time", max_tokens=12, temperature=0, ignore_eos=True
        )
        served.terminate()
        assert served.process.wait(60) == 0
    assert response["model"] == "bitskip-demo"
    assert response["usage"]["completion_tokens"] == 12
    assert response["choices"][0]["text"].strip()
    assert str(environment) in served.log, "the model did not come from the wheel"
