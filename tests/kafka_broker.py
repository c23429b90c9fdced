"""A Kafka broker: `kafka_broker.py PORT CONTROL [--tls CERTIFICATE KEY] [--sasl USER PASSWORD]`.

librdkafka has one in it, which speaks the protocol over TCP and keeps its log in memory. That one listens where it likes. So it says
that it is at PORT, and what comes there is passed on to it, out of TLS and after a login where that is asked for. Both are one
process: killed or stopped, both are. What is written to the socket CONTROL is done:

    create TOPIC         anew and empty, with one partition
    missing TOPIC        say that there is no such topic
    refuse REQUEST CODE  answer Kafka's requests of that number by that error; 0: no longer
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import ssl
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

import confluent_kafka

_PRODUCER: Final = 0
_BROKER: Final = 1
_MISSING: Final = 3
_UNSUPPORTED_VERSION: Final = 35
_LOGIN_FAILED: Final = 58
_SASL_HANDSHAKE, _API_VERSIONS, _SASL_AUTHENTICATE = 17, 18, 36
_MANY: Final = 1000
_Reader: TypeAlias = asyncio.StreamReader
_Writer: TypeAlias = asyncio.StreamWriter


class _Cluster:
    """One broker of librdkafka's, in threads of its own."""

    def __init__(self, port: int) -> None:
        packages = Path(confluent_kafka.__file__).parent.parent
        self._library = library = ctypes.CDLL(str(next(packages.glob("confluent_kafka*/**/librdkafka*"))))
        for name in ("rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(library, name).restype = ctypes.c_void_p
        library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        handle = ctypes.c_void_p(library.rd_kafka_new(_PRODUCER, None, None, ctypes.c_size_t(0)))
        self._cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(handle, _BROKER))
        self.port = int(library.rd_kafka_mock_cluster_bootstraps(self._cluster).rpartition(b":")[2])
        library.rd_kafka_mock_broker_set_host_port(self._cluster, _BROKER, b"127.0.0.1", port)

    def carry_out(self, command: str) -> None:
        match command.split():
            case ["create", topic]:
                self._library.rd_kafka_mock_topic_delete(self._cluster, topic.encode())
                self._library.rd_kafka_mock_topic_create(self._cluster, topic.encode(), 1, 1)
            case ["missing", topic]:
                self._library.rd_kafka_mock_topic_set_error(self._cluster, topic.encode(), _MISSING)
            case ["refuse", request, "0"]:
                self._library.rd_kafka_mock_clear_request_errors(self._cluster, int(request))
            case ["refuse", request, code]:
                errors = (ctypes.c_int * _MANY)(*[int(code)] * _MANY)
                self._library.rd_kafka_mock_push_request_errors_array(self._cluster, int(request), ctypes.c_size_t(_MANY), errors)
            case _:
                raise ValueError(command)


async def _frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(*struct.unpack(">i", await reader.readexactly(4)))


async def _login(reader: _Reader, writer: _Writer, there: _Reader, back: _Writer, right: bytes) -> bool:
    """SASL PLAIN, as brokers do it; librdkafka's does not."""
    while True:
        body = await _frame(reader)
        request, version, number = struct.unpack_from(">hhi", body)
        taken = body.endswith(right)
        if request == _API_VERSIONS and version:
            answer = struct.pack(">hihhh", _UNSUPPORTED_VERSION, 1, _API_VERSIONS, 0, 0)
        elif request == _API_VERSIONS:
            back.write(struct.pack(">i", len(body)) + body)
            offered = await _frame(there)
            error, count = struct.unpack_from(">hi", offered, 4)
            answer = struct.pack(">hi", error, count + 2) + offered[10:]
            answer += struct.pack(">hhhhhh", _SASL_HANDSHAKE, 1, 1, _SASL_AUTHENTICATE, 0, 0)
        elif request == _SASL_HANDSHAKE:
            answer = struct.pack(">hih5s", 0, 1, 5, b"PLAIN")
        else:
            said = b"" if taken else b"Authentication failed"
            answer = struct.pack(f">hh{len(said)}si", 0 if taken else _LOGIN_FAILED, len(said), said, 0)
        writer.write(struct.pack(">ii", 4 + len(answer), number) + answer)
        await writer.drain()
        if request == _SASL_AUTHENTICATE:
            return taken


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError, ssl.SSLError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    writer.close()


async def main(options: argparse.Namespace) -> None:
    cluster = _Cluster(options.port)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            there, back = await asyncio.open_connection("127.0.0.1", cluster.port)
            if options.sasl and not await _login(reader, writer, there, back, "\0".join(["", *options.sasl]).encode()):
                writer.close()
                back.close()
                return
            await asyncio.gather(_pump(reader, back), _pump(there, writer))

    async def told(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cluster.carry_out((await reader.readline()).decode())
        writer.write(b"done\n")
        writer.close()

    tls = None
    if options.tls:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*options.tls)
    server = await asyncio.start_server(connected, "127.0.0.1", options.port, ssl=tls)
    async with server, await asyncio.start_unix_server(told, options.control):
        await server.serve_forever()


parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("control")
parser.add_argument("--tls", nargs=2)
parser.add_argument("--sasl", nargs=2)
asyncio.run(main(parser.parse_args()))
