"""The configuration over REST and with the client."""

import httpx
import pytest

from moc.client import AsyncClient
from moc.kernel.errors import Conflict, InvalidRequest, NotFound
from tests.rest_stack import RestStack

LIMIT = "resources: {soft_limit_pct: 50}\n"
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
"""Nine lines that come to nine to the power of eight values."""


async def test_a_configuration_is_shown_compared_applied_and_rolled_back(rest_stack: RestStack) -> None:
    async with AsyncClient(rest_stack.rest.url, rest_stack.key) as moc:
        before = await moc.config.show()
        assert (before["revision"], before["reason"], before["file"]) == (1, "Start", "")
        assert before["settings"]["resources"]["soft_limit_pct"] == 90
        difference = await moc.config.diff(LIMIT)
        change = {"key": "resources.soft_limit_pct", "before": 90.0, "after": 50.0, "live": True}
        assert (difference["changes"], difference["restart"]) == ([change], [])
        applied = await moc.config.apply(LIMIT, name="new.yaml")
        assert (applied["number"], applied["name"], applied["changes"]) == (2, "new.yaml", [change])
        after = await moc.config.show()
        assert (after["revision"], after["settings"]["resources"]["soft_limit_pct"]) == (2, 50)
        assert rest_stack.taken_up[-1].settings.resources.soft_limit_pct == 50
        assert (await moc.config.rollback(1))["number"] == 3
        page = await moc.config.history(limit=2)
        assert [revision["number"] for revision in page["items"]] == [1, 2]
        rest = await moc.config.history(after=page["next"] or 0, limit=2)
        assert ([revision["reason"] for revision in rest["items"]], rest["next"]) == (["Rollback to 1"], None)


async def test_what_is_refused_says_why(rest_stack: RestStack) -> None:
    async with AsyncClient(rest_stack.rest.url, rest_stack.key) as moc:
        with pytest.raises(InvalidRequest, match=r"^new\.yaml:1: resource: unknown key"):
            await moc.config.apply("resource: {}", name="new.yaml")
        with pytest.raises(Conflict) as refused:
            await moc.config.apply("server: {rest_port: 1}\n" + LIMIT)
        assert refused.value.details["restart"] == ["server.rest_port"]
        with pytest.raises(NotFound, match="revision 7"):
            await moc.config.rollback(7)
        assert (await moc.config.show())["settings"]["resources"]["soft_limit_pct"] == 90
        deeds = [entry for entry in (await moc.audit.list())["items"] if entry["operation"].startswith("config.")]
        assert [(deed["operation"], deed["outcome"]) for deed in deeds] == [
            ("config.apply", "invalid_request"),
            ("config.apply", "conflict"),
            ("config.rollback", "not_found"),
        ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &a [*a]", "has more than 100000 keys and values"),
        (
            "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" if n else "a0: &a0 [x]\n" for n in range(9)),
            "more",
        ),
        ("[" * 5000, "nested too deeply"),
        ("resources: {" + "# " * 600_000 + "}", "a configuration has at most"),
        ("- a list", "must be a mapping of sections"),
        ("resources: [", "not YAML"),
        ("devices:\n- id: cpu\n  kind: host\n  id: b\n", "moc.yaml:4: devices[0].id is there twice (first on line 2)"),
        ("resources: {eviction: lru}\nresources: {}", "moc.yaml:2: resources is there twice (first on line 1)"),
    ],
)
async def test_hostile_texts_are_refused(rest_client: httpx.AsyncClient, text: str, problem: str) -> None:
    answer = await rest_client.put("/api/v1/config", json={"text": text})
    assert answer.status_code == 400
    assert problem in answer.json()["error"]["message"]


async def test_only_an_admin_sees_it(rest_stack: RestStack) -> None:
    async with AsyncClient(rest_stack.rest.url, rest_stack.key) as moc:
        token = (await moc.keys.create("operator"))["token"]
    async with httpx.AsyncClient(base_url=rest_stack.rest.url, headers={"x-api-key": token}) as operator:
        assert (await operator.get("/api/v1/config")).status_code == 403
        assert (await operator.put("/api/v1/config", json={"text": LIMIT})).status_code == 403
    assert rest_stack.configuration.revision.number == 1
