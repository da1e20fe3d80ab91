"""How `bitskip inspect` shows its report on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from engine.checkpoint.inspection import TensorReport
    from engine.config import ModelConfig
    from engine.evaluation.draft_exit import DraftExit
    from engine.evaluation.inspection import InspectedExits, ModelReport


def print_report(console: Console, report: ModelReport, *, show_tensors: bool) -> None:
    """Everything, the warnings last, where they are seen."""
    linears = report.weights.ternary
    tables = [_facts(report), _renamed(report), _groups(report)]
    if show_tensors and linears:
        tables.append(_ternary("ternary tensors", linears, lambda tensor: tensor.name))
    elif linears:
        tables.append(_ternary("ternary weights by kind", linears, lambda each: _short(each.kind)))
        tables.append(_ternary("and by layer", linears, lambda each: f"layer {each.layer}"))
    tables.append(_memory(report))
    if report.exits is not None:
        tables.append(_exits(report.exits, report.config.exit_norm))
    for table in tables:
        if table is not None:
            console.print(table, "")
    if report.exits is not None and (best := report.exits.best) is not None:
        console.print(_draft_advice(best))
    for warning in report.warnings:
        console.print(f"warning: {escape(warning)}", style="yellow", soft_wrap=True)
    if not report.warnings:
        console.print("nothing suspicious was found", style="green")


def _draft_advice(best: DraftExit) -> str:
    drafts = f"{best.num_speculations} draft{'s'[: best.num_speculations != 1]} per round"
    advice = (
        f"best draft exit: {best.exit_layer}, with {drafts} {best.speedup:.2f} times as fast as "
        "without, as predicted"
    )
    return advice if best.speedup > 1 else f"{advice}: drafting is not expected to pay"


def _facts(report: ModelReport) -> Table:
    model, weights = report.config, report.weights
    head = "tied to the embedding" if model.tie_word_embeddings else "a tensor of its own"
    norm = "with" if model.exit_norm else "without"
    why = "the checkpoint's choice" if model.draft_exit_layer else "a quarter of the layers"
    ignored = ", ".join(weights.ignored) or "none"
    table = _table("", "", show_header=False)
    for label, text in (
        ("model", str(report.path)),
        ("variant", _variant(report)),
        (
            "shape",
            f"{model.num_layers} layers of {model.hidden_size}, feed-forward "
            f"{model.intermediate_size}, {model.num_heads} heads and {model.num_kv_heads} K/V "
            f"heads of {model.head_dim}",
        ),
        ("vocabulary", f"{model.vocab_size:,}; drafts choose from {report.num_draft_ids:,}"),
        ("context", _context(model)),
        ("head", f"{head}; early exits {norm} the final norm"),
        ("exits", f"1 to {model.num_layers}, for instance {_list(model.suggested_exits)}"),
        ("draft exit", f"{report.draft_exit_layer} ({why})"),
        ("names", f"{len(weights.tensors)} tensors mapped; ignored: {ignored}"),
    ):
        table.add_row(label, escape(text))
    return table


def _variant(report: ModelReport) -> str:
    model = report.config
    if model.is_dense:
        return "dense weights, used as they are"
    form = "packed" if report.weights.is_packed else model.weights
    text = f"{model.variant}, {form} weights, {model.activation_bits}-bit activations"
    if model.hadamard == "none":
        return text
    return f"{text}, Hadamard-transformed {model.hadamard} quantisation"


def _context(model: ModelConfig) -> str:
    text, scaling = f"{model.max_position_embeddings:,} tokens", model.rope_scaling
    if scaling is None:
        return text
    original = scaling.original_max_position_embeddings
    return f"{text}, rotary positions stretched {scaling.factor:g} times from {original:,}"


def _groups(report: ModelReport) -> Table:
    packed = () if report.config.is_dense else ("packed MB",)
    table = _table("tensors", "number", "shape", "dtype", "MB", "fp32 MB", *packed)
    for kind, members in _grouped(report.weights.tensors, lambda tensor: tensor.kind).items():
        table.add_row(
            _short(kind),
            str(len(members)),
            "×".join(map(str, members[0].shape)),
            _list(dict.fromkeys(each.dtype for each in members)),
            *_sizes(members),
        )
    table.add_section()
    everything = report.weights.tensors
    table.add_row("all", str(len(everything)), "", "", *_sizes(everything))
    return table


def _renamed(report: ModelReport) -> Table | None:
    """Spellings that are neither Hugging Face's nor our own; None if there are none."""
    from engine.checkpoint.names import published_name

    table = Table(box=None, pad_edge=False)
    table.add_column("name in the files", overflow="fold")
    table.add_column("read as", overflow="fold")
    for tensor in report.weights.tensors:
        stored = tensor.stored_name
        if tensor.layer is not None:
            stored = stored.replace(f"layers.{tensor.layer}.", "layers.*.")
        usual = (tensor.kind, published_name(tensor.kind))
        if stored not in usual and tensor.layer in (None, 0):
            table.add_row(escape(stored), tensor.kind)
    return table if table.row_count else None


