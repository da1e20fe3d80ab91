"""A result as a section of a model card, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from engine.evaluation.results import BestDraft, Evaluation, ExitResult, SpeedResult

BEGIN = "<!-- bitskip report: begin -->"
END = "<!-- bitskip report: end -->"

NOT_MEASURED = "not measured"
_FEW_TOKENS = 5_000
"""Below that, a perplexity may well be off by several per cent."""


def card_section(evaluation: Evaluation, pictures: Mapping[str, str]) -> str:
    """The section, without a heading of its own; its subheadings are of the third level.

    `pictures` tells the pictures' addresses: `quality`, `acceptance` and `time`, as far as there
    are any.
    """
    parts = [
        *_doubts(evaluation),
        "### Quality and speed by exit",
        _card_table(evaluation),
        _exits_table(evaluation),
        _picture(pictures, "quality", "Perplexity against tokens per second, by exit"),
        "### Drafting",
        *_drafting(evaluation),
        _picture(pictures, "acceptance", "Accepted drafts, by depth and by position"),
    ]
    if evaluation.speeds:
        parts += [
            "### Where the time goes",
            _time_table(evaluation),
            _picture(pictures, "time", "Time per token, by what it is spent on"),
        ]
    parts += ["### How this was measured", _method(evaluation)]
    return "\n\n".join(part for part in parts if part) + "\n"


def inserted(page: str, section: str) -> str:
    """A page with the section between its marks, or at its end if it has none."""
    block = f"{BEGIN}\n\n{section}\n{END}"
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        return f"{before}{block}{after}"
    return f"{page.rstrip()}\n\n{block}\n".lstrip()


def _doubts(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.warnings:
        lines = "\n".join(f"> - {warning}" for warning in evaluation.warnings)
        yield f"> **These numbers are not credible as they stand:**\n>\n{lines}"
    if evaluation.method.quick:
        yield "> A quick look, with little text and few samples: every figure is rough."


# --- tables -----------------------------------------------------------------------------------


def _card_table(evaluation: Evaluation) -> str:
    """All layers, three quarters, a half and a quarter: of 24 layers all, 18, 12 and 6."""
    num_layers = evaluation.model.num_layers
    rows = []
    for quarter in (4, 3, 2, 1):
        layers = max(1, num_layers * quarter // 4)
        found = next((each for each in evaluation.exits if each.exit_layer == layers), None)
        speed = _smallest(evaluation, layers)
        rows.append(
            (
                f"all ({layers})" if layers == num_layers else str(layers),
                NOT_MEASURED if found is None else _perplexity(found.perplexity),
                NOT_MEASURED if speed is None else _rate(speed.tokens_per_s),
            )
        )
    return _table(("layers", "perplexity", "tok/s"), dict.fromkeys(rows))


def _smallest(evaluation: Evaluation, exit_layer: int) -> SpeedResult | None:
    """An exit's speed at the smallest batch size."""
    sizes = evaluation.batch_sizes
    return evaluation.plain_speed(exit_layer, sizes[0]) if sizes else None


def _exits_table(evaluation: Evaluation) -> str:
    model, sizes = evaluation.model, evaluation.batch_sizes
    turned = "without" if model.exit_norm else "with"
    has_other = any(each.other_norm_perplexity is not None for each in evaluation.exits)
    head = ["exit", "perplexity", *([f"{turned} exit norm"] if has_other else [])]
    head += ["bits per byte", f"agreement with {model.num_layers} layers"]
    head += [f"tok/s, {_sequences(size)}" for size in sizes]
    head += ["times full depth", "first token, ms"] if sizes else []
    rows = []
    for each in evaluation.exits:
        row = [str(each.exit_layer), _perplexity(each.perplexity)]
        if has_other:
            other = each.other_norm_perplexity
            row.append("" if other is None else _perplexity(other))
        row += [f"{each.bits_per_byte:.3f}", _percent(each.agreement)]
        for size in sizes:
            speed = evaluation.plain_speed(each.exit_layer, size)
            row.append("" if speed is None else _rate(speed.tokens_per_s))
        if (speed := _smallest(evaluation, each.exit_layer)) is not None:
            row += [f"{speed.speedup:.2f}", f"{speed.first_token_ms:.3g}"]
        rows.append(row)
    return _table(head, rows)


def _drafting(evaluation: Evaluation) -> Iterator[str]:
    drafters = [each for each in evaluation.exits if each.drafting is not None]
    if not drafters:
        yield "Nothing was drafted: acceptance is not measured."
        return
    method, sizes = evaluation.method, evaluation.batch_sizes
    yield (
        f"An exit drafts, all {evaluation.model.num_layers} layers verify and answer. "
        + _sameness(evaluation)
    )
    head = ["draft exit", "first draft accepted", f"of {method.num_speculations} drafts accepted"]
    head += ["tokens per round"]
    for size in sizes:
        head += [f"best fixed, {_sequences(size)}", "auto"]
    yield _table(head, [_draft_row(evaluation, each) for each in drafters])
    if sizes:
        yield (
            "Speed-ups are over full depth without drafts at the same number of sequences; in "
            "brackets the number of drafts per round that was fastest, of "
            f"{_list(_fixed_counts(evaluation))}. With auto the engine chooses, round by round."
        )
    if evaluation.best_draft is not None:
        yield _advice(evaluation.best_draft)


def _sameness(evaluation: Evaluation) -> str:
    method = evaluation.method
    if not method.num_compared_tokens:
        return "That drafting changes no token was not checked here: no speed was measured."
    if method.num_changed_tokens:
        return (
            f"**{method.num_changed_tokens:,} of {method.num_compared_tokens:,} tokens were "
            "others than without drafts.**"
        )
    return (
        f"All {method.num_compared_tokens:,} tokens that it gave were those that come without "
        "drafts."
    )


