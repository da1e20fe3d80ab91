"""A real Prometheus, started for a test on a free port of 127.0.0.1."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from support.live_server import wait_until

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "docker" / "prometheus" / "rules.yml"
SCRAPE_INTERVAL_S = 0.2
_LISTENING = re.compile(r'msg="Listening on".* address=(\S+)')

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Series:
    """Samples of one series over time: (Unix time in seconds, value)."""

    labels: dict[str, str]
    samples: list[tuple[float, float]]


class Prometheus:
    """Scrapes one server under the project's own rules; `url` is its web address."""

    def __init__(self, program: str, target: str, folder: Path) -> None:
        """`target` is the host and port to scrape; `folder` takes data, configuration and log."""
        config = {
            "global": {"scrape_interval": "200ms", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "bitskip", "static_configs": [{"targets": [target]}]}],
        }
        path = folder / "prometheus.yml"
        path.write_text(json.dumps(config))  # JSON is YAML.
        self._log = folder / "prometheus.log"
        self._http = httpx.Client(timeout=20)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={path}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(self._has_started)
        except BaseException:
            self.close()
            raise
        found = _LISTENING.search(self.log)
        assert found, self.log
        self.url = f"http://{found[1]}"
        self._http.base_url = self.url
        wait_until(self._is_ready)

    @property
    def log(self) -> str:
        """Everything logged so far."""
        return self._log.read_text(encoding="utf-8")

    def _has_started(self) -> bool:
        return bool(_LISTENING.search(self.log)) or self._process.poll() is not None

    def _is_ready(self) -> bool:
        return self._http.get("/-/ready").status_code == 200

    def close(self) -> None:
        """End the process."""
        self._http.close()
        self._process.terminate()
        self._process.wait(20)

    def api(self, path: str, **params: Any) -> Any:
        """The data of an API call, which must succeed."""
        response = self._http.get(f"/api/v1/{path}", params=params)
        answer = response.json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expr: str, time_s: float | None = None) -> dict[Labels, float]:
        """An instant vector: labels → value."""
        at = {} if time_s is None else {"time": f"{time_s:.3f}"}
        result = self.api("query", query=expr, **at)["result"]
        return {frozenset(item["metric"].items()): float(item["value"][1]) for item in result}

    def query_range(
        self, expr: str, start_s: float, end_s: float, step_s: float = SCRAPE_INTERVAL_S
    ) -> list[Series]:
        """The series of an expression, evaluated every `step_s`."""
        result = self.api("query_range", query=expr, start=start_s, end=end_s, step=step_s)
        return [
            Series(item["metric"], [(float(at), float(value)) for at, value in item["values"]])
            for item in result["result"]
        ]

    def next_scrape(self) -> float:
        """Wait for a scrape that begins from now on; its Unix time, which all its samples bear."""
        # Prometheus may date a scrape a few milliseconds back, to keep its rhythm.
        begin = time.time() + 0.01
        latest = 0.0

        def has_come() -> bool:
            nonlocal latest
            latest = max(self.query("timestamp(bitskip_build_info)").values(), default=0.0)
            return latest > begin

        wait_until(has_come)
        return latest


@contextmanager
def prometheus_scraping(program: str, url: str, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus for the length of a `with`, which scrapes the server at `url`."""
    running = Prometheus(program, url.removeprefix("http://"), folder)
    try:
        yield running
    finally:
        running.close()


DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "bitskip.json"


@dataclass(frozen=True)
class PanelQuery:
    """One query of the dashboard, as Grafana would send it."""

    panel: str
    row: str
    unit: str
    legend: str
    expr: str

    def name(self, labels: Mapping[str, str]) -> str:
        """The legend of a series with these labels."""
        return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), self.legend)


def dashboard_queries(rate_interval_s: float) -> list[PanelQuery]:
    """Every query of every panel in order, with Grafana's variables filled in, for all models."""
    variables = {
        "$model_name": ".*",
        "$__rate_interval": f"{round(rate_interval_s * 1000)}ms",
    }
    queries: list[PanelQuery] = []
    row = ""
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        unit = panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            expr = target["expr"]
            for name, value in variables.items():
                expr = expr.replace(name, value)
            assert "$" not in expr, expr
            queries.append(PanelQuery(panel["title"], row, unit, target["legendFormat"], expr))
    return queries
