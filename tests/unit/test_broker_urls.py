"""How a broker's place is written, and that a mistake in it is told."""

from __future__ import annotations

import pytest

from receiver.broker_urls import Address, Amqp, Kafka, Nats, Redis, Server, broker


def at(port: int, host: str = "h", user: str | None = None, password: str | None = None, *, tls: bool = False) -> Server:
    return Server(host, port, user, password, tls)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("nats://h/reader.ends", Nats(at(4222), "reader.ends", None)),
        ("nats://u:p%40ss@h:1/reader.{type}?stream=S", Nats(at(1, user="u", password="p@ss"), "reader.{type}", "S")),
        ("NATS://token@[::1]/x", Nats(at(4222, "::1", "token"), "x", None)),
        ("redis://h?stream=s", Redis(at(6379), 0, "s", None)),
        ("redis://h/?stream=s", Redis(at(6379), 0, "s", None)),
        ("rediss://:p@h:1/2?stream=a%3Ab&maxlen=1000", Redis(at(1, user="", password="p", tls=True), 2, "a:b", 1000)),
        ("amqp://h?queue=q", Amqp(at(5672), "/", "", "q")),
        ("amqp://h/%2F?queue=q", Amqp(at(5672), "/", "", "q")),
        ("amqp://h/v?exchange=x", Amqp(at(5672), "v", "x", "{type}")),
        ("amqp://h/v?exchange=x&routing_key=", Amqp(at(5672), "v", "x", "")),
        (
            "amqps://u:p@h/v?exchange=x&routing_key=a.{type}",
            Amqp(at(5671, user="u", password="p", tls=True), "v", "x", "a.{type}"),
        ),
        ("kafka://h/reader.ends", Kafka(at(9092), "reader.ends", "PLAIN")),
        ("kafka+ssl://h/{type}", Kafka(at(9093, tls=True), "{type}", "PLAIN")),
        (
            "kafka+ssl://u:p%40ss@h:1/x-{type}?sasl=SCRAM-SHA-256",
            Kafka(at(1, user="u", password="p@ss", tls=True), "x-{type}", "SCRAM-SHA-256"),
        ),
        ("https://h/x", None),
        ("nonsense", None),
    ],
)
def test_a_url_leads_to_a_place_in_a_broker(url: str, address: Address | None) -> None:
    assert broker(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "nats://h",
        "nats://h/",
        "nats:///x",
        "nats://h/a b",
        "nats://h/a..b",
        "nats://h/a.*",
        "nats://h/>",
        "nats://h/a%0Ab",
        "nats://h:0/x",
        "nats://h:70000/x",
        "nats://h:x/x",
        "nats://[::1/x",
        "nats://h/x?streem=s",
        "nats://h/x?stream=",
        "nats://h/x#y",
        "redis://h",
        "redis://h/0?stream=",
        "redis://h/zero?stream=s",
        "redis://h/0?stream=s&maxlen=many",
        "redis://h/0?stream=s&stream=t",
        "amqp://h/",
        "amqp://h/?queue=",
        "amqp://h/?queue=q&exchange=x",
        "amqp://h/?queue=q&routing_key=k",
        "amqp://h/?routing_key=k",
        "amqp://h/?exchange=" + "x" * 300,
        "amqp://h/%ff?queue=q",
        "amqp://h/?queue",
        "kafka://h",
        "kafka://h/..",
        "kafka://h/a/b",
        "kafka://h/" + "x" * 300,
        "kafka://u@h/x",
        "kafka://h/x?sasl=PLAIN",
        "kafka://u:p@h/x?sasl=GSSAPI",
    ],
)
def test_another_is_refused_with_the_form_it_must_have(url: str) -> None:
    scheme = url.partition(":")[0]
    with pytest.raises(ValueError, match=f"^must be like {scheme}://"):
        broker(url)


@pytest.mark.parametrize(
    "url",
    [
        "nats://u:hidden@h/x",
        "redis://u:hidden@h/0?stream=s",
        "amqps://u:hidden@h/v?exchange=x",
        "amqp://hidden@[::1]/?queue=q",
        "kafka+ssl://u:hidden@h/x",
    ],
)
def test_as_text_it_has_no_secret_in_it_and_means_the_same_place(url: str) -> None:
    address = broker(url)
    assert "hidden" not in str(address)
    plain = broker(str(address))
    assert plain is not None
    assert address is not None
    assert (str(plain), plain.server.host, plain.server.port) == (str(address), address.server.host, address.server.port)
