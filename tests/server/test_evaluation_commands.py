"""`bitskip eval` and `bitskip report`, from a checkpoint and a text file to a model card."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner, Result

from engine.checkpoint.packing import pack_checkpoint
from engine.config import EngineConfig, ModelConfig
from server.cli import app
from support.checkpoints import tiny_config, write_checkpoint
from support.evaluations import evaluation
from support.served_process import NUM_LAYERS, write_model
from support.tokenizers import write_tokenizer

VOCAB_SIZE = 320
NO_FILE = os.strerror(errno.ENOENT)
FAST = ("--threads", "1", "--num-prompts", "1", "--num-new-tokens", "8", "--repeats", "1")
"""For a model this small, threads that wait for each other cost more than they save."""
QUALITY_ONLY = (*FAST, "--batch-sizes", "")


def run(*arguments: str | Path) -> Result:
    """`bitskip` with these arguments, in this process."""
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "100"})


def refusal(*arguments: str | Path, code: int = 1) -> str:
    done = run(*arguments)
    assert done.exit_code == code, done.output
    return " ".join(done.stderr.replace("│", " ").split())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model of six layers; leave it as it is."""
    source = write_model(tmp_path_factory.mktemp("evaluation") / "source")
    pack_checkpoint(source, source.with_name("story"))
    return source.with_name("story")


@pytest.fixture(scope="module")
def stories(model: Path) -> Path:
    """Three documents."""
    file = model.with_name("stories.txt")
    texts = (f"Once upon a time there was number {number}." for number in range(3))
    file.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def result(model: Path, stories: Path) -> Path:
    """What eval wrote of the model, with speeds."""
    file = model.with_name("result.json")
    options = (*FAST, "--exits", "2,4", "--batch-sizes", "1,3", "--num-speculations", "1,3")
    done = run("eval", model, "--data", stories, *options, "--json", file)
    assert done.exit_code == 0, done.output
    for word in ("perplexity", "agreement", "acceptance", "3 documents", "tok/s ×3", "speed-up"):
        assert word in done.stdout
    return file


def test_eval_writes_everything_as_json(result: Path) -> None:
    raw = json.loads(result.read_text(encoding="utf-8"))
    assert (raw["model"]["name"], raw["text"]["files"]) == ("story", ["stories.txt"])
    assert raw["text"]["num_documents"] == 3 and raw["text"]["num_tokens"] > 60
    assert str(result.parent) not in result.read_text(encoding="utf-8"), "no path of the machine"
    assert [each["exit_layer"] for each in raw["exits"]] == [2, 4, NUM_LAYERS]
    for each in raw["exits"]:
        assert math.isfinite(each["perplexity"]) and each["perplexity"] > 1
        # The same likelihood, per token and per byte.
        per_byte = math.log2(each["perplexity"]) * raw["text"]["num_tokens"]
        assert each["bits_per_byte"] == pytest.approx(per_byte / raw["text"]["num_bytes"])
    *early, full = raw["exits"]
    assert full["agreement"] == 1 and full["drafting"] is full["other_norm_perplexity"] is None
    for each in early:
        assert 0 < each["agreement"] < 1 < each["other_norm_perplexity"]
        drafting = each["drafting"]
        assert len(drafting["accepted_by_position"]) == raw["method"]["num_speculations"] == 3
        total = sum(drafting["accepted_by_position"])
        assert drafting["mean_acceptance_length"] == pytest.approx(1 + total)
    settings = [
        (each["exit_layer"], each["batch_size"], each["draft_exit_layer"], each["num_speculations"])
        for each in raw["speeds"]
    ]
    assert settings == [
        (exit_layer, size, draft, count)
        for size in (1, 3)
        for exit_layer, draft, count in (
            *((exit_layer, None, None) for exit_layer in (2, 4, 6)),
            *((6, draft, count) for draft in (2, 4) for count in (1, 3, "auto")),
        )
    ]
    assert all(each["tokens_per_s"] > 0 and each["first_token_ms"] > 0 for each in raw["speeds"])
    assert raw["method"]["num_changed_tokens"] == 0 < raw["method"]["num_compared_tokens"]
    assert raw["best_draft"]["is_measured"] and raw["best_draft"]["exit_layer"] in (2, 4)


def test_eval_prints_json_and_its_schema(model: Path, stories: Path) -> None:
    done = run("eval", model, "--data", stories, *QUALITY_ONLY, "--json", "-", "--name", "mine")
    assert done.exit_code == 0, done.output
    raw = json.loads(done.stdout)
    assert raw["speeds"] == [] and raw["model"]["name"] == "mine"
    assert [each["exit_layer"] for each in raw["exits"]] == [1, 3, 4, 6]
    schema = run("eval", "--json-schema")
    assert schema.exit_code == 0, schema.output
    jsonschema.validate(raw, json.loads(schema.stdout))


