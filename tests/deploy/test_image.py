"""The image's steps and entry points, run as a container would: unprivileged, in a read-only root, with a network of their own."""

from __future__ import annotations

import json
import subprocess

import pytest
from deploy.image_kit import ROOT, Container, Network, Root, Stage, stages

pytestmark = [pytest.mark.checks, pytest.mark.timeout(400)]

SETTINGS = {"READER_WEBHOOK_SECRET": "whsec-of-the-image-tests", "RECEIVER_API_KEYS": "a-key-of-the-image-tests"}


def run(root: Root, network: Network, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        root.inside(*command, network=network.path, **SETTINGS), capture_output=True, text=True, timeout=60, check=False
    )


def test_it_serves_as_nobody_in_a_read_only_root(built: tuple[Root, Stage], network: Network) -> None:
    """The image's own entry point, command and health check; what a delivery left in the volume, the next container finds."""
    root, stage = built
    command = [*stage.words("ENTRYPOINT"), *stage.words("CMD")]
    container = Container(root, network, command, **SETTINGS)
    container.says("listening")
    try:
        assert run(root, network, *stage.words("HEALTHCHECK")).returncode == 0
        sent = run(root, network, "receiver", "send", "job.completed", "--job", "job_of_the_image", "--json")
        assert json.loads(sent.stdout) == {"status": 202, "body": '{"outcome": "accepted"}'}
    finally:
        assert container.stop() == 0
    assert run(root, network, *stage.words("HEALTHCHECK")).returncode != 0
    again = Container(root, network, command, **SETTINGS)
    again.says("listening")
    jobs = run(root, network, "receiver", "jobs", "--json")
    assert again.stop() == 0
    assert "job_of_the_image" in jobs.stdout


def test_nothing_but_the_volume_can_be_written(built: tuple[Root, Stage], network: Network) -> None:
    root, _ = built
    tried = "for place in / /opt/receiver /tmp /usr/local /etc /data; do touch $place/x 2>/dev/null && echo $place; done; id -u"
    assert run(root, network, "sh", "-c", tried).stdout.split() == ["/data", "65532"]


def test_it_holds_what_runs_and_no_more(built: tuple[Root, Stage], network: Network) -> None:
    """No pip, and no code of the build; everything compiled, since nothing can be compiled there."""
    root, _ = built
    code = "import receiver, glob; print(*glob.glob(receiver.__path__[0] + '/**/*.pyc', recursive=True))"
    compiled = run(root, network, "python", "-c", code).stdout.split()
    assert len(compiled) > 100
    assert all(file.startswith("/opt/receiver/") for file in compiled)
    assert run(root, network, "python", "-m", "pip").returncode != 0
    assert run(root, network, "ls", "/src").returncode != 0


def test_all_that_is_copied_is_sent_to_the_build() -> None:
    """The ignore file lets it through; and nothing of what lies about beside it."""
    folder = ROOT / "deploy/docker"
    sent = {
        line.removeprefix("!") for line in (folder / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = [rest.split()[:-1] for stage in stages(folder / "Dockerfile") for word, rest in stage.lines if word == "COPY"]
    assert {file for files in copied if not files[0].startswith("--from") for file in files} == sent


def test_a_receiver_without_a_secret_says_so(built: tuple[Root, Stage], network: Network) -> None:
    root, stage = built
    done = subprocess.run(
        root.inside(*stage.words("ENTRYPOINT"), *stage.words("CMD"), network=network.path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "READER_WEBHOOK_SECRET is not set" in done.stderr
