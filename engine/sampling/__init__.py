"""From logits to tokens: noise, filters, penalties, acceptance and reported logprobs."""

from engine.sampling.acceptance import sources
from engine.sampling.logprobs import token_logprobs
from engine.sampling.noise import choice_seed, draw_seed, gumbel
from engine.sampling.sampler import SamplingState, sample

__all__ = [
    "SamplingState",
    "choice_seed",
    "draw_seed",
    "gumbel",
    "sample",
    "sources",
    "token_logprobs",
]
