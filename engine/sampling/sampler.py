"""One position's logits to one token, for drafts and verification alike.

The order of processing, per position, in float64:

1. repetition penalty: tokens of the prompt, the completion and the drafts before the position;
   positive logits are divided by it, others multiplied (Keskar et al., "CTRL", 2019);
2. frequency, then presence penalty: tokens of the completion and the drafts only;
3. logit bias;
4. allowed_token_ids: all others are banned; min_tokens: EOS and the stop tokens are banned while
   the completion is too short;
5. at temperature 0, the best token; otherwise top-k, min-p and top-p on softmax(z / T), then
   Gumbel-max: the best z + T·g of what is left, an exact sample of its softmax.

vLLM's sampler (`vllm/v1/sample/sampler.py`) does the same but for two things that only matter
together with a repetition penalty: it adds the bias before the penalties, where ours keeps its
full strength, and its bans come first, where order is without effect. `ignore_eos` bans
nothing here, as there: the engine just does not stop.

The noise g is a pure function of seed, position and token id (`noise`), so that a draft and its
verification agree whenever their logits lead to the same token.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.sampling.drawing import noisy_argmax
from engine.sampling.filters import kept
from engine.types import SamplingParams


class SamplingState:
    """What sampling remembers of one choice: its parameters, seed and past tokens.

    Counts tokens only where a penalty asks for them.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        eos_token_ids: tuple[int, ...],
        seed: int,
    ) -> None:
        self.params = params
        self.seed = seed
        self.num_generated = 0
        self.penalises_repetition = params.repetition_penalty != 1.0
        self.penalises_counts = params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        self.bias_ids = np.fromiter(params.logit_bias.keys(), dtype=np.int64)
        self.biases = np.fromiter(params.logit_bias.values(), dtype=np.float64)
        self.allowed_ids = (
            None
            if params.allowed_token_ids is None
            else np.array(sorted(set(params.allowed_token_ids)), np.int64)
        )
        filters = params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0
        self._is_adjusted = (
            self.penalises_repetition
            or self.penalises_counts
            or len(self.bias_ids) > 0
            or self.allowed_ids is not None
            or (filters and params.temperature > 0.0)
        )
        self._ending_ids = np.array(sorted({*eos_token_ids, *params.stop_token_ids}), np.int64)
        self._prompt_ids = np.array(
            sorted(set(prompt_token_ids)) if self.penalises_repetition else [], dtype=np.int64
        )
        self._counts: Counter[int] = Counter()
        self._arrays: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def append(self, token_id: int) -> None:
        """Note a token of the completion, for good."""
        self.num_generated += 1
        if self.penalises_repetition or self.penalises_counts:
            self._counts[token_id] += 1
            self._arrays = None

    def needs_logits(self, num_drafts: int) -> bool:
        """Whether the token after so many drafts is more than a draw from the raw logits."""
        return self._is_adjusted or len(self.banned(num_drafts)) > 0

    def banned(self, num_drafts: int) -> NDArray[np.int64]:
        """The ids that min_tokens rules out after so many drafts."""
        if self.num_generated + num_drafts < self.params.min_tokens:
            return self._ending_ids
        return self._ending_ids[:0]

    def occurrences(self, drafts: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of the completion and the drafts, and how often each occurs in both together.

        An id may be listed twice; its last count is the right one. Needs a penalty.
        """
        if self._arrays is None:
            self._arrays = _arrays(self._counts)
        if not drafts:
            return self._arrays
        ids, counts = _arrays({i: n + self._counts[i] for i, n in Counter(drafts).items()})
        return np.concatenate((self._arrays[0], ids)), np.concatenate((self._arrays[1], counts))

    def seen(self, drafts: Sequence[int]) -> NDArray[np.int64]:
        """Ids of the prompt, the completion and the drafts; they may repeat."""
        return np.concatenate((self._prompt_ids, self.occurrences(drafts)[0]))


def _arrays(counts: dict[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.fromiter(counts.keys(), np.int64), np.fromiter(counts.values(), np.int64)


def sample(
    logits: NDArray[np.float32],
    state: SamplingState,
    position: int,
    drafts: Sequence[int] = (),
    ids: NDArray[np.int64] | None = None,
) -> int | None:
    """The token for an absolute `position`, or None when no id is allowed there.

    `logits` are one position's, over `ids` (ascending, without repeats) or, without these, over
    ids 0..V−1. `drafts` are the tokens between the state's last and this position; they count
    as if appended. The inputs are not modified.

    The answer is a function of the logits, the position and what the state was told: not of
    which past tokens are drafts, nor of anything sampled elsewhere. None comes only with `ids`:
    over the full vocabulary, when everything is banned or −inf (or the logits are NaN or +inf),
    the answer is the raw logits' argmax among the allowed tokens. Ties go to the lowest id.
    """
    if ids is not None and len(ids) != len(logits):
        raise ValueError(f"{len(logits)} logits cannot be those of {len(ids)} ids")
    scores = _adjusted(logits, state, drafts, ids)
    best = int(scores.argmax()) if len(scores) else None
    if best is None or not math.isfinite(scores[best]):
        return None if ids is not None else _raw_best(logits, state)
    if state.params.temperature > 0.0:
        best = _draw(scores, state, position, ids)
    return best if ids is None else int(ids[best])


def _raw_best(logits: NDArray[np.float32], state: SamplingState) -> int:
    """The allowed token with the best logit, whatever else is banned."""
    allowed = state.allowed_ids
    return int(logits.argmax()) if allowed is None else int(allowed[logits[allowed].argmax()])


def _adjusted(
    logits: NDArray[np.float32],
    state: SamplingState,
    drafts: Sequence[int],
    ids: NDArray[np.int64] | None,
) -> NDArray[np.floating[Any]]:
    """Steps 1 to 4; the logits themselves when there is nothing to do."""
    params = state.params
    banned = state.banned(len(drafts))
    penalised = state.penalises_repetition or state.penalises_counts
    restricted = state.allowed_ids is not None or len(banned) > 0
    if not (penalised or len(state.bias_ids) or restricted):
        return logits
    scores = logits.astype(np.float64)
    # Each step reads all its values before it writes any. Where an id repeats, numpy keeps what
    # was written last, which is the value with the drafts counted.
    if state.penalises_repetition:
        slots, _ = _locate(state.seen(drafts), ids, len(scores))
        values, penalty = scores[slots], params.repetition_penalty
        with np.errstate(over="ignore"):  # a tiny penalty: infinity is what it should come to
            scores[slots] = np.where(values > 0.0, values / penalty, values * penalty)
    if state.penalises_counts:
        token_ids, counts = state.occurrences(drafts)
        slots, found = _locate(token_ids, ids, len(scores))
        values = scores[slots] - params.frequency_penalty * counts[found]
        scores[slots] = values - params.presence_penalty
    if len(state.bias_ids):
        slots, found = _locate(state.bias_ids, ids, len(scores))
        scores[slots] += state.biases[found]
    if state.allowed_ids is not None:
        slots, _ = _locate(state.allowed_ids, ids, len(scores))
        allowed = scores[slots]
        scores = np.full_like(scores, -np.inf)
        scores[slots] = allowed
    if len(banned):
        slots, _ = _locate(banned, ids, len(scores))
        scores[slots] = -np.inf
    return scores


def _locate(
    token_ids: NDArray[np.int64], ids: NDArray[np.int64] | None, num_slots: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The slots of those `token_ids` that have one, and which of them these are."""
    slots = token_ids if ids is None else np.searchsorted(ids, token_ids)
    found = slots < num_slots
    if ids is not None:
        found[found] = ids[slots[found]] == token_ids[found]
    return slots[found], found


def _draw(
    scores: NDArray[np.floating[Any]],
    state: SamplingState,
    position: int,
    ids: NDArray[np.int64] | None,
) -> int:
    """Step 5 at a temperature above 0: the winning slot."""
    slots = kept(scores, state.params)
    if slots is None:
        token_ids = np.arange(len(scores)) if ids is None else ids
    else:
        token_ids = slots if ids is None else ids[slots]
        scores = scores[slots]
    winner = noisy_argmax(scores, token_ids, state.params.temperature, state.seed, position)
    return winner if slots is None else int(slots[winner])
