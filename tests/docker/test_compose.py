"""The compose file and what it mounts: valid, complete, and closed to other machines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.programs import program

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """As written, variables not filled in."""
    return yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]


def test_it_keeps_to_the_compose_specification() -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema"),
            *("--builtin-schema", "vendor.compose-spec", COMPOSE),
        ],
        check=True,
    )


def test_docker_compose_reads_it() -> None:
    compose = program("docker-compose", "docker-compose")
    done = subprocess.run(
        [compose, "--file", COMPOSE, "config"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load(done.stdout)["services"]
    assert set(resolved) == {"bitskip", "prometheus", "grafana"}
    assert (Path(resolved["bitskip"]["build"]["context"]) / "docker/cpu.Dockerfile").exists()


def test_ports_are_open_to_this_machine_alone(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service["ports"]]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_server_gets_no_more_than_it_needs(services: dict[str, Any]) -> None:
    server = services["bitskip"]
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in server["security_opt"]


def test_what_is_mounted_exists(services: dict[str, Any]) -> None:
    mounts = [mount for service in services.values() for mount in service["volumes"]]
    files = [mount.partition(":")[0] for mount in mounts if mount.startswith("./")]
    assert len(files) == 4
    assert all((DOCKER / name).exists() for name in files)


def test_prometheus_scrapes_the_server_of_the_compose_file(services: dict[str, Any]) -> None:
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "bitskip"  # The alert BitSkipDown names it.
    (target,) = job["static_configs"][0]["targets"]
    name, port = target.split(":")
    assert name in services
    assert services[name]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_grafana_finds_prometheus_and_the_dashboard(services: dict[str, Any]) -> None:
    provisioning = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["type"] == "prometheus" and source["isDefault"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "bitskip.yaml").read_text())[
        "providers"
    ]
    path = provider["options"]["path"]
    assert f"./grafana/dashboards:{path}:ro" in services["grafana"]["volumes"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{path}/bitskip.json"
