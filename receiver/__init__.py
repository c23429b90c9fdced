"""Receiver: the webhook endpoint for jobs of the Reader API.

Every job's results are stored once and in full, and each time a job ends exactly one event says so, whatever webhooks get lost.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from receiver.app import Receiver
    from receiver.core.signature import sign, verify
    from receiver.errors import ReceiverError, SettingsError, SignatureError
    from receiver.hooks.event import Connection, Event, Later, Reject, Result, Results
    from receiver.settings import HookSettings, Settings
    from receiver.views import JobView

# Imported when first asked for: who only verifies a signature, or prints a help, does not wait for a database toolkit.
_HOMES = {
    "Connection": "receiver.hooks.event",
    "Event": "receiver.hooks.event",
    "HookSettings": "receiver.settings",
    "JobView": "receiver.views",
    "Later": "receiver.hooks.event",
    "Receiver": "receiver.app",
    "ReceiverError": "receiver.errors",
    "Reject": "receiver.hooks.event",
    "Result": "receiver.hooks.event",
    "Results": "receiver.hooks.event",
    "Settings": "receiver.settings",
    "SettingsError": "receiver.errors",
    "SignatureError": "receiver.errors",
    "sign": "receiver.core.signature",
    "verify": "receiver.core.signature",
}

__all__ = [
    "Connection",
    "Event",
    "HookSettings",
    "JobView",
    "Later",
    "Receiver",
    "ReceiverError",
    "Reject",
    "Result",
    "Results",
    "Settings",
    "SettingsError",
    "SignatureError",
    "sign",
    "verify",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
