"""What the vendor's documentation shows for FastAPI, in its manner: verifies, parses, stores nothing."""

import hashlib
import hmac
import os
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Request

from receiver.clock import SystemClock

app = FastAPI()
SECRET = os.environ["READER_WEBHOOK_SECRET"]
CLOCK = SystemClock()


@app.post("/hooks/reader")
async def webhook(
    request: Request, x_reader_signature: Annotated[str, Header()], x_reader_timestamp: Annotated[str, Header()]
) -> dict[str, Any]:
    body = await request.body()
    expected = hmac.new(SECRET.encode(), x_reader_timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(f"sha256={expected}", x_reader_signature):
        raise HTTPException(status_code=401, detail="Invalid signature")
    if CLOCK.wall() - int(x_reader_timestamp) > 300:
        raise HTTPException(status_code=401, detail="Timestamp too old")
    event = await request.json()
    return {"received": True, "jobId": event["jobId"]}
