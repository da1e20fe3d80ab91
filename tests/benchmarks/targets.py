"""The figures that the project is held to, each computed from a section's results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.figures import best, over_best, paired_ratio, ratio_error
from benchmarks.results import Case, SectionResult, Series

Figure = Callable[[SectionResult], float | None]
"""None: not measured."""


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the table."""

    section: str
    what: str
    unit: str
    figure: Figure
    must: float | None = None
    """None: reported without a bound."""
    at_most: bool = False
    """Whether `must` is an upper bound."""

    def holds(self, value: float) -> bool | None:
        """Whether a figure is as it must be; None without a bound."""
        if self.must is None:
            return None
        return value <= self.must if self.at_most else value >= self.must


def ratio(over: dict[str, str | int], under: dict[str, str | int]) -> Figure:
    """One series over another; each is named by `system` and its case."""

    def figure(result: SectionResult) -> float | None:
        above, below = _find(result, over), _find(result, under)
        return paired_ratio(above.samples, below.samples) if above and below else None

    return figure


def middle(of: dict[str, str | int], note: str | None = None, factor: float = 1.0) -> Figure:
    """The median of a series, or of one of its notes."""

    def figure(result: SectionResult) -> float | None:
        series = _find(result, of)
        if series is None:
            return None
        value = series.median if note is None else series.note(note)
        return None if value is None else factor * value

    return figure


def auto_over_best(result: SectionResult, **case: str | int | float) -> float | None:
    """`auto` over the best of plain decoding and all fixed drafts, in one case."""
    auto, modes = _auto_and_others(result, case)
    return over_best(auto, modes) if auto and modes else None


def auto_error(result: SectionResult, **case: str | int | float) -> float | None:
    """The standard error of `auto_over_best`, as that of the ratio to the best of all samples."""
    auto, modes = _auto_and_others(result, case)
    return ratio_error(auto, modes[best(modes)]) if auto and modes else None


def worst_auto(result: SectionResult) -> float | None:
    """The least of `auto_over_best` over all cases."""
    ratios = [
        auto_over_best(result, agreement=agreement, sequences=sequences)
        for agreement in result.values("agreement")
        for sequences in result.values("sequences")
    ]
    return min((each for each in ratios if each is not None), default=None)


def auto_over_plain(agreement: float, sequences: int) -> Figure:
    """What speculation brings by itself."""

    def figure(result: SectionResult) -> float | None:
        case = {"agreement": agreement, "sequences": sequences}
        auto = result.find("bitskip", **case, mode="auto")
        plain = result.find("bitskip", **case, mode="plain")
        return paired_ratio(auto.samples, plain.samples) if auto and plain else None

    return figure


def outside_share(sequences: int, mode: str) -> Figure:
    """What of a round is not the backend's, in percent."""

    def figure(result: SectionResult) -> float | None:
        series = result.find("bitskip", sequences=sequences, mode=mode)
        round_ms = series.note("round_ms") if series else None
        return 100 * series.median / round_ms if series and round_ms else None

    return figure


def over_best_llama(result: SectionResult) -> float | None:
    """Our drafting server over llama.cpp's, at whichever setting of that is best; one stream."""
    ours = result.find("bitskip", streams=1, mode="auto")
    theirs = {
        str(series.case["mode"]): series.samples
        for series in result.select(streams=1)
        if series.system == "llama.cpp"
    }
    if ours is None or not theirs:
        return None
    return paired_ratio(ours.samples, theirs[best(theirs)])


def _auto_and_others(
    result: SectionResult, case: Case
) -> tuple[list[float] | None, dict[str, list[float]]]:
    """The samples of `auto`, and of the other modes that were not given up before it ended."""
    modes = {str(series.case["mode"]): series.samples for series in result.select(**case)}
    auto = modes.pop("auto", None)
    return auto, {mode: own for mode, own in modes.items() if len(own) >= len(auto or ())}


def _find(result: SectionResult, named: dict[str, str | int]) -> Series | None:
    case = dict(named)
    return result.find(str(case.pop("system")), **case)


def _decode(other: str, sequences: int) -> Figure:
    return ratio(
        {"system": "bitskip", "sequences": sequences}, {"system": other, "sequences": sequences}
    )


TARGETS = (
    Target("decode", "plain decode, 1 sequence", "× llama.cpp", _decode("llama.cpp", 1), 1.4),
    Target("decode", "plain decode, 2 sequences", "× llama.cpp", _decode("llama.cpp", 2)),
    Target("decode", "plain decode, 4 sequences", "× llama.cpp", _decode("llama.cpp", 4), 2),
    Target("decode", "plain decode, 8 sequences", "× llama.cpp", _decode("llama.cpp", 8), 2),
    Target("decode", "plain decode, 1 sequence", "× transformers", _decode("transformers", 1)),
    Target(
        "decode", "a token's time, 1 sequence", "× reading its bytes",
        ratio({"system": "read only", "sequences": 1}, {"system": "bitskip", "sequences": 1}),
        1.35, at_most=True,
    ),
    Target(
        "prefill", "prefill of 256 tokens", "× llama.cpp",
        ratio({"system": "bitskip"}, {"system": "llama.cpp"}), 2,
    ),
    *(
        Target(
            "speculation", f"speculation, agreement {agreement}, 1 sequence", "× plain",
            auto_over_plain(agreement, 1), must,
        )
        for agreement, must in ((0.5, None), (0.7, None), (0.85, 1.6), (0.95, None))
    ),
    Target(
        "speculation", "speculation, agreement 0.85, 8 sequences", "× plain",
        auto_over_plain(0.85, 8),
    ),
    Target("speculation", "auto, in its worst case", "× best setting", worst_auto, 0.97),
    Target(
        "servers", "server, drafting, 1 stream", "× llama.cpp's best", over_best_llama, 2.3
    ),
    Target(
        "loading", "from start to first token", "s",
        middle({"system": "bitskip", "figure": "first token"}), 2, at_most=True,
    ),
    Target(
        "loading", "resident memory while serving", "MiB",
        middle({"system": "bitskip", "figure": "memory"}), 667, at_most=True,
    ),
    Target(
        "loading", "of which not backed by files", "MiB",
        middle({"system": "bitskip", "figure": "memory"}, "RssAnon"), at_most=True,
    ),
    Target(
        "packing", "peak memory of bitskip pack", "MiB",
        middle({"system": "bitskip", "figure": "pack peak"}), 953, at_most=True,
    ),
    *(
        Target(
            "overhead", f"outside the backend, {label}", "% of a round", outside_share(*case),
            5, at_most=True,
        )
        for label, case in (
            ("plain, 1 sequence", (1, "plain")),
            ("3 drafts, 1 sequence", (1, "3")),
            ("auto, 1 sequence", (1, "auto")),
            ("auto, 8 sequences", (8, "auto")),
        )
    ),
    *(
        Target(
            "demo", f"demo model, {label}, 1 stream", "× reference backend",
            ratio(
                {"system": "bitskip, cpu", "streams": 1, "mode": mode},
                {"system": "bitskip, reference", "streams": 1, "mode": mode},
            ),
            10,
        )
        for label, mode in (("plain", "plain"), ("speculation", "auto"))
    ),
    Target(
        "demo", "demo model, speculation, 1 stream", "× plain",
        ratio(
            {"system": "bitskip, cpu", "streams": 1, "mode": "auto"},
            {"system": "bitskip, cpu", "streams": 1, "mode": "plain"},
        ),
    ),
)  # fmt: skip
"""In the order of the table."""
