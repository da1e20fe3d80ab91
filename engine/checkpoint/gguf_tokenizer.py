"""A checkpoint's tokenizer as GGUF metadata, from which llama.cpp builds its own.

llama.cpp knows a way of cutting text by its name alone (`tokenizer.ggml.pre`). "gpt-2" is
byte-level BPE with GPT-2's regular expression and nothing around it; a tokenizer that does
anything else is refused, since llama.cpp would silently give other ids for the same text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import gguf
import tokenizers

from engine.checkpoint.end_tokens import with_generation_eos
from engine.config import ModelConfig
from engine.errors import TokenizerError
from engine.tokenizer import Tokenizer
from engine.tokenizer_files import read_directory

_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
_BPE_OPTIONS = (
    "dropout",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "byte_fallback",
    "ignore_merges",
)
"""Options of the library's BPE that GPT-2 leaves off and that change the ids."""

_logger = logging.getLogger(__name__)


def add_tokenizer(writer: gguf.GGUFWriter, path: Path, config: ModelConfig) -> None:
    """Describe the tokenizer in the directory `path` for a model of `config`'s vocabulary.

    Where there is none, a token's text is its id: `<448>`, which llama.cpp reads back as 448.
    Raises `TokenizerError` for files that are broken, or that llama.cpp cannot be told about,
    and where no file names an end of text; `CheckpointError` as `with_generation_eos` does.
    """
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    if not any((path / name).exists() for name in _FILES):
        _logger.warning("%s: has no tokenizer: to llama.cpp, texts will be ids, as in <448>", path)
        _add_ids_as_texts(writer, config.vocab_size)
        _add_ends(writer, path, _end_tokens(path, config, ()), None)
        return
    files = read_directory(path)
    tokenizer = Tokenizer(files.backend, files.eos_token_ids, files.bos_token_id)
    tokenizer.check_vocab(config.vocab_size)
    _add_tokens(writer, tokenizer, files.backend, config.vocab_size)
    writer.add_token_merges(_merges(path, files.backend))
    eos_ids = _end_tokens(path, config, tokenizer.eos_token_ids)
    _add_ends(writer, path, eos_ids, tokenizer.bos_token_id, files.backend)


def _add_ids_as_texts(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    writer.add_token_list([f"<{index}>" for index in range(vocab_size)])
    writer.add_token_types([gguf.TokenType.USER_DEFINED] * vocab_size)
    # llama.cpp insists on merges; this one makes no token.
    writer.add_token_merges(["< >"])


def _add_tokens(
    writer: gguf.GGUFWriter, tokenizer: Tokenizer, backend: tokenizers.Tokenizer, vocab_size: int
) -> None:
    """The text and the type of every id; ids without a token get a name that no text has."""
    added = backend.get_added_tokens_decoder()
    texts = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for text, index in backend.get_vocab(with_added_tokens=True).items():
        texts[index] = text
        if index in tokenizer.special_ids:
            types[index] = gguf.TokenType.CONTROL
        elif index in added:
            # Plain text, found before the text is cut: llama.cpp's name for it.
            types[index] = gguf.TokenType.USER_DEFINED
        else:
            types[index] = gguf.TokenType.NORMAL
    writer.add_token_list(texts)
    writer.add_token_types(types)


def _merges(path: Path, backend: tokenizers.Tokenizer) -> list[str]:
    raw = json.loads(backend.to_str())
    if others := [part for part, is_gpt2 in _is_gpt2(raw).items() if not is_gpt2]:
        raise TokenizerError(
            f"{path}: the tokenizer differs from GPT-2's in {', '.join(others)}: llama.cpp would "
            "cut texts into other tokens"
        )
    merges = [" ".join(pair) for pair in raw["model"]["merges"]]
    if not merges:
        raise TokenizerError(f"{path}: the tokenizer has no merges, and llama.cpp needs some")
    return merges


def _is_gpt2(raw: dict[str, Any]) -> dict[str, bool]:
    """Part of a `tokenizer.json` → whether it does what GPT-2's does."""
    cutter, model = raw["pre_tokenizer"] or {}, raw["model"]
    return {
        "normalizer": raw["normalizer"] is None,
        "pre_tokenizer": cutter.get("type") == "ByteLevel"
        and cutter.get("add_prefix_space") is False
        and cutter.get("use_regex", True) is True,
        "model": model["type"] == "BPE" and not any(map(model.get, _BPE_OPTIONS)),
    }


def _end_tokens(path: Path, config: ModelConfig, own: Sequence[int]) -> tuple[int, ...]:
    """The ids that the engine would stop at; `own` are the tokenizer's."""
    eos_ids = with_generation_eos(config, path).eos_token_ids or tuple(own[:1])
    if not eos_ids:
        raise TokenizerError(
            f"{path}: no file names an end-of-text token, and llama.cpp would take id 11 for it; "
            "name one as eos_token_id in generation_config.json"
        )
    return eos_ids


def _add_ends(
    writer: gguf.GGUFWriter,
    path: Path,
    eos_ids: tuple[int, ...],
    bos_id: int | None,
    backend: tokenizers.Tokenizer | None = None,
) -> None:
    """BOS and the end tokens, and which of them frame a text (by `backend`; without, none)."""
    # llama.cpp stops at each of three: end of text, of turn and of message.
    setters = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add_end_token, index in zip(setters, eos_ids, strict=False):
        add_end_token(index)
    if unknown := eos_ids[len(setters) :]:
        _logger.warning("%s: llama.cpp will not stop at the end tokens %s", path, list(unknown))
    if bos_id is None:
        bos_id = eos_ids[0]  # As in GPT-2; llama.cpp would take id 11.
    writer.add_bos_token_id(bos_id)
    add_bos, add_eos = False, False
    if backend is not None:
        add_bos, add_eos = _framing(path, backend, bos_id, eos_ids[0])
    writer.add_add_bos_token(add_bos)
    writer.add_add_eos_token(add_eos)


def _framing(
    path: Path, backend: tokenizers.Tokenizer, bos_id: int, eos_id: int
) -> tuple[bool, bool]:
    """Whether the tokenizer puts BOS before a text, and EOS after it."""
    bare = backend.encode("a", add_special_tokens=False).ids
    framed = backend.encode("a", add_special_tokens=True).ids
    for add_bos, add_eos in product((False, True), repeat=2):
        if framed == [bos_id] * add_bos + bare + [eos_id] * add_eos:
            return add_bos, add_eos
    raise TokenizerError(
        f"{path}: the tokenizer's post_processor puts other tokens around a text than BOS and EOS, "
        "which llama.cpp cannot be told about"
    )
