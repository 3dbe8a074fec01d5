"""Keys and the audit by command, against a real coordinator."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import EXAMPLES, model, served
from tests.coordinator import MOC, Coordinator, eventually, short_home

REVOKE = """
import asyncio, sys
from pathlib import Path
from moc.kernel.clock import SystemClock
from moc.security.keyring import KeyRing
from moc.store.sqlite import SqliteStore

async def main(folder, key_id):
    store = SqliteStore(folder / "moc.db")
    await store.start()
    ring = KeyRing(store=store, data_dir=folder, clock=SystemClock())
    await ring.start()
    await ring.revoke(key_id, actor="elsewhere")
    await ring.stop()
    await store.stop()

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


@pytest.fixture(scope="module")
def own() -> Iterator[Coordinator]:
    """A coordinator with one model."""
    with short_home() as data_dir:
        yield from served(Coordinator(data_dir, config={"models": {"echo": model("python", EXAMPLES / "identity.py")}}))


def run(coordinator: Coordinator, *arguments: str) -> str:
    done = coordinator.cli(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(coordinator: Coordinator, *arguments: str) -> Any:
    return json.loads(run(coordinator, *arguments, "--json"))


def status(coordinator: Coordinator, token: str, path: str = "/v1/models") -> int:
    return httpx.get(f"{coordinator.url}{path}", headers={"x-api-key": token}, timeout=10).status_code


def test_a_keys_whole_life(own: Coordinator) -> None:
    made = own.cli("keys", "create", "ci", "--role", "inference", "--models", "echo", "--models", "team-*", "--rate",
                   "1000/min", "--max-concurrency", "4", "--expires", "30d")  # fmt: skip
    token = made.stdout.strip()
    key_id = token.split("_")[1]
    assert key_id in made.stderr
    shown = read(own, "keys", "show", key_id)
    assert (shown["role"], shown["models"], shown["rate"]) == ("inference", ["echo", "team-*"], "1000/min")
    assert status(own, token) == 200
    theirs = {**own.environment(), "MOC_KEY": token}
    refused = subprocess.run([*MOC, "models", "load", "echo"], env=theirs, capture_output=True, text=True, timeout=60)
    assert (refused.returncode, "may not do models.change" in refused.stderr) == (1, True)
    newer = run(own, "keys", "rotate", key_id, "--overlap", "10m").strip()
    assert (status(own, token), status(own, newer)) == (200, 200)
    newest = read(own, "keys", "rotate", key_id, "--overlap", "0s")["token"]
    assert (status(own, token), status(own, newer), status(own, newest)) == (401, 401, 200)
    assert "active" in run(own, "keys", "list")
    assert "revoked" in run(own, "keys", "revoke", key_id)
    assert status(own, newest) == 401
    kinds = [event["kind"] for event in read(own, "events")["events"] if event["subject"] == key_id]
    assert kinds == ["key.created", "key.rotated", "key.rotated", "key.revoked"]


def test_the_admin_key_is_printed_and_its_rotation_does_not_lock_out(own: Coordinator) -> None:
    before = run(own, "keys", "show").strip()
    rotated = run(own, "keys", "rotate", before.split("_")[1], "--overlap", "0s").strip()
    assert run(own, "keys", "show").strip() == rotated == own.key
    assert status(own, before) == 401
    last = own.cli("keys", "revoke", own.key.split("_")[1])
    assert (last.returncode, "last" in last.stderr) == (1, True)


def test_a_key_revoked_by_another_process_is_closed_within_a_second(own: Coordinator) -> None:
    token = run(own, "keys", "create", "--role", "viewer").strip()
    assert status(own, token) == 200
    done = subprocess.run(
        [sys.executable, "-c", REVOKE, str(own.data_dir), token.split("_")[1]], capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    eventually(lambda: status(own, token) == 401, timeout_s=1)


def test_keys_and_their_last_use_outlive_a_kill(own: Coordinator) -> None:
    token = run(own, "keys", "create", "--role", "viewer").strip()
    gone = run(own, "keys", "create", "--role", "viewer").strip()
    run(own, "keys", "revoke", gone.split("_")[1])
    own.kill()
    own.start()
    assert (status(own, token), status(own, gone)) == (200, 401)
    made = [entry["subject"] for entry in read(own, "audit", "list")["audit"] if entry["operation"] == "keys.create"]
    assert {token.split("_")[1], gone.split("_")[1]} <= set(made)
    assert "are whole" in run(own, "audit", "verify")
    assert own.stop() == 0
    own.start()
    assert read(own, "keys", "show", token.split("_")[1])["last_used_at"] is not None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["create", "--role", "root"], "role"),
        (["create", "--role", "viewer", "--rate", "often"], "not a rate"),
        (["create", "--role", "admin", "--models", "a"], "cannot be limited"),
        (["show", "nobody"], "there is no key"),
        (["revoke", "nobody"], "there is no key"),
    ],
)
def test_what_cannot_be_done_says_why(own: Coordinator, arguments: list[str], complaint: str) -> None:
    done = own.cli("keys", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert complaint in done.stderr


@pytest.mark.parametrize(
    "arguments", [["create"], ["create", "--role", "viewer", "--expires", "soon"], ["rotate", "x", "--overlap", "y"]]
)
def test_bad_usage_exits_2(own: Coordinator, arguments: list[str]) -> None:
    assert own.cli("keys", *arguments).returncode == 2


def test_the_audit_tells_who_did_what_and_whether_it_was_tampered_with(own: Coordinator) -> None:
    own.cli("models", "load", "nobody")
    listed = read(own, "audit", "list", "--limit", "1")["audit"]
    assert [(entry["operation"], entry["outcome"]) for entry in listed] == [("models.load", "not_found")]
    assert "models.load" in run(own, "audit", "list")
    assert "are whole" in run(own, "audit", "verify")
    with sqlite3.connect(own.data_dir / "moc.db") as db:
        key = f"audit/{listed[0]['seq']:016d}"
        db.execute("UPDATE records SET value = replace(value, 'not_found', 'ok') WHERE key = ?", [key])
    db.close()
    done = own.cli("audit", "verify")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"entry {listed[0]['seq']} was changed" in done.stderr
    verdict = own.get("/api/v1/audit/verify")
    assert (verdict["whole"], verdict["checked"]) == (False, listed[0]["seq"] - 1)
