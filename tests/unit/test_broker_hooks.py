"""Events to real brokers: acknowledged or failed, whatever befalls the broker meanwhile."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import redis.asyncio
from aio_pika import DeliveryMode, ExchangeType
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from receiver.core.addresses import EVERYWHERE, AllowList
from receiver.errors import HookError, SettingsError
from receiver.hooks.configured import configured
from receiver.hooks.target import Answer, Delivery, Target
from receiver.settings import HookSettings
from tests.brokers import BROKERS, NAME, Broker, Kafka, Nats, RabbitMQ, Redis, free_port
from tests.clock import FakeClock

pytestmark = pytest.mark.anyio

PAYLOAD = json.dumps(
    {"type": "job.completed", "timestamp": "2024-04-05T00:00:00.000Z", "data": {"job": {"id": "job_1"}, "note": "żółw — 亀"}},
    ensure_ascii=False,
)
NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module", params=BROKERS, ids=lambda kind: kind.__name__)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with request.param(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture
async def broker(running: Broker) -> Broker:
    """Running, and empty."""
    running.ready()
    await running.prepare()
    return running


async def nothing(_: int) -> AsyncIterator[list[bytes]]:
    return
    yield


def delivery(event_id: str = "evt_1") -> Delivery:
    return Delivery(event_id, PAYLOAD, 1, nothing)


def target(url: str, timeout: float = 10.0, now: float = 1_712_275_200.5, allowed: AllowList = EVERYWHERE) -> Target:
    return configured(HookSettings(name="there", url=url, timeout=timeout), FakeClock(now), allowed=allowed).target


async def failure(there: Target, event_id: str = "evt_1") -> str:
    with pytest.raises(HookError) as caught:
        await there.deliver(delivery(event_id))
    assert not caught.value.final
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_message_is_the_payload_under_the_names_that_http_hooks_have_too(broker: Broker) -> None:
    async with target(broker.url) as there:
        assert await there.deliver(delivery()) == Answer()
    (got,) = await broker.messages()
    assert got.body == PAYLOAD.encode()
    told = {"webhook-id": "evt_1", "webhook-timestamp": "1712275200", "event-type": "job.completed"}
    assert got.headers | told == got.headers
    if isinstance(broker, RabbitMQ):
        native = got.native
        assert (native.message_id, native.type, native.content_type) == ("evt_1", "job.completed", "application/json")
        assert (native.delivery_mode, int(native.timestamp.timestamp())) == (DeliveryMode.PERSISTENT, 1712275200)
    else:
        assert got.headers["content-type"] == "application/json"


async def test_as_many_at_once_as_a_hook_may_have_all_arrive(broker: Broker) -> None:
    async with target(broker.url) as there:
        await asyncio.gather(*(there.deliver(delivery(f"evt_{number}")) for number in range(100)))
    assert sorted(got.id for got in await broker.messages()) == sorted(f"evt_{number}" for number in range(100))


async def test_when_it_was_killed_and_is_back_the_next_attempt_arrives(broker: Broker) -> None:
    async with target(broker.url) as there:
        await there.deliver(delivery("evt_1"))
        broker.kill()
        assert await failure(there, "evt_2")
        assert broker.server in await failure(there, "evt_2")
        broker.start()
        await there.deliver(delivery("evt_2"))
    assert [got.id for got in await broker.messages()] == ["evt_1", "evt_2"]


async def test_one_that_hangs_is_given_up_at_the_timeout_and_used_again_when_it_goes_on(broker: Broker) -> None:
    seconds = broker.patience
    unacknowledged = f"no acknowledgement from {broker.server} within {seconds:g} s"
    async with target(broker.url, timeout=seconds) as there, target(broker.url) as patient:
        await there.deliver(delivery("evt_1"))
        broker.signal(signal.SIGSTOP)
        assert await failure(there, "evt_2") == unacknowledged
        async with target(broker.url, timeout=seconds) as fresh:
            assert await failure(fresh, "evt_2") == unacknowledged
        broker.signal(signal.SIGCONT)
        await patient.deliver(delivery("evt_3"))
        assert await there.deliver(delivery("evt_4")) == Answer()
    assert {"evt_1", "evt_3", "evt_4"} <= {got.id for got in await broker.messages()}


async def test_one_that_is_killed_before_it_acknowledged_has_not_taken_it(broker: Broker) -> None:
    """However the client puts it: some cancel what waits on a lost connection."""
    async with target(broker.url, timeout=2) as there:
        await there.deliver(delivery("evt_1"))
        broker.signal(signal.SIGSTOP)
        attempt = asyncio.create_task(there.deliver(delivery("evt_2")))
        await asyncio.sleep(0.1)
        broker.kill()
        with pytest.raises(HookError):
            await attempt
        broker.start()
        await there.deliver(delivery("evt_2"))
    assert {got.id for got in await broker.messages()} == {"evt_1", "evt_2"}


async def test_when_we_end_an_attempt_is_cancelled_and_nothing_else(broker: Broker) -> None:
    async with target(broker.url) as there:
        await there.deliver(delivery("evt_1"))
        broker.signal(signal.SIGSTOP)
        attempt = asyncio.create_task(there.deliver(delivery("evt_2")))
        await asyncio.sleep(0.1)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        broker.signal(signal.SIGCONT)


async def test_what_it_refuses_is_not_delivered(broker: Broker) -> None:
    """It has no room for a second one."""
    await broker.prepare(**broker.full)  # type: ignore[attr-defined]
    async with target(broker.url) as there:
        if not isinstance(broker, Redis | Kafka):
            await there.deliver(delivery("evt_1"))
        error = await failure(there, "evt_2")
        assert any(
            reason in error for reason in ("maximum messages exceeded", "maxmemory", "a queue may be full", "Policy violation")
        ), error
        await broker.prepare()
        await there.deliver(delivery("evt_2"))


@pytest.mark.parametrize(
    "url",
    [
        f"nats://{NOBODY}/x",
        f"redis://:hidden@{NOBODY}/0?stream=x",
        f"amqp://u:hidden@{NOBODY}/?queue=x",
        f"kafka://u:hidden@{NOBODY}/x",
    ],
)
async def test_where_nobody_listens_the_place_is_named_and_no_password(url: str) -> None:
    async with target(url) as there:
        error = await failure(there)
    assert error.startswith(f"{NOBODY}: ")
    assert "hidden" not in error + there.place


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("nats://a/x", "nats", "nats"),
        ("redis://a?stream=x", "redis.asyncio", "redis"),
        ("amqp://a/?queue=x", "aio_pika", "rabbitmq"),
        ("kafka://a/x", "confluent_kafka", "kafka"),
    ],
)
def test_without_its_client_the_start_says_what_to_install(
    url: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("nats", "redis", "rabbitmq", "kafka"):
        monkeypatch.delitem(sys.modules, f"receiver.hooks.brokers.{module}", raising=False)
    with pytest.raises(SettingsError, match="RECEIVER_HOOKS: there leads to ") as caught:
        target(url)
    assert f"pip install 'reader-receiver[{extra}]'" in str(caught.value)


def test_a_list_of_allowed_places_holds_for_brokers_too() -> None:
    """Their clients connect by themselves: a host is allowed by its name, an address by its network."""
    allowed = AllowList.of(("10.0.0.0/8", "*.internal"))
    for host in ("10.1.2.3", "nats.internal"):
        assert target(f"redis://{host}?stream=x", allowed=allowed)
    for host in ("192.0.2.7", "nats.example.com"):
        with pytest.raises(SettingsError, match=f"there leads to {host}:6379, which is not in RECEIVER_HOOK_ALLOW"):
            target(f"redis://{host}?stream=x", allowed=allowed)


# NATS


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    with Nats(tmp_path_factory.mktemp("nats")) as server:
        yield server


async def test_a_stream_drops_by_itself_what_it_gets_twice(nats_server: Nats) -> None:
    await nats_server.prepare()
    async with target(nats_server.url) as there:
        for _ in range(2):
            assert await there.deliver(delivery()) == Answer()
    assert [got.headers["Nats-Msg-Id"] for got in await nats_server.messages()] == ["evt_1"]


async def test_the_subject_may_tell_the_events_type_and_must_be_a_streams(nats_server: Nats) -> None:
    await nats_server.prepare()
    async with target(f"{nats_server.url}.{{type}}?stream={NAME}") as there:
        await there.deliver(delivery())
    (got,) = await nats_server.messages()
    assert got.native.subject == f"{NAME}.job.completed"
    async with target(f"nats://{nats_server.server}/nobodys") as there:
        error = f"{nats_server.server}: no JetStream stream takes the subject 'nobodys': add it to one"
        assert await failure(there) == error
    async with target(f"{nats_server.url}?stream=another") as there:
        assert "expected stream does not match" in await failure(there)


@pytest.mark.parametrize("options", [("--user", "we", "--pass", "p@ss"), ("--auth", "t/oken")], ids=["password", "token"])
async def test_we_are_who_the_url_says(options: tuple[str, ...], tmp_path: Path) -> None:
    right, wrong = ("we:p%40ss", "we:no") if "--user" in options else ("t%2Foken", "no")
    with Nats(tmp_path, *options) as server:
        async with target(f"nats://{right}@{server.server}/nobodys") as there:
            assert "no JetStream stream" in await failure(there)
        async with target(f"nats://{wrong}@{server.server}/nobodys") as there:
            assert "Authorization Violation" in await failure(there)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """For 127.0.0.1, signed by itself: its file, and that of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("certificate")
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    (folder / "certificate").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    for file in (folder, *folder.iterdir()):
        file.chmod(0o755)
    return str(folder / "certificate"), str(folder / "key")


