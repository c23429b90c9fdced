"""Settings: from the environment, from files for secrets, from `receiver.toml`; all mistakes told at once, secrets masked."""

from __future__ import annotations

import base64
import json
import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from receiver.broker_urls import broker
from receiver.errors import SettingsError

TOML = "receiver.toml"
EventType = Literal["job.completed", "job.failed", "job.cancelled", "job.stalled"]


def _listed(value: Any) -> Any:
    """Comma-separated text as a list."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None:
        return ()
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _signing_secret(secret: SecretStr) -> SecretStr:
    value = secret.get_secret_value()
    if not 16 <= len(value) <= 256:
        raise ValueError(f"a signing secret has 16 to 256 characters, this one has {len(value)}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("a signing secret must be text in UTF-8")
    return secret


def _header_value(secret: SecretStr) -> SecretStr:
    """A key that travels in a header. Refused here, not by an HTTP library: its complaint would quote it."""
    value = secret.get_secret_value().strip()
    if not re.fullmatch(r"[\x21-\x7e]+", value):
        raise ValueError("must be visible ASCII characters, without spaces between them")
    return SecretStr(value)


def _http_url(url: str) -> str:
    import httpx  # noqa: PLC0415 - half of all settings have no URL, and an endpoint that starts for each delivery has no time

    try:
        parts = httpx.URL(url)
        in_range = parts.port is None or 0 < parts.port < 65536
        names_a_place = parts.scheme in {"http", "https"} and bool(parts.host) and in_range
    except httpx.InvalidURL:
        names_a_place = False
    if not names_a_place or not url.isprintable() or " " in url:
        raise ValueError("must be a URL that begins with http:// or https:// and names a host")
    return url


def _hook_url(url: str) -> str:
    return _http_url(url) if broker(url) is None else url


def _base_url(url: str) -> str:
    if "?" in url or "#" in url:
        raise ValueError("must be a URL that paths can be put after: without ? and #")
    if "@" in urlsplit(url).netloc:
        raise ValueError("must be a URL without a user and a password in it: it is shown, in logs and by commands")
    return url.rstrip("/")


def _rpm(value: Any) -> Any:
    if value != "auto" and not re.fullmatch("[1-9][0-9]{0,8}", str(value)):
        raise ValueError("must be auto, or a whole number of requests a minute")
    return value


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def span(text: str) -> float:
    """A span of time as people write it, in seconds. Raises `ValueError`."""
    written = re.fullmatch(r"([1-9][0-9]{0,8})([smhdw])", text.strip().lower())
    if written is None:
        raise ValueError("must be a whole number and its unit, s, m, h, d or w, such as 30d or 12h")
    return int(written[1]) * _UNITS[written[2]]


def _time(value: Any) -> Any:
    if value in (0, "0"):
        return 0.0
    try:
        return span(value if isinstance(value, str) else "")
    except ValueError as error:
        raise ValueError(f"{error}; 0 keeps everything") from None


def _hook_list(value: Any) -> Any:
    form = 'must be a JSON list of {"name", "url" or "exec", "secret"?, "events"?, "timeout"?}'
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"{form}: {error}") from None
    if not isinstance(value, list | tuple):
        raise ValueError(form)  # noqa: TRY004 - pydantic gathers ValueErrors
    return value


def _hook_secrets(secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    for secret in secrets:
        try:
            # Strictly: the library skips over what is not base64, and others would sign with another key.
            key = base64.b64decode(secret.get_secret_value().removeprefix("whsec_"), validate=True)
        except ValueError:
            key = b""
        if not key:
            raise ValueError("must be base64, with or without whsec_ before it (Standard Webhooks)")
    return secrets


_OUR_HEADERS = {
    "host",
    "connection",
    "content-length",
    "content-type",
    "transfer-encoding",
    "accept-encoding",
    "expect",
    "te",
    "upgrade",
}


def _hook_headers(headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
    for name, value in headers.items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}", name):
            raise ValueError(f"{name!r} is no name of a header")
        if name.lower() in _OUR_HEADERS or name.lower().startswith("webhook-"):
            raise ValueError(f"{name} is not yours to set: it belongs to how the event is sent")
        if not re.fullmatch(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?", value.get_secret_value()):
            raise ValueError(f"the value of {name} must be visible ASCII characters")
    return headers


def _schema(name: str) -> str:
    if not re.fullmatch(r"(?!pg_)[a-z_][a-z0-9_]{0,47}", name):
        raise ValueError("must be 1 to 48 of a-z 0-9 _, and begin neither with a digit nor with pg_")
    return name


def _variable_value(value: SecretStr) -> SecretStr:
    _no_nul(value.get_secret_value())
    return value


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain NUL")
    return text


Url = Annotated[str, AfterValidator(_http_url)]
Argument = Annotated[str, AfterValidator(_no_nul)]
Variable = Annotated[str, Field(pattern="^[^=\0]+$")]


class HookSettings(BaseModel):
    """One of `RECEIVER_HOOKS`: a URL, whose scheme says how events are brought there, or a command to run."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
    url: Annotated[Annotated[str, AfterValidator(_hook_url)] | None, Field(repr=False)] = None
    exec: Annotated[tuple[Argument, ...], Field(min_length=1)] | None = None
    cwd: Argument | None = None
    env: dict[Variable, Annotated[SecretStr, AfterValidator(_variable_value)]] = {}
    secret: Annotated[tuple[SecretStr, ...], BeforeValidator(_listed), AfterValidator(_hook_secrets)] = ()
    headers: Annotated[dict[str, SecretStr], AfterValidator(_hook_headers)] = {}
    format: Literal["standard", "cloudevents", "slack"] = "standard"
    events: Annotated[tuple[EventType, ...], Field(min_length=1)] = (
        "job.completed",
        "job.failed",
        "job.cancelled",
    )
    timeout: Annotated[float, Field(gt=0, le=86400)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=100)] = 8

    @property
    def seconds(self) -> float:
        """How long an attempt may take. A command usually does all the work itself; a URL takes it over."""
        return self.timeout or (15.0 if self.exec is None else 600.0)

    @model_validator(mode="after")
    def _leads_one_way(self) -> Self:
        if (self.url is None) == (self.exec is None):
            raise ValueError("give exactly one of url and exec")
        if self.exec is not None and not self.exec[0]:
            raise ValueError("exec: the first is the program, and must not be empty")
        if self.exec is None and (self.cwd is not None or self.env):
            raise ValueError("leave out cwd and env: they are for exec")
        if self.exec is None and self.seconds > 300:
            raise ValueError("timeout: a url has at most 300 seconds, and exec a day")
        if not (self.url or "").startswith(("http://", "https://")):
            for name, given in (("secret", self.secret), ("headers", self.headers), ("format", self.format != "standard")):
                if given:
                    raise ValueError(f"leave out {name}: it is for a POST to an http:// or https:// URL")
        return self


