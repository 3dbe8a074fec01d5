"""Files of a hub's repository at one commit. The hub's own client says what there is; nothing of it is run."""

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath

from moc.kernel.units import Bytes
from moc.models.ports import Progress
from moc.models.sources.background import Job, in_thread
from moc.models.sources.content import hash_of
from moc.models.sources.download import Downloader, PartialFile, Remote
from moc.models.sources.failure import disk_errors, failed
from moc.models.sources.source import HubSource

_LISTING_TIMEOUT_S = 30.0
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_FILES_MAX = 10_000
_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class _File:
    """One file of a repository; `size_bytes` and `sha256` as the hub says, None where it does not."""

    name: str
    url: str
    size_bytes: int | None
    sha256: str | None

    @property
    def key(self) -> str:
        """Names it in a flat folder."""
        return hashlib.sha256(self.name.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Listing:
    """The wanted files at one commit, and the headers to ask for them with."""

    commit: str
    files: list[_File]
    headers: Mapping[str, str]


async def fetch_snapshot(source: HubSource, folder: Path, *, size_limit_bytes: int, progress: Progress) -> Path:
    """Download what `source.pattern` matches: one file as that file, several as a folder of them by their names.

    Without a pattern it is the whole repository, as a folder. Goes on from what is in `folder`, if the revision
    is still the same commit. LoadFailed when the hub's client is not installed or the files cannot be had.
    """
    listing = await asyncio.to_thread(_list, source)
    known = sum(file.size_bytes or 0 for file in listing.files)
    if known > size_limit_bytes:
        raise failed(f"{source.text} has {Bytes(known)}; at most {Bytes(size_limit_bytes)} are fetched")
    with disk_errors(f"preparing the folder for {source.text}"):
        place = await in_thread(lambda _: _prepare(folder, listing.commit))
    done = 0
    total = known if all(file.size_bytes is not None for file in listing.files) else None
    async with Downloader() as downloader:
        for file in listing.files:
            remote = Remote(
                url=file.url,
                shown=f"{source.text.partition('#')[0]}#{file.name}",
                size_limit_bytes=size_limit_bytes - done,
                headers=listing.headers,
                size_bytes=file.size_bytes,
                hashed=file.sha256 is not None,
            )
            done += await _fetch_file(downloader, remote, file, place, partial(_report, progress, done, total))
    alone = len(listing.files) == 1 and source.pattern
    return place / "files" / listing.files[0].name if alone else place / "files"


def _report(progress: Progress, before: int, total: int | None, done: int, _: int | None) -> None:
    progress(before + done, total)


async def _fetch_file(downloader: Downloader, remote: Remote, file: _File, place: Path, progress: Progress) -> int:
    """Have one file under its name in `place/files`; its size."""
    target = place / "files" / file.name
    size_bytes = await in_thread(lambda _: target.stat().st_size if target.exists() else None)
    if size_bytes is not None:  # an earlier try had it already
        return size_bytes
    part = PartialFile(place / file.key)
    await downloader.download(remote, part, progress)
    return await in_thread(partial(_accept, file, part, target))


def _prepare(folder: Path, commit: str) -> Path:
    """A folder for this commit; those of others are deleted."""
    for other in folder.iterdir():
        if other.name != commit:
            shutil.rmtree(other)
    place = folder / commit
    (place / "files").mkdir(parents=True, exist_ok=True)
    return place


def _accept(file: _File, part: PartialFile, target: Path, job: Job) -> int:
    with disk_errors(f"keeping {file.name}"):
        sha256 = hash_of(part.path, job)[0] if file.sha256 is not None else None
        if sha256 != file.sha256:
            part.drop()
            raise failed(f"{file.name} has sha256 {sha256} but the hub says {file.sha256}; it was deleted: pull again")
        target.parent.mkdir(parents=True, exist_ok=True)
        part.path.replace(target)
        part.drop()
        return target.stat().st_size


def _list(source: HubSource) -> _Listing:
    try:
        from huggingface_hub import HfApi, get_token, hf_hub_url
    except ImportError:
        raise failed(
            "models from a hub need an extra; install it with `pip install 'modelops-coordinator[hub]'`"
        ) from None
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        info = HfApi(endpoint=endpoint).model_info(
            source.repository, revision=source.revision, files_metadata=True, timeout=_LISTING_TIMEOUT_S
        )
        token = get_token()
    except Exception as error:  # whatever the client raises, it could not say what there is
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise failed(f"the hub could not be asked for {source.text}: {reason}") from error
    if info.sha is None or _COMMIT.fullmatch(info.sha) is None:
        raise failed(f"the hub names no commit for {source.text}; give a revision that exists")
    siblings = [s for s in info.siblings or [] if not source.pattern or fnmatchcase(s.rfilename, source.pattern)]
    names = [sibling.rfilename for sibling in info.siblings or []]
    _check_names(source, names, [sibling.rfilename for sibling in siblings])
    files = [
        _File(
            name=sibling.rfilename,
            url=hf_hub_url(source.repository, sibling.rfilename, revision=info.sha, endpoint=endpoint),
            size_bytes=sibling.size,
            sha256=sibling.lfs.sha256 if sibling.lfs is not None else None,
        )
        for sibling in siblings
    ]
    return _Listing(info.sha, files, {"authorization": f"Bearer {token}"} if token else {})


def _check_names(source: HubSource, there: list[str], wanted: list[str]) -> None:
    if not wanted:
        shown = ", ".join(there[:_NAMES_SHOWN]) + (", …" if len(there) > _NAMES_SHOWN else "")
        raise failed(f"no file of {source.repository} matches {source.pattern!r}; it has {shown or 'none'}")
    if len(wanted) > _FILES_MAX:
        raise failed(f"{source.text} has {len(wanted)} files; at most {_FILES_MAX} are fetched: name fewer after #")
    for name in wanted:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or not parts or not name.isprintable():
            raise failed(f"{source.text} has a file with the name {name[:200]!r}, which cannot be trusted")
