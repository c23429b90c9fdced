"""Connecting: the address that was looked at is the one that is connected to, and a name that changes its answer gains nothing."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from receiver.core.addresses import AllowList
from receiver.errors import HookError
from receiver.hooks import connecting
from receiver.hooks.http import HttpTarget
from tests.clock import FakeClock
from tests.loopback import answering, serving
from tests.unit.test_http_hook import DELIVERY

pytestmark = pytest.mark.anyio

METADATA = "169.254.169.254"


class Nameserver:
    """A name server whose answers a test turns: what a system's resolver says, which no test can reach otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: list[str]) -> None:
        self.answers = {name.replace("_", "."): addresses for name, addresses in answers.items()}
        self.asked: list[str] = []
        self._true = socket.getaddrinfo
        monkeypatch.setattr(connecting.socket, "getaddrinfo", self._getaddrinfo)

    def _getaddrinfo(self, host: Any, port: Any, *args: Any, **more: Any) -> Any:
        if host not in self.answers:
            return self._true(host, port, *args, **more)
        self.asked.append(host)
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(family[":" in each], socket.SOCK_STREAM, 6, "", (each, port)) for each in self.answers[host]]


def target(url: str, *, timeout: float = 5.0, allow: tuple[str, ...] = ()) -> HttpTarget:
    return HttpTarget(url, timeout=timeout, clock=FakeClock(), allowed=AllowList.of(allow))


async def failure(there: HttpTarget) -> str:
    async with there:
        with pytest.raises(HookError) as caught:
            await there.deliver(DELIVERY)
    assert not caught.value.final, "a name may lead elsewhere tomorrow"
    return str(caught.value)


@pytest.mark.parametrize(
    "host",
    [METADATA, "[fe80::1]", "[::ffff:169.254.169.254]", "2852039166", "0xa9fea9fe", "[fd00:ec2::254]"],
)
async def test_an_address_of_metadata_is_refused_however_it_is_written(host: str) -> None:
    told = await failure(target(f"http://{host}/latest/meta-data/"))
    assert "nothing is sent to" in told
    assert "\n" not in told


async def test_a_name_that_changes_its_answer_is_refused_when_it_leads_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was fine when the hook was made, and at the first event; each connection is looked at anew."""
    names = Nameserver(monkeypatch, rebinding_example=["127.0.0.1"])
    async with (
        serving(answering(200, connection="close")) as server,
        target(server.url.replace("127.0.0.1", "rebinding.example")) as there,
    ):
        assert (await there.deliver(DELIVERY)).status == 200
        names.answers["rebinding.example"] = [METADATA]
        with pytest.raises(HookError, match=r"nothing is sent to rebinding\.example"):
            await there.deliver(DELIVERY)
    assert server.asked[0].headers["host"].startswith("rebinding.example:")


async def test_what_was_looked_at_is_what_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is asked for once a connection: a second answer, for the connecting itself, is what such an attack waits for."""
    names = Nameserver(monkeypatch, rebinding_example=["127.0.0.1"])
    connected: list[str] = []
    true = connecting.httpcore.AnyIOBackend.connect_tcp

    async def noted(self: Any, host: str, *args: Any, **more: Any) -> Any:
        connected.append(host)
        names.answers["rebinding.example"] = [METADATA]
        return await true(self, host, *args, **more)

    monkeypatch.setattr(connecting.httpcore.AnyIOBackend, "connect_tcp", noted)
    async with serving(answering(200)) as server, target(server.url.replace("127.0.0.1", "rebinding.example")) as there:
        await there.deliver(DELIVERY)
    assert (names.asked, connected) == (["rebinding.example"], ["127.0.0.1"])


async def test_of_several_addresses_the_fine_ones_are_tried_until_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    Nameserver(monkeypatch, many_example=[METADATA, "127.0.0.2", "127.0.0.1"])
    async with serving(answering(200)) as server, target(server.url.replace("127.0.0.1", "many.example")) as there:
        assert (await there.deliver(DELIVERY)).status == 200


async def test_a_redirect_there_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(answering(307, location=f"http://{METADATA}/")) as server:
        assert (await failure(target(server.url))).startswith("answered 307, a redirect, which is not followed")


async def test_with_an_allow_list_nothing_else_is_connected_to() -> None:
    async with serving(answering(200)) as server:
        async with target(server.url, allow=("127.0.0.0/8",)) as there:
            assert (await there.deliver(DELIVERY)).status == 200
        told = await failure(target(server.url, allow=("10.0.0.0/8", "hooks.example.com")))
    assert "not in RECEIVER_HOOK_ALLOW" in told
    assert len(server.asked) == 1


async def test_a_name_that_nobody_knows_is_a_failure() -> None:
    assert "receiver-test.invalid" in await failure(target("http://receiver-test.invalid/"))


async def test_name_servers_that_do_not_answer_hold_up_that_hook_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask: no pool of threads is used up by them."""
    release = threading.Event()
    names = Nameserver(monkeypatch)
    true = names._getaddrinfo

    def hanging(host: Any, *args: Any, **more: Any) -> Any:
        if host == "hanging.example":
            release.wait(20)
        return true(host, *args, **more)

    monkeypatch.setattr(connecting.socket, "getaddrinfo", hanging)
    try:
        stuck = [asyncio.create_task(failure(target("http://hanging.example/", timeout=0.5))) for _ in range(50)]
        await asyncio.sleep(0)
        async with serving(answering(200)) as server, target(server.url) as there:
            assert (await there.deliver(DELIVERY)).status == 200
            assert await asyncio.to_thread(lambda: True), "the pool that others work in is free"
        for told in await asyncio.gather(*stuck):
            assert "within 0.5 s" in told or "in time" in told
    finally:
        release.set()
