"""An execution environment of AWS Lambda's: its runtime client runs our handler in a process, and asks a runtime API for events.

As on Lambda, the process is frozen from the moment it asks for the next event until there is one.
"""

from __future__ import annotations

import base64
import json
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from system.system_kit import Background, signed

from receiver.clock import SystemClock

EVENTS = Path(__file__).with_name("events")
_API = "/2018-06-01/runtime"
NOWHERE = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_EC2_METADATA_DISABLED": "true"}


class LambdaError(Exception):
    """The handler raised; what Lambda is told of it."""


def event(name: str) -> dict[str, Any]:
    """One as AWS sends it."""
    recorded: dict[str, Any] = json.loads((EVENTS / f"{name}.json").read_text())
    return recorded


def request(
    name: str, body: bytes = b"", *, method: str = "POST", path: str = "/hooks/reader", in_base64: bool = False, **headers: str
) -> dict[str, Any]:
    """A recorded HTTP event with this request in it. The platform lowers the names of headers."""
    made = event(name)
    made["requestContext"]["http"] |= {"method": method, "path": path}
    made |= {"rawPath": path, "isBase64Encoded": in_base64}
    made["body"] = base64.b64encode(body).decode() if in_base64 else body.decode()
    made["headers"] |= {"content-length": str(len(body))} | {key.lower(): value for key, value in headers.items()}
    return made


def delivered(name: str, body: bytes, **more: Any) -> dict[str, Any]:
    """A signed delivery."""
    return request(name, body, **signed(body), **more)


class _Api(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Calls)
        self.events: queue.Queue[tuple[str, bytes, float]] = queue.Queue()
        self.answers: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.idle = threading.Event()

    def handle_error(self, *_: object) -> None:
        pass  # the process was killed


class _Calls(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Api

    def do_GET(self) -> None:
        assert self.path == f"{_API}/invocation/next"
        self.server.idle.set()
        name, payload, seconds = self.server.events.get()
        self.send_response(200)
        for header, value in {
            "Lambda-Runtime-Aws-Request-Id": name,
            "Lambda-Runtime-Deadline-Ms": str(int((SystemClock().wall() + seconds) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-central-1:123456789012:function:receiver",
            "Content-Type": "application/json",
            "Content-Length": str(len(payload)),
        }.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(payload)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.answers.put((self.path.rpartition("/")[2], json.loads(body or b"null")))
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Environment:
    """One of them, cold until its first event."""

    def __init__(self, folder: Path, *, python: Sequence[str] = (sys.executable,), **settings: str | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._api = _Api()
        self._serving = threading.Thread(target=self._api.serve_forever, kwargs={"poll_interval": 0.05})
        self._serving.start()
        self._numbers = 0
        self._process = Background(
            [*python, "-m", "awslambdaric", "receiver.serverless.aws.handler"],
            folder,
            **NOWHERE,
            AWS_LAMBDA_RUNTIME_API=f"127.0.0.1:{self._api.server_address[1]}",
            AWS_LAMBDA_FUNCTION_NAME="receiver",
            AWS_REGION="eu-central-1",
            AWS_DEFAULT_REGION="eu-central-1",
            PYTHONWARNINGS="error",
            **settings,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._api.shutdown()
        self._serving.join()
        self._api.server_close()

    @property
    def log(self) -> list[dict[str, Any]]:
        return self._process.log

    def logged(self, name: str, **fields: Any) -> dict[str, Any]:
        return self._process.logged(name, **fields)

    def invoke(self, sent: dict[str, Any], *, seconds: float = 60.0) -> Any:
        """What the handler returned, from a thawed process that is frozen again when this returns. Raises `LambdaError`."""
        assert self._api.idle.wait(30), "\n".join(self._process.lines)
        self._api.idle.clear()
        self._numbers += 1
        self._process.process.send_signal(signal.SIGCONT)
        self._api.events.put((f"request-{self._numbers}", json.dumps(sent).encode(), seconds))
        said, value = self._api.answers.get(timeout=seconds + 30)
        assert self._api.idle.wait(30), "\n".join(self._process.lines)
        self._process.process.send_signal(signal.SIGSTOP)
        if said == "error":
            raise LambdaError(f"{value['errorType']}: {value['errorMessage']}")
        return value

    def asked(self, sent: dict[str, Any]) -> tuple[int, Any]:
        """Of an HTTP event: the status, and the body's JSON."""
        answer = self.invoke(sent)
        return answer["statusCode"], json.loads(answer["body"])
