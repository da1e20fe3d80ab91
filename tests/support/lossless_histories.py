"""Random histories of requests: pairs of themes, each theme a way in which a run can be special.

Every history is a function of its themes and its seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from engine.config import EngineConfig
from engine.types import DraftMethod, SamplingParams, SpeculativeParams
from support.backend_variants import instruction_sets
from support.engine_runs import Submission, expected_completion
from support.history_models import Family, ModelSpec, make_model, num_layers
from support.letters import text_so_far

MAX_MODEL_LEN = 64


@dataclass(frozen=True, slots=True)
class History:
    """What happens to one engine."""

    family: Family
    spec: ModelSpec
    config: EngineConfig
    submissions: tuple[Submission, ...]
    seed: int


@dataclass(slots=True)
class RequestDraft:
    """A request in the making."""

    prompt: list[int]
    params: dict[str, Any]
    speculative: dict[str, Any] | None
    add_step: int = 0
    abort_step: int | None = None


@dataclass(slots=True)
class HistoryDraft:
    """A history in the making; themes change it in place."""

    family: Family
    rng: random.Random
    spec: ModelSpec
    config: dict[str, Any]
    requests: list[RequestDraft] = field(default_factory=list)
    ends_early: bool = False

    @property
    def depth(self) -> int:
        """The model's layers."""
        return num_layers(self.family)

    @property
    def vocab_size(self) -> int:
        """The model's ids."""
        return make_model(self.family, self.spec).config.vocab_size

    def some_tokens(self, low: int, high: int) -> list[int]:
        """A random text of `low` to `high` tokens, frequent ids first among them."""
        count = self.rng.randint(low, high)
        return [min(int(self.rng.expovariate(0.12)), self.vocab_size - 2) for _ in range(count)]

    def add_request(self) -> RequestDraft:
        """One more ordinary request."""
        request = RequestDraft(
            prompt=self.some_tokens(1, 9),
            params={
                "temperature": self.rng.choice((0.0, 0.7, 1.0)),
                "seed": self.rng.getrandbits(64),
                "max_tokens": self.rng.randint(5, 14),
            },
            speculative={"num_speculations": self.rng.randint(1, 5)},
        )
        self.requests.append(request)
        return request


Theme = Callable[[HistoryDraft], None]


def greedy(draft: HistoryDraft) -> None:
    for request in draft.requests:
        request.params["temperature"] = 0.0


def sampled(draft: HistoryDraft) -> None:
    for request in draft.requests:
        request.params["temperature"] = draft.rng.uniform(0.3, 1.3)
        if draft.rng.random() < 0.3:
            request.params["seed"] = None


def draft_lengths(draft: HistoryDraft) -> None:
    draft.spec = replace(draft.spec, agreement=0.9)
    for request in draft.requests:
        request.params["max_tokens"] = draft.rng.randint(12, 30)
        count = draft.rng.choice((0, 2, 4, 6, 9, 16))
        request.speculative = {**(request.speculative or {}), "num_speculations": count}


def draft_exits(draft: HistoryDraft) -> None:
    for request in draft.requests:
        depth = request.params.get("exit_layer") or draft.depth
        if depth > 1:
            request.speculative = {
                "method": DraftMethod.EARLY_EXIT,
                "exit_layer": draft.rng.randint(1, depth - 1),
                "num_speculations": draft.rng.randint(1, 6),
            }


def ngrams(draft: HistoryDraft) -> None:
    draft.spec = replace(draft.spec, repeats=True, agreement=0.97)
    draft.config |= {"ngram_min": draft.rng.randint(1, 2)}
    for request in draft.requests:
        request.params["temperature"] = draft.rng.choice((0.0, 0.0, 0.5))
        request.params["max_tokens"] = draft.rng.randint(12, 28)
        request.prompt += draft.some_tokens(2, 4) * 2
        request.speculative = {
            "method": DraftMethod.NGRAM,
            "num_speculations": draft.rng.randint(1, 8),
        }


def auto_or_off(draft: HistoryDraft) -> None:
    draft.config |= {
        "draft_exit_layer": draft.rng.randint(1, draft.depth),
        "num_speculations": draft.rng.randint(0, 5),
        "speculative": draft.rng.random() < 0.7,
    }
    for request in draft.requests:
        request.speculative = draft.rng.choice(
            (None, {"enabled": False}, {"method": DraftMethod.AUTO})
        )


def chunks(draft: HistoryDraft) -> None:
    draft.config |= {"max_batched_tokens": draft.rng.randint(1, 6)}
    for request in draft.requests:
        request.prompt += draft.some_tokens(4, 16)


