"""Whatever is sent to the sandbox, it answers by its own OpenAPI document, and never with a 5xx."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.schemas import APIOperation

from receiver.sandbox import BackgroundSandbox
from receiver.sandbox.openapi import document

_KEY = "rdr_for_schemathesis"
load_all_checks()
_CHECKS = CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "missing_required_header",
        "unsupported_method",
        "ignored_auth",
    ]
)


_SCHEMA = schemathesis.openapi.from_dict(document("http://127.0.0.1"))
_OPERATIONS = [found.ok() for found in _SCHEMA.exclude(path="/v1/events").get_all_operations()]


@pytest.fixture(scope="module")
def reader() -> Iterator[BackgroundSandbox]:
    with BackgroundSandbox(api_key=_KEY, rpm=1_000_000, active_jobs=1_000_000, speed=1000, page_size=200) as sandbox:
        yield sandbox


@pytest.mark.parametrize("examples", [5, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("operation", _OPERATIONS, ids=lambda operation: operation.label)
def test_any_request_is_answered_by_the_document(
    operation: APIOperation, mode: GenerationMode, examples: int, reader: BackgroundSandbox
) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def hold(case: schemathesis.Case) -> None:
        case.call_and_validate(base_url=reader.url, headers={"x-api-key": _KEY}, checks=_CHECKS, timeout=10)

    hold()
