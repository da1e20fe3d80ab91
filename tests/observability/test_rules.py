"""The files for Prometheus and Grafana, read by Prometheus' own tool."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from server.metrics import MetricsExporter
from support.programs import program
from support.prometheus import DASHBOARD, ROOT, RULES

PROMETHEUS = ROOT / "docker" / "prometheus"
ALERT_OR_RECORD = re.compile(r"- (?:alert|record): (\S+)")


def promtool(*arguments: str | Path, must_pass: bool = True) -> str:
    done = subprocess.run(
        [program("promtool", "prometheus"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert (done.returncode == 0) is must_pass, output
    return output


def test_rules_and_configuration_are_valid() -> None:
    assert "14 rules found" in promtool("check", "rules", RULES)
    assert "SUCCESS" in promtool("check", "config", PROMETHEUS / "prometheus.yml")


def test_rules_do_what_they_say() -> None:
    promtool("test", "rules", PROMETHEUS / "rules_test.yml")


def test_every_rule_is_tested() -> None:
    tests = (PROMETHEUS / "rules_test.yml").read_text(encoding="utf-8")
    names = ALERT_OR_RECORD.findall(RULES.read_text(encoding="utf-8"))
    assert len(names) == 14
    for name in names:
        if name.startswith("BitSkip"):
            assert re.search(rf"alertname: {name}\n +eval_time: .*\n +exp_alerts:", tests), name
        else:
            assert f"expr: {name}\n" in tests, name


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("== 0", "== 1"), ("> 10", "> 100"), ("[2m]", "[1h]"), ("> 0.2", "> 2"), ("for: 15m", "")],
)
def test_the_rules_tests_notice_a_wrong_rule(right: str, wrong: str, tmp_path: Path) -> None:
    rules = RULES.read_text(encoding="utf-8")
    assert right in rules
    (tmp_path / "rules.yml").write_text(rules.replace(right, wrong, 1))
    tests = (PROMETHEUS / "rules_test.yml").read_text(encoding="utf-8")
    (tmp_path / "rules_test.yml").write_text(tests)
    promtool("test", "rules", tmp_path / "rules_test.yml", must_pass=False)


def exported_names() -> set[str]:
    """Every sample name that the server can export, but those of vLLM."""
    registry = CollectorRegistry()
    MetricsExporter(registry, model_name="m", vllm_names=False)
    names = {"up"}
    for metric in registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        names |= {metric.name + suffix for suffix in suffixes.get(metric.type, ("",))}
    return names


def test_rules_name_only_what_is_exported() -> None:
    text = RULES.read_text(encoding="utf-8")
    # Not those that are a part of a recorded rule's name.
    used = set(re.findall(r"(?<![:\w])bitskip_\w+", text))
    assert len(used) > 10
    assert used <= exported_names()


# --- the dashboard ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def targets(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield from panel.get("targets", ())


def test_the_dashboard_is_what_its_script_makes(tmp_path: Path) -> None:
    script = ROOT / "docker" / "grafana" / "make_dashboard.py"
    subprocess.run([sys.executable, script, tmp_path / "made.json"], check=True)
    assert (tmp_path / "made.json").read_bytes() == DASHBOARD.read_bytes()


def test_the_dashboard_shows_only_what_is_exported(dashboard: dict[str, Any]) -> None:
    exprs = [target["expr"] for target in targets(dashboard)]
    used = {name for expr in exprs for name in re.findall(r"bitskip_\w+", expr)}
    exported = exported_names()
    assert used <= exported
    # And all of it, but the sums and counts of what is shown by its buckets.
    families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in exported - {"up"}}
    shown = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in used}
    assert families - shown == {
        "bitskip_build_info",
        "bitskip_model_info",  # It fills the variable model_name.
        "bitskip_spec_acceptance_rate",  # Shown over the time that one looks at, from counters.
    }


def test_the_dashboard_is_whole(dashboard: dict[str, Any]) -> None:
    assert dashboard["uid"] == "bitskip-server"
    assert dashboard["schemaVersion"] >= 39
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "model_name"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for target in targets(dashboard):
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        selectors = re.findall(r"\{([^}]*)\}", target["expr"])
        assert all('model_name=~"$model_name"' in selector for selector in selectors)


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
