"""Draft acceptance as the engine has it: greedy completions, drafted at one exit, counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from engine.build import LoadedModel, join_parts
from engine.config import EngineConfig
from engine.llm import LLM
from engine.types import DraftMethod, SamplingParams, SpeculativeParams


@dataclass(frozen=True, slots=True)
class DraftTally:
    """What one exit's drafts came to."""

    num_rounds: int
    """Rounds in which drafts were verified."""
    num_drafted: int
    num_accepted: int
    completions: tuple[tuple[int, ...], ...]
    """The tokens that the prompts brought."""
    accepted_per_position: tuple[int, ...] = ()
    """In how many rounds the first, second … draft was accepted."""

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted share of the drafted tokens; None where nothing was drafted."""
        return self.num_accepted / self.num_drafted if self.num_drafted else None

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per verified round, verification's own included; None without a round."""
        return 1.0 + self.num_accepted / self.num_rounds if self.num_rounds else None

    @property
    def accepted_by_position(self) -> tuple[float, ...]:
        """Share of the rounds in which the first, second … draft was accepted."""
        return tuple(count / self.num_rounds for count in self.accepted_per_position)

    @property
    def num_generated_tokens(self) -> int:
        """Tokens of all completions."""
        return sum(map(len, self.completions))


def measure_drafts(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    exit_layer: int,
    num_speculations: int,
    num_new_tokens: int,
    ignore_eos: bool = False,
) -> DraftTally:
    """Complete prompts (token ids) greedily in one batch, as a server with default options would.

    Every round has `num_speculations` drafts from `exit_layer`, none from n-grams. The backend's
    K/V is allocated anew.
    """
    params = SamplingParams(
        max_tokens=num_new_tokens,
        temperature=0.0,
        ignore_eos=ignore_eos,
        speculative=SpeculativeParams(
            method=DraftMethod.EARLY_EXIT,
            exit_layer=exit_layer,
            num_speculations=num_speculations,
        ),
    )
    llm = LLM.from_parts(join_parts(model, EngineConfig()))
    choices = [generation.choices[0] for generation in llm.generate(prompts, params)]
    found = [choice.metrics.speculation for choice in choices if choice.metrics]
    tallies = [tally for tally in found if tally is not None]
    return DraftTally(
        num_rounds=sum(tally.num_drafts for tally in tallies),
        num_drafted=sum(tally.num_draft_tokens for tally in tallies),
        num_accepted=sum(tally.num_accepted_tokens for tally in tallies),
        completions=tuple(tuple(choice.token_ids) for choice in choices),
        accepted_per_position=tuple(
            map(sum, zip_longest(*(each.accepted_per_position for each in tallies), fillvalue=0))
        ),
    )
