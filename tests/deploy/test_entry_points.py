"""Each target's own files say what is run, with which settings, and where its health is asked for: that is run here, in the image."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from databases import Server
from deploy.image_kit import ROOT, Container, Network, Root, Stage
from ruamel.yaml import YAML
from system.system_kit import until

pytestmark = [pytest.mark.checks, pytest.mark.timeout(400)]

DEPLOY = ROOT / "deploy"
SECRETS = {
    "READER_WEBHOOK_SECRET": "whsec-of-the-entry-points",
    "READER_API_KEY": "rdr_of_the_entry_points",
    "RECEIVER_API_KEYS": "a-key-of-the-entry-points",
    "RECEIVER_DATABASE_URL": "postgresql://receiver:a-password@postgres:5432/receiver",
}
"""What its user fills in."""


@dataclass(frozen=True)
class Target:
    """`serve`, `migrate`: arguments of the image's entry point, which is there for all of them."""

    serve: list[str]
    migrate: list[str]
    settings: Mapping[str, str] = field(default_factory=dict)
    platform: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/readyz"
    alive: str = "/healthz"


def yaml(path: str) -> Any:
    return YAML(typ="safe").load(DEPLOY / path)


def compose() -> Target:
    said = yaml("compose/compose.yaml")["services"]
    filled = SECRETS | {"RECEIVER_DOMAIN": "hooks.example.com", "POSTGRES_PASSWORD": "a-password"}

    def value(match: re.Match[str]) -> str:
        return filled.get(match[1], match[2] or "")

    settings = {
        name: re.sub(r"\$\{(\w+)(?::[-?]([^}]*))?\}", value, str(text)) for name, text in said["receiver"]["environment"].items()
    }
    command = [word for keyword, words in _image_commands().items() if keyword == "CMD" for word in words]
    return Target(command, said["migrate"]["command"], settings)


