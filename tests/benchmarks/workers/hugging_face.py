"""Hugging Face transformers in bfloat16: a plain Llama of the same shape.

Its weights are random: how fast a dense model runs does not depend on their values.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from benchmarks.workers.loop import serve
from engine.config import ModelConfig


class HuggingFaceWorker:
    """One model made from a shape; its cache and forward pass, driven by a greedy loop."""

    @torch.inference_mode()
    def load(self, model: str, threads: int) -> dict[str, Any]:
        """Make a model of the shape of the checkpoint directory `model`."""
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        shape = ModelConfig.from_directory(Path(model))
        config = LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            max_position_embeddings=shape.max_position_embeddings,
            rms_norm_eps=shape.rms_norm_eps,
            tie_word_embeddings=shape.tie_word_embeddings,
        )
        with torch.device("meta"):
            self._model = LlamaForCausalLM(config).eval()
        self._model = self._model.to_empty(device="cpu").bfloat16()
        for parameter in self._model.parameters():
            parameter.uniform_(-0.03, 0.03)
        # Not a parameter, so what was on the meta device is still to be computed.
        rotary = self._model.model.rotary_emb
        self._model.model.rotary_emb = type(rotary)(config=config)
        return {"parameters": sum(each.numel() for each in self._model.parameters())}

    @torch.inference_mode()
    def prefill(self, prompt: Sequence[int]) -> dict[str, float]:
        """Seconds from a prompt to its first token."""
        started = time.perf_counter()
        self._next(torch.tensor([prompt]), DynamicCache())
        return {"seconds": time.perf_counter() - started}

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> dict[str, Any]:
        """Decode `tokens` tokens for every prompt (of equal lengths), one batch per step."""
        cache = DynamicCache()
        latest = self._next(torch.tensor(prompts), cache)
        started = time.perf_counter()
        for _ in range(tokens):
            latest = self._next(latest, cache)
        elapsed = time.perf_counter() - started
        return {"tokens_per_s": tokens * len(prompts) / elapsed, "seconds": elapsed}

    def _next(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """The greedy continuation, one column, of ids whose past is in the cache."""
        output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].argmax(-1, keepdim=True)


if __name__ == "__main__":
    serve(HuggingFaceWorker())
