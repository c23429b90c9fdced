"""`receiver webhook rotate`: the secret changes under a running service, and no genuine delivery is refused."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from system_kit import RECEIVER, SECRET, Background, Done, Served, command, free_port, knowing, start_job, until

from receiver.core.fingerprint import fingerprint
from receiver.sandbox import BackgroundSandbox

LAG = "4"


class Service:
    """A server on one port, restarted with other secrets; Reader's webhook for it; and somebody who types `rotate`."""

    def __init__(self, reader: BackgroundSandbox, folder: Path) -> None:
        self.reader, self.folder, self.port = reader, folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}/hooks/reader"
        self.server = self.start(SECRET)
        self.jobs: list[str] = []

    def start(self, *secrets: str) -> Served:
        settings = knowing(self.reader, READER_RPM="100000", READER_WEBHOOK_SECRET=",".join(secrets))
        return Served(self.folder, port=self.port, settings=settings)

    def restart(self, *secrets: str) -> None:
        self.server.stop()
        self.server = self.start(*secrets)

    @property
    def _settings(self) -> dict[str, str | None]:
        return knowing(self.reader, READER_WEBHOOK_SECRET=None, XDG_STATE_HOME=str(self.folder / "state"))

    def rotate(self, *args: str) -> Background:
        """Begin it."""
        line = [RECEIVER, "webhook", "rotate", "--url", self.url, "--json", *args]
        return Background(line, self.folder, "stdout", **self._settings)

    def rotated(self, *args: str, **settings: str | None) -> Done:
        """Run it to its end."""
        return command(self.folder, "webhook", "rotate", "--url", self.url, *args, settings={**self._settings, **settings})

    @property
    def kept(self) -> list[Path]:
        """The files that hold a new secret."""
        return list((self.folder / "state").rglob("*.secret"))

    @property
    def webhooks(self) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.reader.url}/v1/webhooks", headers={"x-api-key": self.reader.api_key}, trust_env=False)
        rows: list[dict[str, Any]] = answer.json()["data"]
        return rows

    @property
    def answers(self) -> set[int | None]:
        return {row["status"] for row in self.reader.ledger()["deliveries"]}

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Jobs that begin and end all the while."""
        stopping = threading.Event()

        def work() -> None:
            while not stopping.wait(0.3):
                self.jobs.append(start_job(self.reader, 1))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with BackgroundSandbox(seed=1, job_seconds=0.1, queue_seconds=0.05) as reader:
        running = Service(reader, tmp_path)
        reader.register(running.url, secret=SECRET)
        try:
            yield running
        finally:
            running.server.kill()


def step(rotation: Background, name: str, within: float = 30.0) -> dict[str, Any]:
    """A step that it told, waited for."""

    def told() -> dict[str, Any] | None:
        return next((line for line in rotation.log if line.get("step") == name), None)

    found: dict[str, Any] = until(told, within=within)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("reading", "steps"),
    [
        ("accepted", ["secret", "waiting", "not_yet", "accepted", "switched", "done"]),
        ("refused", ["secret", "waiting", "not_yet", "accepted", "switched", "deleted", "done"]),
        ("ignored", ["secret", "waiting", "not_yet", "accepted", "switched", "ignored", "switched", "deleted", "done"]),
    ],
)
def test_no_delivery_is_refused_and_none_counts_twice_whatever_reader_makes_of_the_change(
    service: Service, reading: str, steps: list[str]
) -> None:
    """The webhook is changed where Reader takes that, and made anew where it refuses, or says yes and does nothing."""
    reader = service.reader
    reader.faults["patch_secret"] = reading
    reader.faults["attempts"] = "4"  # within 21 s, which is time enough to restart
    with service.busy():
        until(lambda: 202 in service.answers)
        with service.rotate("--lag", LAG) as rotation:
            new = step(rotation, "secret")["secret"]
            step(rotation, "not_yet")
            service.restart(new, SECRET)
            assert step(rotation, "done", within=60)["proved"] is True
            assert rotation.process.wait(10) == 0
        told = [line["step"] for line in rotation.log]
        assert list(dict.fromkeys(told)) == list(dict.fromkeys(steps))
        service.restart(new)  # without the old one
        count = len(service.jobs)
        until(lambda: len(service.jobs) > count + 10)
    reader.settled()
    assert service.kept == []
    assert [(row["url"], row["headers"]) for row in service.webhooks] == [(service.url, {"X-Receiver-Webhook": fingerprint(new)})]
    assert 401 not in service.answers
    # A job whose every attempt met a server that was just starting is not known here: on a busy machine that takes long.
    taken = {row["job"] for row in reader.ledger()["deliveries"] if row["status"] in {200, 202}}
    assert len(taken) > len(service.jobs) / 2
    expected = dict.fromkeys(taken, 1)

    def wrong() -> set[tuple[str, int]]:
        """Jobs without their one event, or with more."""
        events = dict(service.server.rows("SELECT job_id, count(*) FROM events GROUP BY job_id"))
        return {(job, count) for job, count in events.items() ^ expected.items() if job in taken or count > 1}

    until(lambda: not wrong(), within=90)


def test_until_the_server_accepts_it_nothing_is_changed_and_the_same_secret_is_gone_on_with(service: Service) -> None:
    first = service.rotated("--wait", "0", "--json")
    assert first.code == 1
    assert "nothing was changed at Reader" in first.complaint
    secret = next(line for line in first.out.splitlines() if "secret" in line)
    assert [row["headers"] for row in service.webhooks] == [{}]
    (file,) = service.kept
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().strip() in secret
    again = service.rotated("--wait", "0")
    assert again.code == 1
    assert f"Going on with the secret in {file}" in again.out
    assert file.read_text().strip() not in again.out


@pytest.mark.slow
def test_interrupted_at_any_time_it_goes_on(service: Service) -> None:
    """By Ctrl-C while it waits for the server, and by `kill -9` between the second webhook's making and the first one's end."""
    service.reader.faults["patch_secret"] = "refused"
    with service.rotate("--lag", "60") as first:
        new = step(first, "secret")["secret"]
        step(first, "not_yet")
        first.process.send_signal(signal.SIGINT)
        assert first.process.wait(10) == 130
    service.restart(new, SECRET)
    with service.rotate("--lag", "60") as second:
        step(second, "switched")
        second.kill()
    assert len(service.webhooks) == 2
    start_job(service.reader, 1)
    service.reader.settled()
    with service.rotate("--lag", "2") as third:
        assert step(third, "done")["proved"] is True
        assert third.process.wait(10) == 0
    assert [row["headers"] for row in service.webhooks] == [{"X-Receiver-Webhook": fingerprint(new)}]


@pytest.mark.slow
def test_where_two_secrets_are_set_what_somebody_began_is_gone_on_with(service: Service) -> None:
    """On another machine, or where nothing is kept between two runs."""
    both = f"{'n' * 20},{SECRET}"
    service.restart(*both.split(","))
    ended = service.rotated("--lag", "0", READER_WEBHOOK_SECRET=both)
    assert ended.code == 0
    assert "Going on with the first READER_WEBHOOK_SECRET" in ended.out
    assert "n" * 20 not in ended.out
    assert service.kept == []
    start_job(service.reader, 1)
    service.reader.settled()
    assert service.answers == {202}
    again = service.rotated("--lag", "5", READER_WEBHOOK_SECRET=both)
    assert "Done: a delivery came" in again.out


@pytest.mark.slow
def test_where_no_delivery_proves_it_the_secret_is_kept_until_one_does(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "next"
    file.write_text("the-secret-that-somebody-chose\n")
    service.restart("the-secret-that-somebody-chose", SECRET)
    args = ("--secret-file", str(file), "--lag", "1")
    first = service.rotated(*args)
    assert first.code == 0
    assert "No delivery came meanwhile" in first.out
    start_job(service.reader, 1)
    service.reader.settled()
    second = service.rotated(*args)
    assert second.code == 0
    assert "Done: a delivery came" in second.out
    assert "the-secret-that-somebody-chose" not in first.out + second.out
    assert file.exists(), "it is somebody else's"


@pytest.mark.slow
def test_a_server_that_has_dropped_the_present_secret_is_told_of(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "next"
    file.write_text("the-secret-that-somebody-chose\n")
    service.restart("the-secret-that-somebody-chose")
    ended = service.rotated("--secret-file", str(file), "--lag", "0")
    assert ended.code == 0
    assert "It no longer accepts the present one" in ended.out
