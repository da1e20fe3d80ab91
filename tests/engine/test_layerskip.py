"""A LayerSkip checkpoint, as its authors publish Llama 3 models, only smaller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig, RopeScaling
from engine.llm import LLM
from engine.types import FinishReason, SamplingParams, SpeculativeParams
from support.backend_variants import needs_native
from support.checkpoints import (
    tiny_config,
    write_checkpoint,
)
from support.tokenizers import write_tokenizer

VOCAB_SIZE, NUM_LAYERS = 300, 8
END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN = 299, 298, 297
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": [END_OF_TEXT, END_OF_MESSAGE],
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 140,
    "max_position_embeddings": 131_072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 6,
    "num_hidden_layers": NUM_LAYERS,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.2",
    "use_cache": True,
    "vocab_size": VOCAB_SIZE,
}
PROMPT = "once upon a time"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layerskip") / "model"
    config = tiny_config(
        weights="dense",
        vocab_size=VOCAB_SIZE,
        num_layers=NUM_LAYERS,
        tie_word_embeddings=True,
    )
    write_checkpoint(path, config, dtype="bf16", agreement_after=2, damping=0.1, num_shards=2)
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [END_OF_TEXT, END_OF_TURN], "do_sample": True})
    )
    return write_tokenizer(path, VOCAB_SIZE)


@pytest.fixture(scope="module", params=["reference", pytest.param("cpu", marks=needs_native)])
def llm(model: Path, request: pytest.FixtureRequest) -> Any:
    with LLM(model, EngineConfig(max_model_len=256), backend=request.param) as llm:
        yield llm


def test_it_is_read_as_published(llm: LLM) -> None:
    config = llm.model_config
    assert (config.variant, config.num_layers, config.exit_norm) == ("dense", NUM_LAYERS, True)
    assert config.rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192)
    assert (config.rope_theta, config.rms_norm_eps) == (500_000.0, 1e-5)
    assert config.tie_word_embeddings
    assert config.eos_token_ids == (END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN)


@pytest.mark.parametrize("end", [END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN])
def test_every_end_token_ends_a_text(llm: LLM, end: int) -> None:
    wish = SamplingParams(max_tokens=5, temperature=0.0, logit_bias={end: 100.0})
    (choice,) = llm.generate([PROMPT], wish)[0].choices
    assert choice.finish_reason is FinishReason.STOP and choice.token_ids == [end]


@pytest.mark.parametrize("exit_layer", [2, 5, None])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafts_change_no_token(llm: LLM, exit_layer: int | None, temperature: float) -> None:
    drafts = SpeculativeParams(num_speculations=4, exit_layer=1)
    answers = []
    for speculative in (drafts, SpeculativeParams(enabled=False)):
        params = SamplingParams(
            max_tokens=24,
            temperature=temperature,
            seed=3,
            ignore_eos=True,
            exit_layer=exit_layer,
            speculative=speculative,
        )
        (choice,) = llm.generate([PROMPT], params)[0].choices
        answers.append(choice.token_ids)
    assert answers[0] == answers[1] and len(answers[0]) == 24
