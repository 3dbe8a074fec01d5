"""What every request passes: the host check, the key, the limits, the request id, errors in the right shape."""

import base64
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from moc.transports.rest.limits import Limits
from tests.rest_stack import RestStack, client, running

PUBLIC = ["/livez", "/readyz", "/startupz", "/v2/health/live", "/v2/health/ready"]
PRIVATE = [
    "/health", "/metrics", "/docs", "/openapi.json", "/api/v1/models", "/api/v1/events", "/v1/models", "/v2",
    "/v2/models/echo", "/v2/models/echo/ready", "/nowhere", "/v1/nowhere", "/v2/nowhere", "/livez/", "//livez",
]  # fmt: skip
INFER = "/v2/models/echo/infer"


def shape_of(answer: httpx.Response) -> str:
    error = answer.json()["error"]
    if isinstance(error, str):
        return "oip"
    return "openai" if set(error) == {"message", "type", "code", "param"} else "native"


@pytest.mark.parametrize("path", PUBLIC)
async def test_probes_need_no_key(rest_stack: RestStack, path: str) -> None:
    async with httpx.AsyncClient(base_url=rest_stack.rest.url) as anyone:
        assert (await anyone.get(path)).status_code == 200


@pytest.mark.parametrize("path", PRIVATE)
@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"x-api-key": "moc_a_b"}, {"authorization": "x"}]
)
async def test_everything_else_does(rest_stack: RestStack, path: str, headers: dict[str, str]) -> None:
    async with httpx.AsyncClient(base_url=rest_stack.rest.url) as anyone:
        answer = await anyone.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith(("Bearer", "Basic"))
    assert "error" in answer.json()


async def test_the_key_goes_in_either_header(rest_stack: RestStack) -> None:
    async with httpx.AsyncClient(base_url=rest_stack.rest.url) as anyone:
        for headers in ({"x-api-key": rest_stack.key}, {"authorization": f"bearer {rest_stack.key}"}):
            assert (await anyone.get("/health", headers=headers)).status_code == 200


async def test_browsers_send_the_key_as_a_password_to_the_documentation_only(rest_stack: RestStack) -> None:
    basic = base64.b64encode(f"me:{rest_stack.key}".encode()).decode()
    async with httpx.AsyncClient(base_url=rest_stack.rest.url, headers={"authorization": f"Basic {basic}"}) as browser:
        for path in ("/docs", "/openapi.json"):
            assert (await browser.get(path)).status_code == 200
        assert (await browser.get("/api/v1/models")).status_code == 401
        wrong = await browser.get("/docs", headers={"authorization": "Basic !"})
    assert wrong.status_code == 401
    assert wrong.headers["www-authenticate"].startswith("Basic")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1:9", 200),
        ("[::1]:8008", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 403),
        ("", 403),
    ],
)
async def test_a_loopback_server_answers_to_its_own_names_only(rest_stack: RestStack, host: str, status: int) -> None:
    async with httpx.AsyncClient(base_url=rest_stack.rest.url) as anyone:
        answer = await anyone.get("/livez", headers={"host": host})
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "status", "shape"),
    [
        ("GET", "/nowhere", 404, "native"),
        ("GET", "/api/v1/nowhere", 404, "native"),
        ("PUT", "/api/v1/models", 405, "native"),
        ("GET", "/v1/nowhere", 404, "openai"),
        ("GET", "/v1/chat/completions", 405, "openai"),
        ("GET", "/v1/models/nobody", 404, "openai"),
        ("GET", "/v2/nowhere", 404, "oip"),
        ("GET", INFER, 405, "oip"),
        ("DELETE", "/v2/health/live", 405, "oip"),
        ("GET", "/v2/models/nobody", 404, "oip"),
        ("GET", "/v2/models/bad name", 400, "oip"),
        ("GET", "/v2/models/echo/versions/one", 404, "oip"),
        ("GET", "/api/v1/models/nobody", 404, "native"),
        ("GET", "/api/v1/models?limit=0", 400, "native"),
        ("GET", "/api/v1/models?limit=many", 400, "native"),
    ],
)
async def test_errors_have_the_shape_of_their_protocol(
    rest_client: httpx.AsyncClient, method: str, path: str, status: int, shape: str
) -> None:
    answer = await rest_client.request(method, path)
    assert answer.status_code == status
    assert shape_of(answer) == shape
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/api/v1/models", "GET, POST"), ("/api/v1/models/echo", "DELETE, GET"), (INFER, "POST"), ("/livez", "GET")],
)
async def test_a_wrong_method_is_told_every_right_one(rest_client: httpx.AsyncClient, path: str, allowed: str) -> None:
    answer = await rest_client.put(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


async def test_a_sane_request_id_is_kept_and_another_replaced(rest_client: httpx.AsyncClient) -> None:
    kept = await rest_client.get("/health", headers={"x-moc-request-id": "trace-7"})
    assert kept.headers["x-moc-request-id"] == "trace-7"
    for strange in (b"a b", b"x" * 129, "é".encode("latin-1")):
        replaced = await rest_client.get("/health", headers={b"x-moc-request-id": strange})
        assert replaced.headers["x-moc-request-id"].startswith("req-")
    first, second = [(await rest_client.get("/nowhere")).json()["error"]["request_id"] for _ in range(2)]
    assert first != second


async def test_every_answer_forbids_guessing_and_storing(rest_client: httpx.AsyncClient) -> None:
    for path in ("/livez", "/v2", "/nowhere", "/docs"):
        headers = (await rest_client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


@pytest.mark.parametrize("path", [INFER, "/api/v1/models", "/v1/chat/completions"])
async def test_a_body_over_the_limit_is_refused(tmp_path: Any, path: str) -> None:
    async def chunks() -> Any:
        for _ in range(8):
            yield bytes(1024)

    async with running(tmp_path, Limits(body_bytes=4096)) as stack, client(stack) as asking:
        for content in (bytes(4097), chunks()):
            answer = await asking.post(path, content=content)
            assert answer.status_code == 413
        assert (await asking.get("/livez")).status_code == 200


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1.5", "86400001", "9" * 30])
async def test_a_deadline_is_milliseconds_up_to_a_day(rest_client: httpx.AsyncClient, value: str) -> None:
    answer = await rest_client.post("/v1/completions", json={"model": "nobody"}, headers={"x-moc-deadline-ms": value})
    assert answer.status_code == 400
    assert "x-moc-deadline-ms" in answer.json()["error"]["message"]


async def test_a_fault_of_our_own_is_told_without_its_inside(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    link = await rest_stack.load()
    link.fault = rest_stack.workers.fault = ValueError("a secret of the inside")
    with capture_logs() as logs:
        answers = [
            await rest_client.get("/api/v1/workers"),
            await rest_client.post("/v1/completions", json={"model": "echo"}),
        ]
    assert [entry["exc_info"] for entry in logs] == [link.fault, link.fault]
    assert [entry["request_id"] for entry in logs] == [answer.headers["x-moc-request-id"] for answer in answers]
    for answer in answers:
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert answer.headers["x-moc-request-id"] in answer.text
    rest_stack.workers.fault = None
    assert (await rest_client.get("/api/v1/workers")).status_code == 200
