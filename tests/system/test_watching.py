"""What the dashboard and the alerts ask for is what a running server tells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from system_kit import Served, delivery, downstream, knowing, start_job, until

from receiver.sandbox import BackgroundSandbox

DEPLOY = Path(__file__).parents[2] / "deploy"
_METRIC = re.compile(r"\breceiver_[a-z_]+")
_SELECTED = re.compile(r"\b(receiver_[a-z_]+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r'([a-z_]+)(=~?|!=)"')


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DEPLOY / "grafana/dashboard.json").read_text())["panels"]
    return found


def queries() -> list[str]:
    """All PromQL there is."""
    shown = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    alerts = re.findall(r"^ +expr: (.*)$", (DEPLOY / "prometheus/alerts.yaml").read_text(), re.MULTILINE)
    assert len(shown) > 20
    assert len(alerts) > 10
    return shown + alerts


def test_every_metric_that_is_asked_for_is_told_by_a_server_that_has_worked(tmp_path: Path) -> None:
    with BackgroundSandbox(seed=1, job_seconds=0.1, queue_seconds=0.02) as reader, downstream() as hook:
        hooks = json.dumps([{"name": "indexer", "url": hook.url}])
        settings = knowing(reader, READER_RPM="100000", RECEIVER_HOOKS=hooks, RECEIVER_RETENTION="1s")
        with Served(tmp_path, settings=settings) as server:
            job = start_job(reader, 2)
            reader.settled()
            assert server.post(delivery(job)).status == 202
            until(lambda: hook.got)
            wanted = {name for query in queries() for name in _METRIC.findall(query)} - {
                "receiver_paused"
            }  # it has a sample only then
            told: dict[str, set[str]] = {}

            def whole() -> bool:
                text = httpx.get(f"{server.url}/metrics", trust_env=False).text
                assert "# TYPE receiver_paused gauge" in text
                for family in text_string_to_metric_families(text):
                    for sample in family.samples:
                        told.setdefault(sample.name, set()).update(sample.labels)
                return wanted <= told.keys() | {"receiver_pruned_total"}

            until(whole)
    for query in queries():
        for name, labels in _SELECTED.findall(query):
            asked = {label for label, _ in _LABEL.findall(labels)} - {"job"}  # that one is Prometheus's own
            assert asked <= told.get(name, asked), query


def test_figures_that_every_replica_tells_are_never_added_up() -> None:
    """Of two replicas that tell the same, a sum would be twice the truth: only what `max` has made one may be added."""
    for query in queries():
        for inside in re.findall(r"\bsum(?: by \([a-z_, ]*\))? ?\((.*)", query):
            assert inside.startswith("max"), query
        if "clock_skew" not in query:
            assert re.search(r"\b(max|absent)\b", query), query


def test_every_alert_leads_to_its_section_of_the_runbook() -> None:
    alerts = (DEPLOY / "prometheus/alerts.yaml").read_text()
    names = re.findall(r"- alert: (\w+)", alerts)
    links = re.findall(r"runbook_url: deploy/README.md#(\w+)", alerts)
    assert links == [name.lower() for name in names]
    sections = re.findall(r"^### (Receiver\w+)$", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    assert sections == names


def test_the_dashboard_is_one_that_grafana_lays_out() -> None:
    """No two panels have one id, or lie on each other; each names the data source that is chosen above."""
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["description"] or panel["title"]
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
