"""Models of the hub: the real client library against a small hub, each time in its own process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.checkpoint.hub import is_hub_id
from support.fake_hub import FakeHub, fake_hub
from support.served_process import ROOT, environment, write_model

NAME = "org/story-model"
PROGRAM = """
import sys
from engine.checkpoint.hub import download_model
from engine.errors import CheckpointError
try:
    print(download_model(*sys.argv[1:]))
except CheckpointError as error:
    sys.exit(str(error))
assert not {"torch", "transformers"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it lies on the hub, beside what must never be fetched."""
    path = write_model(tmp_path_factory.mktemp("hub") / "model")
    for name in ("modeling_story.py", "pytorch_model.bin", "training_args.bin", "notes.txt"):
        (path / name).write_text("import os; os.abort()")
    return path


@pytest.fixture
def hub(files: Path) -> Iterator[FakeHub]:
    with fake_hub(NAME, files) as running:
        yield running


def download(
    hub: FakeHub, home: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        env=environment(
            HF_ENDPOINT=hub.url,
            HF_HOME=str(home),
            HF_HUB_DISABLE_XET="1",
            NO_PROXY="127.0.0.1",
            **variables,
        ),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/name", True),
        ("org-1/name.v2_x", True),
        ("name", False),
        ("./name", False),
        ("/models/name", False),
        ("a/b/c", False),
        ("org/", False),
        ("../name", False),
        ("org/na me", False),
    ],
)
def test_what_looks_like_an_id(name: str, expected: bool) -> None:
    assert is_hub_id(name) is expected


def test_only_what_a_model_is_made_of_is_fetched(hub: FakeHub, files: Path, tmp_path: Path) -> None:
    done = download(hub, tmp_path, NAME)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    fetched = sorted(file.name for file in path.iterdir())
    assert fetched == sorted(set(hub.fetched))
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(fetched)
    assert not [name for name in fetched if name.endswith((".py", ".bin", ".txt"))]
    for name in fetched:
        assert (path / name).read_bytes() == (files / name).read_bytes()
    hub.fetched.clear()
    assert download(hub, tmp_path, NAME, "v1").returncode == 0
    assert hub.fetched == []


def test_what_was_fetched_is_served_without_a_network(hub: FakeHub, tmp_path: Path) -> None:
    first = download(hub, tmp_path, NAME)
    hub.status = 503
    again = download(hub, tmp_path, NAME, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {"x-error-code": "RepoNotFound"}, "no such model, or only for those who send"),
        (403, {"x-error-code": "GatedRepo"}, "accept their terms"),
    ],
)
def test_refusals_of_the_hub(
    hub: FakeHub, tmp_path: Path, status: int, headers: dict[str, str], words: str
) -> None:
    hub.status, hub.headers = status, headers
    assert_explained(download(hub, tmp_path, NAME), words)


def test_what_the_hub_does_not_have(hub: FakeHub, tmp_path: Path) -> None:
    assert_explained(download(hub, tmp_path, NAME, "v9"), "no revision 'v9'")
    other = download(hub, tmp_path, "org/other")
    assert "the hub has no such model" in other.stderr


def test_without_a_network_it_says_what_to_do(hub: FakeHub, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path, ignore_errors=True)
    message = "the hub cannot be reached, and no earlier download is in the cache"
    assert_explained(download(hub, tmp_path, NAME, HF_HUB_OFFLINE="1"), message)


def assert_explained(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(NAME)]
    assert "no such directory" in line and words in line
    assert f"hf download {NAME} --local-dir DIR" in line
