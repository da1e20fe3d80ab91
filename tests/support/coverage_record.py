"""What a set of engine runs saw, so that a suite can assert that it saw enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from engine.backends.protocol import Row
from engine.cache.manager import KVCacheManager
from engine.cache.prefix import PrefixMatch
from engine.core import StepResult
from engine.types import FinishReason, TokenSource
from support.engine_runs import Answer


@dataclass(slots=True)
class Coverage:
    """Counts of what happened; `+=` adds another run's."""

    accepted: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(drafts verified, drafts accepted), early-exit drafts only."""
    ngrams_accepted: int = 0
    sources: Counter[TokenSource] = field(default_factory=Counter)
    ends_inside_drafts: Counter[str] = field(default_factory=Counter)
    """`eos`, `token` or `string` → choices whose last token was an accepted draft."""
    prefix: Counter[str] = field(default_factory=Counter)
    """Admitted or not: `equal` and `deeper` hits, and blocks too `shallow` to be hits."""
    events: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: Coverage) -> Coverage:
        for name in ("accepted", "sources", "ends_inside_drafts", "prefix", "events"):
            getattr(self, name).update(getattr(other, name))
        self.ngrams_accepted += other.ngrams_accepted
        return self

    @property
    def acceptance_rate(self) -> float:
        """Accepted share of the early-exit drafts."""
        drafted = sum(drafts * count for (drafts, _), count in self.accepted.items())
        accepted = sum(number * count for (_, number), count in self.accepted.items())
        return accepted / drafted

    def see_step(self, result: StepResult) -> None:
        """Count one engine step."""
        self.events["preemption"] += result.stats.num_preemptions
        self.events["step"] += 1
        self.events["8 running"] += result.stats.num_running >= 8
        for draft in result.stats.drafts:
            if draft.draft_exit_layer:
                self.accepted[draft.num_draft_tokens, draft.num_accepted_tokens] += 1
            else:
                self.ngrams_accepted += draft.num_accepted_tokens
        for (_, source), count in result.stats.generated.items():
            self.sources[source] += count

    def see_answers(self, answers: Iterable[Answer]) -> None:
        """Count how choices ended."""
        for answer in answers:
            assert answer.finish_reason is not None
            self.events[answer.finish_reason] += 1
            was_draft = bool(answer.tokens) and answer.tokens[-1].source is TokenSource.DRAFT
            if was_draft and answer.finish_reason is FinishReason.STOP:
                kinds = {str: "string", int: "token", type(None): "eos"}
                self.ends_inside_drafts[kinds[type(answer.stop_reason)]] += 1

    def see_sweeps(self, sweeps: Iterable[tuple[Row, ...]]) -> None:
        """Count what shared a sweep."""
        for rows in sweeps:
            drafting = {row.last for row in rows if row.target_state is not None}
            self.events["draft pass of several exits"] += len(drafting) > 1
            resumed = {row.first for row in rows if row.source_state is not None}
            self.events["verification from several exits"] += len(resumed) > 1
            fresh = {row.sequence for row in rows if row.source_state is None}
            self.events["pass without a draft"] += any(
                row.source_state is not None and row.sequence not in fresh for row in rows
            )
            depths = {row.last for row in rows}
            self.events["answers of several exits"] += not drafting and len(depths) > 1

    def watch_matches(self, cache: KVCacheManager) -> None:
        """Count what the lookups in this prefix cache find, from now on."""
        match: Callable[..., PrefixMatch] = cache.match

        def watched(tokens: list[int], exit_layer: int, max_tokens: int) -> PrefixMatch:
            found = match(tokens, exit_layer, max_tokens)
            for entry in found.entries:
                self.prefix["equal" if entry.depth == exit_layer else "deeper"] += 1
            if match(tokens, 1, max_tokens).num_tokens > found.num_tokens:
                self.prefix["shallow"] += 1
            return found

        cache.match = watched  # pyright: ignore[reportAttributeAccessIssue]
