"""Keys for programs that use the public API in the name of who submitted their job."""

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from moc.kernel.clock import Clock
from moc.kernel.errors import Forbidden
from moc.learning.job import Job, JobType
from moc.security.identity import ANYONE, Role
from moc.security.key import WEIGHT_MIN, KeyState, KeyTerms
from moc.security.keyring import KeyRing

KEY_FILE = "api.key"
EXPIRES_IN_S = 30 * 86_400.0
"""How long a key opens that nobody ends, because the store was lost."""

ROLES = {JobType.EVALUATE: Role.INFERENCE, JobType.TUNE: Role.OPERATOR}


class JobVisitors:
    """Implements `learning.ports.Visitors`.

    A job's key is for the models, the rate and the requests at once that its submitter's is for, and ends with it; its
    requests go behind those of others that wait for the same model. `url` tells where the API is on this machine,
    `authority` is the file with what to trust there, if there is one.
    """

    def __init__(self, *, keys: KeyRing, clock: Clock, url: Callable[[], str], authority: Path) -> None:
        self._keys = keys
        self._clock = clock
        self._url = url
        self._authority = authority

    async def admit(self, job: Job, folder: Path) -> Mapping[str, str]:
        """See `learning.ports.Visitors`; Forbidden once the submitter's own key has ended."""
        await self.dismiss(job)
        token, _ = await self._keys.create(self._terms(job), actor=job.id)
        path = folder / KEY_FILE
        await asyncio.to_thread(_write, path, token)
        trusted = {"MOC_CA_FILE": str(self._authority)} if self._authority.is_file() else {}
        return {"MOC_URL": self._url(), "MOC_API_KEY_FILE": str(path), **trusted}

    async def dismiss(self, job: Job) -> None:
        """See `learning.ports.Visitors`."""
        for key in self._keys.all():
            if key.created_by == job.id:
                await self._keys.forget(key.id, actor=job.id)

    def _terms(self, job: Job) -> KeyTerms:
        role, name = ROLES[job.spec.type], f"{job.spec.type} {job.id}"[:64]
        if job.created_by == ANYONE.key_id:
            return KeyTerms(name=name, role=role, expires_in_s=EXPIRES_IN_S, weight=WEIGHT_MIN)
        held = self._keys.find(job.created_by)
        if held is None or held.key.state(self._clock.wall()) is not KeyState.ACTIVE:
            raise Forbidden(f"the key {job.created_by_name!r} that submitted this job opens nothing any more")
        return KeyTerms(
            name=name,
            role=role,
            models=held.key.models,
            expires_in_s=EXPIRES_IN_S,
            rate=held.key.rate,
            max_concurrency=held.key.max_concurrency,
            weight=WEIGHT_MIN,
            on_behalf_of=held.key.on_behalf_of or held.key.id,
        )


def _write(path: Path, token: str) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, f"{token}\n".encode())
    finally:
        os.close(handle)