def _draft_row(evaluation: Evaluation, result: ExitResult) -> list[str]:
    drafting = result.drafting
    assert drafting is not None
    by_position = drafting.accepted_by_position
    row = [
        str(result.exit_layer),
        _percent(by_position[0]) if by_position else "",
        _percent(drafting.acceptance_rate),
        f"{drafting.mean_acceptance_length:.2f}",
    ]
    for size in evaluation.batch_sizes:
        best = evaluation.best_fixed(result.exit_layer, size)
        auto = evaluation.auto(result.exit_layer, size)
        row.append("" if best is None else f"{best.speedup:.2f} ({best.num_speculations})")
        row.append("" if auto is None else f"{auto.speedup:.2f}")
    return row


def _fixed_counts(evaluation: Evaluation) -> list[int]:
    counts = {speed.num_speculations for speed in evaluation.speeds}
    return sorted(count for count in counts if isinstance(count, int))


def _advice(best: BestDraft) -> str:
    how = "measured" if best.is_measured else "predicted from acceptance, not measured"
    if best.speedup <= 1:
        return f"Drafting does not pay here: at best {best.speedup:.2f} times the speed ({how})."
    count = f"{best.num_speculations} drafts per round"
    if best.num_speculations == "auto":
        count = "as many drafts as the engine chooses"
    return (
        f"Best draft exit: **{best.exit_layer}**, with {count}: {best.speedup:.2f} times as fast "
        f"as without, at {_sequences(best.batch_size)} ({how})."
    )


def _time_table(evaluation: Evaluation) -> str:
    head = ["", "draft layers", "draft head", "layers", "head", "Python", "in all", "prompts"]
    rows = []
    for label, speed in timed_settings(evaluation, evaluation.batch_sizes[0]):
        time = speed.time
        parts = [
            time.draft_layers_ms,
            time.draft_head_ms,
            time.layers_ms,
            time.head_ms,
            time.outside_ms,
        ]
        rows.append([label, *(f"{part:.3f}" for part in (*parts, sum(parts), speed.prefill_ms))])
    caption = (
        f"Milliseconds per token while {_sequences(evaluation.batch_sizes[0])} decode"
        f"{'s' if evaluation.batch_sizes[0] == 1 else ''}. Python is everything outside the "
        "backend; prompts are the milliseconds before that, in all."
    )
    return f"{caption}\n\n{_table(head, rows)}"


def timed_settings(evaluation: Evaluation, batch_size: int) -> Iterator[tuple[str, SpeedResult]]:
    """The settings whose time is worth a look, named: exits alone, then each drafter's best."""
    num_layers = evaluation.model.num_layers
    for each in reversed(evaluation.exits):
        plain = evaluation.plain_speed(each.exit_layer, batch_size)
        if plain is not None:
            yield f"{each.exit_layer} layers", plain
    for each in evaluation.exits:
        best = evaluation.best_fixed(each.exit_layer, batch_size)
        if best is not None and each.exit_layer < num_layers:
            yield f"exit {each.exit_layer} drafts {best.num_speculations}", best


# --- words ------------------------------------------------------------------------------------


def _method(evaluation: Evaluation) -> str:
    machine, text, method = evaluation.machine, evaluation.text, evaluation.method
    memory = "" if machine.memory_mib is None else f", {machine.memory_mib / 1024:.0f} GiB"
    versions = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    files = f" of {', '.join(f'`{name}`' for name in text.files)}" if text.files else ""
    lines = [
        f"Model: {evaluation.model.name}, variant {evaluation.model.variant}, "
        f"{evaluation.model.num_layers} layers × {evaluation.model.hidden_size}; head in "
        f"{machine.head_dtype}, K/V in {machine.kv_dtype}.",
        f"Machine: {machine.processor}, {machine.num_cores} cores{memory}, {machine.system}; "
        f"backend {machine.backend} ({machine.backend_description}); {versions}.",
        f"Text: {text.num_tokens:,} tokens in {text.num_documents:,} documents{files}. Each token "
        "is predicted from those before it in its document. Whether the model has seen this text "
        "in training, this tool cannot know.",
        f"Acceptance: {method.num_generated_tokens:,} greedy tokens after the beginnings of "
        f"{method.num_prompts} documents, {method.num_speculations} drafts per round.",
    ]
    if method.num_repeats:
        lines.append(
            f"Speed: medians of {method.num_repeats} samples after a warm-up, settings taking "
            f"turns in one process; {method.num_new_tokens} greedy tokens per sequence after "
            f"prompts of up to {method.num_prompt_tokens} tokens, ends of text ignored. tok/s "
            "count decoding alone, all sequences together. First token: all prompts at once, "
            f"{_sequences(evaluation.batch_sizes[0])}."
        )
    lines.append(f"Not measured: {'; '.join(_not_measured(evaluation))}.")
    return "\n".join(f"- {line}" for line in lines)


def _not_measured(evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.speeds:
        yield "speed, drafting's included"
    else:
        yield "HTTP, and queues"
        yield "n-gram drafts"
    yield "sampling at a temperature"
    if all(each.other_norm_perplexity is None for each in evaluation.exits):
        yield "perplexity with the exit norm turned round"
    if evaluation.text.num_tokens < _FEW_TOKENS:
        yield "enough text for a firm perplexity"
    yield "other machines"


def _perplexity(value: float) -> str:
    if not math.isfinite(value):
        return "∞"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 10 else f"{tokens_per_s:.1f}"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _sequences(batch_size: int) -> str:
    return f"{batch_size} sequence{'s'[: batch_size != 1]}"


def _list(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _picture(pictures: Mapping[str, str], name: str, title: str) -> str:
    return f"![{title}]({pictures[name]})" if name in pictures else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
