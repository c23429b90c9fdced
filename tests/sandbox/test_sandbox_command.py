"""`receiver sandbox` as a process, and the pytest plugin as somebody else would use it."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from receiver.sandbox import SWITCHES, BackgroundSandbox


@contextmanager
def running(*flags: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "receiver", "sandbox", "--port", "0", *flags]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def refused(*flags: str, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "receiver", "sandbox", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=30, check=False)
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr


def test_it_prints_what_one_needs_and_then_a_line_for_each_thing() -> None:
    with running("--speed", "1000", "--seed", "5", "--lose", "1") as process:
        greeting = [process.stdout.readline() for _ in range(5)]
        url = greeting[0].split(" at ")[1].split()[0]
        key = greeting[1].split()[1]
        assert greeting[2].split()[0] == "secret"
        assert f"curl -s {url}/v1/read -H 'x-api-key: {key}'" in greeting[3]
        assert f"{url}/sandbox/ledger" in greeting[4]
        process.stdout.readline()
        httpx.get(f"{url}/v1/nothing", headers={"x-api-key": key})
        assert process.stdout.readline().split()[1:] == ["request", "GET", "/v1/nothing", "404"]
        httpx.post(f"{url}/sandbox/faults", json={"cut": 1})
        assert process.stdout.readline().split()[1:] == ["faults", "lose=1,", "cut=1"]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


def test_the_curl_line_works_as_it_is_printed() -> None:
    with running() as process:
        curl = [process.stdout.readline() for _ in range(5)][3].split("try", 1)[1].strip()
        program, silent, url, *options = shlex.split(curl)
        assert (program, silent, options[0], options[2], options[4]) == ("curl", "-s", "-H", "-H", "-d")
        headers = dict(header.split(": ") for header in (options[1], options[3]))
        assert httpx.post(url, headers=headers, content=options[5]).json()["data"]["status"] == "queued"


def test_as_json_each_line_is_an_object_and_flags_and_environment_are_heard() -> None:
    settings = {"SANDBOX_SEED": "5", "SANDBOX_LOSE": "0.25", "SANDBOX_ORDER": "unstable", "SANDBOX_RPM": "7"}
    flags = ("--json", "--api-key", "rdr_mine", "--lose-attempts", '{"rate": 1, "times": 3}', "--tier", "pro", "--credits", "12")
    with running(*flags, **settings) as process:
        hello = json.loads(process.stdout.readline())
        assert hello["apiKey"] == "rdr_mine"
        with httpx.Client(base_url=hello["url"], headers={"x-api-key": "rdr_mine"}) as api:
            faults = api.get("/sandbox/faults").json()
            assert (faults["lose"], faults["order"], faults["lose_attempts"]) == (0.25, "unstable", {"rate": 1, "times": 3})
            balance = api.get("/v1/usage/credits").json()["data"]
            assert (balance["tier"], balance["limit"]) == ("pro", 12)
        told = json.loads(process.stdout.readline())
        assert (told["kind"], told["path"], told["status"]) == ("request", "/v1/usage/credits", 200)
        process.terminate()
        assert process.wait(10) == 0


def helped(columns: int) -> str:
    command = [sys.executable, "-m", "receiver", "sandbox", "--help"]
    environment = os.environ | {"COLUMNS": str(columns)}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_the_help_at_80_columns_breaks_no_word_and_fits_a_few_screens() -> None:
    shown = helped(80)
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert len(shown.splitlines()) < 180
    words = set(shown.replace(",", " ").replace(":", " ").replace(".\n", " ").split())
    for switch in SWITCHES.values():
        assert f"--{switch.name.replace('_', '-')}" in words
        assert {value for value in switch.values if not value.isdigit()} <= {word.rstrip(".") for word in words}


def test_the_help_tells_defaults_and_how_the_environment_sets_a_flag() -> None:
    shown = " ".join(helped(200).split())
    assert "--page-errors as SANDBOX_PAGE_ERRORS" in shown
    assert "[default: 9090]" in shown
    for switch in SWITCHES.values():
        if switch.values:
            assert f": {switch.values[0]} (default)" in shown
        elif switch.value is not None:
            assert f"(value, default {switch.value}: " in shown
    for what in ("webhooks", "the API", "streams"):
        assert f"Faults of {what} (default: 0, never)" in shown
    assert "500, 502 or 504" in shown


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--lose", "2"), "lose: a rate from 0 to 1"),
        (("--tier", "gold"), "tier: one of"),
        (("--port", "99999"), "port: from 0 to 65535"),
        (("--nonsense",), "--nonsense"),
        (("--secret", "short"), "secret: 16 to 256 characters, not 5"),
        (("--secret", "short", "--webhook-url", "http://127.0.0.1:1/"), "secret: 16 to 256 characters, not 5"),
        (("--secret", "x" * 257), "secret: 16 to 256 characters, not 257"),
        (("--webhook-url", "nowhere"), "webhook_url: expected an http or https URL"),
        (("--page-size", "5XB"), "page_size: a size such as 2000, 200KB or 1.5MB (B, KB, MB, KiB, MiB), or LOW..HIGH, not '5XB'"),
        (
            ("--page-size", "1KB..x"),
            "page_size: a size such as 2000, 200KB or 1.5MB (B, KB, MB, KiB, MiB), or LOW..HIGH, not '1KB..x'",
        ),
        (("--page-size", "9KB..1KB"), "page_size: LOW..HIGH with LOW not above HIGH, not '9KB..1KB'"),
        (("--huge-size", "big"), "huge_size: a size such as 2000, 200KB or 1.5MB (B, KB, MB, KiB, MiB), not 'big'"),
        (("--job-seconds", "soon"), "job_seconds: seconds such as 5, or LOW..HIGH such as 2..30, not 'soon'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_two(flags: tuple[str, ...], says: str) -> None:
    code, told = refused(*flags)
    assert code == 2
    assert says in told
    assert told.startswith("receiver: ")
    assert len(told.splitlines()) == 1


def test_a_taken_port_is_one_line_and_exit_code_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, told = refused("--port", str(taken.getsockname()[1]))
    assert code == 1
    assert told.startswith("receiver: can't listen on 127.0.0.1:")
    assert "choose another --port" in told
    assert len(told.splitlines()) == 1


@pytest.mark.reader_sandbox(speed=1000, page_errors=1)
class TestTheFixture:
    def test_it_serves_with_the_settings_of_its_mark(self, reader_sandbox: BackgroundSandbox) -> None:
        headers = {"x-api-key": reader_sandbox.api_key}
        answer = httpx.post(f"{reader_sandbox.url}/v1/read", json={"urls": ["https://example.com"]}, headers=headers)
        reader_sandbox.settled()
        job = reader_sandbox.ledger()["jobs"][answer.json()["data"]["id"]]
        assert job["results"][0]["error"]

    @pytest.mark.reader_sandbox(rpm=1)
    def test_a_nearer_mark_adds_to_it(self, reader_sandbox: BackgroundSandbox) -> None:
        headers = {"x-api-key": reader_sandbox.api_key}
        assert [httpx.get(f"{reader_sandbox.url}/v1/webhooks", headers=headers).status_code for _ in range(2)] == [200, 429]

    def test_its_faults_are_switched_from_the_test(self, reader_sandbox: BackgroundSandbox) -> None:
        reader_sandbox.faults = {"unauthorized": 1}
        headers = {"x-api-key": reader_sandbox.api_key}
        assert httpx.get(f"{reader_sandbox.url}/v1/webhooks", headers=headers).status_code == 401
        reader_sandbox.faults = {}
        assert httpx.get(f"{reader_sandbox.url}/v1/webhooks", headers=headers).status_code == 200
        assert reader_sandbox.faults == {}
        with pytest.raises(ValueError, match="loose"):
            reader_sandbox.faults = {"loose": 1}

    def test_waiting_has_an_end(self, reader_sandbox: BackgroundSandbox) -> None:
        with pytest.raises(TimeoutError):
            reader_sandbox.until(lambda ledger: bool(ledger["jobs"]), timeout=0.1)


@pytest.mark.slow
def test_somebody_elses_tests_get_the_fixture_without_asking_for_it(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(
        textwrap.dedent(
            """
            import urllib.request, sys
            import pytest

            def test_nothing_is_imported_before_it_is_used():
                assert [name for name in sys.modules if name.startswith("receiver.")] == ["receiver.pytest_plugin"]

            @pytest.mark.reader_sandbox(seed=9)
            def test_it(reader_sandbox):
                request = urllib.request.Request(reader_sandbox.url + "/v1/usage/credits")
                request.add_header("x-api-key", reader_sandbox.api_key)
                assert urllib.request.urlopen(request).status == 200
            """
        )
    )
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", "-W", "error", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 passed" in ended.stdout
