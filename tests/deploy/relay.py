"""A TCP port that leads to a socket in the file system: `relay.py PORT PATH`. Kill it, and whoever is at the port is cut off."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    writer.close()


async def main(port: int, path: str) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(path)
        await asyncio.gather(pump(reader, back), pump(there, writer))

    async with await asyncio.start_server(connected, "127.0.0.1", port) as server:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await server.serve_forever()


asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
