"""`bitskip pack`, `export` and `draft-vocab` run on tiny models; and what help says."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from engine.build import load_model
from engine.checkpoint.loader import load_checkpoint
from engine.config import EngineConfig
from engine.documents import read_documents
from server.cli import app
from support.checkpoints import tiny_config, write_checkpoint
from support.gguf_files import GGUFFile, block_config
from support.served_process import NUM_LAYERS, write_model
from support.tokenizers import write_tokenizer


def run(*arguments: str | Path) -> Result:
    """`bitskip` with these arguments, in this process, on a narrow terminal."""
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "80"})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked model; leave it as it is."""
    return write_model(tmp_path_factory.mktemp("commands") / "model")


@pytest.fixture(scope="module")
def packed(model: Path) -> Path:
    """The same, packed by the command."""
    out = model.with_name("packed")
    done = run("pack", model, out)
    assert done.exit_code == 0, done.stderr
    (line,) = done.stderr.split("\n")[-2:-1]
    assert line.startswith(f"packed {7 * NUM_LAYERS} linears into {out}: ")
    assert "MB became" in line and done.stdout == ""
    return out


@pytest.fixture(scope="module")
def stories(model: Path) -> Path:
    """Three documents."""
    file = model.with_name("stories.txt")
    texts = (f"Once upon a time there was number {number}." for number in range(3))
    file.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    return file


def refusal(*arguments: str | Path, code: int = 1) -> str:
    done = run(*arguments)
    assert done.exit_code == code, done.stderr
    assert done.stdout == "" and isinstance(done.exception, SystemExit | None)
    line = done.stderr.rstrip().splitlines()[-1]
    assert line.lower().startswith("error: ")
    return line


def test_pack_makes_a_model_that_loads(packed: Path) -> None:
    with load_checkpoint(packed) as checkpoint:
        assert checkpoint.is_packed
    assert (packed / "tokenizer.json").exists()


def test_pack_overwrites_nothing(model: Path, packed: Path) -> None:
    message = refusal("pack", model, packed)
    assert str(packed) in message and "nothing is overwritten" in message


def test_pack_refuses_what_it_cannot_pack(model: Path, packed: Path, tmp_path: Path) -> None:
    assert "packed checkpoint already" in refusal("pack", packed, tmp_path / "out")
    dense = write_checkpoint(tmp_path / "dense", tiny_config(weights="dense"))
    assert "its weights are dense" in refusal("pack", dense, tmp_path / "out")
    missing = tmp_path / "missing"
    assert f"{missing}: no such directory" in refusal("pack", missing, tmp_path / "out")
    assert "--dtype" in refusal("pack", model, tmp_path / "out", "--dtype", "fp8", code=2)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_named_as_it_was_given(
    model: Path, exportable: Path, tmp_path: Path
) -> None:
    """The system takes no name as long as that of the unfinished file would be."""
    out = tmp_path / ("x" * 240)
    reason = os.strerror(errno.ENAMETOOLONG)
    commands = (
        ("pack", model, out), ("export", model, out, "--format", "hf"), ("export", exportable, out),
    )  # fmt: skip
    for command in commands:
        assert refusal(*command).replace(" ", "") == f"error: {out}: {reason}".replace(" ", "")


@pytest.fixture(scope="module")
def exportable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose widths GGUF allows; leave it as it is."""
    path = tmp_path_factory.mktemp("export") / "model"
    return write_tokenizer(write_checkpoint(path, block_config()), 320)


def test_export_writes_a_gguf_file(exportable: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    done = run("export", exportable, out, "--format", "gguf")
    assert done.exit_code == 0, done.stderr
    (line,) = done.stderr.split("\n")[-2:-1]
    assert line.startswith(f"exported 2 layers to {out}: ") and done.stdout == ""
    size, _, scales = line.partition(": ")[2].partition(" MB; fp16 moved scales by at most ")
    assert float(size) == round(out.stat().st_size / 1e6, 1)
    assert 0 < float(scales.removesuffix("%")) <= 0.049
    assert GGUFFile(out).metadata["llama.block_count"] == 2
    draft = tmp_path / "draft.gguf"
    assert run("export", exportable, draft, "--layers", "1").exit_code == 0
    assert GGUFFile(draft).metadata["llama.block_count"] == 1


def test_export_refuses_what_it_cannot_do(exportable: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "o_proj.weight: has 48 inputs" in run("export", model, out).stderr
    assert f"{exportable}: exists already" in refusal("export", exportable, exportable)
    assert "has 2 layers; 3 cannot" in refusal("export", exportable, out, "--layers", "3")
    assert "--layers" in refusal("export", exportable, out, "--layers", "0", code=2)
    assert "--format" in refusal("export", exportable, out, "--format", "onnx", code=2)
    assert f"{tmp_path / 'missing'}: no such" in refusal("export", tmp_path / "missing", out)
    assert not out.exists()


def test_export_says_what_to_install(
    exportable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("engine.checkpoint.gguf_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    message = refusal("export", exportable, tmp_path / "out")
    assert message.endswith("gguf is not installed: pip install 'bitskip-server[export]'")


def test_draft_vocab_keeps_which_tokens_are_frequent(
    packed: Path, stories: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(packed, model)
    done = run("draft-vocab", model, "--data", stories)
    assert done.exit_code == 0, done.stderr
    loaded = load_model(model, EngineConfig(draft_vocab_size=5), threads=1)
    counts: Counter[int] = Counter()
    for document in read_documents(stories):
        counts.update(loaded.tokenizer.encode(document))
    assert done.stdout.startswith(f"{counts.total()} tokens, {len(counts)} different: with 320 of")
    special = loaded.tokenizer.special_ids
    chosen = {*loaded.backend.draft_ids.tolist()} - special
    loaded.backend.close()
    assert len(chosen) == 5
    others = [count for token, count in counts.items() if token not in chosen | special]
    assert min(counts[token] for token in chosen) >= max(others) > 0
    assert "cannot be read" in refusal("draft-vocab", model, "--data", tmp_path / "none.txt")


@pytest.mark.parametrize(
    "command", ["serve", "pack", "export", "inspect", "train", "eval", "report", "draft-vocab"]
)
def test_help_is_whole_on_a_narrow_terminal(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "…" not in result.output and "..." not in result.output
    assert all(len(line) <= 80 for line in result.output.splitlines())


def test_help_lists_the_commands() -> None:
    result = run("--help")
    assert "..." not in result.output.partition("Commands:")[2]
    for command in ("serve", "pack", "export", "inspect", "train", "eval", "report"):
        assert f"\n  {command} " in result.output
