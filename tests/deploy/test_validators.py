"""Each validator that reads `deploy/` is proved to refuse what it is there for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.checks

BROKEN = {
    "an image of no version": ("docker", "docker/Dockerfile", "DL3006", "FROM ${PYTHON} AS build", "FROM python AS build"),
    "a step as another user": ("docker", "docker/Dockerfile", "DL3004", "RUN groupadd", "RUN sudo groupadd"),
    "a folder that is nowhere": ("docker", "docker/Dockerfile", "DL3000", "WORKDIR /src", "WORKDIR src"),
    "a service that is no service": ("compose", "compose/compose.yaml", "replica", "replicas: 2", "replica: 2"),
    "a dependency on nothing known": ("compose", "compose/compose.yaml", "condition", "service_healthy}", "healthy}"),
    "a proxy's directive that is none": ("compose", "compose/Caddyfile", "lb_polity", "lb_policy", "lb_polity"),
    "a probe's misspelt field": (
        "kubernetes",
        "kubernetes/deployment.yaml",
        "failureTreshold",
        "failureThreshold",
        "failureTreshold",
    ),
    "a port that is no number": ("kubernetes", "kubernetes/service.yaml", "spec.ports", "port: 80,", "port: http,"),
    "a resource that is not there": (
        "kubernetes",
        "kubernetes/kustomization.yaml",
        "elsewhere",
        "network.yaml",
        "elsewhere.yaml",
    ),
    "a unit's misspelt setting": ("systemd", "systemd/receiver.service", "ProtectHoem", "ProtectHome", "ProtectHoem"),
    "a unit that may do too much": ("systemd", "systemd/receiver.service", "exposure", "ProtectSystem=strict", "User=root"),
    "a property that there is not": ("aws-lambda", "aws-lambda/template.yaml", "E3002", "MemorySize:", "MemorySise:"),
    "a reference to nothing": (
        "aws-lambda",
        "aws-lambda/template.yaml",
        "E6",
        "!GetAtt Url.FunctionUrl",
        "!GetAtt Uri.FunctionUrl",
    ),
    "an alert whose query is none": ("prometheus", "prometheus/alerts.yaml", "parse error", "absent(", "absent(("),
    "an alert that adds replicas up": ("prometheus", "prometheus/alerts.yaml", "ReceiverWorkWaits", "max by (of)", "sum by (of)"),
    "a panel whose query is none": ("prometheus", "grafana/dashboard.json", "panel:", '"max(', '"max(('),
    "a service's misspelt member": (
        "cloud-run",
        "cloud-run/service.yaml",
        "containerConcurency",
        "containerConcurrency",
        "containerConcurency",
    ),
    "a job's number that is none": ("cloud-run", "cloud-run/migrate.yaml", "maxRetries", "maxRetries: 1", "maxRetries: once"),
    "a protocol that there is not": ("fly", "fly/fly.toml", "protocol", 'protocol = "tcp"', 'protocol = "http"'),
    "a strategy that there is not": ("fly", "fly/fly.toml", "strategy", 'strategy = "rolling"', 'strategy = "strolling"'),
    "a cron's misspelt member": ("vercel", "vercel/vercel.json", "shedule", '"schedule"', '"shedule"'),
    "a time that is no number": ("vercel", "vercel/vercel.json", "maxDuration", '"maxDuration": 60', '"maxDuration": "long"'),
    "a script with an unquoted list": ("scripts", "systemd/receiverctl", "SC2068", '"$@"', "$@"),
}


def check(folder: Path, *targets: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / ".ci/check-deploy", folder, *targets], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    target, file, told, old, new = BROKEN[name]
    deploy = tmp_path / "deploy"
    shutil.copytree(ROOT / "deploy", deploy, ignore=shutil.ignore_patterns("package", "project"))
    text = (deploy / file).read_text()
    assert old in text
    (deploy / file).write_text(text.replace(old, new))
    done = check(deploy, target)
    assert done.returncode == 1
    assert told in done.stdout + done.stderr
    assert f"{target} is not valid" in done.stderr


def test_a_target_that_is_not_known_is_no_success() -> None:
    assert check(ROOT / "deploy", "mainframe").returncode == 1
