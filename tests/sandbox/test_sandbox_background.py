"""The sandbox with plain methods: what is set through it is set."""

import threading
from collections.abc import Iterator, MutableMapping
from typing import Any

import httpx
import pytest

from receiver.sandbox import BackgroundSandbox, FaultError, Faults


@pytest.fixture
def reader() -> Iterator[BackgroundSandbox]:
    with BackgroundSandbox() as running:
        yield running


def answer(reader: BackgroundSandbox) -> httpx.Response:
    return httpx.get(f"{reader.url}/v1/queue/status", headers={"x-api-key": reader.api_key}, trust_env=False)


def there(reader: BackgroundSandbox) -> Any:
    return httpx.get(f"{reader.url}/sandbox/faults", trust_env=False).json()


def test_a_fault_set_by_name_strikes(reader: BackgroundSandbox) -> None:
    reader.faults["rate_limit"] = {"rate": 1, "times": 2, "value": 3}
    answers = [answer(reader) for _ in range(3)]
    assert [(each.status_code, each.headers.get("retry-after")) for each in answers] == [(429, "3"), (429, "3"), (200, None)]


def test_a_fault_deleted_popped_or_cleared_is_gone(reader: BackgroundSandbox) -> None:
    faults = reader.faults
    reader.faults = {"unauthorized": 1, "lose": 0.5, "order": "unstable", "html": 1}
    del faults["unauthorized"]
    assert answer(reader).status_code == 200
    assert faults.pop("html") == 1
    assert (faults, there(reader)["html"], there(reader)["lose"]) == ({"lose": 0.5, "order": "unstable"}, 0, 0.5)
    faults.clear()
    assert faults == {}
    assert there(reader) == dict(Faults(1))


def test_it_shows_what_is_set_whoever_set_it(reader: BackgroundSandbox) -> None:
    faults = reader.faults
    httpx.post(f"{reader.url}/sandbox/faults", json={"lose": 0.25}, trust_env=False)
    assert (list(faults), len(faults), dict(faults), repr(faults)) == (["lose"], 1, {"lose": 0.25}, "{'lose': 0.25}")
    assert ("lose" in faults, "html" in faults, "loose" in faults) == (True, False, False)
    assert (faults["html"], faults["order"]) == (0, "submitted"), "what is not set has its default, as in a Sandbox"
    faults.update(html=1, lose=0)
    assert faults == {"html": 1}


def test_what_does_not_exist_or_cannot_be_is_refused(reader: BackgroundSandbox) -> None:
    faults = reader.faults

    def delete(mapping: MutableMapping[str, Any]) -> None:
        del mapping["loose"]

    for wrong in (lambda: faults.__setitem__("loose", 1), lambda: delete(faults), lambda: faults["loose"]):
        with pytest.raises(FaultError, match="there is no fault 'loose'"):
            wrong()
    with pytest.raises(FaultError, match="lose: a rate from 0 to 1"):
        faults["lose"] = 2
    assert faults == {}


def test_faults_are_switched_in_the_sandboxs_own_thread(reader: BackgroundSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(self: Faults, *_: Any) -> None:
        seen.append(threading.current_thread().name)

    for name in ("__setitem__", "__delitem__", "clear"):
        monkeypatch.setattr(Faults, name, note)
    reader.faults["lose"] = 1
    del reader.faults["lose"]
    reader.faults.clear()
    assert seen == ["reader-sandbox"] * 3


def test_faults_may_be_set_before_it_serves_and_the_ledger_stays_when_it_has() -> None:
    reader = BackgroundSandbox(lose=0.5)
    reader.faults["unauthorized"] = 1
    with reader:
        assert answer(reader).status_code == 401
    assert [row["fault"] for row in reader.ledger()["requests"]] == ["unauthorized"]
    assert reader.faults == {"lose": 0.5, "unauthorized": 1}
