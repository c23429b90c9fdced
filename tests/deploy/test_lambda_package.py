"""What `deploy/aws-lambda/build` makes is all that Lambda needs, and starts fast."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from deploy.lambda_kit import Environment, delivered, event
from system.system_kit import delivery, downstream, knowing, start_job

from receiver.sandbox import BackgroundSandbox

HERE = Path(__file__).parents[2] / "deploy/aws-lambda"
UNPACKED_AT_MOST = 250 * 1024 * 1024
"""Lambda's limit."""
COLD_START_WITHIN = 0.4

pytestmark = [pytest.mark.checks, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def package() -> Path:
    subprocess.run(
        [HERE / "build"], check=True, env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHON": sys.executable}
    )
    return HERE / "package"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Lambda's own part, which its image has: the runtime client and what that needs."""
    folder = tmp_path_factory.mktemp("runtime")
    for name in ("awslambdaric", "simplejson", "snapshot-restore-py"):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if ".." not in file.parts}:
            (folder / top).symlink_to(str(found.locate_file(top)))
    yield folder
    shutil.rmtree(folder)


def test_the_package_takes_a_delivery_and_makes_a_pass(package: Path, runtime: Path, tmp_path: Path, postgresql_url: str) -> None:
    """With nothing else of this machine's Python but its standard library."""
    assert sum(file.stat().st_size for file in package.rglob("*") if file.is_file()) < UNPACKED_AT_MOST
    with BackgroundSandbox(seed=1, rpm=100_000, job_seconds="0..0.2") as reader, downstream() as hook:
        hooks = json.dumps([{"name": "downstream", "url": hook.url}])
        with Environment(
            tmp_path,
            python=(sys.executable, "-S"),
            PYTHONPATH=f"{package}:{runtime}",
            RECEIVER_DATABASE_URL=postgresql_url,
            RECEIVER_HOOKS=hooks,
            **knowing(reader, READER_RPM="100000"),
        ) as lambda_:
            job = start_job(reader, pages=3)
            reader.settled()
            assert lambda_.asked(delivered("function-url", delivery(job))) == (202, {"outcome": "accepted"})
            lambda_.invoke(event("schedule"))
            assert len(hook.got) == 1


def test_a_cold_start_is_short(package: Path) -> None:
    """Of the handler's modules, by `-X importtime`: under 400 ms on a machine that loads SQLAlchemy in 120.

    Both are the best of several tries, measured in turn: a machine may have other things to do.
    """
    took, yardstick = [], []
    for _ in range(12):
        yardstick.append(imported(package, "sqlalchemy"))
        took.append(imported(package, "receiver.serverless", "receiver.serverless.aws"))
    assert min(took) < COLD_START_WITHIN * max(1.0, min(yardstick) / 0.120)


def imported(package: Path, *modules: str) -> float:
    """Seconds to import the last, which imports the others first and is not inside them."""
    command = [sys.executable, "-S", "-X", "importtime", "-c", f"import {modules[-1]}"]
    done = subprocess.run(command, env={"PYTHONPATH": str(package)}, capture_output=True, text=True, check=True)
    lines = [line.split("|") for line in done.stderr.splitlines() if line.count("|") == 2]
    return sum(int(total) for _, total, name in lines if name[1:] in modules) / 1e6
