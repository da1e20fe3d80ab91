"""`bitskip draft-vocab`: which tokens drafts choose from, counted in texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.commands import clean_errors


def draft_vocab(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, packed or not.")],
    data: Annotated[
        list[Path],
        typer.Option(help="Text file like those to come (.xz too), repeatable.", metavar="FILE"),
    ],
) -> None:
    """Count the tokens of texts and write draft_vocab.json, the most frequent first, into MODEL.

    The draft head scores the most frequent tokens alone (--draft-vocab-size of bitskip serve); by
    this file they are those of your texts. It changes the speed of drafts, never a token.
    """
    with clean_errors():
        from engine.config import EngineConfig, ModelConfig
        from engine.documents import read_documents
        from engine.draft_vocabulary import count_tokens, draft_ranking, save_draft_vocab
        from engine.tokenizer import Tokenizer

        vocab_size = ModelConfig.from_directory(model).vocab_size
        tokenizer = Tokenizer.from_directory(model)
        tokenizer.check_vocab(vocab_size)
        counts = count_tokens(tokenizer, (text for file in data for text in read_documents(file)))
        num_drafted = min(EngineConfig().draft_vocab_size, vocab_size)
        shares = []
        for is_saved in (False, True):
            if is_saved:
                save_draft_vocab(model, [token for token, _ in counts.most_common()])
            chosen = draft_ranking(model, tokenizer, vocab_size)[:num_drafted]
            shares.append(sum(counts[token] for token in chosen) / counts.total())
    typer.echo(
        f"{counts.total():,} tokens, {len(counts):,} different: with {num_drafted:,} of "
        f"{vocab_size:,} ids, drafts could say {shares[0]:.1%} of them before, {shares[1]:.1%} now"
    )
