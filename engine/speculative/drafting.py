"""Which drafts a choice asks for: by method, depth and number.

Policies are decided once per request; how many drafts a round really gets also depends on
the tokens left and on free blocks (the scheduler's affair).
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import MAX_SPECULATIONS, EngineConfig
from engine.errors import InvalidRequestError
from engine.types import DraftMethod, SpeculativeParams


@dataclass(frozen=True, slots=True)
class DraftPolicy:
    """How one choice is drafted for."""

    num_speculations: int
    """Drafts per round: so many where `is_exact`, or else at most."""
    exit_layer: int | None = None
    """Layers that draft; None: only n-grams do."""
    is_exact: bool = True
    """Whether the request has said how many; or else the controller chooses, round by round."""
    tries_ngrams: bool = False
    """Whether n-grams may draft as well, where the text has a match."""

    @property
    def drafts(self) -> bool:
        """Whether it ever drafts."""
        return self.num_speculations > 0

    @property
    def uses_ngrams(self) -> bool:
        """Whether drafts come from the choice's own text."""
        return self.drafts and (self.exit_layer is None or self.tries_ngrams)


NO_DRAFTS = DraftPolicy(0)


def resolve_policy(
    params: SpeculativeParams | None, config: EngineConfig, answering_depth: int
) -> DraftPolicy:
    """The policy of a request whose answers come from `answering_depth` layers.

    An explicit number, the request's or else the engine's, is used exactly; without one the
    controller chooses, and where no method is named it chooses between early-exit and n-gram
    drafts too. Without a draft depth of its own, a request uses the engine's; where that does
    not lie below the answering depth, `auto` drafts by n-gram only.
    Raises `InvalidRequestError` for contradictions.
    """
    if params is None:
        params = SpeculativeParams(enabled=config.speculative)
    if not params.enabled:
        return NO_DRAFTS
    count = config.num_speculations
    if params.num_speculations is not None:
        count = params.num_speculations
    is_exact = count is not None
    if count is None:
        count = MAX_SPECULATIONS
    try:
        method = DraftMethod(params.method)
    except ValueError:
        raise InvalidRequestError(
            f"speculative.method must be one of {', '.join(DraftMethod)}, not {params.method!r}",
            param="speculative.method",
        ) from None
    if method is DraftMethod.NGRAM:
        if params.exit_layer is not None:
            raise InvalidRequestError(
                "speculative.exit_layer has no meaning with the ngram method",
                param="speculative.exit_layer",
            )
        return DraftPolicy(count, None, is_exact)
    tries_ngrams = method is DraftMethod.AUTO and not is_exact
    if params.exit_layer is not None:
        return DraftPolicy(count, params.exit_layer, is_exact, tries_ngrams)
    assert config.draft_exit_layer is not None, "a resolved configuration"
    if config.draft_exit_layer < answering_depth:
        return DraftPolicy(count, config.draft_exit_layer, is_exact, tries_ngrams)
    if method is DraftMethod.AUTO:
        return DraftPolicy(count, None, is_exact)
    if answering_depth == 1:
        raise InvalidRequestError(
            "speculative.method early_exit needs an answering depth of at least 2 layers",
            param="speculative.method",
        )
    return DraftPolicy(count, answering_depth - 1, is_exact)
