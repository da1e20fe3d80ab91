"""Random lives of an engine core, seeded: prompts that share beginnings, aborts, preemptions."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from engine.build import EngineParts
from engine.core import StepResult
from engine.request import Request
from engine.types import DraftMethod, SamplingParams, SpeculativeParams
from support.engine_parts import Ledger


@dataclass(slots=True)
class History:
    """Adds, aborts and steps at random; `events` counts what really happened."""

    parts: EngineParts
    rng: random.Random
    num_requests: int
    max_prompt: int = 24
    max_new: int = 24
    abort_rate: float = 0.04
    """Chance of an abort before each step."""
    ledger: Ledger = field(default_factory=Ledger)
    events: Counter[str] = field(default_factory=Counter)
    choices: dict[str, int] = field(default_factory=dict)
    """Request → its number of choices."""

    def step(self) -> StepResult | None:
        """Something at random, and one step; None at the end of the history."""
        rng, core = self.rng, self.parts.core
        while len(self.choices) < self.num_requests and (not core.has_work or rng.random() < 0.4):
            self._add()
        if rng.random() < self.abort_rate:
            self._abort()
        if not core.has_work:
            return None
        result = core.step()
        self.ledger.note(result.outputs)
        self._count(result)
        return result

    def assert_all_ended(self) -> None:
        """Every choice of every request got exactly one finish reason, as its last output."""
        expected = {(name, i) for name, n in self.choices.items() for i in range(n)}
        assert set(self.ledger.outputs) == expected
        for key in expected:
            assert self.ledger.reason(*key) is not None, f"{key} never ended"

    def _add(self) -> None:
        request_id = f"r{len(self.choices)}"
        params = self._params()
        self.parts.core.add(self.parts.intake.make_requests(request_id, self._prompt(), params))
        self.choices[request_id] = params.n

    def _prompt(self) -> list[int]:
        """Beginnings come from three texts, so that prefixes are shared; the rest is new.

        The texts repeat themselves, for n-grams to find.
        """
        rng = self.rng
        vocab = self.parts.intake.model.vocab_size
        text = random.Random(rng.randrange(3)).choices(range(1, 9), k=self.max_prompt)
        num_shared = rng.randrange(self.max_prompt)
        num_own = rng.randint(1, 4)
        return text[:num_shared] + rng.choices(range(1, vocab), k=num_own)

    def _params(self) -> SamplingParams:
        rng = self.rng
        num_layers = self.parts.intake.model.num_layers
        exit_layer = rng.choice((None, None, num_layers, num_layers - 1, num_layers // 2, 1))
        depth = exit_layer or num_layers
        kind = rng.choice(("none", "early exit", "early exit", "n-gram", "auto"))
        method, draft = DraftMethod.AUTO, None
        if kind == "n-gram":
            method = DraftMethod.NGRAM
        elif kind == "early exit" and depth > 1:
            method, draft = DraftMethod.EARLY_EXIT, rng.randint(1, depth - 1)
        return SamplingParams(
            max_tokens=rng.choice((0, 1, *range(4, self.max_new + 1))),
            temperature=rng.choice((0.0, 0.7, 1.0)),
            seed=rng.randrange(1000),
            n=rng.choice((1, 1, 1, 2, 3)),
            exit_layer=exit_layer,
            prompt_logprobs=rng.choice((None,) * 8 + (0,)),
            speculative=SpeculativeParams(
                enabled=kind != "none",
                method=method,
                exit_layer=draft,
                num_speculations=rng.choice((None, 0, 1, 2, 4, 7, 16)),
            ),
        )

    def _abort(self) -> None:
        """Abort a request at random; now and then one that has ended."""
        alive = list(self.parts.core.scheduler.requests())
        if alive and self.rng.random() < 0.9:
            request_id = self.rng.choice(alive).request_id
        else:
            request_id = self.rng.choice(["unknown", *self.choices])
        for request in alive:
            if request.request_id == request_id:
                self.events[f"aborted while {_stage(request)}"] += 1
        self.parts.core.abort(request_id)

    def _count(self, result: StepResult) -> None:
        stats = result.stats
        self.events["preempted"] += stats.num_preemptions
        self.events["prefix hit"] += stats.num_prefix_hits > 0
        for draft in stats.drafts:
            kind = "draft" if draft.draft_exit_layer else "n-gram"
            rejected = draft.num_accepted_tokens < draft.num_draft_tokens
            self.events[f"{kind} {'rejected' if rejected else 'accepted'}"] += 1


def _stage(request: Request) -> str:
    if request.slot is None:
        sibling = request.leader is not None
        return "waiting for its leader" if sibling else "waiting"
    return "prefilling" if request.num_generated == 0 else "decoding"
