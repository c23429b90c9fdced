"""Vercel's own runtime for Python, as its builder would put it around our function, in a process.

It tells over a socket where it listens, and gets each request with the headers of Vercel's proxy. The cloud's edge (TLS, rewrites,
cron) is not here: a test asks for what the edge would.
"""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
from system.system_kit import Background

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy/vercel"
_BUILDER: Final = "5.0.7"
"""The last `@vercel/python` that brings the runtime along. It begins an event loop for each request, and knows no lifespan."""


def project() -> Path:
    """What `deploy/vercel/build` makes."""
    subprocess.run([DEPLOY / "build"], check=True, env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable})
    return DEPLOY / "project"


def launcher(project: Path, folder: Path) -> Path:
    """The runtime's start, filled in as the builder does, beside a copy of the project."""
    pack = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"@vercel/python@{_BUILDER}"]
    subprocess.run(pack, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
    with tarfile.open(folder / f"vercel-python-{_BUILDER}.tgz") as packed:
        member = packed.extractfile("package/vc_init.py")
        assert member is not None
        text = member.read().decode()
    place = folder / "var/task"
    place.mkdir(parents=True)
    for each in project.iterdir():
        (place / each.name).symlink_to(each)
    filled = {
        "__VC_HANDLER_MODULE_NAME": "api/index",
        "__VC_HANDLER_ENTRYPOINT": "api/index.py",
        "__VC_HANDLER_VENDOR_DIR": "_vendor",
    }
    for name, value in filled.items():
        text = text.replace(name, value)
    (place / "vc__handler__python.py").write_text(text)
    return place / "vc__handler__python.py"


class Instance:
    """One of them, started."""

    def __init__(self, launcher: Path, folder: Path, **settings: str | None) -> None:
        path = folder / "ipc"
        self._number = 0
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen()
            listening.settimeout(30)
            self._process = Background(
                [sys.executable, str(launcher)],
                folder,
                **{"READER_WEBHOOK_SECRET": None, "VERCEL": "1", "VERCEL_IPC_PATH": str(path)} | settings,
            )
            self._ipc, _ = listening.accept()
        self._ipc.settimeout(30)
        told = b""
        while b"\0" not in told:
            told += self._ipc.recv(65536)
        said = json.loads(told.partition(b"\0")[0])
        assert said["type"] == "server-started"
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{said['payload']['httpPort']}", timeout=90, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()
        self._process.kill()
        self._ipc.close()

    def ask(self, method: str, path: str, *, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status, and the body's JSON."""
        self._number += 1
        edge = {
            "host": "receiver.vercel.app",
            "x-forwarded-for": "203.0.113.7",
            "x-forwarded-host": "receiver.vercel.app",
            "x-forwarded-proto": "https",
            "x-vercel-internal-invocation-id": f"invocation-{self._number}",
            "x-vercel-internal-request-id": str(self._number),
            "x-vercel-internal-span-id": "1",
            "x-vercel-internal-trace-id": "1",
        }
        answer = self._client.request(method, path, content=body, headers=(headers or {}) | edge)
        return answer.status_code, answer.json() if answer.content else None

    def hint(self) -> str:
        """What a person who looks at its log for the last requests is told to do."""
        told = b""
        while True:
            for message in (told := told + self._ipc.recv(65536)).split(b"\0")[:-1]:
                said = json.loads(message)
                if said["type"] == "log" and "hint" in (line := base64.b64decode(said["payload"]["message"]).decode()):
                    return str(json.loads(line)["hint"])
