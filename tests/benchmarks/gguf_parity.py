"""Does llama.cpp say what we say? Export a model, run both on the same texts, and compare.

    python tests/benchmarks/gguf_parity.py [MODEL] [--layers N] [--documents FILE] [--limit 20]

Both must cut every line into the same ids. Then, given the same ids (teacher forcing), the most
likely next token is compared at every position, and the likelihood of the token that came; it
cannot agree everywhere, since llama.cpp rounds activations by blocks, the head, K and V and the
scales in its own ways. Last, how far greedy continuations go together. Exits with 1 where ids
differ or the most likely tokens agree less often than `LEAST_AGREEMENT`. Needs llama-cpp-python,
which is no dependency of the project.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np
from numpy.typing import NDArray

from engine.build import demo_model_path
from engine.checkpoint.gguf_export import export_gguf
from engine.documents import read_documents
from engine.llm import LLM
from engine.tokenizer import Tokenizer
from engine.types import SamplingParams, SpeculativeParams

LEAST_AGREEMENT = 0.97
GREEDY_TOKENS = 64
PROMPT_TOKENS = 16
STORIES = Path(__file__).resolve().parents[1] / "data" / "heldout_stories.txt"


@dataclass(frozen=True, slots=True)
class Scores:
    """What one program says of one text, at every position but the last."""

    best: NDArray[np.int64]
    """The most likely next token."""
    likelihood: NDArray[np.float64]
    """The logprob of the token that did come next."""
    margin: NDArray[np.float64]
    """By how much, in logprob, the most likely token leads the second."""


def main() -> int:
    given = _parser().parse_args()
    documents = read_documents(given.documents)
    lines = [line for document in documents for line in document.split("\n") if line]
    with tempfile.TemporaryDirectory() as folder, LLM(given.model) as ours:
        file = export_gguf(given.model, Path(folder) / "model.gguf", num_layers=given.layers).path
        theirs = load_llama(file, given.threads)
        others = lines_with_other_ids(ours.tokenizer, theirs, lines[: given.lines])
        print(f"lines with other ids: {len(others)} of {len(lines[: given.lines])}")
        texts = [
            ours.tokenizer.encode(document)[: theirs.n_ctx() - 1]
            for document in documents[: given.limit]
        ]
        agreement = compare(
            [our_scores(ours, ids, given.layers) for ids in texts],
            [their_scores(theirs, ids) for ids in texts],
        )
        _compare_greedy(ours, theirs, texts, given.layers)
    return int(bool(others) or agreement < LEAST_AGREEMENT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare this server and llama.cpp.")
    parser.add_argument("model", nargs="?", type=Path, default=demo_model_path())
    parser.add_argument("--layers", type=int, help="compare the model of the first N layers")
    parser.add_argument("--documents", type=Path, default=STORIES)
    parser.add_argument("--lines", type=int, default=1000, help="lines whose ids to compare")
    parser.add_argument("--limit", type=int, default=20, help="documents to compare")
    parser.add_argument("--threads", type=int, default=1, help="of llama.cpp")
    return parser


def load_llama(file: Path, threads: int = 1) -> llama_cpp.Llama:
    """The model in llama.cpp, with the context that it was trained with."""
    return llama_cpp.Llama(str(file), n_ctx=0, n_threads=threads, logits_all=True, verbose=False)


def lines_with_other_ids(
    tokenizer: Tokenizer, llama: llama_cpp.Llama, lines: Sequence[str]
) -> list[str]:
    """The lines that llama.cpp cuts in another way, or that its tokens do not give back."""
    others = []
    for line in lines:
        ids = tokenizer.encode(line)
        theirs = llama.tokenize(line.encode(), special=True)
        if ids != theirs or llama.detokenize(ids, special=True) != line.encode():
            others.append(line)
    return others


def our_scores(llm: LLM, ids: Sequence[int], layers: int | None = None) -> Scores:
    """Our engine's, of the model of the first `layers` layers."""
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=2, exit_layer=layers)
    (generation,) = llm.generate([list(ids)], params)
    assert generation.prompt_logprobs is not None
    tokens = [token for token in generation.prompt_logprobs if token is not None]
    return Scores(
        np.array([token.top[0][0] for token in tokens]),
        np.array([token.logprob for token in tokens]),
        np.array([token.top[0][1] - token.top[1][1] for token in tokens]),
    )


def their_scores(llama: llama_cpp.Llama, ids: Sequence[int]) -> Scores:
    """llama.cpp's, of the whole exported model."""
    llama.reset()
    llama.eval(ids)
    logits = np.array(llama.scores[: len(ids) - 1], dtype=np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    second, first = np.sort(logprobs, axis=1)[:, -2:].T
    likelihood = logprobs[np.arange(len(ids) - 1), np.asarray(ids[1:])]
    return Scores(logprobs.argmax(axis=1), likelihood, first - second)


def compare(ours: Sequence[Scores], theirs: Sequence[Scores]) -> float:
    """Print how far the scores agree; returns the share of equal most likely tokens."""
    same = np.concatenate([a.best == b.best for a, b in zip(ours, theirs, strict=True)])
    margins = np.concatenate([scores.margin for scores in ours])
    pair = [np.concatenate([scores.likelihood for scores in side]) for side in (ours, theirs)]
    perplexities = [float(np.exp(-likelihood.mean())) for likelihood in pair]
    agreement = float(same.mean())
    print(f"most likely tokens equal: {agreement:.2%} of {same.size:,} positions")
    if not same.all():
        lost = margins[~same]
        print(f"our lead where they differ: median {np.median(lost):.3f}, most {lost.max():.3f}")
    print(f"our lead everywhere: median {np.median(margins):.3f}")
    print(f"perplexity: {perplexities[0]:.3f} ours, {perplexities[1]:.3f} llama.cpp's")
    print(f"mean difference of logprobs: {np.abs(pair[0] - pair[1]).mean():.4f}")
    return agreement


def _compare_greedy(
    llm: LLM, llama: llama_cpp.Llama, texts: Sequence[Sequence[int]], layers: int | None
) -> None:
    params = SamplingParams(
        max_tokens=GREEDY_TOKENS,
        temperature=0.0,
        ignore_eos=True,
        exit_layer=layers,
        speculative=SpeculativeParams(enabled=False),
    )
    prompts = [list(ids[:PROMPT_TOKENS]) for ids in texts]
    lengths = []
    for prompt, generation in zip(prompts, llm.generate(prompts, params), strict=True):
        ours = [token.token_id for token in generation.choices[0].tokens]
        llama.reset()
        stream = llama.generate(prompt, temp=0.0)
        theirs = [next(stream) for _ in ours]
        equal = np.equal(ours, theirs)
        lengths.append(len(ours) if equal.all() else int(equal.argmin()))
    whole = sum(length == GREEDY_TOKENS for length in lengths)
    print(
        f"greedy texts of {GREEDY_TOKENS} tokens: {whole} of {len(lengths)} equal to the end, "
        f"first difference after {np.mean(lengths):.1f} tokens on average"
    )


if __name__ == "__main__":
    sys.exit(main())
