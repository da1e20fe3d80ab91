"""A small served model with all that chat needs: a template, names for roles, and a BOS token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer, processors

from engine.checkpoint.packing import pack_checkpoint
from support.served_process import VOCAB_SIZE, ServedProcess, serving, write_model
from support.tokenizers import END_OF_TEXT

EOS = VOCAB_SIZE - 1
"""BOS too: the tokenizer puts it before a text, where asked to."""

CHAT_TEMPLATE = """
{%- for message in messages -%}
<{{ message.role }}{{ ' ' ~ message.name if message.name else '' }}>{{ message.content }}{{ '\\n' }}
{%- endfor -%}
{{- mood -}}
{%- if add_generation_prompt %}<assistant>{% endif -%}
"""


def write_chat_model(path: Path) -> Path:
    """The service tests' model with a BOS and a template that shows all it is given, packed."""
    source = write_model(path.with_name(f"{path.name}-source"))
    file = str(source / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, EOS)]
    )
    tokenizer.save(file)
    (source / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    pack_checkpoint(source, path)
    return path


@contextmanager
def serving_chat(directory: Path, *options: str) -> Iterator[ServedProcess]:
    """A served chat model for the length of a `with`; its files go into `directory`."""
    model = write_chat_model(directory / "tiny")
    with serving(model, directory / "served.log", *options) as running:
        yield running
