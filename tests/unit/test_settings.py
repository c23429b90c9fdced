"""Settings: from four places in one order, every mistake told at once, and no secret told at all."""

from __future__ import annotations

import json
import os
import pickle
import traceback
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from receiver.errors import SettingsError
from receiver.settings import HookSettings, Settings, load

SECRET, NEXT = "whsec_test_0123456789abcdef", "whsec_next_0123456789abcdef"
HOOK = {"name": "crm", "url": "https://crm.example.com/in/"}


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting from the machine the tests run on."""
    for name in os.environ:
        if name.upper().startswith(("READER_", "RECEIVER_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def told(**overrides: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(**overrides)
    return str(caught.value)


def clear(value: Any) -> Any:
    """With secrets unmasked."""
    if isinstance(value, tuple):
        return tuple(clear(item) for item in value)
    return value.get_secret_value() if isinstance(value, SecretStr) else value


# -- what there is -----------------------------------------------------------------------------------------------------------

# Every variable: its default, a value as the environment has it, and what that means.
VARIABLES: dict[str, tuple[Any, str, Any]] = {
    "READER_WEBHOOK_SECRET": ((), f"{SECRET}, {NEXT}", (SECRET, NEXT)),
    "READER_API_KEY": (None, "rk_live_1", "rk_live_1"),
    "READER_BASE_URL": ("https://api.reader.dev", "http://127.0.0.1:9090/", "http://127.0.0.1:9090"),
    "READER_RPM": ("auto", "60", 60),
    "RECEIVER_RPM_SHARE": (0.8, "0.5", 0.5),
    "RECEIVER_PUBLIC_URL": (None, "https://hooks.example.com/", "https://hooks.example.com"),
    "RECEIVER_DATABASE_URL": ("sqlite:///receiver.db", "postgres://u:p@h/db", "postgres://u:p@h/db"),
    "RECEIVER_DATABASE_SCHEMA": (None, "reader_jobs", "reader_jobs"),
    "RECEIVER_DATABASE_POOL": (8, "20", 20),
    "RECEIVER_DATABASE_TIMEOUT": (30.0, "5.5", 5.5),
    "RECEIVER_DATABASE_PREPARE": (False, "true", True),
    "RECEIVER_API_KEYS": ((), "token-a,,token-b ,", ("token-a", "token-b")),
    "RECEIVER_HOOKS": ((), json.dumps([HOOK]), (HookSettings(name=HOOK["name"], url=HOOK["url"]),)),
    "RECEIVER_HOOK_ALLOW": ((), "10.0.0.0/8, hooks.example.com", ("10.0.0.0/8", "hooks.example.com")),
    "RECEIVER_HOOK_ATTEMPTS": (16, "5", 5),
    "RECEIVER_HOOK_BACKOFF": (5.0, "0.5", 0.5),
    "RECEIVER_HOOK_PAUSE_AFTER": (600.0, "0", 0.0),
    "RECEIVER_HOOK_PROBE": (300.0, "60", 60.0),
    "RECEIVER_TOLERANCE": (300, "60", 60),
    "RECEIVER_MAX_BODY": (1048576, "65536", 65536),
    "RECEIVER_RETENTION": (0.0, "30d", 30 * 86400.0),
    "RECEIVER_LISTEN": (True, "false", False),
    "RECEIVER_STALLED_AFTER": (1800.0, "60", 60.0),
    "RECEIVER_RETRY_FAILED": (0, "2", 2),
    "RECEIVER_RETRY_CREDITS": (1000, "50", 50),
    "RECEIVER_RETRY_WAITS": (True, "false", False),
    "RECEIVER_LOOPS": (True, "false", False),
    "RECEIVER_ALLOW_UNSIGNED": (False, "true", True),
    "RECEIVER_LOG": (None, "json", "json"),
}


@pytest.mark.parametrize("name", VARIABLES)
def test_each_variable_has_its_documented_default(name: str) -> None:
    assert clear(getattr(load(), name.lower())) == VARIABLES[name][0]


@pytest.mark.parametrize("name", VARIABLES)
def test_each_variable_is_read_from_the_environment(name: str, env: Any) -> None:
    _, text, value = VARIABLES[name]
    env(**{name: text})
    assert clear(getattr(load(), name.lower())) == value


@pytest.mark.parametrize("name", VARIABLES)
def test_an_empty_variable_is_as_good_as_none(name: str, env: Any) -> None:
    env(**{name: ""})
    assert clear(getattr(load(), name.lower())) == VARIABLES[name][0]


def test_no_setting_goes_untested() -> None:
    assert {name.lower() for name in VARIABLES} == set(Settings.model_fields)


@pytest.mark.parametrize("spelling", [str.lower, str.upper])
def test_receiver_toml_holds_the_same_names_in_either_case(spelling: Any, tmp_path: Path) -> None:
    lines = [
        f'{spelling("READER_WEBHOOK_SECRET")} = ["{SECRET}", "{NEXT}"]',
        f'{spelling("RECEIVER_API_KEYS")} = "token-a,token-b"',
        f"{spelling('READER_RPM')} = 60",
        f"{spelling('RECEIVER_LOOPS')} = false",
        f"[[{spelling('RECEIVER_HOOKS')}]]",
        'name = "crm"',
        f'url = "{HOOK["url"]}"',
        'events = ["job.failed"]',
    ]
    (tmp_path / "receiver.toml").write_text("\n".join(lines))
    settings = load()
    assert settings.secrets == [SECRET, NEXT]
    assert clear(settings.receiver_api_keys) == ("token-a", "token-b")
    assert (settings.rpm, settings.receiver_loops) == (60, False)
    assert settings.receiver_hooks == (HookSettings(name="crm", url=HOOK["url"], events=("job.failed",)),)


FILES = ["READER_WEBHOOK_SECRET", "READER_API_KEY", "RECEIVER_API_KEYS", "RECEIVER_DATABASE_URL", "RECEIVER_HOOKS"]


@pytest.mark.parametrize("name", FILES)
def test_each_secret_may_lie_in_a_file(name: str, env: Any, tmp_path: Path) -> None:
    _, text, value = VARIABLES[name]
    (tmp_path / "secret").write_text(f"{text}\n")
    env(**{f"{name}_FILE": str(tmp_path / "secret")})
    assert clear(getattr(load(), name.lower())) == value


def test_the_api_key_has_a_second_name(env: Any) -> None:
    env(READER_KEY="rk_second")
    assert load().require_api_key() == "rk_second"


def test_the_environment_wins_over_files_over_toml(env: Any, tmp_path: Path) -> None:
    (tmp_path / "receiver.toml").write_text('reader_api_key = "from-toml"\nreceiver_tolerance = 10\n')
    assert load().require_api_key() == "from-toml"
    env(READER_KEY="from-second-name", RECEIVER_TOLERANCE="20")
    assert load().require_api_key() == "from-second-name"
    (tmp_path / "key").write_text("from-file")
    env(READER_API_KEY_FILE=str(tmp_path / "key"))
    assert load().require_api_key() == "from-file"
    env(READER_API_KEY="from-environment")
    assert load().require_api_key() == "from-environment"
    assert load().receiver_tolerance == 20
    assert load(reader_api_key="passed-in", receiver_tolerance=30).require_api_key() == "passed-in"


def test_a_file_is_not_read_where_the_environment_answers(env: Any) -> None:
    env(READER_API_KEY="from-environment", READER_API_KEY_FILE="/nonexistent")
    assert load().require_api_key() == "from-environment"


def test_foreign_variables_are_nobodys_business(env: Any) -> None:
    env(READER_FAVOURITE="x", RECEIVER_UNKNOWN="y")
    assert load() == Settings()


# -- what must be there ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", " ", ",", " , "])
def test_no_secret_at_all_is_refused_and_the_way_out_told(value: str, env: Any) -> None:
    env(READER_WEBHOOK_SECRET=value)
    with pytest.raises(SettingsError, match=r"READER_WEBHOOK_SECRET is not set: set it to .* or RECEIVER_ALLOW_UNSIGNED=true"):
        load().require_secret()


def test_unsigned_deliveries_are_an_explicit_choice(env: Any) -> None:
    env(RECEIVER_ALLOW_UNSIGNED="true")
    assert load().require_secret() is None
    assert load().secrets == []


def test_without_a_key_it_is_said_which_to_set() -> None:
    with pytest.raises(SettingsError, match="READER_API_KEY is not set"):
        load().require_api_key()


@pytest.mark.parametrize(("length", "right"), [(1, False), (15, False), (16, True), (256, True), (257, False)])
def test_a_signing_secret_has_16_to_256_characters(length: int, right: bool, env: Any) -> None:
    env(READER_WEBHOOK_SECRET="ä" * length)
    if right:
        assert load().secrets == ["ä" * length]
    else:
        assert told() == f"READER_WEBHOOK_SECRET[0]: a signing secret has 16 to 256 characters, this one has {length}"


def test_each_of_several_secrets_is_judged(env: Any) -> None:
    env(READER_WEBHOOK_SECRET=f"{SECRET},short")
    assert told().startswith("READER_WEBHOOK_SECRET[1]: ")


def test_a_secret_that_no_sender_could_hold_is_refused(env: Any) -> None:
    """A byte that is not UTF-8 comes out of the environment as half a surrogate."""
    env(READER_WEBHOOK_SECRET="\udce9" * 16)
    assert told() == "READER_WEBHOOK_SECRET[0]: a signing secret must be text in UTF-8"


# -- mistakes ----------------------------------------------------------------------------------------------------------------

A_URL = "must be a URL that begins with http:// or https:// and names a host"
A_SCHEMA = "must be 1 to 48 of a-z 0-9 _, and begin neither with a digit nor with pg_"
A_LIST = 'must be a JSON list of {"name", "url" or "exec", "secret"?, "events"?, "timeout"?}'


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("READER_API_KEY", "two words", "must be visible ASCII characters, without spaces between them"),
        ("READER_API_KEY", "a\r\nx-injected: b", "must be visible ASCII characters, without spaces between them"),
        ("READER_API_KEY", "klíč", "must be visible ASCII characters, without spaces between them"),
        ("READER_BASE_URL", "api.reader.dev", A_URL),
        ("READER_BASE_URL", "ftp://api.reader.dev", A_URL),
        ("READER_BASE_URL", "https://", A_URL),
        ("READER_BASE_URL", "https:///v1", A_URL),
        ("READER_BASE_URL", "https://api.reader.dev:port", A_URL),
        ("READER_BASE_URL", "https://api.reader.dev:65536", A_URL),
        ("READER_BASE_URL", "https://api.reader.dev:0", A_URL),
        ("READER_BASE_URL", "https://[::1", A_URL),
        ("READER_BASE_URL", "https://api.reader.dev\r\n", A_URL),
        ("READER_BASE_URL", "https://api.reader.dev?x", "must be a URL that paths can be put after: without ? and #"),
        ("RECEIVER_PUBLIC_URL", "hooks.example.com", A_URL),
        (
            "READER_BASE_URL",
            "https://user:pass@api.reader.dev",
            "must be a URL without a user and a password in it: it is shown, in logs and by commands",
        ),
        ("RECEIVER_PUBLIC_URL", "https://example.com/#x", "must be a URL that paths can be put after: without ? and #"),
        ("READER_RPM", "fast", "must be auto, or a whole number of requests a minute"),
        ("READER_RPM", "0", "must be auto, or a whole number of requests a minute"),
        ("READER_RPM", "-5", "must be auto, or a whole number of requests a minute"),
        ("READER_RPM", "9" * 5000, "must be auto, or a whole number of requests a minute"),
        ("RECEIVER_RPM_SHARE", "0", "Input should be greater than 0"),
        ("RECEIVER_RPM_SHARE", "1.1", "Input should be less than or equal to 1"),
        ("RECEIVER_RPM_SHARE", "nan", "Input should be less than or equal to 1"),
        *[("RECEIVER_DATABASE_SCHEMA", name, A_SCHEMA) for name in ("Jobs", "a-b", 'a"b', "a.b", "1st", "pg_own", "é", "x" * 49)],
        ("RECEIVER_DATABASE_POOL", "1", "Input should be greater than or equal to 2"),
        ("RECEIVER_DATABASE_TIMEOUT", "-1", "Input should be greater than or equal to 0"),
        ("RECEIVER_TOLERANCE", "five minutes", "Input should be a valid integer, unable to parse string as an integer"),
        ("RECEIVER_TOLERANCE", "0", "Input should be greater than or equal to 1"),
        ("RECEIVER_TOLERANCE", "-300", "Input should be greater than or equal to 1"),
        ("RECEIVER_MAX_BODY", "10", "Input should be greater than or equal to 1024"),
        ("RECEIVER_LOOPS", "perhaps", "Input should be a valid boolean, unable to interpret input"),
        ("RECEIVER_LOG", "xml", "Input should be 'console' or 'json'"),
        ("RECEIVER_HOOKS", "{}", A_LIST),
        ("RECEIVER_HOOKS", '"crm"', A_LIST),
        ("RECEIVER_HOOKS", "[", f"{A_LIST}: Expecting value: line 1 column 2 (char 1)"),
        ("RECEIVER_HOOKS", json.dumps([HOOK, HOOK]), "two hooks have the same name"),
    ],
)
def test_a_mistake_is_told_in_one_line_by_the_variables_name(name: str, text: str, complaint: str, env: Any) -> None:
    env(**{name: text})
    assert told() == f"{name}: {complaint}"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": "a b"}, "RECEIVER_HOOKS[0].name: String should match"),
        ({"url": "crm"}, f"RECEIVER_HOOKS[0].url: {A_URL}"),
        ({"secret": "not base64!"}, "RECEIVER_HOOKS[0].secret: must be base64"),
        ({"events": ["job.done"]}, "RECEIVER_HOOKS[0].events[0]: Input should be 'job.completed', 'job.failed'"),
        ({"events": []}, "RECEIVER_HOOKS[0].events: Tuple should have at least 1 item"),
        ({"timeout": 0}, "RECEIVER_HOOKS[0].timeout: Input should be greater than 0"),
        ({"url": None}, "RECEIVER_HOOKS[0]: give exactly one of url and exec"),
        ({"exec": ["true"]}, "RECEIVER_HOOKS[0]: give exactly one of url and exec"),
        ({"url": None, "exec": []}, "RECEIVER_HOOKS[0].exec: Tuple should have at least 1 item"),
        (
            {"url": None, "exec": ["true"], "secret": "whsec_YzRuNHJ5LWluLXRoZS1taW5l"},
            "RECEIVER_HOOKS[0]: leave out secret: it is for a POST to an http:// or https:// URL",
        ),
        ({"url": None, "exec": ["", "x"]}, "RECEIVER_HOOKS[0]: exec: the first is the program, and must not be empty"),
        ({"url": None, "exec": ["a\0b"]}, "RECEIVER_HOOKS[0].exec[0]: must not contain NUL"),
        ({"url": None, "exec": ["true"], "env": {"A=B": "x"}}, "RECEIVER_HOOKS[0].env.A=B"),
        ({"url": "nats://h"}, "RECEIVER_HOOKS[0].url: must be like nats://host:4222/subject"),
        (
            {"url": "redis://h?stream=s", "secret": "whsec_YzRuNHJ5LWluLXRoZS1taW5l"},
            "RECEIVER_HOOKS[0]: leave out secret: it is for a POST to an http:// or https:// URL",
        ),
        ({"cwd": "/srv"}, "RECEIVER_HOOKS[0]: leave out cwd and env: they are for exec"),
        ({"timeout": 301}, "RECEIVER_HOOKS[0]: timeout: a url has at most 300 seconds, and exec a day"),
        ({"url": None, "exec": ["true"], "timeout": 86401}, "RECEIVER_HOOKS[0].timeout: Input should be less than"),
        ({"secret": ["whsec_YzRuNHJ5LWluLXRoZS1taW5l", "?"]}, "RECEIVER_HOOKS[0].secret: must be base64"),
        ({"headers": {"content-length": "7"}}, "RECEIVER_HOOKS[0].headers: content-length is not yours to set"),
        ({"headers": {"Webhook-Id": "7"}}, "RECEIVER_HOOKS[0].headers: Webhook-Id is not yours to set"),
        ({"headers": {"a b": "7"}}, "RECEIVER_HOOKS[0].headers: 'a b' is no name of a header"),
        ({"headers": {"a": "7\r\nb: 8"}}, "RECEIVER_HOOKS[0].headers: the value of a must be visible ASCII characters"),
        ({"format": "xml"}, "RECEIVER_HOOKS[0].format: Input should be 'standard', 'cloudevents' or 'slack'"),
        ({"concurrency": 0}, "RECEIVER_HOOKS[0].concurrency: Input should be greater than or equal to 1"),
        ({"timeuot": 5}, "RECEIVER_HOOKS[0].timeuot: Extra inputs are not permitted"),
    ],
)
def test_a_mistake_in_a_hook_is_told_with_its_place(change: dict[str, Any], complaint: str, env: Any) -> None:
    env(RECEIVER_HOOKS=json.dumps([HOOK | change]))
    assert told().startswith(complaint)


def test_all_mistakes_are_told_at_once(env: Any, tmp_path: Path) -> None:
    (tmp_path / "receiver.toml").write_text('receiver_log = "xml"\n')
    env(
        READER_WEBHOOK_SECRET="short",
        READER_API_KEY_FILE="/nonexistent/key",
        READER_BASE_URL="nowhere",
        READER_RPM="fast",
        RECEIVER_TOLERANCE="x",
        RECEIVER_HOOKS="[{}]",
    )
    text = told()
    assert "\n" not in text
    for name in (
        "READER_WEBHOOK_SECRET[0]: ",
        "READER_API_KEY: cannot read /nonexistent/key, which READER_API_KEY_FILE names (No such file or directory)",
        "READER_BASE_URL: ",
        "READER_RPM: ",
        "RECEIVER_TOLERANCE: ",
        "RECEIVER_LOG: ",
        "RECEIVER_HOOKS[0].name: Field required",
    ):
        assert name in text


def test_a_secrets_file_that_is_not_text_is_told(env: Any, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfe\x00")
    env(READER_API_KEY_FILE=str(tmp_path / "key"))
    assert told() == f"READER_API_KEY: cannot read {tmp_path}/key, which READER_API_KEY_FILE names (not text in UTF-8)"


@pytest.mark.parametrize("content", [b"receiver_tolerance = ", b"\xff", b"a = 1\na = 2"])
def test_a_broken_receiver_toml_is_told_by_its_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "receiver.toml").write_bytes(content)
    assert told().startswith("receiver.toml cannot be read: ")
    assert "\n" not in told()


def test_an_unreadable_receiver_toml_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "receiver.toml").write_text("")

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    assert told().startswith("receiver.toml cannot be read: ")


@pytest.mark.parametrize("keys", [[""], ["token-a", ""], [" "]])
def test_an_empty_key_opens_no_door(keys: list[str], tmp_path: Path) -> None:
    """A request without a key carries the empty one."""
    (tmp_path / "receiver.toml").write_text(f"receiver_api_keys = {json.dumps(keys)}")
    assert told().startswith(f"RECEIVER_API_KEYS[{len(keys) - 1}]: must be visible ASCII")


@pytest.mark.parametrize("url", ["https://crm.example.com/in/", "https://crm.example.com/in?token=1/", "http://[::1]:8080/"])
def test_a_hooks_url_is_used_as_it_is_written(url: str) -> None:
    """To many servers `/in` is another place than `/in/`, or a redirect, which is a failure."""
    assert HookSettings(name="crm", url=url).url == url


@given(st.text(st.characters(exclude_characters="\x00"), max_size=20).map("https://{}".format) | st.text(max_size=20))
def test_a_url_that_is_let_in_is_one_that_can_be_asked(url: str) -> None:
    try:
        settings = HookSettings(name="crm", url=url)
    except ValidationError:
        return
    assert httpx.Request("POST", settings.url).url.host
    assert httpx.URL(settings.url).port in {None, *range(1, 65536)}


# -- secrets -----------------------------------------------------------------------------------------------------------------

CANARY = "c4n4ry-in-the-mine-0123456789"


def test_no_secret_is_shown_of_good_settings(env: Any) -> None:
    env(
        READER_WEBHOOK_SECRET=f"{CANARY},{NEXT}",
        READER_API_KEY=CANARY,
        RECEIVER_API_KEYS=CANARY,
        RECEIVER_DATABASE_URL=f"postgresql://receiver:{CANARY}@db/receiver",
        RECEIVER_HOOKS=json.dumps([HOOK | {"secret": "whsec_YzRuNHJ5LWluLXRoZS1taW5l"}]),
    )
    settings = load()
    shown = f"{settings!r} {settings!s} {settings.receiver_hooks!r} {settings.reader_webhook_secret!r} {settings.reader_api_key}"
    assert CANARY not in shown
    assert "YzRuNHJ5" not in shown
    assert settings.require_api_key() == CANARY


BAD_SECRETS: list[dict[str, Any]] = [
    {"reader_webhook_secret": CANARY[:12]},
    {"reader_webhook_secret": CANARY * 20},
    {"reader_webhook_secret": [SECRET, CANARY[:12]]},
    {"reader_api_key": f"{CANARY} "},
    {"reader_api_key": f"{CANARY}\nx"},
    {"receiver_api_keys": f"{CANARY} x"},
    {"receiver_hooks": [HOOK | {"secret": f"{CANARY}!"}]},
    {"receiver_hooks": f'[{{"secret": "{CANARY}" oops'},
    {"receiver_hooks": [CANARY]},
    {"receiver_hooks": {"secret": CANARY}},
    {"reader_webhook_secret": {CANARY[:12]: 1}},
]


@pytest.mark.parametrize("overrides", BAD_SECRETS, ids=lambda overrides: next(iter(overrides)))
def test_no_secret_is_shown_of_bad_settings(overrides: dict[str, Any]) -> None:
    """Neither in our one line nor in the validating library's report, which quotes its input if it may; nor in tracebacks."""
    try:
        load(**overrides, receiver_tolerance="x")
    except SettingsError as error:
        ours = "".join(traceback.format_exception(error))
    try:
        Settings(**overrides, receiver_tolerance="x")
    except ValidationError as error:
        theirs = "".join(traceback.format_exception(error))
    assert "RECEIVER_TOLERANCE" in ours
    assert "receiver_tolerance" in theirs
    assert CANARY[:12] not in _without_source_lines(ours)
    assert CANARY[:12] not in _without_source_lines(theirs)


def _without_source_lines(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        load().receiver_tolerance = 1  # type: ignore[misc]  # that is the point
    assert pickle.loads(pickle.dumps(load())) == load()


def test_a_name_in_the_file_that_is_no_setting_is_told_with_the_one_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "receiver.toml").write_text('READER_WEBHOOK_SECRETT = "0123456789abcdef"')
    assert "READER_WEBHOOK_SECRETT: do you mean READER_WEBHOOK_SECRET?" in told()


def test_a_wrong_event_is_the_only_complaint_about_its_list(env: Any) -> None:
    env(RECEIVER_HOOKS='[{"name": "a", "url": "http://a", "events": ["job.page"]}]')
    assert told().count("RECEIVER_HOOKS") == 1
