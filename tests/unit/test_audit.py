"""What Reader's list of webhooks says of ours."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.core.audit import Sent, find_ours, judge, lost, sent

URL = "https://hooks.example.com/hooks/reader"
WELL: dict[str, Any] = {
    "url": URL,
    "active": True,
    "events": ["job.completed", "job.failed", "job.page"],
    "deliveryStats": {"totalAttempts": 7, "failedDeliveries": 2},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def names(*rows: Any) -> list[str]:
    return [finding.name for finding in judge(find_ours(rows, URL), URL)]


def test_a_webhook_that_is_there_active_and_told_of_both_ends_is_well() -> None:
    assert names(WELL) == []
    assert names(WELL | {"url": URL + "/"}, {"url": "https://elsewhere.example"}) == []
    assert names({name: value for name, value in WELL.items() if name != "active"}) == []


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([], "webhook_missing"),
        ([WELL | {"url": "https://elsewhere.example"}], "webhook_missing"),
        ([WELL | {"active": False}], "webhook_inactive"),
        ([WELL | {"events": ["job.completed"]}], "webhook_events_missing"),
        ([WELL | {"events": None}], "webhook_events_missing"),
        ([WELL | {"events": ["job.completed"]}, WELL | {"active": False}], "webhook_events_missing"),
    ],
)
def test_what_is_wrong_is_named(rows: list[Any], name: str) -> None:
    assert names(*rows) == [name]


@pytest.mark.parametrize(
    "url", [URL + "/", "HTTPS://Hooks.Example.com/hooks/reader", "https://hooks.example.com:443/hooks/reader"]
)
def test_ours_is_found_however_reader_spells_it(url: str) -> None:
    assert names(WELL | {"url": url}) == []


@pytest.mark.parametrize(
    "url", ["http://hooks.example.com/hooks/reader", URL + "?x", "https://hooks.example.com:8443/hooks/reader", "//["]
)
def test_what_differs_in_more_than_spelling_is_not_ours(url: str) -> None:
    assert names(WELL | {"url": url}) == ["webhook_missing"]


def test_two_webhooks_may_share_the_events() -> None:
    assert names(WELL | {"events": ["job.completed"]}, WELL | {"events": ["job.failed"]}) == []


def test_what_was_sent_is_added_up() -> None:
    assert sent([WELL, WELL, {"deliveryStats": None}, {"deliveryStats": {"totalAttempts": "many"}}]) == Sent(14, 4)


@pytest.mark.parametrize(
    ("now", "arrived", "told"),
    [
        (Sent(10, 2), 10, None),
        (Sent(12, 2), 2, None),
        (Sent(12, 2), 1, "sent 1 more"),
        (Sent(12, 3), 9, "1 more of Reader's deliveries to us failed"),
        (Sent(0, 0), 0, None),  # made anew
    ],
)
def test_what_did_not_arrive_is_noticed(now: Sent, arrived: int, told: str | None) -> None:
    finding = lost(Sent(10, 2), now, arrived=arrived)
    assert (told in finding.hint) if told and finding else (finding is None and told is None)


@given(st.lists(JSON, max_size=3))
def test_whatever_the_list_holds_nothing_breaks(rows: list[Any]) -> None:
    ours = find_ours(rows, URL)
    assert judge(ours, URL)
    assert sent(ours) == Sent(0, 0)