def test_eval_keeps_the_best_draft_exit(model: Path, stories: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    before = json.loads((copy / "config.json").read_text())
    arguments = ("--data", stories, *QUALITY_ONLY, "--exits", "2,4", "--save-draft-exit")
    done = run("eval", copy, *arguments)
    assert done.exit_code == 0, done.output
    after = json.loads((copy / "config.json").read_text())
    chosen = after.pop("draft_exit_layer")
    assert after == before and chosen in (2, 4)
    assert f"best draft exit: {chosen}" in done.stdout and "as predicted" in done.stdout
    config = ModelConfig.from_directory(copy)
    assert EngineConfig().resolve(config).draft_exit_layer == chosen
    assert EngineConfig(draft_exit_layer=1).resolve(config).draft_exit_layer == 1
    assert sorted(file.name for file in copy.iterdir()) == sorted(
        file.name for file in model.iterdir()
    )


def test_quick_takes_less_and_says_so(model: Path, stories: Path) -> None:
    arguments = ("--data", stories, "--data", stories, "--quick", "--repeats", "1")
    done = run("eval", model, *arguments, "--threads", "1", "--json", "-")
    assert done.exit_code == 0, done.output
    raw = json.loads(done.stdout)
    assert raw["method"]["quick"] and raw["method"]["num_repeats"] == 1
    assert raw["text"] == raw["text"] | {"files": ["stories.txt"] * 2, "num_documents": 6}
    assert {each["batch_size"] for each in raw["speeds"]} == {1, 4}


def test_report_of_a_result(result: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report"
    page = tmp_path / "README.md"
    page.write_text("# Model\n", encoding="utf-8")
    done = run("report", result, out, "--card", page, "--name", "renamed")
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in out.iterdir())
    assert names == ["acceptance.png", "evaluation.json", "quality.png", "report.md", "time.png"]
    written = (out / "report.md").read_text(encoding="utf-8")
    assert written.startswith("## renamed, measured\n\n")
    assert re.findall(r"\]\((.*\.png)\)", written) == ["quality.png", "acceptance.png", "time.png"]
    inserted = page.read_text(encoding="utf-8")
    assert inserted.startswith("# Model\n\n<!-- bitskip report: begin -->\n")
    for address in re.findall(r"\]\((.*\.png)\)", inserted):
        assert (page.parent / address).is_file()
    again = run("report", out / "evaluation.json", out, "--card", page)
    assert again.exit_code == 0, again.output
    assert page.read_text(encoding="utf-8") == inserted


def test_report_of_a_24_layer_model(stories: Path, tmp_path: Path) -> None:
    config = tiny_config(num_layers=24, vocab_size=VOCAB_SIZE, eos_token_ids=(VOCAB_SIZE - 1,))
    write_tokenizer(write_checkpoint(tmp_path / "deep", config), VOCAB_SIZE)
    out = tmp_path / "out"
    options = ("--data", stories, *FAST, "--batch-sizes", "1", "--num-speculations", "2")
    done = run("report", tmp_path / "deep", out, *options, "--no-plots")
    assert done.exit_code == 0, done.output
    written = (out / "report.md").read_text(encoding="utf-8")
    table = re.search(r"\| layers \| perplexity \| tok/s \|\n.*\n((\|.*\n){4})", written)
    assert table is not None
    rows = [line.strip("| ").split(" | ") for line in table.group(1).splitlines()]
    assert [row[0] for row in rows] == ["all (24)", "18", "12", "6"]
    for _, perplexity, rate in rows:
        assert float(perplexity.replace(",", "")) > 1 and float(rate.replace(",", "")) > 0
    assert not list(out.glob("*.png")) and "![" not in written


def test_eval_refuses_what_it_cannot_do(model: Path, stories: Path, tmp_path: Path) -> None:
    data = ("--data", stories)
    assert "exit 7 does not lie in 1..6" in refusal("eval", model, *data, "--exits", "3,7")
    assert "--exits" in refusal("eval", model, *data, "--exits", "3;6", code=2)
    assert "--batch-sizes" in refusal("eval", model, *data, "--batch-sizes", "x", code=2)
    assert "batch size 0" in refusal("eval", model, *data, "--batch-sizes", "0")
    assert "num_speculations 17" in refusal("eval", model, *data, "--num-speculations", "17")
    assert "--data" in refusal("eval", model, code=2)
    missing = tmp_path / "missing.txt"
    assert str(missing) in refusal("eval", model, "--data", missing)
    missing.write_text("\n<|endoftext|>\n")
    assert "holds no text" in refusal("eval", model, "--data", missing)
    assert "no such directory" in refusal("eval", tmp_path / "none", *data)
    file = stories / "in-a-file.json"
    assert str(stories) in refusal("eval", model, *data, "--json", file)
    assert "directory" in refusal("eval", model, *data, "--json", tmp_path)
    refusal("eval", model, *data, "--exits", "9", "--json", tmp_path / "new" / "result.json")
    assert not list((tmp_path / "new").iterdir()), "a failure leaves no file behind"


def test_text_that_cannot_be_read_is_named_once(model: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.txt"
    message = refusal("eval", model, "--data", absent)
    assert message == f"error: data file {absent} cannot be read: {NO_FILE}"


def test_report_refuses_what_it_cannot_do(
    model: Path, stories: Path, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert "--data" in refusal("report", model, out)
    assert "absent.json" in refusal("report", tmp_path / "absent.json", out)
    assert "is no directory" in refusal("report", result, out, "--data", stories)
    assert "is no directory" in refusal("report", result, out, "--quick")
    page = tmp_path / "page.md"
    assert refusal("report", result, out, "--card", page) == f"error: {page}: {NO_FILE}"
    page.write_bytes(b"\xff\x00")
    assert f"{page} is no page of text" in refusal("report", result, out, "--card", page)
    inside = f"error: {stories}: {os.strerror(errno.ENOTDIR)}"
    assert refusal("report", result, stories) == inside
    not_json = refusal("report", stories, out)
    assert f"{stories} is no result of this version's bitskip eval: Invalid JSON" in not_json
    raw: dict[str, Any] = json.loads(evaluation().to_json()) | {"version": 7}
    (tmp_path / "later.json").write_text(json.dumps(raw))
    assert "later.json" in refusal("report", tmp_path / "later.json", out)
    monkeypatch.setattr("server.commands.report.find_spec", lambda name: None)
    assert "bitskip-server[plots]" in refusal("report", result, out)
