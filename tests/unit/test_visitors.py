"""Keys of programs: no more than their submitter's, private, and closed at the end."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from moc.kernel.clock import Clock, SystemClock
from moc.kernel.errors import Forbidden, Unauthenticated
from moc.learning.job import Job, JobSpec, JobType
from moc.security.authenticator import Authenticator
from moc.security.identity import ANYONE, Role
from moc.security.key import ApiKey, KeyState, KeyTerms, id_of
from moc.security.keyring import KeyRing
from moc.security.quota import Rate
from moc.service.visitors import JobVisitors
from moc.store.memory import MemoryStore
from moc.testing.clock import ManualClock
from tests.job_house import made_job


def job(created_by: str, type: JobType = JobType.EVALUATE) -> Job:
    return made_job(JobSpec(type=type), created_by=created_by)


async def made(folder: Path, clock: Clock | None = None) -> tuple[KeyRing, JobVisitors]:
    store = MemoryStore()
    await store.start()
    clock = clock or SystemClock()
    keys = KeyRing(store=store, data_dir=folder, clock=clock)
    await keys.start()
    return keys, JobVisitors(keys=keys, clock=clock, url=lambda: "http://here", authority=folder / "ca.pem")


def shown(keys: KeyRing, environment: Mapping[str, str]) -> ApiKey:
    """The key that a program was given, in a file for nobody else."""
    path = Path(environment["MOC_API_KEY_FILE"])
    assert path.stat().st_mode & 0o777 == 0o600
    return keys.show(id_of(path.read_text()))


async def test_a_program_may_no_more_than_who_submitted_its_job(tmp_path: Path) -> None:
    keys, visitors = await made(tmp_path)
    terms = KeyTerms(role=Role.OPERATOR, models=("mine-*",), rate=Rate.parse("5/min"), max_concurrency=2)
    _, owner = await keys.create(terms, actor="test")
    environment = await visitors.admit(job(owner.id), tmp_path)
    assert environment.keys() == {"MOC_URL", "MOC_API_KEY_FILE"}
    key = shown(keys, environment)
    assert (key.role, key.models, key.rate, key.max_concurrency) == (Role.INFERENCE, owner.models, owner.rate, 2)
    searching = await visitors.admit(job(owner.id, JobType.TUNE), tmp_path)
    assert shown(keys, searching).role is Role.OPERATOR
    await keys.stop()


async def test_one_attempt_has_a_key_at_a_time_and_none_has_one_at_the_end(tmp_path: Path) -> None:
    keys, visitors = await made(tmp_path)
    (tmp_path / "ca.pem").touch()
    environment = await visitors.admit(job(ANYONE.key_id), tmp_path)
    assert environment["MOC_CA_FILE"] == str(tmp_path / "ca.pem")
    await visitors.admit(job(ANYONE.key_id), tmp_path)

    def states() -> list[KeyState]:
        return sorted(key.state(SystemClock().wall()) for key in keys.all() if key.created_by == "job-1")

    assert states() == [KeyState.ACTIVE]
    await visitors.dismiss(replace(job(ANYONE.key_id), id="job-2"))
    assert KeyState.ACTIVE in states()
    await visitors.dismiss(job(ANYONE.key_id))
    await visitors.dismiss(job(ANYONE.key_id))
    assert states() == []
    await keys.stop()


async def test_keys_of_jobs_that_are_over_take_no_room(tmp_path: Path) -> None:
    keys, visitors = await made(tmp_path)
    environment = await visitors.admit(job(ANYONE.key_id), tmp_path)
    authenticator = Authenticator(keys=keys, clock=SystemClock())
    token = (await asyncio.to_thread(Path(environment["MOC_API_KEY_FILE"]).read_text)).strip()
    identity = authenticator.identify(token)
    await keys.flush()
    await visitors.dismiss(job(ANYONE.key_id))
    assert [key.name for key in keys.all()] == ["admin"]
    with pytest.raises(Unauthenticated):
        authenticator.identify(token)
    with pytest.raises(Unauthenticated):
        identity.quota.check()
    await keys.stop()
    await keys.start()
    assert [key.name for key in keys.all()] == ["admin"]
    await keys.stop()


async def test_who_submits_and_is_locked_out_gets_no_program_in(tmp_path: Path) -> None:
    keys, visitors = await made(tmp_path)
    _, owner = await keys.create(KeyTerms(role=Role.OPERATOR), actor="test")
    await keys.revoke(owner.id, actor="test")
    with pytest.raises(Forbidden, match="opens nothing any more"):
        await visitors.admit(job(owner.id), tmp_path)
    await keys.stop()


async def test_a_program_is_locked_out_with_who_submitted_its_job(tmp_path: Path) -> None:
    keys, visitors = await made(tmp_path)
    authenticator = Authenticator(keys=keys, clock=SystemClock())
    _, owner = await keys.create(KeyTerms(role=Role.OPERATOR), actor="test")
    environment = await visitors.admit(job(owner.id), tmp_path)
    token = await asyncio.to_thread(Path(environment["MOC_API_KEY_FILE"]).read_text)
    token = token.strip()
    identity = authenticator.identify(token)
    assert identity.on_behalf_of == owner.id
    await keys.revoke(owner.id, actor="test")
    with pytest.raises(Unauthenticated, match=owner.id):
        authenticator.identify(token)
    with pytest.raises(Unauthenticated):
        identity.quota.check()
    await keys.stop()
    await keys.start()
    with pytest.raises(Unauthenticated, match=owner.id):
        authenticator.identify(token)
    await keys.stop()


async def test_a_program_is_locked_out_when_the_key_expires_that_submitted_its_job(tmp_path: Path) -> None:
    clock = ManualClock()
    keys, visitors = await made(tmp_path, clock)
    authenticator = Authenticator(keys=keys, clock=clock)
    _, owner = await keys.create(KeyTerms(role=Role.OPERATOR, expires_in_s=60), actor="test")
    environment = await visitors.admit(job(owner.id), tmp_path)
    token = (await asyncio.to_thread(Path(environment["MOC_API_KEY_FILE"]).read_text)).strip()
    clock.advance(59)
    assert authenticator.identify(token).on_behalf_of == owner.id
    clock.advance(2)
    with pytest.raises(Unauthenticated, match=owner.id):
        authenticator.identify(token)
    await keys.stop()
