"""A receiver as the vendor's sample has it: verify, then handle. What it gets is what a careful reader of the documentation gets."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import Any

from reader_py import AsyncReaderClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class VendorSample:
    """`stored` is what it has of each job: the pages of the last time it handled it."""

    def __init__(self, url: str, api_key: str, secret: str) -> None:
        self._client = AsyncReaderClient(api_key, url)
        self._secret = secret
        self.stored: dict[str, list[Any]] = {}
        self.app = Starlette(routes=[Route("/hooks/reader", self.hook, methods=["POST"])])

    async def hook(self, request: Request) -> Response:
        body = await request.body()
        if not self._genuine(request.headers, body):
            return Response(status_code=401)
        event = json.loads(body)
        if event["event"] in {"job.completed", "job.failed"}:
            self.stored[event["jobId"]] = await self._client.get_all_job_results(event["jobId"])
        return Response(status_code=200)

    async def close(self) -> None:
        await self._client.close()

    def _genuine(self, headers: Any, body: bytes) -> bool:
        timestamp, signature = headers.get("x-reader-timestamp", ""), headers.get("x-reader-signature", "")
        if not timestamp or time.time() - int(timestamp) > 300:
            return False
        expected = hmac.new(self._secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        return hmac.compare_digest(signature, f"sha256={expected}")
