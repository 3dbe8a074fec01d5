"""schemathesis reads `/openapi.json` and looks for requests the coordinator answers otherwise than it says."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.coordinator import Coordinator

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,ignored_auth"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_document_holds(judge: Callable[..., str], coordinator: Coordinator) -> None:
    judge(
        "schemathesis",
        "st",
        "--config-file",
        str(Path(__file__).with_name("schemathesis.toml")),
        "run",
        f"{coordinator.url}/openapi.json",
        "--header",
        f"Authorization:Bearer {coordinator.key}",
        "--checks",
        CHECKS,
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        "5",
        "--seed",
        "1",
        "--request-timeout",
        "30",
        # an endless stream, and what would take models and devices away from the other tests
        "--exclude-path",
        "/api/v1/events",
        "--exclude-method",
        "DELETE",
        "--exclude-method",
        "PATCH",
        "--exclude-path-regex",
        "/(load|unload|pull)$",
        "--exclude-operation-id",
        "acquire_lease",
        "--generation-database",
        "none",
    )
