"""The file that `bitskip eval --json` writes: round trip, schema, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from engine.errors import ConfigError
from engine.evaluation.results import Evaluation, read_evaluation
from support.evaluations import evaluation


def written(path: Path, result: Evaluation) -> Path:
    path.write_text(result.to_json(), encoding="utf-8")
    return path


@pytest.mark.parametrize("batch_sizes", [(1, 8), ()])
def test_a_result_is_read_back_as_it_was(tmp_path: Path, batch_sizes: tuple[int, ...]) -> None:
    result = evaluation(batch_sizes=batch_sizes, infinite=(6,), warnings=("doubt",))
    again = read_evaluation(written(tmp_path / "result.json", result))
    assert again == result
    assert again.exits[0].perplexity == math.inf
    assert again.exits[0].other_norm_perplexity == 50.0
    assert again.exits[-1].other_norm_perplexity is None


def test_the_file_is_plain_json_of_the_documented_schema() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    raw = json.loads(evaluation(infinite=(6, 12)).to_json(), parse_constant=refuse)
    assert (raw["format"], raw["version"]) == ("bitskip-evaluation", 1)
    assert raw["exits"][0]["perplexity"] is None
    schema = Evaluation.model_json_schema(mode="serialization")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(raw, schema)
    raw["speeds"][0]["tokens_per_s"] = "fast"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, schema)


def test_every_object_of_the_schema_is_explained() -> None:
    schema = Evaluation.model_json_schema(mode="serialization")
    for name, each in schema["$defs"].items():
        assert each.get("description"), name
    speed = schema["$defs"]["SpeedResult"]["properties"]
    assert "same batch size" in speed["speedup"]["description"]


def change(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw.update(fields)


def break_speed(raw: dict[str, Any]) -> None:
    del raw["speeds"][2]["tokens_per_s"]


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (change(version=2), "version"),
        (change(format="other"), "format"),
        (change(exits="none"), "exits"),
        (break_speed, "speeds.2.tokens_per_s"),
    ],
)
def test_what_is_no_result_is_refused_by_field(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], place: str
) -> None:
    raw = json.loads(evaluation().to_json())
    damage(raw)
    file = tmp_path / "result.json"
    file.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"result\.json is no result .*: {place}: "):
        read_evaluation(file)


def test_a_later_field_is_passed_over(tmp_path: Path) -> None:
    raw = json.loads(evaluation().to_json()) | {"later": 1}
    (tmp_path / "result.json").write_text(json.dumps(raw), encoding="utf-8")
    assert read_evaluation(tmp_path / "result.json") == evaluation()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json cannot be read"):
        read_evaluation(tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('{"format":')
    with pytest.raises(ConfigError, match=r"half\.json is no result"):
        read_evaluation(tmp_path / "half.json")
