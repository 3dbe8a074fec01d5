"""OpenAI's files over real HTTP: sent in pieces, listed, read, deleted; and nothing left of what was refused."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from moc.kernel.errors import InvalidRequest
from moc.learning.job import JobSpec, JobType
from moc.security.identity import Identity, Role
from moc.security.key import KeyTerms
from moc.transports.rest.form import FormReader
from moc.transports.rest.limits import Limits
from tests.rest_stack import RestStack, client, running

ROWS = b'{"text": "one"}\r\n{"text": "\xc3\xbc"}\n--b--\n'


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[RestStack]:
    """One that takes bodies of a kilobyte, but for files."""
    async with running(tmp_path, Limits(body_bytes=1024, watch_after_s=0.001)) as started:
        yield started


@pytest.fixture
async def http(stack: RestStack) -> AsyncIterator[httpx.AsyncClient]:
    async with client(stack) as opened:
        yield opened


async def add(http: httpx.AsyncClient, content: bytes = ROWS, name: str = "rows.jsonl", **fields: str) -> Any:
    answer = await http.post("/v1/files", data={"purpose": "fine-tune", **fields}, files={"file": (name, content)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    given = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
    return b"--b\r\n" + given.encode() + b"\r\n\r\n" + content + b"\r\n"


FILE = part("file", ROWS, "rows.jsonl")
PURPOSE = part("purpose", b"evals")
END = b"--b--\r\n"
FORM = {"content-type": "multipart/form-data; boundary=b"}


async def test_a_file_is_kept_shown_read_and_deleted(stack: RestStack, http: httpx.AsyncClient) -> None:
    added = await add(http)
    assert added == {
        "id": added["id"],
        "object": "file",
        "bytes": len(ROWS),
        "created_at": added["created_at"],
        "expires_at": None,
        "filename": "rows.jsonl",
        "purpose": "fine-tune",
        "sha256": hashlib.sha256(ROWS).hexdigest(),
        "status": "processed",
    }
    path = f"/v1/files/{added['id']}"
    assert (await http.get(path)).json() == added
    content = await http.get(f"{path}/content")
    assert (content.content, content.headers["content-length"]) == (ROWS, str(len(ROWS)))
    assert (await http.delete(path)).json() == {"id": added["id"], "object": "file", "deleted": True}
    for refused in (await http.get(path), await http.get(f"{path}/content"), await http.delete(path)):
        assert refused.status_code == 404
        assert added["id"] in refused.json()["error"]["message"]
    deeds = [entry.deed for entry in await stack.audit.list(after=None, limit=3)]
    assert [(deed.operation, deed.subject, deed.outcome) for deed in deeds] == [
        ("files.add", added["id"], "ok"),
        ("files.remove", added["id"], "ok"),
        ("files.remove", added["id"], "not_found"),
    ]


@pytest.mark.parametrize("parts", [(PURPOSE, FILE), (FILE, PURPOSE)])
@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_a_form_may_come_in_any_order_and_in_any_pieces(
    http: httpx.AsyncClient, parts: tuple[bytes, bytes], size: int
) -> None:
    body = b"".join(parts) + END

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    answer = await http.post("/v1/files", content=pieces(), headers=FORM)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["filename"], answer.json()["purpose"]) == ("rows.jsonl", "evals")
    assert (await http.get(f"/v1/files/{answer.json()['id']}/content")).content == ROWS


async def test_a_file_may_be_larger_than_a_body(http: httpx.AsyncClient) -> None:
    content = bytes(range(256)) * 20_000
    added = await add(http, content)
    assert (await http.get(f"/v1/files/{added['id']}/content")).content == content
    assert (await http.post("/v1/chat/completions", content=content)).status_code == 413


async def test_files_are_listed_in_pages(http: httpx.AsyncClient) -> None:
    purposes = ("evals", "fine-tune", "evals")
    ids = [(await add(http, name=f"{number}", purpose=purpose))["id"] for number, purpose in enumerate(purposes)]
    newest = (await http.get("/v1/files")).json()
    assert [file["id"] for file in newest["data"]] == ids[::-1]
    assert (newest["object"], newest["has_more"], newest["first_id"], newest["last_id"]) == (
        *("list", False),
        *(ids[2], ids[0]),
    )
    page = (await http.get("/v1/files", params={"order": "asc", "limit": 2})).json()
    assert ([file["id"] for file in page["data"]], page["has_more"], page["last_id"]) == (ids[:2], True, ids[1])
    rest = (await http.get("/v1/files", params={"order": "asc", "after": ids[1]})).json()
    assert [file["id"] for file in rest["data"]] == ids[2:]
    evals = (await http.get("/v1/files", params={"purpose": "evals"})).json()
    assert [file["id"] for file in evals["data"]] == [ids[2], ids[0]]
    for query in ({"order": "up"}, {"limit": "0"}, {"limit": "10001"}, {"limit": "many"}, {"purpose": "batch"}):
        refused = await http.get("/v1/files", params=query)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(query)))


@pytest.mark.parametrize(
    ("body", "headers", "told"),
    [
        (b"{}", {"content-type": "application/json"}, "has to be multipart/form-data"),
        (b"x", {"content-type": "multipart/form-data"}, "with a boundary"),
        (b"no form", FORM, "is not a form"),
        (FILE + PURPOSE, FORM, "has no end"),
        (PURPOSE + END, FORM, "has no file `file`"),
        (FILE + END, FORM, "has no field `purpose`"),
        (FILE + FILE + PURPOSE + END, FORM, "has two files"),
        (FILE + part("purpose", b"batch") + END, FORM, "there are fine-tune, evals, user_data"),
        (FILE + part("purpose", b"x" * 70_000) + END, FORM, "more than 65536 bytes"),
        (part("a", b"b") * 1 + b"".join(part(f"a{n}", b"b") for n in range(30)) + END, FORM, "more than 20 fields"),
        (part("file", b"", "rows.jsonl") + PURPOSE + END, FORM, "is empty"),
    ],
)
async def test_what_is_no_form_with_a_file_is_refused_and_leaves_nothing(
    stack: RestStack, http: httpx.AsyncClient, body: bytes, headers: dict[str, str], told: str
) -> None:
    refused = await http.post("/v1/files", content=body, headers=headers)
    assert refused.status_code == 400
    assert told in refused.json()["error"]["message"]
    assert list((stack.data_dir / "files").iterdir()) == []


def test_nothing_may_follow_a_form() -> None:
    form = FormReader(FORM["content-type"].encode())
    assert form.feed(FILE + PURPOSE + END) == ROWS
    assert form.feed(b"\r\n") == b""
    with pytest.raises(InvalidRequest, match="behind the end"):
        form.feed(b"and more")


async def test_a_file_may_be_kept_for_a_while(http: httpx.AsyncClient) -> None:
    data = {"purpose": "evals", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    added = (await http.post("/v1/files", data=data, files={"file": ("a", b"a")})).json()
    assert added["expires_at"] - added["created_at"] == 3600
    assert (await http.get(f"/v1/files/{added['id']}")).json() == added


@pytest.mark.parametrize(
    "fields",
    [
        {"anchor": "created_at", "seconds": "3599"},
        {"anchor": "created_at", "seconds": "2592001"},
        {"anchor": "created_at", "seconds": "an hour"},
        {"anchor": "last_active_at", "seconds": "3600"},
        {"seconds": "3600"},
        {"anchor": "created_at"},
        {"anchor": "created_at", "seconds": "3600", "days": "1"},
    ],
)
async def test_an_expiry_that_cannot_be_is_refused(http: httpx.AsyncClient, fields: dict[str, str]) -> None:
    data = {"purpose": "evals", **{f"expires_after[{name}]": value for name, value in fields.items()}}
    refused = await http.post("/v1/files", data=data, files={"file": ("a", b"a")})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "expires_after")
    assert "3600 to 2592000 seconds" in refused.json()["error"]["message"]


async def test_who_leaves_in_the_middle_leaves_nothing(stack: RestStack) -> None:
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {stack.key}\r\ncontent-length: 9999\r\n"
    )
    _, writer = await asyncio.open_connection("127.0.0.1", stack.rest.port)
    writer.write(head.encode() + b"content-type: multipart/form-data; boundary=b\r\n\r\n" + FILE[:60])
    await writer.drain()
    folder = stack.data_dir / "files"
    async with asyncio.timeout(10):
        while not list(folder.iterdir()):  # noqa: ASYNC110 - only the disk tells
            await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
        while list(folder.iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_file_that_a_job_has_stays_until_the_job_is_over(stack: RestStack, http: httpx.AsyncClient) -> None:
    file_id = (await add(http))["id"]
    spec = JobSpec(type=JobType.SUPERVISED, name="new", model="echo", training_file=file_id)
    job = await stack.jobs.submit(spec, actor=Identity(key_id="test", name="test", role=Role.ADMIN))
    refused = await http.delete(f"/v1/files/{file_id}")
    assert refused.status_code == 409
    assert job.id in refused.json()["error"]["message"]
    await stack.jobs.cancel(job.id, actor="test")
    await stack.jobs.wait(job.id)
    assert (await http.delete(f"/v1/files/{file_id}")).status_code == 200


async def test_a_key_for_some_models_has_its_own_files_only(stack: RestStack, http: httpx.AsyncClient) -> None:
    other = (await add(http))["id"]
    token, _ = await stack.keys.create(KeyTerms(role=Role.OPERATOR, models=("mine-*",)), actor="test")
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=stack.rest.url, headers=headers) as limited:
        own = (await add(limited))["id"]
        assert [file["id"] for file in (await limited.get("/v1/files")).json()["data"]] == [own]
        for file_id in (other, "file-nowhere"):
            for method in ("GET", "DELETE"):
                assert (await limited.request(method, f"/v1/files/{file_id}")).status_code == 403
        assert (await limited.delete(f"/v1/files/{own}")).status_code == 200


async def test_a_key_for_some_models_has_no_job_read_what_others_added(
    stack: RestStack, http: httpx.AsyncClient
) -> None:
    theirs = (await add(http))["id"]
    token, key = await stack.keys.create(KeyTerms(role=Role.OPERATOR, models=("mine",)), actor="test")
    program, _ = await stack.keys.create(
        KeyTerms(role=Role.OPERATOR, models=("mine",), on_behalf_of=key.id), actor="job-1"
    )
    sft = {"type": "sft", "model": "mine", "name": "mine"}
    tune = {"type": "tune", "model": "mine"}

    async def asked(secret: str, body: dict[str, Any]) -> int:
        headers = {"authorization": f"Bearer {secret}"}
        return (await http.post("/api/v1/jobs", json=body, headers=headers)).status_code

    async with httpx.AsyncClient(base_url=stack.rest.url, headers={"authorization": f"Bearer {token}"}) as limited:
        own = (await add(limited))["id"]
        ours = {"model": "mine", "training_file": theirs}
        assert (await limited.post("/v1/fine_tuning/jobs", json=ours)).status_code == 403
    suite = {"name": "s", "tasks": [{"name": "t", "type": "contains", "data": {"file": theirs}}]}
    for refused in (
        {**sft, "training_file": theirs},
        {**sft, "training_file": own, "validation_file": theirs},
        {"type": "evaluate", "model": "mine", "options": {"suite": suite}},
        {**tune, "options": {"base": {**sft, "training_file": theirs}}},
        {**tune, "options": {"base": {**sft, "model": "other"}}},
        {**tune, "options": {"base": {"type": "script"}}},
    ):
        assert await asked(token, refused) == 403
    assert not stack.jobs.all()
    assert await asked(token, {**sft, "training_file": own}) == 201
    assert await asked(program, {**sft, "training_file": own}) == 201
    assert await asked(program, {**sft, "training_file": theirs}) == 403