async def only_trusted(url: str, taken: str | None, certificate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`taken`: what the broker says where it is trusted; None: that it has it."""
    async with target(url) as there:
        assert "certificate verify failed" in (await failure(there)).lower()
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    async with target(url) as there:
        if taken is None:
            await there.deliver(delivery())
        else:
            assert taken in await failure(there)


async def test_nats_is_spoken_over_tls_where_it_asks_for_it(
    certificate: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, key = certificate
    with Nats(tmp_path, "--tls", "--tlscert", file, "--tlskey", key) as server:
        await only_trusted(server.url, "no JetStream stream", file, monkeypatch)


async def test_rediss_is_redis_over_tls(certificate: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, key = certificate
    port = free_port()
    options = ("--tls-port", str(port), "--tls-cert-file", file, "--tls-key-file", key, "--tls-auth-clients", "no")
    with Redis(tmp_path, *options) as server:
        await only_trusted(f"rediss://127.0.0.1:{port}/0?stream={NAME}", None, file, monkeypatch)
        assert [got.id for got in await server.messages()] == ["evt_1"]


@pytest.mark.slow
async def test_amqps_is_amqp_over_tls(certificate: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, key = certificate
    port = free_port()
    options = f'-rabbit ssl_listeners [{port}] -rabbit ssl_options [{{certfile,"{file}"}},{{keyfile,"{key}"}}]'
    monkeypatch.setenv("RABBITMQ_SERVER_START_ARGS", options)
    with RabbitMQ(tmp_path / "broker") as server:
        await server.prepare()
        await only_trusted(f"amqps://127.0.0.1:{port}/?queue={NAME}", None, file, monkeypatch)
        assert [got.id for got in await server.messages()] == ["evt_1"]


# Redis


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with Redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


async def test_a_stream_is_kept_short_where_that_is_asked_for(redis_server: Redis) -> None:
    await redis_server.prepare()
    async with target(f"{redis_server.url}&maxlen=100") as there:
        for start in range(0, 400, 50):
            await asyncio.gather(*(there.deliver(delivery(f"evt_{start + number}")) for number in range(50)))
        await there.deliver(delivery("evt_last"))
    kept = [got.id for got in await redis_server.messages()]
    assert 100 <= len(kept) < 400
    assert kept[-1] == "evt_last"


async def test_a_key_that_is_no_stream_and_a_password_that_is_wrong_are_told(redis_server: Redis) -> None:
    await redis_server.prepare()
    async with redis.asyncio.Redis(port=redis_server.port) as client:
        await client.set("text", "x")
        await client.acl_setuser("we", enabled=True, passwords=["+right"], commands=["+@all"], keys=["*"])
    async with target(f"redis://{redis_server.server}/0?stream=text") as there:
        assert "WRONGTYPE" in await failure(there)
    for password, taken in (("wrong", False), ("right", True)):
        async with target(f"redis://we:{password}@{redis_server.server}/0?stream={NAME}") as there:
            if taken:
                await there.deliver(delivery())
            else:
                assert "invalid username-password pair" in await failure(there)


# Kafka


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    with Kafka(tmp_path_factory.mktemp("kafka")) as server:
        yield server


async def test_the_key_is_the_job_so_that_its_events_stay_in_order(kafka: Kafka) -> None:
    await kafka.prepare()
    async with target(kafka.url) as there:
        await there.deliver(delivery())
    (got,) = await kafka.messages()
    assert got.native.key() == b"job_1"


async def test_the_topic_may_tell_the_events_type_and_is_missed(kafka: Kafka) -> None:
    await kafka.prepare()
    async with target(f"kafka://{kafka.server}/ends-{{type}}", timeout=1) as there:
        kafka.tell("missing ends-job.completed")
        assert await failure(there) == f"{kafka.server}: there is no topic 'ends-job.completed': create it"
        kafka.tell("create ends-job.completed")
        await there.deliver(delivery())


async def test_after_a_fatal_error_the_next_attempt_has_another_producer(kafka: Kafka) -> None:
    """A user who may not write idempotently, until he may."""
    await kafka.prepare()
    init_producer_id, not_authorized = 22, 31
    async with target(kafka.url) as there:
        kafka.tell(f"refuse {init_producer_id} {not_authorized}")
        assert "authorization failed" in (await failure(there)).lower()
        kafka.tell(f"refuse {init_producer_id} 0")
        await there.deliver(delivery())
    assert [got.id for got in await kafka.messages()] == ["evt_1"]


async def test_kafka_is_logged_in_to_by_the_password_of_the_url(tmp_path: Path) -> None:
    with Kafka(tmp_path, "--sasl", "we", "p@ss") as server:
        async with target(f"kafka://we:p%40ss@{server.server}/{NAME}") as there:
            await there.deliver(delivery())
        async with target(f"kafka://we:no@{server.server}/{NAME}") as there:
            assert "Authentication failed" in await failure(there)


async def test_kafka_ssl_is_kafka_over_tls(certificate: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, key = certificate
    with Kafka(tmp_path, "--tls", file, key) as server:
        await only_trusted(f"kafka+ssl://{server.server}/{NAME}", None, file, monkeypatch)


# RabbitMQ


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.mark.slow
async def test_by_an_exchange_it_reaches_every_queue_bound_for_its_type_or_is_not_delivered(rabbit: RabbitMQ) -> None:
    """What is missing is told, and works once it is there, over the same connection."""
    await rabbit.prepare()
    async with target(f"amqp://guest:guest@{rabbit.server}/?exchange=ends") as there, rabbit.channel() as channel:
        assert await failure(there) == f"{rabbit.server}: there is no exchange 'ends': declare it"
        exchange = await channel.declare_exchange("ends", ExchangeType.TOPIC)
        unbound = f"{rabbit.server}: no queue is bound to the exchange 'ends' for 'job.completed': bind one"
        assert await failure(there) == unbound
        await (await channel.get_queue(NAME)).bind(exchange, "job.failed")
        assert await failure(there) == unbound
        await (await channel.get_queue(NAME)).bind(exchange, "job.*")
        await there.deliver(delivery())
        await channel.exchange_delete("ends")
        assert "ends" in await failure(there)
        assert await failure(there) == f"{rabbit.server}: there is no exchange 'ends': declare it"
    (got,) = await rabbit.messages()
    assert (got.id, got.native.routing_key) == ("evt_1", "job.completed")


@pytest.mark.slow
async def test_a_queue_that_is_missing_and_a_login_that_is_wrong_are_told(rabbit: RabbitMQ) -> None:
    async with target(f"amqp://{rabbit.server}/?queue=none") as there:
        assert await failure(there) == f"{rabbit.server}: there is no queue 'none': declare it"
    async with target(f"amqp://{rabbit.server}/other?queue=none") as there:
        assert await failure(there) == f"{rabbit.server}: there is no vhost 'other' for this user"
    async with target(f"amqp://guest:wrong@{rabbit.server}/?queue=none") as there:
        assert "Login was refused" in await failure(there)
