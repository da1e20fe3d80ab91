"""Reading a tokenizer's files: Hugging Face's `tokenizer.json`, or GPT-2's two files.

Every error is a `TokenizerError` that names the file at fault.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from engine.errors import TokenizerError

logger = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
"""GPT-2's only special token: EOS and BOS wherever no file says otherwise."""

_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
CHAT_TEMPLATE_FILE = "chat_template.jinja"
SENTENCEPIECE_FILE = "tokenizer.model"
_CONVERT = (
    "from transformers import AutoTokenizer as T; "
    'd = "{path}"; T.from_pretrained(d).backend_tokenizer.save(d + "/tokenizer.json")'
)
"""A program that makes `tokenizer.json`; works with every release of transformers since 4."""
_ROLE_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a directory says: the library's tokenizer and the ids with a role."""

    backend: tokenizers.Tokenizer
    eos_token_ids: tuple[int, ...]
    """The tokenizer's EOS first, then those of `generation_config.json`."""
    bos_token_id: int | None
    special_tokens: Mapping[str, str]
    """Role (`bos_token`, `eos_token` …) → text, as chat templates know them."""
    chat_template: str | None
    """The Jinja source that turns messages into a prompt."""
    tokenizer_class: str | None
    """Hugging Face's class that made the files, where they say."""


def read_directory(path: Path) -> TokenizerFiles:
    """Read a tokenizer's directory; raises `TokenizerError` as `Tokenizer.from_directory` says."""
    config_file = path / "tokenizer_config.json"
    config = _read_optional(config_file)
    roles: dict[str, str | None] = {}
    specials: list[str] = []
    for file in (config_file, path / "special_tokens_map.json"):
        file_roles, others = _special_tokens(_read_optional(file), file)
        roles = file_roles | roles
        specials += others

    if is_hugging_face := (path / "tokenizer.json").exists():
        backend = _read_tokenizer_json(path / "tokenizer.json")
    elif (path / "vocab.json").exists() or (path / "merges.txt").exists():
        backend = _read_gpt2(path / "vocab.json", path / "merges.txt")
    elif (path / SENTENCEPIECE_FILE).exists():
        raise TokenizerError(
            f"{path}: has a tokenizer in SentencePiece's own form alone ({SENTENCEPIECE_FILE}); "
            "write it as tokenizer.json beside that, once: pip install transformers sentencepiece "
            f"protobuf, then python -c '{_CONVERT.format(path=str(path))}'"
        )
    else:
        raise TokenizerError(f"{path}: holds neither tokenizer.json nor vocab.json and merges.txt")
    _add_listed_tokens(backend, config, config_file)
    specials += [text for text in roles.values() if text is not None]
    default = backend.token_to_id(END_OF_TEXT)
    _mark_special(backend, specials if default is None else [*specials, END_OF_TEXT], path)
    if not is_hugging_face:
        _configure_gpt2(backend, config, roles.get("bos_token", END_OF_TEXT), config_file)

    generation_file = path / "generation_config.json"
    generation = _read_optional(generation_file)
    ids: dict[str, tuple[int, ...]] = {}
    special_tokens = {role: text for role, text in roles.items() if text is not None}
    for role in ("eos_token", "bos_token"):
        text = roles.get(role)
        own = backend.token_to_id(text) if text is not None else None
        found = [] if own is None else [own]
        found += _ids(generation, f"{role}_id", generation_file)
        if not found and role not in roles and default is not None:
            found = [default]
            special_tokens[role] = END_OF_TEXT
        ids[role] = tuple(found)
    return TokenizerFiles(
        backend,
        ids["eos_token"],
        next(iter(ids["bos_token"]), None),
        special_tokens,
        _read_chat_template(path, config, config_file),
        kind if isinstance(kind := config.get("tokenizer_class"), str) else None,
    )


def _read_chat_template(path: Path, config: Mapping[str, Any], file: Path) -> str | None:
    """The file of its own comes first, then the configuration's: one template, or named ones."""
    if (path / CHAT_TEMPLATE_FILE).exists():
        return _read_text(path / CHAT_TEMPLATE_FILE)
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    if template is not None and not isinstance(template, str):
        raise TokenizerError(f"{file}: chat_template is neither a text nor a list of named texts")
    return template


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise TokenizerError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{file}: not valid UTF-8 ({error})") from error


