"""Log-probabilities to report: of the raw logits, before anything that sampling does to them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.sampling.filters import ranked
from engine.types import TokenLogprobs


def token_logprobs(logits: NDArray[np.float32], token_id: int, num_top: int) -> TokenLogprobs:
    """Natural log-softmax, in float64, of one position's V full-head logits.

    `top` holds the `num_top` likeliest ids (V at most), best first, ties to the lowest id. Where
    the token itself is among them, both entries are the same float. A logit of −inf stays −inf;
    at least one must be finite, and none NaN.
    """
    shifted = logits.astype(np.float64) - float(logits.max())
    log_total = np.log(np.exp(shifted).sum())
    top = ranked(logits, num_top)
    mine = logits[token_id]
    num_better = np.count_nonzero(logits > mine) + np.count_nonzero(logits[:token_id] == mine)
    return TokenLogprobs(
        token_id=token_id,
        logprob=float(shifted[token_id] - log_total),
        top=tuple(zip(top.tolist(), (shifted[top] - log_total).tolist(), strict=True)),
        rank=int(num_better) + 1,
    )