def block_sizes(draft: HistoryDraft) -> None:
    draft.config |= {"block_size": draft.rng.choice((1, 2, 3, 5, 8, 32))}


def small_pool(draft: HistoryDraft) -> None:
    size = draft.rng.choice((1, 2, 3, 4))
    draft.config |= {"block_size": size, "max_model_len": 44, "kv_cache_tokens": 44}
    while len(draft.requests) < 6:
        draft.add_request()
    for request in draft.requests:
        request.params["max_tokens"] = draft.rng.randint(12, 24)
        request.params["logit_bias"] = {draft.vocab_size - 1: -6.0}


def shared_prompts(draft: HistoryDraft) -> None:
    draft.config |= {"block_size": draft.rng.choice((1, 2, 4))}
    shared = draft.some_tokens(8, 16)
    draft.add_request()
    for number, request in enumerate(draft.requests):
        request.prompt = shared[: draft.rng.randint(6, len(shared))] + request.prompt[:3]
        request.params["exit_layer"] = draft.rng.choice((None, 2, draft.depth - 1))
        request.speculative = {"num_speculations": draft.rng.randint(0, 4)}
        request.add_step = 4 * number


def stops(draft: HistoryDraft) -> None:
    draft.spec = replace(draft.spec, agreement=0.9)
    draft.ends_early = True
    draft.add_request()
    for request in draft.requests:
        request.params["max_tokens"] = draft.rng.randint(10, 20)


def choices(draft: HistoryDraft) -> None:
    for request in draft.requests[:2]:
        request.params["n"] = draft.rng.randint(2, 4)
        request.prompt += draft.some_tokens(3, 12)


def penalties(draft: HistoryDraft) -> None:
    for request in draft.requests:
        request.params |= {
            "presence_penalty": draft.rng.choice((0.0, 0.8)),
            "frequency_penalty": draft.rng.choice((0.0, 1.1, -0.6)),
            "repetition_penalty": draft.rng.choice((1.0, 1.5)),
        }


def filters(draft: HistoryDraft) -> None:
    for request in draft.requests:
        request.params |= {
            "temperature": draft.rng.uniform(0.8, 1.6),
            "top_p": draft.rng.choice((1.0, 0.8)),
            "top_k": draft.rng.choice((0, 3, 12)),
            "min_p": draft.rng.choice((0.0, 0.1)),
        }


def minimum_and_bias(draft: HistoryDraft) -> None:
    eos = draft.vocab_size - 1
    for request in draft.requests:
        least = draft.rng.randint(1, 6)
        request.params |= {
            "min_tokens": least,
            "max_tokens": least + draft.rng.randint(0, 8),
            "logit_bias": {eos: draft.rng.choice((2.0, 5.0)), draft.rng.randrange(20): 2.0},
            "ignore_eos": draft.rng.random() < 0.2,
        }


def allowed_tokens(draft: HistoryDraft) -> None:
    """Sometimes so few that a narrow draft vocabulary has none of them."""
    for request in draft.requests:
        some = draft.rng.sample(range(draft.vocab_size), draft.rng.choice((1, 4, 12)))
        request.params["allowed_token_ids"] = tuple(some)


def priorities(draft: HistoryDraft) -> None:
    for request in draft.requests:
        request.params["priority"] = draft.rng.choice((-(2**62), -1, 0, 0, 7))


def draft_vocabulary(draft: HistoryDraft) -> None:
    draft.spec = replace(draft.spec, draft_vocab_size=draft.rng.choice((1, 12, 30)))


def exits(draft: HistoryDraft) -> None:
    for request in draft.requests:
        depth = draft.rng.randint(1, draft.depth)
        request.params["exit_layer"] = depth
        request.speculative = {"num_speculations": draft.rng.randint(0, 5)}
        if depth > 1:
            request.speculative["exit_layer"] = draft.rng.randint(1, depth - 1)


def aborts(draft: HistoryDraft) -> None:
    draft.add_request()
    for request in draft.requests[::2]:
        request.abort_step = request.add_step + draft.rng.randint(0, 6)


def logprobs(draft: HistoryDraft) -> None:
    for request in draft.requests:
        request.params["logprobs"] = draft.rng.randint(0, 4)


def nothing_to_draft(draft: HistoryDraft) -> None:
    """The draft vocabulary is token 0 and EOS, both banned until there are four tokens."""
    draft.spec = replace(draft.spec, draft_vocab_size=1)
    for request in draft.requests:
        request.params |= {"min_tokens": 4, "max_tokens": 10, "stop_token_ids": (0,)}


