"""The harness at work on a tiny model: real workers, a real server, no figure asserted."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench import Bench, Contender, Sample
from benchmarks.launch import launch_bitskip
from benchmarks.models import bytes_per_token, write_latent
from benchmarks.options import Options
from benchmarks.results import read_results
from benchmarks.serving import BitSkipDialect, decode_rate
from benchmarks.worker import WorkerError
from benchmarks.workers.engine import EngineWorker
from engine.backends.registry import has_native_kernels
from engine.checkpoint.loader import load_checkpoint
from engine.checkpoint.packing import pack_checkpoint
from engine.speculative.controller import DraftController
from support.checkpoints import tiny_config, write_checkpoint
from support.tokenizers import write_tokenizer

VOCAB_SIZE = 320
PROMPTS = [[1, 2, 3], [4, 5, 6]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed checkpoint of four layers."""
    folder = tmp_path_factory.mktemp("model")
    config = tiny_config(vocab_size=VOCAB_SIZE, num_layers=4, max_position_embeddings=256)
    write_checkpoint(folder / "latent", config, agreement_after=2, damping=0.15)
    write_tokenizer(folder / "latent", VOCAB_SIZE)
    pack_checkpoint(folder / "latent", folder / "packed")
    return folder / "packed"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    if not has_native_kernels():
        pytest.skip("the native kernels were not compiled")
    return Bench(Options(work=tmp_path, backend="cpu", threads=1, repeats=2))


def test_an_engine_decodes_in_every_mode(bench: Bench, model: Path) -> None:
    load = {"model": str(model), "backend": "cpu", "threads": 1, "draft_exit": 2, "timed": True}
    with bench.worker("engine", **load) as worker:
        answers = {
            mode: worker.call("decode", prompts=PROMPTS, tokens=12, mode=mode)
            for mode in ("plain", 3, "auto")
        }
        assert worker.call("prefill", prompt=list(range(40)))["seconds"] > 0
        with pytest.raises(WorkerError, match="mode"):
            worker.call("decode", prompts=PROMPTS, tokens=12)
        assert worker.call("prefill", prompt=[1])["seconds"] > 0, "it lives on after an error"
    assert bench.alive == []
    plain, drafted = answers["plain"], answers[3]
    assert plain["rounds"] == 12 and plain["tokens"] == 24 and plain["drafted"] == 0
    assert drafted["rounds"] < 12 and drafted["tokens"] >= 24 and drafted["acceptance"] > 0
    assert 0 < plain["outside_ms"] < 1e3 * plain["seconds"]
    shortest = min(len(answer["token_ids"]) for answer in answers.values())
    assert len({tuple(answer["token_ids"][:shortest]) for answer in answers.values()}) == 1


def test_samples_alternate_and_are_kept_as_they_come(
    bench: Bench, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turns: list[tuple[str, int]] = []
    load = {"model": str(model), "backend": "cpu", "threads": 1, "draft_exit": 2}

    def measure(name: str, repeat: int) -> Sample:
        turns.append((name, repeat))
        if name == "b" and repeat == 1:
            raise KeyboardInterrupt
        return Sample(1.0 + repeat, {"acceptance": None, "seconds": 0.5})

    record = bench.record("decode")
    with bench.worker("engine", **load) as worker:
        contenders = [
            Contender(name, "tok/s", worker, lambda repeat, name=name: measure(name, repeat), {})
            for name in ("a", "b")
        ]
        with caplog.at_level(logging.INFO, "bench"), pytest.raises(KeyboardInterrupt):
            record.alternate(contenders)
    assert turns == [("a", -1), ("b", -1), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    saved = read_results(bench.results)["decode"]
    assert not saved.complete
    assert [each.samples for each in saved.series] == [[1.0], [1.0]]
    assert set(saved.series[0].notes) == {"seconds", "idle_cores", "foreign_cores"}
    assert saved.conditions["options"]["repeats"] == 2


def test_who_is_measured_on_keeps_its_series(bench: Bench, model: Path) -> None:
    load = {"model": str(model), "backend": "cpu", "threads": 1, "draft_exit": 2}
    record = bench.record("speculation")
    with bench.worker("engine", **load) as worker:
        contenders = [
            Contender("bitskip", "tok/s", worker, lambda repeat: Sample(repeat, {}), {"mode": mode})
            for mode in ("plain", "auto")
        ]
        record.alternate(contenders, 2, warm_up=False)
        (further,) = record.alternate(contenders[1:], 3, warm_up=False, first=2)
    plain, auto = record.result.series
    assert plain.samples == [0, 1] and auto.samples == [0, 1, 2, 3, 4]
    assert further is auto


def test_auto_learns_apart_from_fixed_lengths(model: Path) -> None:
    """One process serves all modes; what `auto` knows must be of its own rounds."""
    if not has_native_kernels():
        pytest.skip("the native kernels were not compiled")
    engine = EngineWorker()
    engine.load(str(model), "cpu", threads=1, draft_exit=2)
    taught: dict[str | int, set[int]] = {}
    learn = DraftController.learn
    with pytest.MonkeyPatch.context() as patch:
        for mode in ("plain", 3, "auto", 2):
            heard = taught[mode] = set()

            def note(self: DraftController, *args: Any, heard: set[int] = heard) -> None:
                heard.add(id(self))
                learn(self, *args)

            patch.setattr(DraftController, "learn", note)
            engine.decode(PROMPTS, 6, mode)
    assert taught["plain"] == taught[3] == taught[2]
    assert len(taught["auto"]) == 1 and taught["auto"].isdisjoint(taught["plain"])


def test_a_server_streams_and_counts(bench: Bench, model: Path) -> None:
    dialect = BitSkipDialect({"method": "early_exit", "exit_layer": 2, "num_speculations": 2})
    with launch_bitskip(bench, model) as server:
        first = server.wait_for_stream(dialect, [1, 2, 3], 4)
        streams = server.streams(dialect, PROMPTS, 16)
    assert dialect.count(first.events).tokens == 4
    assert [dialect.count(stream.events).tokens for stream in streams] == [16, 16]
    assert all(len(stream.arrivals_s) == len(stream.events) for stream in streams)
    rate, acceptance = decode_rate(streams, dialect)
    assert rate > 0 and acceptance is not None and 0 < acceptance <= 1


def test_reading_knows_its_bytes(bench: Bench, model: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    num_bytes = bytes_per_token(load_checkpoint(model).config)
    build = str(bench.options.work / "native")
    with bench.worker("bandwidth", num_bytes=num_bytes, threads=2, build=build) as worker:
        answer = worker.call("read", passes=3)
    read = num_bytes // 8 * 8
    assert answer["gb_per_s"] * answer["seconds"] * 1e9 == pytest.approx(read)


def test_a_latent_checkpoint_is_one_that_pack_takes(tmp_path: Path) -> None:
    write_latent(tmp_path / "latent", tiny_config())
    summary = pack_checkpoint(tmp_path / "latent", tmp_path / "packed")
    assert summary.num_minus > 0 and summary.num_plus > 0