def _distinct(hooks: tuple[HookSettings, ...]) -> tuple[HookSettings, ...]:
    names = [hook.name for hook in hooks]
    if len(set(names)) < len(names):
        raise ValueError("two hooks have the same name")
    return hooks


BaseUrl = Annotated[Url, AfterValidator(_base_url)]
Token = Annotated[SecretStr, AfterValidator(_header_value)]
Secrets = Annotated[tuple[Annotated[SecretStr, AfterValidator(_signing_secret)], ...], NoDecode, BeforeValidator(_listed)]
Tokens = Annotated[tuple[Token, ...], NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """All settings. Each field's name, in capitals, is its environment variable."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True, toml_file=TOML
    )

    reader_webhook_secret: Secrets = ()
    reader_api_key: Token | None = None
    reader_base_url: BaseUrl = "https://api.reader.dev"
    reader_rpm: Annotated[Literal["auto"] | int, BeforeValidator(_rpm)] = "auto"
    receiver_rpm_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    receiver_public_url: BaseUrl | None = None
    receiver_database_url: Annotated[str, Field(repr=False)] = "sqlite:///receiver.db"
    receiver_database_schema: Annotated[str, AfterValidator(_schema)] | None = None
    receiver_database_pool: Annotated[int, Field(ge=2, le=200)] = 8
    receiver_database_timeout: Annotated[float, Field(ge=0, le=3600)] = 30.0
    receiver_database_prepare: bool = False
    receiver_api_keys: Tokens = ()
    receiver_hooks: Annotated[tuple[HookSettings, ...], NoDecode, BeforeValidator(_hook_list), AfterValidator(_distinct)] = ()
    receiver_hook_allow: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = ()
    receiver_hook_attempts: Annotated[int, Field(ge=1, le=100)] = 16
    receiver_hook_backoff: Annotated[float, Field(gt=0, le=3600)] = 5.0
    receiver_hook_pause_after: Annotated[float, Field(ge=0, le=30 * 86400)] = 600.0
    receiver_hook_probe: Annotated[float, Field(gt=0, le=86400)] = 300.0
    receiver_tolerance: Annotated[int, Field(ge=1, le=86400)] = 300
    receiver_max_body: Annotated[int, Field(ge=1024, le=64 << 20)] = 1 << 20
    receiver_retention: Annotated[float, BeforeValidator(_time)] = 0.0
    receiver_listen: bool = True
    receiver_loops: bool = True
    receiver_allow_unsigned: bool = False
    receiver_stalled_after: Annotated[float, Field(ge=1, le=30 * 86400)] = 1800.0
    receiver_retry_failed: Annotated[int, Field(ge=0, le=100)] = 0
    receiver_retry_credits: Annotated[int, Field(ge=0)] = 1000
    receiver_retry_waits: bool = True
    receiver_log: Literal["console", "json"] | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is the library's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is passed in, then the environment, then files that it names, then `receiver.toml`."""
        return (init_settings, env_settings, _Also(settings_cls), _Toml(settings_cls))

    @field_validator("*", mode="before")
    @classmethod
    def _was_readable(cls, value: Any) -> Any:
        """A file that could not be read stands in for its value, so that it is told together with all other mistakes."""
        if isinstance(value, ValueError):
            raise value
        return value

    @property
    def secrets(self) -> list[str]:
        """The signing secrets, in the clear."""
        return [secret.get_secret_value() for secret in self.reader_webhook_secret]

    @property
    def rpm(self) -> int | None:
        """Requests a minute as configured; None: by the workspace's tier."""
        return None if self.reader_rpm == "auto" else self.reader_rpm

    def require_secret(self) -> None:
        """Raises `SettingsError` where nobody's signature could be checked."""
        if not self.reader_webhook_secret and not self.receiver_allow_unsigned:
            raise SettingsError(
                "READER_WEBHOOK_SECRET is not set: set it to the secret of your webhook at Reader (16 to 256 characters; "
                "`receiver webhook register` makes one), "
                "or RECEIVER_ALLOW_UNSIGNED=true to take deliveries that nobody signed"
            )

    def require_api_key(self) -> str:
        """The key for Reader's API. Raises `SettingsError` if there is none."""
        if self.reader_api_key is None:
            raise SettingsError("READER_API_KEY is not set: set it to a key of your Reader workspace")
        return self.reader_api_key.get_secret_value()


def load(**overrides: Any) -> Settings:
    """`Settings` from their sources. Raises `SettingsError`, one line, for all that is wrong with them."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        # A list whose members are all wrong is also told to be empty: that is not the mistake.
        places = [problem["loc"] for problem in problems]
        genuine = [p for p in problems if p["type"] != "too_short" or not any(p["loc"] == place[:-1] for place in places)]
        raise SettingsError("; ".join(map(_told, genuine))) from None
    except ValueError as error:  # an unreadable file
        raise SettingsError(str(error)) from None


def _told(problem: Any) -> str:
    name = str(problem["loc"][0]).upper() if problem["loc"] else "settings"
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"][1:])
    return f"{name}{where}: {problem['msg'].removeprefix('Value error, ')}"


class _Toml(TomlConfigSettingsSource):
    """`receiver.toml` in the working directory; its keys are the variables' names, in either case."""

    def __call__(self) -> dict[str, Any]:
        found = {key.lower(): value for key, value in super().__call__().items()}
        for name in sorted(found.keys() - self.settings_cls.model_fields.keys()):
            near = get_close_matches(name, self.settings_cls.model_fields, n=1)
            hint = f": do you mean {near[0].upper()}?" if near else ""
            raise ValueError(f"receiver.toml: there is no setting {name.upper()}{hint}")
        return found

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        try:
            return super()._read_file(file_path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file_path.name} cannot be read: {error}") from None


class _Also(PydanticBaseSettingsSource):
    """`NAME_FILE=/path` for every secret, and the other name of the API key."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - the library's
        name = field_name.upper()
        if path := os.environ.get(f"{name}_FILE"):
            try:
                return Path(path).read_text(encoding="utf-8").strip(), field_name, False
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
                return ValueError(f"cannot read {path}, which {name}_FILE names ({reason})"), field_name, False
        if field_name == "reader_api_key" and (key := os.environ.get("READER_KEY")):
            return key, field_name, False
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        secret = (
            "reader_webhook_secret",
            "reader_api_key",
            "receiver_api_keys",
            "receiver_database_url",
            "receiver_hooks",
        )
        found = {name: self.get_field_value(self.settings_cls.model_fields[name], name)[0] for name in secret}
        return {name: value for name, value in found.items() if value}