def _ternary(
    title: str, tensors: tuple[TensorReport, ...], key: Callable[[TensorReport], str]
) -> Table:
    from engine.checkpoint.inspection import total_trits

    table = _table(title, "−1", "0", "+1", "scale")
    rows = [*_grouped(tensors, key).items(), ("all", tensors)]
    for label, members in rows:
        trits = total_trits(members)
        shares = ("?",) * 3 if trits is None else (f"{share:.1%}" for share in trits.shares())
        scales = [each.scale for each in members if each.scale is not None]
        span = f"{min(scales):.3g}" if scales else "?"
        if scales and min(scales) != max(scales):
            span += f" to {max(scales):.3g}"
        if label == "all":
            table.add_section()
        table.add_row(label, *shares, span)
    return table


def _memory(report: ModelReport) -> Table:
    tokens = report.memory[0].num_kv_tokens
    table = _table(
        "MiB to serve", "weights", "head", "draft head", f"K/V, {tokens:,} tokens", "in all"
    )
    for each in report.memory:
        table.add_row(
            each.backend,
            f"{_mib(each.weights)} ({each.linear_dtype})",
            f"{_mib(each.head)} ({each.head_dtype})",
            _mib(each.draft_head) if each.draft_head else "shared",
            f"{_mib(each.kv)} ({each.kv_dtype})",
            _mib(each.total),
        )
    return table


def _exits(exits: InspectedExits, exit_norm: bool) -> Table:
    report = exits.report
    table = _table(
        "exit", "ppl, norm", "ppl, no norm", "bits/byte", "agreement", "by chance", "acceptance"
    )
    table.title = f"{report.num_tokens:,} tokens of {report.num_documents} documents"
    for score in report.exits:
        perplexities = [score.perplexity, exits.other_norm[score.exit_layer]]
        if not exit_norm:
            perplexities.reverse()
        is_full = score is report.exits[-1]
        acceptance = score.draft_acceptance_rate
        table.add_row(
            str(score.exit_layer),
            f"{perplexities[0]:.4g}",
            # Full depth always has the norm.
            "" if is_full else f"{perplexities[1]:.4g}",
            f"{score.bits_per_byte:.3f}",
            f"{score.agreement:.1%}",
            f"{score.chance_agreement:.1%}",
            "" if acceptance is None else f"{acceptance:.1%}",
        )
    return table


def _grouped(
    tensors: tuple[TensorReport, ...], key: Callable[[TensorReport], str]
) -> dict[str, tuple[TensorReport, ...]]:
    groups: dict[str, tuple[TensorReport, ...]] = {}
    for tensor in tensors:
        groups[key(tensor)] = (*groups.get(key(tensor), ()), tensor)
    return groups


def _table(first: str, *others: str, show_header: bool = True) -> Table:
    table = Table(box=None, show_header=show_header, pad_edge=False, title_justify="left")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right" if show_header else "left", overflow="fold")
    return table


def _sizes(tensors: tuple[TensorReport, ...]) -> list[str]:
    """As stored and as float32, and packed if that can be."""
    sums = [sum(each.num_bytes for each in tensors), sum(each.unpacked_bytes for each in tensors)]
    packed = [each.packed_bytes for each in tensors if each.packed_bytes is not None]
    sums += [sum(packed)] if packed else []
    return [f"{each / 1e6:,.2f}" for each in sums]


def _short(kind: str) -> str:
    return kind.removeprefix("layers.*.").removesuffix(".weight")


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f}"


def _list(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
