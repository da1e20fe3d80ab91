"""From a directory to an engine: what is found there, and what is said when it cannot work."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import engine.build
from engine.build import build_engine, build_parts, load_model
from engine.config import EngineConfig
from engine.errors import CheckpointError, ConfigError, TokenizerError
from engine.llm import LLM
from engine.types import SamplingParams, SpeculativeParams
from support.checkpoints import tiny_config, write_checkpoint
from support.tokenizers import write_tokenizer

VOCAB_SIZE = 300
END_OF_TEXT = VOCAB_SIZE - 1


def write_model(path: Path, eos: tuple[int, ...] = (END_OF_TEXT,), vocab_size: int = 300) -> Path:
    config = tiny_config(vocab_size=vocab_size, num_layers=2, eos_token_ids=eos)
    write_checkpoint(path, config, agreement_after=1, damping=0.2)
    return write_tokenizer(path, VOCAB_SIZE)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def write_generation_config(path: Path, content: Any) -> None:
    (path / "generation_config.json").write_text(json.dumps(content), encoding="utf-8")


def test_a_directory_becomes_an_engine_that_answers(model: Path) -> None:
    drafts, plain = SpeculativeParams(num_speculations=3), SpeculativeParams(enabled=False)
    params = SamplingParams(max_tokens=8, seed=1, ignore_eos=True, speculative=drafts)
    with LLM(model) as llm:
        assert llm.model_config.num_layers == 2
        drafted, undrafted = llm.generate(
            ["once upon a time", "once upon a time"],
            [params, SamplingParams(max_tokens=8, seed=1, ignore_eos=True, speculative=plain)],
        )
    assert drafted.choices[0].token_ids == undrafted.choices[0].token_ids
    metrics = drafted.choices[0].metrics
    assert metrics is not None and metrics.speculation is not None


def test_build_engine_is_loaded_but_not_started(model: Path) -> None:
    async def main() -> None:
        engine = build_engine(model, EngineConfig(max_model_len=32))
        assert (engine.status, engine.backend_name) == ("loading", "cpu")
        assert engine.head_dtype == "int8"
        assert (engine.config.max_model_len, engine.model_config.vocab_size) == (32, VOCAB_SIZE)
        await engine.start()
        stream = engine.submit("r", engine.tokenizer.encode("the"), SamplingParams(max_tokens=2))
        assert [o async for o in stream][-1].finish_reason is not None
        await engine.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, (END_OF_TEXT,)),
        ({"eos_token_id": None}, (END_OF_TEXT,)),
        ({"eos_token_id": END_OF_TEXT}, (END_OF_TEXT,)),
        ({"eos_token_id": 7}, (END_OF_TEXT, 7)),
        ({"eos_token_id": [8, END_OF_TEXT, 7, 8]}, (END_OF_TEXT, 8, 7)),
    ],
)
def test_the_generation_configs_end_tokens_are_added(
    model: Path, content: dict[str, Any], expected: tuple[int, ...]
) -> None:
    write_generation_config(model, content)
    parts = build_parts(model)
    assert parts.intake.model.eos_token_ids == expected
    assert set(expected) <= set(parts.backend.draft_ids.tolist())
    (request,) = parts.intake.make_requests("r", [1], SamplingParams())
    assert request.eos_token_ids == frozenset(expected)


def test_end_tokens_are_always_drafted(model: Path) -> None:
    write_generation_config(model, {"eos_token_id": 200})
    loaded = load_model(model, EngineConfig(draft_vocab_size=10))
    assert loaded.backend.draft_ids.tolist() == [*range(10), 200, END_OF_TEXT]


def test_the_tokenizers_end_token_serves_where_the_model_names_none(tmp_path: Path) -> None:
    path = write_model(tmp_path, eos=())
    assert load_model(path, EngineConfig()).config.eos_token_ids == (END_OF_TEXT,)


@pytest.mark.parametrize("eos", ["a", [[1]], 300, -1, True, {"id": 1}])
def test_impossible_end_tokens_are_refused_with_their_file(model: Path, eos: object) -> None:
    write_generation_config(model, {"eos_token_id": eos})
    with pytest.raises(CheckpointError, match=r"generation_config\.json.*eos_token_id"):
        build_parts(model)


@pytest.mark.parametrize("content", ["{", "[]", "7"])
def test_a_broken_generation_config_is_named(model: Path, content: str) -> None:
    (model / "generation_config.json").write_text(content, encoding="utf-8")
    with pytest.raises((CheckpointError, TokenizerError), match=r"generation_config\.json"):
        build_parts(model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EngineConfig(max_model_len=65), "max_model_len"),
        (EngineConfig(draft_exit_layer=3), "draft_exit_layer"),
        (EngineConfig(kv_cache_tokens=10), "kv_cache_tokens"),
    ],
)
def test_an_impossible_configuration_is_refused_before_loading(
    model: Path, config: EngineConfig, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the weights were opened")

    monkeypatch.setattr(engine.build, "load_checkpoint", load)
    with pytest.raises(ConfigError, match=message):
        build_parts(model, config)
    with pytest.raises(AssertionError, match="opened"):
        build_parts(model)


def test_an_unknown_backend_is_refused_by_name(model: Path) -> None:
    with pytest.raises(ConfigError, match="'abacus'"):
        build_parts(model, backend="abacus")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files_are_named(model: Path, name: str) -> None:
    (model / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        build_parts(model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_files_are_named(model: Path, name: str) -> None:
    file = model / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=name):
        build_parts(model)


def test_a_missing_tokenizer_is_named(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        build_parts(model)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path, eos=(), vocab_size=290)
    with pytest.raises(TokenizerError, match="do not belong together"):
        build_parts(path)
