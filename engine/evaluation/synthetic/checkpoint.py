"""Write a synthetic checkpoint: packed random weights, a tokenizer, a note that says what it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from engine.build import load_model
from engine.checkpoint.files import WEIGHTS_FILE
from engine.checkpoint.packed_file import overwrite_scales, write_packed_file
from engine.checkpoint.staging import staged_directory
from engine.config import EngineConfig, ModelConfig
from engine.errors import ConfigError
from engine.evaluation.acceptance import DraftTally, measure_drafts
from engine.evaluation.synthetic.calibration import (
    NUM_PROMPTS,
    SCALE_LIMITS,
    Report,
    calibrate,
)
from engine.evaluation.synthetic.shapes import parse_shape
from engine.evaluation.synthetic.vocabulary import frequent_ids, write_vocabulary
from engine.evaluation.synthetic.weights import Progress, SyntheticWeights, linear_scales

_PROMPT_TOKENS = 24
_PROMPT_STREAM = 1 << 32
"""Where prompts get their random numbers: far from every tensor's stream."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often drafts are to be accepted, and how closely. Raises `ConfigError` if never."""

    rate: float = 0.85
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        for name, value in (("agreement", self.rate), ("tolerance", self.tolerance)):
            if not 0.0 < value < 1.0:
                raise ConfigError(f"{name} must lie between 0 and 1, not {value:g}")


@dataclass(frozen=True, slots=True)
class SyntheticModel:
    """What was written."""

    path: Path
    config: ModelConfig
    draft_exit: int
    seed: int
    residual_scale: float
    num_bytes: int
    """Size of `model.safetensors`."""
    tally: DraftTally | None
    """The measurement that ended the calibration; None if the residual scale was given."""


def write_synthetic_checkpoint(
    out: Path,
    shape: str,
    *,
    draft_exit: int | None = None,
    seed: int = 0,
    target: Agreement | float = Agreement(),
    backend: str = "auto",
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
    report: Report = lambda scale, tally: None,
) -> SyntheticModel:
    """Write a model of `shape` (`parse_shape`) into the new directory `out`.

    Drafts from the first `draft_exit` layers (None: a quarter of them) are accepted as the
    target says, measured by the engine on `backend`. A number as the target is the residual
    scale itself; then nothing is measured. `progress(done, total)` is told the bytes written,
    `report` each measurement. `out` appears only when it is complete.

    Raises `ConfigError` for a shape, exit, seed or target that cannot be, and `CheckpointError`
    for an `out` that holds something.
    """
    config = parse_shape(shape)
    draft_exit = _resolve_exit(config, draft_exit)
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, not {seed}")
    scale = 1.0 if isinstance(target, Agreement) else target
    if not SCALE_LIMITS[0] <= scale <= SCALE_LIMITS[1]:
        low, high = SCALE_LIMITS
        raise ConfigError(f"residual scale must lie in {low:.2g}..{high:g}, not {scale:g}")
    with staged_directory(out) as staging:
        source = SyntheticWeights(config, seed, draft_exit, scale, progress)
        num_bytes = write_packed_file(staging / WEIGHTS_FILE, source)
        write_vocabulary(staging, config.vocab_size)
        raw = {**config.to_dict(), "draft_exit_layer": draft_exit, "synthetic": True}
        _write_json(staging / "config.json", raw)
        tally = None
        if isinstance(target, Agreement):
            trial = _Trial(staging, config, draft_exit, seed, backend, threads)
            scale, tally = calibrate(trial.measure, target.rate, target.tolerance, report)
            trial.set_scale(scale)
        model = SyntheticModel(out, config, draft_exit, seed, scale, num_bytes, tally)
        (staging / "README.md").write_text(_card(model), encoding="utf-8")
    return model


def distinct_share(completions: Iterable[Sequence[int]], length: int = 4) -> float:
    """How varied texts are: distinct runs of `length` tokens per run, 1 if none repeats."""
    runs = [
        [tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1)]
        for tokens in completions
    ]
    num_runs = sum(map(len, runs))
    return len(set(chain.from_iterable(runs))) / num_runs if num_runs else 1.0


@dataclass(frozen=True, slots=True)
class _Trial:
    """Runs a staged model at one residual scale after another."""

    directory: Path
    config: ModelConfig
    draft_exit: int
    seed: int
    backend: str
    threads: int | None

    def set_scale(self, scale: float) -> None:
        scales = linear_scales(self.config, self.draft_exit, scale)
        overwrite_scales(self.directory / WEIGHTS_FILE, scales)

    def measure(self, scale: float, num_new_tokens: int) -> DraftTally:
        """The acceptance of single drafts; the model is loaded anew, as a server would."""
        self.set_scale(scale)
        model = load_model(self.directory, EngineConfig(), self.backend, self.threads)
        try:
            return measure_drafts(
                model,
                self._prompts(),
                exit_layer=self.draft_exit,
                num_speculations=1,
                num_new_tokens=num_new_tokens,
                ignore_eos=True,
            )
        finally:
            model.backend.close()

    def _prompts(self) -> list[list[int]]:
        rng = np.random.Generator(np.random.SFC64((self.seed, _PROMPT_STREAM)))
        ids = frequent_ids(self.config.vocab_size)
        return rng.integers(ids.start, ids.stop, (NUM_PROMPTS, _PROMPT_TOKENS)).tolist()


def _resolve_exit(config: ModelConfig, draft_exit: int | None) -> int:
    if draft_exit is None:
        return config.suggested_exits[0]
    if not 1 <= draft_exit < config.num_layers:
        raise ConfigError(
            f"draft exit must lie in 1..{config.num_layers - 1}, below the model's "
            f"{config.num_layers} layers, not {draft_exit}"
        )
    return draft_exit


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _card(model: SyntheticModel) -> str:
    """The note that keeps anybody from taking the model for a trained one."""
    config = model.config
    return f"""# Synthetic model

Random ternary weights, written by `bitskip synth` to measure speed. Nothing was trained: the text
is made-up words, and the acceptance of its drafts was chosen.

- {config.num_layers} layers × {config.hidden_size}, {config.num_heads} query heads and \
{config.num_kv_heads} key/value heads of {config.head_dim}, feed-forward \
{config.intermediate_size}, vocabulary {config.vocab_size}
- seed: {model.seed}
- draft exit: {model.draft_exit}
- residual scale of the layers from there on: {model.residual_scale!r}
- {_agreement_line(model.tally)}
"""


def _agreement_line(tally: DraftTally | None) -> str:
    if tally is None or tally.acceptance_rate is None:
        return "agreement: not measured; the residual scale was given"
    return (
        f"agreement: {tally.acceptance_rate:.4f} = {tally.num_accepted} / {tally.num_drafted}, "
        f"single greedy drafts accepted by the engine over {tally.num_generated_tokens} tokens of "
        f"{len(tally.completions)} prompts; {distinct_share(tally.completions):.1%} of the runs of "
        "four tokens are distinct"
    )
