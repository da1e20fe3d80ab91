"""Checkpoints that transformers itself saves: loaded by us, they answer as they do there.

This is how LayerSkip's Llama checkpoints come: config.json, and weights in one file or shards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.utils import logging

from engine.backends.reference import ReferenceBackend
from engine.checkpoint.loader import load_checkpoint
from engine.checkpoint.names import LM_HEAD
from support.llama_oracle import OracleReading, llama_config
from support.memory_checkpoint import tiny_config
from support.parity_table import ParityTable, measure, printed_table
from support.sequences import sequence_logits
from support.variants import LLAMA3_ROPE

SHAPE = tiny_config(weights="dense", num_layers=3, rope_theta=20_000.0, rms_norm_eps=1e-5)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def table() -> Iterator[ParityTable]:
    with printed_table("Checkpoints saved by transformers:") as table:
        yield table


def as_rope_parameters(raw: dict[str, Any], rope: dict[str, Any]) -> None:
    """As transformers 5 writes it."""
    raw["rope_parameters"] = rope


def as_two_fields(raw: dict[str, Any], rope: dict[str, Any]) -> None:
    """As transformers 4 wrote it, and LayerSkip's checkpoints have it."""
    raw["rope_theta"] = rope.pop("rope_theta")
    raw["rope_scaling"] = rope if rope["rope_type"] == "llama3" else None


CASES = [
    *product(["float32"], [False, True], [as_rope_parameters, as_two_fields], [False, True]),
    *product(["bfloat16", "float16"], [False, True], [as_two_fields], [True]),
]


@pytest.mark.parametrize(("dtype", "tied", "spell", "stretched"), CASES)
def test_a_saved_model_answers_as_it_does_there(
    tmp_path: Path,
    table: ParityTable,
    dtype: str,
    tied: bool,
    spell: Callable[[dict[str, Any], dict[str, Any]], None],
    stretched: bool,
) -> None:
    shape = replace(
        SHAPE, tie_word_embeddings=tied, rope_scaling=LLAMA3_ROPE if stretched else None
    )
    path, model = saved(tmp_path / "model", llama_config(shape), getattr(torch, dtype))
    raw = json.loads((path / "config.json").read_text())
    rope = raw.pop("rope_parameters")
    spell(raw, rope)
    (path / "config.json").write_text(json.dumps(raw))
    with load_checkpoint(path) as checkpoint:
        assert checkpoint.config == replace(
            shape, bos_token_id=checkpoint.config.bos_token_id, eos_token_ids=()
        )
        assert checkpoint.stored_name(LM_HEAD) == (
            "model.embed_tokens.weight" if tied else "lm_head.weight"
        )
        backend = ReferenceBackend(checkpoint, draft_vocab_size=8)

    def expected(tokens: Any) -> OracleReading:
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0].numpy()
        return OracleReading(logits, np.ones(len(tokens), dtype=bool))

    tokens = np.random.default_rng(3).integers(0, shape.vocab_size, 64).tolist()
    parity = measure(
        lambda tokens: sequence_logits(backend, tokens, shape.num_layers), expected, [tokens]
    )
    name = f"{dtype}, {'tied' if tied else 'untied'}, {'Llama 3' if stretched else 'plain'} rope"
    table.add(f"{name}, {spell.__name__}", "reference", parity)
    assert parity.max_error < 1e-5


def saved(path: Path, config: Any, dtype: torch.dtype) -> tuple[Path, torch.nn.Module]:
    """A random model, saved in shards of 40 kB; and the same, read back as float32."""
    torch.manual_seed(5)
    model: Any = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=(2 if "embed" in name else 1) * parameter.shape[1] ** -0.5)
            else:
                parameter.uniform_(0.7, 1.3)
    model.to(dtype).save_pretrained(path, max_shard_size="40KB")
    assert (path / "model.safetensors.index.json").exists()
    return path, LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
