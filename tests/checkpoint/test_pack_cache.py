"""Packed copies: made once, found again, made anew when the source changes."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.checkpoint import pack_cache
from engine.checkpoint.loader import load_checkpoint
from engine.checkpoint.pack_cache import packed_copy
from engine.errors import CheckpointError, TokenizerError
from support.served_process import write_model


class Told:
    """Remembers progress, and can end packing by an exception."""

    def __init__(self, act: Callable[[], None] = lambda: None) -> None:
        self.calls: list[tuple[int, int]] = []
        self._act = act

    def __call__(self, num_done: int, num_total: int) -> None:
        self.calls.append((num_done, num_total))
        self._act()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture
def source(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def contents(cache: Path) -> list[str]:
    """Every directory two levels down: the copies, and what should not be there."""
    return sorted(str(path.relative_to(cache)) for path in cache.glob("packed/*/*/"))


def test_a_copy_is_made_once(source: Path, cache: Path) -> None:
    told = Told()
    copy = packed_copy(source, cache, told)
    with load_checkpoint(copy) as checkpoint:
        assert checkpoint.is_packed
    assert (copy / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    done, total = told.calls[-1]
    assert done == total > 0 and told.calls == sorted(told.calls)
    again = Told()
    assert packed_copy(source, cache, again) == copy
    assert again.calls == []
    assert contents(cache) == [str(copy.relative_to(cache))]


def test_a_packed_model_is_its_own_copy(source: Path, cache: Path) -> None:
    copy = packed_copy(source, cache, Told())
    assert packed_copy(copy, cache, Told()) == copy
    assert len(contents(cache)) == 1


def test_a_dense_model_is_served_as_it_is(tmp_path: Path, cache: Path) -> None:
    source = write_model(tmp_path / "dense", weights="dense")
    told = Told()
    assert packed_copy(source, cache, told) == source
    assert told.calls == [] and not cache.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_source_is_packed_anew_and_its_old_copy_goes(
    source: Path, cache: Path, name: str
) -> None:
    before = packed_copy(source, cache, Told())
    os.utime(source / name, ns=(1, 1))
    after = packed_copy(source, cache, Told())
    assert after != before and after.exists() and not before.exists()


def test_a_file_that_comes_or_goes_counts(source: Path, cache: Path) -> None:
    before = packed_copy(source, cache, Told())
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    after = packed_copy(source, cache, Told())
    assert (after / "generation_config.json").exists() and not before.exists()


def test_sources_of_one_name_do_not_meet(pristine: Path, tmp_path: Path, cache: Path) -> None:
    copies = set()
    for folder in ("a", "b"):
        source = shutil.copytree(pristine, tmp_path / folder / "model")
        copies.add(packed_copy(Path(source), cache, Told()))
    assert len(copies) == 2 and all(copy.exists() for copy in copies)


def test_a_link_is_the_model_that_it_leads_to(source: Path, cache: Path) -> None:
    link = source.with_name("link")
    link.symlink_to(source)
    assert packed_copy(link, cache, Told()) == packed_copy(source, cache, Told())


def test_what_is_told_to_stop_leaves_nothing(source: Path, cache: Path) -> None:
    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    with pytest.raises(StopError):
        packed_copy(source, cache, Told(stop))
    assert contents(cache) == []
    assert packed_copy(source, cache, Told()).exists()


def test_what_a_killed_packer_left_is_removed(source: Path, cache: Path) -> None:
    copy = packed_copy(source, cache, Told())
    copy.rename(copy.with_name(f".{copy.name}.dead.partial"))
    assert packed_copy(source, cache, Told()) == copy
    assert contents(cache) == [str(copy.relative_to(cache))]


def test_those_who_come_at_once_make_one_copy(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_cache, "LOCK_POLL_S", 0.01)
    begun, others_wait = threading.Event(), threading.Event()
    copies: list[Path] = []

    def hold() -> None:
        begun.set()
        assert others_wait.wait(30)

    first = threading.Thread(target=lambda: copies.append(packed_copy(source, cache, Told(hold))))
    first.start()
    assert begun.wait(30)
    waiting = Told(others_wait.set)
    copies.append(packed_copy(source, cache, waiting))
    first.join(30)
    assert len(set(copies)) == 1 and len(contents(cache)) == 1
    # It was asked whether to go on while it waited, and packed nothing itself.
    assert waiting.calls and set(waiting.calls) == {(0, 0)}


def test_waiting_for_another_packer_can_be_cancelled(source: Path, cache: Path) -> None:
    begun, release = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert release.wait(30)

    first = threading.Thread(target=packed_copy, args=(source, cache, Told(hold)))
    first.start()
    assert begun.wait(30)

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        packed_copy(source, cache, Told(stop))
    release.set()
    first.join(30)
    assert len(contents(cache)) == 1


def test_models_that_cannot_be_used_are_named_by_their_own_path(source: Path, cache: Path) -> None:
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=str(source)):
        packed_copy(source, cache, Told())
    assert not cache.exists()
    (source / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=str(source)):
        packed_copy(source, cache, Told())


def test_a_cache_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("in the way")
    with pytest.raises(OSError, match="file"):
        packed_copy(source, occupied, Told())
