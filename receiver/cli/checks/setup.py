"""The settings: what is set, and what somebody who begins has to set."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from receiver.cli.checks.line import Line, fail, ok, warn
from receiver.core.fingerprint import fingerprint
from receiver.settings import TOML, Settings

_OTHER_NAMES = ("READER_KEY",)


def look(settings: Settings) -> Iterator[Line]:
    """In the order in which a beginner meets them."""
    yield ok("settings", _sources(settings))
    yield _key(settings)
    yield _public_url(settings)
    yield _secret(settings)


def _sources(settings: Settings) -> str:
    known = {name.upper() for name in type(settings).model_fields} | set(_OTHER_NAMES)
    given = sorted(name for name in os.environ if name.removesuffix("_FILE") in known and os.environ[name])
    places = [*([f"the environment ({', '.join(given)})"] if given else []), *([TOML] if Path(TOML).is_file() else [])]
    return f"from {' and '.join(places)}" if places else f"none are set, neither in the environment nor in {TOML} here"


def _secret(settings: Settings) -> Line:
    if not settings.secrets:
        if settings.receiver_allow_unsigned:
            return warn(
                "secret",
                "deliveries that nobody signed are taken (RECEIVER_ALLOW_UNSIGNED), and there is no secret to verify others with",
                "`receiver webhook register` makes a secret: set READER_WEBHOOK_SECRET to it",
            )
        return fail(
            "secret",
            "READER_WEBHOOK_SECRET is not set, so nobody's signature can be checked: the server refuses to start",
            "`receiver webhook register` makes one, has Reader sign with it, and says where to store it",
        )
    shown = [fingerprint(secret) for secret in settings.secrets]
    if len(shown) > 1:
        return warn(
            "secret",
            f"{len(shown)} secrets are accepted, fingerprints {', '.join(shown)}",
            "fine while you rotate; once Reader signs with the first (`receiver webhook list`), drop the others",
        )
    if len(set(settings.secrets[0])) < 8:
        return warn("secret", f"it is easy to guess (fingerprint {shown[0]})", "`receiver webhook rotate` makes a random one")
    return ok("secret", f"set, fingerprint {shown[0]}")


def _key(settings: Settings) -> Line:
    if settings.reader_api_key is None:
        return fail(
            "api_key",
            "READER_API_KEY is not set: deliveries would be stored, and their jobs wait, for nobody can be asked about them",
            "set it to a key of your Reader workspace (or try everything without one: `receiver demo`, `receiver sandbox`)",
        )
    return ok("api_key", "set")


def _public_url(settings: Settings) -> Line:
    url = settings.receiver_public_url
    if url is None:
        return warn(
            "public_url",
            "RECEIVER_PUBLIC_URL is not set: jobs are found by polling alone, unless you registered a webhook otherwise",
            "set it to where the world reaches this receiver, such as https://hooks.example.com, and run "
            "`receiver webhook register`",
        )
    if is_local(url):
        if is_local(settings.reader_base_url):
            return ok("public_url", f"{url}, near this machine, as Reader's is")
        return warn("public_url", f"{url} is an address that Reader cannot reach", "set RECEIVER_PUBLIC_URL to a public one")
    if not url.startswith("https://"):
        return warn("public_url", f"{url} is not encrypted: everybody on the way reads along", "put a proxy with TLS before it")
    if not settings.receiver_api_keys:
        return ok("public_url", f"{url}; without RECEIVER_API_KEYS, /v1 and /metrics answer this machine alone")
    return ok("public_url", url)


def is_local(url: str) -> bool:
    """Whether it leads to this machine or its own network."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
