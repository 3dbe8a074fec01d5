"""Secrets a coordinator knows are found nowhere that anybody else looks: a canary in each, and everything searched."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.acceptance.conftest import EXAMPLES, served
from tests.coordinator import Coordinator, eventually, short_home

HUB_TOKEN = "hf_CanaryOfTheHubCanaryOfTheHub"
PASSWORD = "CanaryOfTheUrl"
TELLTALE = "import os\nraise RuntimeError('all I know is ' + repr(dict(os.environ)))\n"
COMPLETION = {"model": "identity", "prompt": "x"}
TENSOR = {"inputs": [{"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.0] * 8}]}


@pytest.fixture(scope="module")
def own() -> Iterator[Coordinator]:
    """A coordinator that logs all it can, with a model that works and one that tells what it is given."""
    with short_home() as data_dir:
        telltale = data_dir.parent / "telltale.py"
        telltale.write_text(TELLTALE)
        models = {
            "identity": {"runtime": "python", "source": f"file:{EXAMPLES / 'identity.py'}"},
            "telltale": {"runtime": "python", "source": f"file:{telltale}"},
            "private": {"runtime": "onnx", "source": "hf:someone/private#*.onnx"},
        }
        prefix = ["env", f"HF_TOKEN={HUB_TOKEN}", "HF_ENDPOINT=http://127.0.0.1:9"]
        arguments = ["--log-level", "debug"]
        yield from served(Coordinator(data_dir, config={"models": models}, arguments=arguments, prefix=prefix))


def mistakes(coordinator: Coordinator, key: str) -> Iterator[httpx.Response]:
    """All kinds of requests that are refused or fail, with secrets where they should not be."""
    with httpx.Client(base_url=coordinator.url, timeout=60) as asking:
        good = {"authorization": f"Bearer {key}"}
        for headers in (
            {"authorization": f"Basic {key}"},
            {"authorization": f"Bearer {key}x"},
            {"x-api-key": key[:-1]},
        ):
            yield asking.get("/api/v1/models", headers=headers)
        yield asking.get("/nowhere", params={"key": key}, headers=good)
        yield asking.post("/v2/models/identity/infer", json={"inputs": []}, headers=good)
        yield asking.post("/v1/chat/completions", content=b"{", headers=good)
        yield asking.get("/api/v1/audit", headers=good)
        yield asking.post("/v1/completions", json=COMPLETION, headers={**good, "x-moc-deadline-ms": "0", "cookie": key})
    admin = coordinator.headers
    with httpx.Client(base_url=coordinator.url, timeout=120, headers=admin) as asking:
        yield asking.post("/api/v1/models/telltale/load")
        yield asking.post("/api/v1/models/private/pull")
        source = f"https://me:{PASSWORD}@127.0.0.1:9/model.onnx"
        yield asking.post("/api/v1/models", json={"name": "x", "runtime": "onnx", "source": source})


def everything(coordinator: Coordinator) -> Iterator[tuple[str, bytes]]:
    """All that can be looked at but the one file that is for the key."""
    yield "log", coordinator.output.encode()
    for path in ("/metrics", "/openapi.json", "/health"):
        yield path, httpx.get(f"{coordinator.url}{path}", headers=coordinator.headers, timeout=30).content
    for noun in ("models", "workers", "devices", "leases", "keys", "audit", "system", "events?follow=false&limit=1000"):
        answer = httpx.get(f"{coordinator.url}/api/v1/{noun}", headers=coordinator.headers, timeout=30)
        assert answer.status_code == 200
        yield noun, answer.content
    for file in coordinator.data_dir.rglob("*"):
        if file.is_file() and file.name != "admin.key":
            yield str(file), file.read_bytes()
    for process in psutil.process_iter():
        yield f"process {process.pid}", _command(process.pid)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_no_secret_is_found_anywhere(own: Coordinator) -> None:
    made = own.post("/api/v1/keys", {"role": "inference", "name": "canary"}).json()
    rotated = own.post(f"/api/v1/keys/{made['id']}/rotate", {"overlap_s": 600}).json()
    answers = list(mistakes(own, made["token"]))
    assert all(answer.status_code >= 400 for answer in answers), [answer.status_code for answer in answers]
    for token in (made["token"], rotated["token"]):
        run = httpx.post(f"{own.url}/v2/models/identity/infer", json=TENSOR, headers={"x-api-key": token}, timeout=60)
        assert run.status_code == 200
    own.post(f"/api/v1/models/{rotated['token']}/load")
    listed = own.cli("keys", "list")
    assert "canary" in listed.stdout
    pid = own.get("/api/v1/workers")["workers"][0]["pid"]
    psutil.Process(pid).kill()
    eventually(lambda: "worker.lost" in own.cli("events").stdout, what="the killed worker to be missed")

    secrets = {name: token.split("_", 2)[2].encode() for name, token in (("made", made["token"]), ("admin", own.key))}
    secrets["rotated"] = rotated["token"].split("_", 2)[2].encode()
    secrets |= {"hub": HUB_TOKEN.encode(), "password": PASSWORD.encode()}
    seen = {f"answer {number}": answer.content for number, answer in enumerate(answers)}
    seen |= {"cli": (listed.stdout + listed.stderr).encode(), **dict(everything(own))}
    assert [(name, place) for place, content in seen.items() for name, each in secrets.items() if each in content] == []
    assert any(made["id"].encode() in content for content in seen.values()), "nothing was looked at"


def test_the_search_would_find_one(own: Coordinator) -> None:
    (own.data_dir / "planted.log").write_text(f"oops: {own.key}")
    try:
        found = [place for place, content in everything(own) if own.key.encode() in content]
    finally:
        (own.data_dir / "planted.log").unlink()
    assert found == [str(own.data_dir / "planted.log")]


def test_a_configuration_that_is_refused_is_not_repeated(tmp_path: Path) -> None:
    with short_home() as data_dir:
        coordinator = Coordinator(data_dir, config={"store": {"url": f"redis://:{PASSWORD}@127.0.0.1:9/0"}})
        coordinator.start(wait=False)
        assert coordinator.process is not None
        assert coordinator.process.wait(60) == 1
        assert "store.url" in coordinator.output
        assert PASSWORD not in coordinator.output