def kubernetes() -> Target:
    pod = yaml("kubernetes/deployment.yaml")["spec"]["template"]["spec"]
    (container,), (first,) = pod["containers"], pod["initContainers"]
    assert container["startupProbe"]["httpGet"] == container["readinessProbe"]["httpGet"]
    settings = {}
    for literal in yaml("kubernetes/kustomization.yaml")["configMapGenerator"][0]["literals"]:
        name, _, settings[name] = literal.partition("=")
    ready, alive = (container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe"))
    return Target(container["args"], first["args"], SECRETS | settings, ready=ready, alive=alive)


def cloud_run() -> Target:
    (container,) = yaml("cloud-run/service.yaml")["spec"]["template"]["spec"]["containers"]
    (job,) = yaml("cloud-run/migrate.yaml")["spec"]["template"]["spec"]["template"]["spec"]["containers"]
    settings = {pair["name"]: pair.get("value", SECRETS.get(pair["name"])) for pair in container["env"]}
    settings["RECEIVER_PUBLIC_URL"] = "https://receiver-1.run.app"  # it names a place to be filled in
    platform = {"K_SERVICE": "receiver", "K_REVISION": "receiver-00001", "PORT": str(container["ports"][0]["containerPort"])}
    ready, alive = (container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe"))
    return Target(container["args"], job["args"], settings, platform, ready, alive)


def fly() -> Target:
    said = tomllib.loads((DEPLOY / "fly/fly.toml").read_text())
    (service,) = said["services"]
    assert service["internal_port"] == 8080
    command = _image_commands()["CMD"]
    return Target(command, shlex.split(said["deploy"]["release_command"]), SECRETS, ready=service["http_checks"][0]["path"])


def _image_commands() -> dict[str, list[str]]:
    lines = (DEPLOY / "docker/Dockerfile").read_text().splitlines()
    return {line.split()[0]: json.loads(line.partition(" ")[2]) for line in lines if line.startswith(("CMD", "ENTRYPOINT"))}


TARGETS = {"compose": compose, "kubernetes": kubernetes, "cloud-run": cloud_run, "fly": fly}


@pytest.fixture
def database(postgresql: Server) -> Iterator[str]:
    """The path of the server's socket; in the server an empty database `receiver`, of a user of that name."""
    with psycopg.connect(postgresql._server.get_uri(), autocommit=True) as side:
        side.execute("CREATE ROLE receiver LOGIN")
        side.execute("CREATE DATABASE receiver OWNER receiver")
        host, port = side.info.host, side.info.port
    yield f"{host}/.s.PGSQL.{port}"
    with psycopg.connect(postgresql._server.get_uri(), autocommit=True) as side:
        side.execute("DROP DATABASE receiver WITH (FORCE)")
        side.execute("DROP ROLE receiver")


@contextmanager
def reachable(network: Network, path: str) -> Iterator[None]:
    """The database is at port 5432 there, until this ends."""
    command = ["nsenter", f"--net={network.path}", sys.executable, str(Path(__file__).with_name("relay.py")), "5432", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as relay:
        assert relay.stdout is not None
        assert relay.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            relay.kill()


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_runs_as_its_files_say(name: str, built: tuple[Root, Stage], network: Network, database: str) -> None:
    """Migrated by its own step, ready by its own probe; without the database it lives, is not ready and says 503; then it goes on."""
    root, _ = built
    target = TARGETS[name]()
    environment = dict(target.settings) | target.platform

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        line = root.inside(*command, network=network.path, **environment)
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    def status(path: str) -> str:
        code = "import sys, httpx; print(httpx.get('http://127.0.0.1:8080' + sys.argv[1], timeout=20).status_code)"
        return run("python", "-c", code, path).stdout.strip()

    def sent(job: str) -> int:
        done = run("receiver", "send", "job.completed", "--job", job, "--url", "http://127.0.0.1:8080/hooks/reader", "--json")
        return int(json.loads(done.stdout)["status"])

    with reachable(network, database):
        early = run("receiver", *target.serve)
        assert (early.returncode, "receiver migrate" in early.stderr) == (2, True)
        migrated = run("receiver", *target.migrate)
        assert migrated.returncode == 0, migrated.stderr
        container = Container(root, network, ["receiver", *target.serve], **environment)
        container.says("listening")
        assert (status(target.ready), status(target.alive), sent("job_before")) == ("200", "200", 202)
    assert (status(target.ready), status(target.alive), sent("job_meanwhile")) == ("503", "200", 503)
    with reachable(network, database):
        until(lambda: status(target.ready) == "200")
        assert sent("job_after") == 202
        stored = run("receiver", "jobs", "--json")
        assert "job_before" in stored.stdout
        assert "job_after" in stored.stdout
        assert container.stop() == 0


CONFINE = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0  # PR_SET_MDWE: what MemoryDenyWriteExecute= does
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_the_unit_runs_as_it_says(built: tuple[Root, Stage], network: Network) -> None:
    """Its command, settings and folder, as a user without rights, in a read-only root, without memory to write and execute."""
    root, _ = built
    unit = (DEPLOY / "systemd/receiver.service").read_text().replace("%S", "/var/lib")
    said = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))
    settings = dict(pair.split("=", 1) for pair in said["Environment"].split())
    environment = SECRETS | settings
    assert said["MemoryDenyWriteExecute"] == "yes"
    assert said["WorkingDirectory"] == f"/var/lib/{said['StateDirectory']}"
    confined = ["/opt/receiver/bin/python", "-c", CONFINE]
    for job in ("job_first", "job_second"):
        container = Container(root, network, [*confined, *shlex.split(said["ExecStart"])], **environment)
        container.says("listening")
        line = ["receiver", "send", "job.completed", "--job", job, "--json"]
        sent = subprocess.run(
            root.inside(*line, network=network.path, **environment), capture_output=True, text=True, timeout=60, check=True
        )
        assert json.loads(sent.stdout)["status"] == 202
        assert container.stop() == 0
    jobs = subprocess.run(
        root.inside("receiver", "jobs", "--json", network=network.path, **environment), capture_output=True, text=True, check=True
    )
    assert "job_first" in jobs.stdout
    assert "job_second" in jobs.stdout
