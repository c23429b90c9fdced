"""The hooks that the settings name: an entry's `exec`, or its `url` by its scheme, says what kind it is."""

from __future__ import annotations

from receiver.broker_urls import Address, Amqp, Kafka, Nats, Redis, broker
from receiver.clock import Clock
from receiver.core.addresses import AllowList, why_not
from receiver.errors import SettingsError
from receiver.hooks.command import CommandTarget
from receiver.hooks.http import HttpTarget
from receiver.hooks.target import Hook, Target
from receiver.settings import HookSettings


def configured(settings: HookSettings, clock: Clock, *, allowed: AllowList) -> Hook:
    """The hook of one entry. Raises `SettingsError` for one that nobody can serve."""
    if settings.exec is not None:
        env = {name: value.get_secret_value() for name, value in settings.env.items()}
        command = CommandTarget(settings.name, settings.exec, timeout=settings.seconds, cwd=settings.cwd, env=env)
        return Hook(settings.name, "command", settings.events, command, settings.concurrency)
    if settings.url is None:
        raise SettingsError(f"RECEIVER_HOOKS: {settings.name} has no url")
    if (address := broker(settings.url)) is not None:
        if not _may_lead_to(address.server.host, allowed):
            raise SettingsError(f"RECEIVER_HOOKS: {settings.name} leads to {address.server}, which is not in RECEIVER_HOOK_ALLOW")
        there = _broker(settings.name, address, settings.seconds, clock)
        return Hook(settings.name, "broker", settings.events, there, settings.concurrency)
    http = HttpTarget(
        settings.url,
        timeout=settings.seconds,
        clock=clock,
        secrets=[secret.get_secret_value() for secret in settings.secret],
        headers={name: value.get_secret_value() for name, value in settings.headers.items()},
        form=settings.format,
        allowed=allowed,
        connections=settings.concurrency,
    )
    return Hook(settings.name, "http", settings.events, http, settings.concurrency)


def _may_lead_to(host: str, allowed: AllowList) -> bool:
    """Brokers' clients connect by themselves, so a host that is no address must be named: what it leads to is not looked at."""
    try:
        return not allowed or why_not(host, host, allowed) is None
    except ValueError:
        return allowed.has_name(host)


def _broker(name: str, address: Address, timeout: float, clock: Clock) -> Target:
    """Each client is an extra, imported where somebody has such a hook."""
    extras = {Nats: "nats", Redis: "redis", Amqp: "rabbitmq", Kafka: "kafka"}
    try:
        match address:
            case Nats():
                from receiver.hooks.brokers.nats import NatsTarget  # noqa: PLC0415

                return NatsTarget(address, timeout=timeout, clock=clock)
            case Redis():
                from receiver.hooks.brokers.redis import RedisTarget  # noqa: PLC0415

                return RedisTarget(address, timeout=timeout, clock=clock)
            case Amqp():
                from receiver.hooks.brokers.rabbitmq import RabbitTarget  # noqa: PLC0415

                return RabbitTarget(address, timeout=timeout, clock=clock)
            case Kafka():
                from receiver.hooks.brokers.kafka import KafkaTarget  # noqa: PLC0415

                return KafkaTarget(address, timeout=timeout, clock=clock)
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"RECEIVER_HOOKS: {name} leads to {address}, whose client is not installed ({error.name}): "
            f"pip install 'reader-receiver[{extras[type(address)]}]'"
        ) from error