def _read_object(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(raw, dict):
        raise TokenizerError(f"{file}: not a JSON object")
    return raw


def _read_optional(file: Path) -> dict[str, Any]:
    return _read_object(file) if file.exists() else {}


def _read_tokenizer_json(file: Path) -> tokenizers.Tokenizer:
    text = _read_text(file)
    try:
        return tokenizers.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # Merges that the vocabulary lacks make the library panic, and a panic is no Exception.
        raise TokenizerError(f"{file}: not a usable tokenizer ({error})") from error


def _read_gpt2(vocab_file: Path, merges_file: Path) -> tokenizers.Tokenizer:
    """GPT-2's tokenizer, put together as Hugging Face's converter does it."""
    vocabulary = _read_object(vocab_file)
    for text, index in vocabulary.items():
        if type(index) is not int or not 0 <= index < 1 << 32:
            raise TokenizerError(f"{vocab_file}: {text!r} has id {index!r}, not a token id")
    if len(set(vocabulary.values())) < len(vocabulary):
        raise TokenizerError(f"{vocab_file}: several tokens share an id")
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(_read_text(merges_file).split("\n"), start=1):
        if not line or line.startswith("#version"):
            continue
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise TokenizerError(
                f"{merges_file}: line {number} ({line!r}) does not merge two tokens of the "
                "vocabulary into a third"
            )
        merges.append((left, right))
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _configure_gpt2(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], bos: str | None, file: Path
) -> None:
    """Apply the two options of GPT-2's `tokenizer_config.json` that change the ids."""
    if config.get("add_prefix_space"):
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    if config.get("add_bos_token"):
        index = None if bos is None else backend.token_to_id(bos)
        if bos is None or index is None:
            raise TokenizerError(f"{file}: add_bos_token, but the vocabulary has no bos_token")
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, index)]
        )


def _special_tokens(raw: Mapping[str, Any], file: Path) -> tuple[dict[str, str | None], list[str]]:
    """The texts by role (None: said to have none) and the other special tokens of a file."""
    roles = {role: _token_text(raw[role], role, file) for role in _ROLES if role in raw}
    others: list[str] = []
    for name in _ROLE_LISTS:
        entries = raw.get(name) or []
        # Newer files name the extra tokens: {"image_token": "<image>"}.
        for entry in entries.values() if isinstance(entries, dict) else entries:
            text = _token_text(entry, name, file)
            others += [] if text is None else [text]
    return roles, others


def _token_text(value: Any, name: str, file: Path) -> str | None:
    """A token written as its text or as an object with `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise TokenizerError(f"{file}: {name} {value!r} is not a token")
    return text or None


def _add_listed_tokens(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], file: Path
) -> None:
    """Add `added_tokens_decoder`'s tokens that the vocabulary lacks, each under its own id.

    Those that it calls special become so.
    """
    listed = config.get("added_tokens_decoder") or {}
    try:
        tokens = {
            int(index): AddedToken(
                entry["content"],
                single_word=bool(entry.get("single_word", False)),
                lstrip=bool(entry.get("lstrip", False)),
                rstrip=bool(entry.get("rstrip", False)),
                normalized=bool(entry.get("normalized", True)),
                special=bool(entry.get("special", False)),
            )
            for index, entry in listed.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(f"{file}: added_tokens_decoder is malformed ({error})") from error
    known = {t.content: t.special for t in backend.get_added_tokens_decoder().values()}
    for index, token in sorted(tokens.items()):
        if token.content not in known or (token.special and not known[token.content]):
            # The library numbers tokens itself, so check that it agrees with the file.
            add = backend.add_special_tokens if token.special else backend.add_tokens
            add([token])
        actual = backend.token_to_id(token.content)
        if actual != index:
            raise TokenizerError(
                f"{file}: added_tokens_decoder gives {token.content!r} the id {index}, "
                f"but the vocabulary has it at {actual}"
            )


def _mark_special(backend: tokenizers.Tokenizer, texts: Iterable[str], path: Path) -> None:
    """Make the tokens with these texts special, as Hugging Face does on loading."""
    special = {
        token.content for token in backend.get_added_tokens_decoder().values() if token.special
    }
    for text in dict.fromkeys(texts):
        if backend.token_to_id(text) is None:
            logger.warning("%s: special token %r is not in the vocabulary; ignored", path, text)
        elif text not in special:
            backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])


def _ids(raw: Mapping[str, Any], name: str, file: Path) -> list[int]:
    """A field that holds nothing, one token id, or a list of them."""
    value = raw.get(name)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(index) is int and index >= 0 for index in ids):
        raise TokenizerError(f"{file}: {name} {value!r} is neither a token id nor a list of them")
    return ids
