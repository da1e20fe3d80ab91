"""The result of `bitskip eval` as a JSON file: its contract, in one place.

Durations are in seconds unless a name says otherwise; layers are counted as in the HTTP
interface. A reader takes any file of its own `version`; fields that it does not know are passed
over, and a change that would mislead an old reader raises the version.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
)

from engine.errors import ConfigError

FORMAT = "bitskip-evaluation"
VERSION = 1

Perplexity = Annotated[
    float,
    BeforeValidator(lambda value: math.inf if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]}),
]
"""JSON knows no infinity: null stands for what lies beyond a float's range."""

NumSpeculations = int | Literal["auto"]


class Record(BaseModel):
    """Base of every object in the file."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ModelFacts(Record):
    """What was evaluated."""

    name: str
    variant: str
    """v1, v2, v3 or dense, as `bitskip inspect` says."""
    num_layers: int
    hidden_size: int
    vocab_size: int
    context: int
    """Trained context, in tokens."""
    exit_norm: bool
    """Whether early exits have the final norm."""


class Machine(Record):
    """What it ran on."""

    processor: str
    num_cores: int
    """Cores that the process may use."""
    memory_mib: int | None
    system: str
    packages: dict[str, str]
    """Package → version; Python is among them."""
    backend: str
    backend_description: str
    """Instruction set or library, and threads."""
    head_dtype: str
    kv_dtype: str


class Text(Record):
    """The text that perplexities are of, and whose beginnings the engine went on with."""

    files: list[str]
    """Their names, without folders."""
    num_documents: int
    num_tokens: int
    """Predicted tokens, ends of text among them."""
    num_bytes: int


class Method(Record):
    """How much was measured, and how."""

    quick: bool
    """A first look: little text, few samples."""
    num_prompts: int
    """Documents whose beginnings were completed to measure acceptance."""
    num_generated_tokens: int
    """Greedy tokens over which acceptance was measured."""
    num_speculations: int
    """Drafts per round in that measurement."""
    num_prompt_tokens: int
    """Longest prompt."""
    num_new_tokens: int
    """Tokens per sequence in one sample of speed, on average over its sequences."""
    num_repeats: int
    """Samples of each speed; 0: speeds were not measured."""
    num_compared_tokens: int
    """Tokens with drafts that were compared with those without."""
    num_changed_tokens: int
    """How many of them differed: more than 0 is a defect."""


class Drafting(Record):
    """How an exit's drafts fared under full depth, greedily."""

    acceptance_rate: float
    """Accepted share of the drafted tokens."""
    mean_acceptance_length: float
    """Tokens per verified round, verification's own included."""
    accepted_by_position: list[float]
    """Share of the rounds in which the first, second … draft was accepted."""


class ExitResult(Record):
    """An exit as a text model."""

    exit_layer: int
    perplexity: Perplexity
    """Per token, each predicted from those before it; null: beyond a float's range."""
    other_norm_perplexity: Perplexity | None = None
    """With `exit_norm` turned round; null at full depth, which always has the norm."""
    bits_per_byte: float
    agreement: float
    """Share of positions at which its most likely token is that of full depth."""
    chance_agreement: float
    """What that would be if its choices had nothing to do with the text."""
    drafting: Drafting | None = None
    """null at full depth, and where nothing was drafted."""


class TimePerToken(Record):
    """Milliseconds per delivered token, of all sequences together, while decoding.

    Medians of each part, so that they need not add up to the whole's.
    """

    draft_layers_ms: float
    """Draft passes through the first layers."""
    draft_head_ms: float
    """The draft head, and picking drafts."""
    layers_ms: float
    """The sweep that decodes and verifies."""
    head_ms: float
    """The full head, and picking tokens."""
    outside_ms: float
    """Python: scheduling, acceptance, detokenising; everything outside the backend."""


class SpeedResult(Record):
    """One way to decode. Medians over the repeats; rates are of all sequences together."""

    exit_layer: int
    """Layers that answer."""
    batch_size: int
    draft_exit_layer: int | None = None
    """Layers that draft; null: nothing was drafted."""
    num_speculations: NumSpeculations | None = None
    """Drafts per round; auto: what the engine thought would pay."""
    tokens_per_s: float
    samples: list[float]
    """Tokens per second of each repeat."""
    speedup: float
    """Over full depth without drafts, at the same batch size; median of the repeats' ratios."""
    first_token_ms: float
    """From the arrival of all prompts at once to a sequence's first token, on average."""
    prefill_ms: float
    """From then to the last sequence's first token; prompts of `num_prompt_tokens` at most."""
    num_tokens: int
    """Delivered in all samples."""
    acceptance_rate: float | None = None
    """Accepted share of the drafted tokens; null where nothing was drafted."""
    mean_acceptance_length: float | None = None
    """Tokens per verified round, verification's own included."""
    time: TimePerToken


class BestDraft(Record):
    """The exit that should draft."""

    exit_layer: int
    num_speculations: NumSpeculations
    speedup: float
    batch_size: int
    """At which that is."""
    is_measured: bool
    """False: predicted from acceptance."""


class Evaluation(Record):
    """Everything that `bitskip eval` found out about a model."""

    format: Literal["bitskip-evaluation"] = FORMAT
    version: Literal[1] = VERSION
    model: ModelFacts
    machine: Machine
    text: Text
    method: Method
    exits: list[ExitResult]
    """Ascending; the last is full depth."""
    speeds: list[SpeedResult]
    """Empty where speeds were not measured."""
    best_draft: BestDraft | None
    warnings: list[str]
    """What of this is not to be believed, in sentences."""

    @property
    def batch_sizes(self) -> list[int]:
        """Those of the speeds, ascending."""
        return sorted({speed.batch_size for speed in self.speeds})

    def plain_speed(self, exit_layer: int, batch_size: int) -> SpeedResult | None:
        """An exit's speed without drafts, if it was measured."""
        return next(
            (
                speed
                for speed in self.speeds
                if speed.draft_exit_layer is None
                and (speed.exit_layer, speed.batch_size) == (exit_layer, batch_size)
            ),
            None,
        )

    def drafted_speeds(self, draft_exit_layer: int, batch_size: int) -> list[SpeedResult]:
        """The speeds of full depth with drafts of an exit."""
        return [
            speed
            for speed in self.speeds
            if (speed.draft_exit_layer, speed.batch_size) == (draft_exit_layer, batch_size)
        ]

    def best_fixed(self, draft_exit_layer: int, batch_size: int) -> SpeedResult | None:
        """The fastest of them whose number of drafts is fixed."""
        fixed = [
            speed
            for speed in self.drafted_speeds(draft_exit_layer, batch_size)
            if speed.num_speculations != "auto"
        ]
        return max(fixed, key=lambda speed: speed.speedup, default=None)

    def auto(self, draft_exit_layer: int, batch_size: int) -> SpeedResult | None:
        """The one in which the engine decides."""
        drafted = self.drafted_speeds(draft_exit_layer, batch_size)
        return next((speed for speed in drafted if speed.num_speculations == "auto"), None)

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(indent=2) + "\n"


def read_evaluation(path: Path) -> Evaluation:
    """Read a file that `bitskip eval --json` wrote.

    Raises `ConfigError` that names the file, and the field at fault.
    """
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path} is no result of this version's bitskip eval: "
            + (f"{place}: {first['msg']}" if place else first["msg"])
        ) from None
