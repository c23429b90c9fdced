"""What one writes first to keep deliveries: as the sample, and a row with its commit for each, on SQLite with `synchronous=FULL`."""

import hashlib
import hmac
import os
import sqlite3
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Request

app = FastAPI()
SECRET = os.environ["READER_WEBHOOK_SECRET"]
DATABASE = sqlite3.connect(os.environ["NAIVE_DATABASE"], isolation_level=None)
DATABASE.execute("PRAGMA journal_mode=WAL")
DATABASE.execute("PRAGMA synchronous=FULL")
DATABASE.execute("CREATE TABLE deliveries (id TEXT PRIMARY KEY, body BLOB)")


@app.post("/hooks/reader", status_code=202)
async def webhook(
    request: Request,
    x_reader_signature: Annotated[str, Header()],
    x_reader_timestamp: Annotated[str, Header()],
    x_reader_delivery: Annotated[str, Header()],
) -> dict[str, Any]:
    body = await request.body()
    expected = hmac.new(SECRET.encode(), x_reader_timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(f"sha256={expected}", x_reader_signature):
        raise HTTPException(status_code=401, detail="Invalid signature")
    DATABASE.execute("INSERT OR IGNORE INTO deliveries VALUES (?, ?)", (x_reader_delivery, body))
    return {"received": True}
