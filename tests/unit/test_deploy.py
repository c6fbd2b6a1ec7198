"""The unit file and the Kubernetes manifest fit the service that they start."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from enhanced_websocket_service.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy" / "enhanced-websocket.service"
MANIFEST = ROOT / "deploy" / "kubernetes.yaml"
SHUTDOWN_S = load_settings({"STATE_DIR": "state"}).settings.shutdown_timeout_s


def unit() -> dict[str, str]:
    lines = (line.partition("=") for line in UNIT.read_text().splitlines())
    return {name: value for name, sign, value in lines if sign and not name.startswith("#")}


def test_the_unit_waits_for_the_drain_and_for_no_mended_configuration() -> None:
    told = unit()
    assert told["Type"] == "notify"
    assert int(told["TimeoutStopSec"]) > SHUTDOWN_S
    assert told["RestartPreventExitStatus"] == "2"
    assert int(told["WatchdogSec"]) >= 30
    environ = dict(pair.split("=") for pair in told["Environment"].split())
    settings = load_settings(environ).settings
    assert settings.state_dir == Path("/var/lib") / told["StateDirectory"]
    writable = told["ReadWritePaths"].split()
    assert str(settings.ready_signals_dir) in writable
    assert str(settings.backup_dir) in writable
    program, script, command = told["ExecStart"].split()
    assert program.startswith(told["WorkingDirectory"])
    assert (ROOT / script).is_file()
    assert command == "run"


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    analyse = shutil.which("systemd-analyze")
    if analyse is None:
        pytest.skip("there is no systemd-analyze here")
    copy = tmp_path / UNIT.name
    # Its program, user and documents are those of the target machine.
    text = re.sub(r"(?m)^(ExecStart=)\S+", r"\1/bin/sh", UNIT.read_text())
    copy.write_text(re.sub(r"(?m)^(User|WorkingDirectory|Documentation)=.*\n", "", text))
    done = subprocess.run(
        [analyse, "verify", str(copy)], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert ours == []


def objects() -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in yaml.safe_load_all(MANIFEST.read_text())}


def test_kubernetes_runs_one_instance_and_lets_it_drain() -> None:
    spec = objects()["Deployment"]["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")
    pod = spec["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > SHUTDOWN_S
    (container,) = pod["containers"]
    environ = {one["name"]: one["value"] for one in container["env"]}
    loaded = load_settings(environ)
    assert loaded.warnings == ()
    mounted = {one["mountPath"] for one in container["volumeMounts"]}
    settings = loaded.settings
    folders = {settings.state_dir, settings.ready_signals_dir, settings.backup_dir}
    assert {str(folder) for folder in folders} <= mounted
    assert container["ports"][0]["containerPort"] == settings.port
    assert f"USER {pod['securityContext']['runAsUser']}" in (
        (ROOT / "Dockerfile.enhanced-websocket").read_text()
    )


def test_kubernetes_asks_what_the_service_answers() -> None:
    """Alive is not healthy: an outage of the database must not restart the service."""
    (container,) = objects()["Deployment"]["spec"]["template"]["spec"]["containers"]
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness")}
    assert set(paths.values()) == {"/health/live"}
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    api = (ROOT / "enhanced_websocket_service" / "serving" / "api.py").read_text()
    assert '"/health/live"' in api
    assert '"/health/ready"' in api
    selector = objects()["Service"]["spec"]["selector"]
    assert objects()["Deployment"]["spec"]["template"]["metadata"]["labels"] == selector