def prompt_logprobs(draft: HistoryDraft) -> None:
    for request in draft.requests:
        request.params["prompt_logprobs"] = draft.rng.randint(0, 3)
        request.params["max_tokens"] = draft.rng.choice((0, 1, 9))
        request.params["min_tokens"] = 0
        if draft.rng.random() < 0.2:
            request.prompt = draft.some_tokens(MAX_MODEL_LEN, MAX_MODEL_LEN)  # cut to what fits


def limits(draft: HistoryDraft) -> None:
    draft.config |= {"max_model_len": 44}
    for request in draft.requests:
        request.params["max_tokens"] = draft.rng.choice((None, 0, 1, 2))
        request.params["min_tokens"] = 0


def arrivals(draft: HistoryDraft) -> None:
    draft.rng.shuffle(draft.requests)
    draft.config |= {"max_num_seqs": draft.rng.randint(1, 3)}
    for request in draft.requests:
        request.add_step = draft.rng.randint(0, 12)


def crowd(draft: HistoryDraft) -> None:
    while len(draft.requests) < 8:
        draft.add_request()


THEMES: Mapping[str, Theme] = MappingProxyType(
    {
        theme.__name__: theme
        for theme in (
            # Those that add requests come before those that change every request, and those
            # that choose the answering exit before those that choose draft exits.
            crowd,
            small_pool,
            exits,
            shared_prompts,
            aborts,
            stops,
            greedy,
            sampled,
            filters,
            penalties,
            allowed_tokens,
            priorities,
            draft_lengths,
            draft_exits,
            ngrams,
            auto_or_off,
            draft_vocabulary,
            block_sizes,
            chunks,
            choices,
            logprobs,
            minimum_and_bias,
            nothing_to_draft,
            prompt_logprobs,
            limits,
            arrivals,
        )
    }
)


def make_history(
    family: Family, themes: tuple[str, ...], seed: int, variant: str = "v1"
) -> History:
    """A history in which all the `themes` come together, alike for every variant."""
    rng = random.Random(f"{family} {themes} {seed}")
    spec = ModelSpec(agreement=rng.choice((0.45, 0.7, 0.85)), variant=variant)
    if family == "cpu":
        spec = replace(spec, threads=rng.randint(1, 4), isa=rng.choice(instruction_sets()))
    draft = HistoryDraft(
        family,
        rng,
        spec,
        {"block_size": 4, "max_model_len": MAX_MODEL_LEN, "kv_cache_tokens": 1024},
    )
    for _ in range(rng.randint(2, 4)):
        draft.add_request()
    for name in THEMES:
        if name in themes:
            THEMES[name](draft)
    context = draft.config["max_model_len"]
    submissions = tuple(_submission(request, context) for request in draft.requests)
    if draft.ends_early:
        submissions = tuple(_with_stops(draft, submission) for submission in submissions)
    return History(
        family, draft.spec, EngineConfig(**draft.config), submissions, rng.getrandbits(32)
    )


def _submission(request: RequestDraft, context: int) -> Submission:
    # Themes that lengthen prompts know nothing of those that shorten the context.
    least = request.params["max_tokens"]
    request.prompt = request.prompt[: context - (1 if least is None else least)]
    speculative = None if request.speculative is None else SpeculativeParams(**request.speculative)
    params = SamplingParams(**request.params, speculative=speculative)
    return Submission(tuple(request.prompt), params, request.add_step, request.abort_step)


def _with_stops(draft: HistoryDraft, submission: Submission) -> Submission:
    """The request with a stop string or stop token that its answer will meet, mostly."""
    rng, params = draft.rng, submission.params
    if params.seed is None:
        return submission
    model = make_model(draft.family, draft.spec)
    answer = expected_completion(model, submission, params.seed, MAX_MODEL_LEN)
    kind = rng.choice(("string", "token", "eos"))
    text = text_so_far(model.tokenizer, answer.tokens)
    if kind == "string" and len(text) > 2:
        start = rng.randrange(1, len(text))
        stop = text[start : start + rng.randint(1, 4)]
        return replace(
            submission,
            params=replace(
                params, stop=("?!", stop), include_stop_str_in_output=rng.random() < 0.5
            ),
        )
    if kind == "token" and len(answer.tokens) > 2:
        token = answer.tokens[rng.randrange(1, len(answer.tokens))]
        return replace(submission, params=replace(params, stop_token_ids=(token,)))
    return submission
