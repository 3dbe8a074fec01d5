"""Files from web servers that behave, break off, lie and refuse."""

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import stamina

from moc.kernel.errors import LoadFailed
from moc.models.model import Artifact, ModelSpec
from moc.models.sources import ArtifactSources, Bounds
from moc.models.sources.reach import get
from moc.models.sources.source import parse_source
from tests.file_server import Answer, Asked, FileServer, ranged, whole

CONTENT = bytes(range(256)) * 12_000  # 3 MB: several writes
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LIMIT_BYTES = 4 * 1024**2
CUT = 1_500_000


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


@pytest.fixture
async def server() -> AsyncIterator[FileServer]:
    async with FileServer(lambda asked: ranged(CONTENT, asked)) as running:
        yield running


@pytest.fixture
def sources(tmp_path: Path) -> ArtifactSources:
    return make_sources(tmp_path)


def make_sources(folder: Path) -> ArtifactSources:
    return ArtifactSources(
        folder / "blobs",
        bounds=Bounds(hosts=frozenset({"127.0.0.1", "localhost"})),
        base_dir=folder,
        size_limit_bytes=LIMIT_BYTES,
    )


async def fetch(
    sources: ArtifactSources,
    source: str,
    sha256: str | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Artifact:
    return await sources.fetch(ModelSpec(runtime="onnx", source=source, sha256=sha256), progress)


def in_turn(*answers: Callable[[Asked], Answer]) -> Callable[[Asked], Answer]:
    """The first answer to the first request and so on; the last one to all that follow."""
    left = [*answers]

    def answer(asked: Asked) -> Answer:
        return (left.pop(0) if len(left) > 1 else left[0])(asked)

    return answer


def content(artifact: Artifact) -> bytes:
    return Path(artifact.path).read_bytes()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "locks"]


async def test_is_kept_by_its_content_and_found_again_offline(
    sources: ArtifactSources, server: FileServer, tmp_path: Path
) -> None:
    told: list[tuple[int, int | None]] = []
    url = f"{server.url}/m.onnx?key=secret"
    artifact = await fetch(sources, url, progress=lambda done, total: told.append((done, total)))
    assert artifact.path == str(tmp_path / "blobs" / "sha256" / SHA256[:2] / SHA256)
    assert content(artifact) == CONTENT
    assert (artifact.sha256, artifact.size_bytes) == (SHA256, len(CONTENT))
    assert (len(CONTENT), len(CONTENT)) in told
    assert os.stat(artifact.path).st_mode & 0o222 == 0
    assert not any("secret" in file.read_text() for file in (tmp_path / "blobs" / "sources").iterdir())
    assert not any((tmp_path / "blobs" / "partial").iterdir())
    await server.close()
    assert await fetch(sources, url) == artifact
    assert await fetch(make_sources(tmp_path), url) == artifact
    assert await fetch(sources, "https://nowhere.invalid/other", sha256=SHA256) == artifact  # known by its hash
    await sources.verify(artifact)
    await sources.discard(artifact.path)
    await sources.discard(artifact.path)
    assert not files_in(tmp_path / "blobs")
    with pytest.raises(LoadFailed, match="add it again"):
        await sources.verify(artifact)


async def test_goes_on_where_the_connection_broke(sources: ArtifactSources, server: FileServer) -> None:
    server.answer = in_turn(lambda a: ranged(CONTENT, a, cut=CUT), lambda a: ranged(CONTENT, a))
    assert (await fetch(sources, server.url)).sha256 == SHA256
    first, second = server.asked
    assert "range" not in first.headers
    assert second.headers["range"] == f"bytes={CUT}-"
    assert second.headers["if-range"] == '"v1"'


async def test_starts_over_when_the_server_knows_no_ranges(sources: ArtifactSources, server: FileServer) -> None:
    server.answer = in_turn(lambda _: Answer(body=CONTENT, cut=CUT), lambda _: whole(CONTENT))
    assert (await fetch(sources, server.url)).sha256 == SHA256
    assert "range" not in server.asked[1].headers  # nothing tells that it would be the same file


async def test_goes_on_without_a_mark_when_the_hash_is_known(sources: ArtifactSources, server: FileServer) -> None:
    def bare(asked: Asked) -> Answer:
        answer = ranged(CONTENT, asked)
        return Answer(answer.status, answer.body, {k: v for k, v in answer.headers.items() if k != "etag"})

    server.answer = in_turn(lambda _: Answer(body=CONTENT, cut=CUT), bare)
    assert (await fetch(sources, server.url, sha256=SHA256)).sha256 == SHA256
    assert server.asked[1].headers["range"] == f"bytes={CUT}-"


@pytest.mark.parametrize("heeds_if_range", [True, False])
async def test_never_joins_two_versions(sources: ArtifactSources, server: FileServer, heeds_if_range: bool) -> None:
    newer = CONTENT[::-1]

    def careless(asked: Asked) -> Answer:
        return ranged(newer, Asked(asked.target, {**asked.headers, "if-range": '"v2"'}), etag='"v2"')

    then = (lambda a: ranged(newer, a, etag='"v2"')) if heeds_if_range else careless
    server.answer = in_turn(lambda a: ranged(CONTENT, a, cut=CUT), then)
    assert content(await fetch(sources, server.url)) == newer


async def test_a_server_that_goes_on_elsewhere_is_not_believed(sources: ArtifactSources, server: FileServer) -> None:
    wrong = {"content-range": f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}", "etag": '"v1"'}
    server.answer = in_turn(
        lambda a: ranged(CONTENT, a, cut=CUT), lambda _: Answer(206, CONTENT, wrong), lambda a: ranged(CONTENT, a)
    )
    assert (await fetch(sources, server.url)).sha256 == SHA256


async def test_all_of_it_was_here_already(sources: ArtifactSources, server: FileServer, tmp_path: Path) -> None:
    partial = partial_folder(tmp_path, server.url)
    (partial / "file").write_bytes(CONTENT)
    (partial / "file.mark").write_text('"v1"')
    assert (await fetch(sources, server.url)).sha256 == SHA256
    assert len(server.asked) == 1


async def test_more_was_here_than_there_is(sources: ArtifactSources, server: FileServer, tmp_path: Path) -> None:
    partial = partial_folder(tmp_path, server.url)
    (partial / "file").write_bytes(CONTENT + b"more")
    (partial / "file.mark").write_text('"v1"')
    assert (await fetch(sources, server.url)).sha256 == SHA256


def partial_folder(folder: Path, url: str) -> Path:
    """Where the source at `url` is put while it comes."""
    source = parse_source(url)
    assert not hasattr(source, "path")
    place = folder / "blobs" / "partial" / source.key
    place.mkdir(parents=True)
    return place


async def test_cancelled_it_goes_on_later(sources: ArtifactSources, server: FileServer, tmp_path: Path) -> None:
    server.answer = in_turn(lambda a: ranged(CONTENT, a, cut=CUT, held=True), lambda a: ranged(CONTENT, a))
    written = asyncio.Event()
    pull = asyncio.create_task(fetch(sources, server.url, progress=lambda done, total: written.set()))
    await written.wait()
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    kept = sum(file.stat().st_size for file in (tmp_path / "blobs" / "partial").rglob("file"))
    assert not (tmp_path / "blobs" / "sha256").exists()
    assert (await fetch(make_sources(tmp_path), server.url)).sha256 == SHA256
    assert server.asked[1].headers["range"] == f"bytes={kept}-"
    assert kept > 0


async def test_many_at_once_download_once(sources: ArtifactSources, server: FileServer) -> None:
    artifacts = await asyncio.gather(*(fetch(sources, server.url) for _ in range(20)))
    assert {artifact.sha256 for artifact in artifacts} == {SHA256}
    assert len(server.asked) == 1


async def test_when_the_first_gives_up_the_next_goes_on(sources: ArtifactSources, server: FileServer) -> None:
    server.answer = in_turn(lambda a: ranged(CONTENT, a, cut=CUT, held=True), lambda a: ranged(CONTENT, a))
    first, second = (asyncio.create_task(fetch(sources, server.url)) for _ in range(2))
    await server.held.wait()
    first.cancel()
    assert (await second).sha256 == SHA256
    assert first.cancelled()


ELSEWHERE = """
import asyncio, sys
from pathlib import Path
from moc.models.model import ModelSpec
from moc.models.sources import ArtifactSources, Bounds
folder = Path(sys.argv[1])
bounds = Bounds(hosts=frozenset({"127.0.0.1"}))
sources = ArtifactSources(folder / "blobs", bounds=bounds, base_dir=folder, size_limit_bytes=1024**3)
spec = ModelSpec(runtime="onnx", source=sys.argv[2])
print(asyncio.run(sources.fetch(spec, lambda done, total: print(done, flush=True))).sha256)
"""


async def test_many_processes_download_once(server: FileServer, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path), server.url]
    started = [await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE) for _ in range(3)]
    outputs = [await process.communicate() for process in started]
    assert [output.decode().split()[-1] for output, _ in outputs] == [SHA256] * 3
    assert len(server.asked) == 1


async def test_a_killed_download_is_gone_on_with(server: FileServer, tmp_path: Path) -> None:
    server.answer = in_turn(lambda a: ranged(CONTENT, a, cut=CUT, held=True), lambda a: ranged(CONTENT, a))
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path), server.url]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()  # something has been written
    process.kill()
    await process.communicate()
    assert not (tmp_path / "blobs" / "sha256").exists()
    assert (await fetch(make_sources(tmp_path), server.url)).sha256 == SHA256
    assert "range" in server.asked[1].headers


async def test_a_wrong_hash_names_both_and_leaves_nothing(
    sources: ArtifactSources, server: FileServer, tmp_path: Path
) -> None:
    with pytest.raises(LoadFailed) as caught:
        await fetch(sources, server.url, sha256="0" * 64)
    assert caught.value.reason == "load_failed"
    assert "0" * 64 in caught.value.message
    assert SHA256 in caught.value.message
    assert not files_in(tmp_path / "blobs")


@pytest.mark.parametrize("told", [True, False])
async def test_too_large_is_refused(sources: ArtifactSources, server: FileServer, tmp_path: Path, told: bool) -> None:
    body = bytes(LIMIT_BYTES + 1)
    headers = {} if told else {"transfer-encoding": "chunked"}
    sent = body if told else b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    server.answer = lambda _: Answer(body=sent, headers=headers, length=told)
    with pytest.raises(LoadFailed, match="larger than the 4MiB"):
        await fetch(sources, server.url)
    assert not files_in(tmp_path / "blobs")


async def test_an_end_that_cannot_be_told_from_a_break_needs_a_hash(
    sources: ArtifactSources, server: FileServer
) -> None:
    server.answer = lambda _: Answer(body=CONTENT, length=False)
    with pytest.raises(LoadFailed, match="give its sha256"):
        await fetch(sources, server.url)
    assert (await fetch(sources, server.url, sha256=SHA256)).sha256 == SHA256


async def test_follows_redirects(sources: ArtifactSources, server: FileServer) -> None:
    server.answer = lambda a: ranged(CONTENT, a) if a.path == "/there" else Answer(302, headers={"location": "/there"})
    assert (await fetch(sources, f"{server.url}/here")).sha256 == SHA256


@pytest.mark.parametrize("location", ["http://example.com/m", "http://192.0.2.1/m", "ftp://127.0.0.1/m", "file:///m"])
async def test_a_redirect_to_where_files_could_be_changed_is_refused(
    sources: ArtifactSources, server: FileServer, location: str
) -> None:
    server.answer = lambda _: Answer(302, headers={"location": location})
    with pytest.raises(LoadFailed, match="redirects to"):
        await fetch(sources, server.url)
    assert len(server.asked) == 1


async def test_a_name_or_a_redirect_that_leads_to_a_local_address_is_not_followed(
    server: FileServer, tmp_path: Path
) -> None:
    bounds = Bounds(hosts=frozenset({"127.0.0.1"}))
    careful = ArtifactSources(tmp_path / "blobs", bounds=bounds, base_dir=tmp_path, size_limit_bytes=LIMIT_BYTES)
    inside = f"http://localhost:{server.port}/secret"
    with pytest.raises(LoadFailed, match=r"localhost is at .*, a private or local address"):
        await fetch(careful, inside)
    assert not server.asked
    server.answer = lambda _: Answer(302, headers={"location": inside})
    with pytest.raises(LoadFailed, match=r"localhost is at .*, a private or local address"):
        await fetch(careful, server.url)
    assert len(server.asked) == 1


async def test_the_address_that_was_looked_at_is_the_one_connected_to() -> None:
    async with httpx.AsyncClient() as client:
        request = await get(client, httpx.URL("https://9.9.9.9:8443/m?x=1"), {"range": "bytes=5-"}, Bounds())
        assert (request.url.host, request.url.port, request.url.query) == ("9.9.9.9", 8443, b"x=1")
        assert (request.headers["host"], request.headers["range"]) == ("9.9.9.9:8443", "bytes=5-")
        assert request.extensions["sni_hostname"] == "9.9.9.9"


async def test_redirects_end(sources: ArtifactSources, server: FileServer) -> None:
    server.answer = lambda _: Answer(302, headers={"location": "/again"})
    with pytest.raises(LoadFailed, match="redirects more than 10 times"):
        await fetch(sources, server.url)


async def test_what_may_pass_is_tried_again(sources: ArtifactSources, server: FileServer) -> None:
    server.answer = in_turn(lambda _: Answer(503), lambda a: ranged(CONTENT, a))
    assert (await fetch(sources, server.url)).sha256 == SHA256


async def test_what_does_not_pass_is_said_in_the_end(sources: ArtifactSources, server: FileServer) -> None:
    server.answer = lambda _: Answer(503)
    with pytest.raises(LoadFailed, match="answered 503"):
        await fetch(sources, server.url)
    assert len(server.asked) == 3
    await server.close()
    with pytest.raises(LoadFailed, match="the connection failed"):
        await fetch(sources, server.url)


async def test_what_will_not_pass_is_not_tried_again(sources: ArtifactSources, server: FileServer) -> None:
    server.answer = lambda _: Answer(404)
    with pytest.raises(LoadFailed, match=r"404: there is no such file"):
        await fetch(sources, server.url)
    assert len(server.asked) == 1


async def test_an_encoded_body_is_not_taken_for_the_file(sources: ArtifactSources, server: FileServer) -> None:
    server.answer = lambda _: whole(b"\x1f\x8b", **{"content-encoding": "gzip"})
    with pytest.raises(LoadFailed, match="encoded"):
        await fetch(sources, server.url)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
async def test_a_full_disk_is_said_and_gets_its_space_back(
    sources: ArtifactSources, server: FileServer, tmp_path: Path
) -> None:
    partial = partial_folder(tmp_path, server.url)
    (partial / "file").symlink_to("/dev/full")
    with pytest.raises(LoadFailed, match="the disk is full"):
        await fetch(sources, server.url)
    assert not files_in(tmp_path / "blobs")
    assert not (partial / "file").is_symlink()


async def test_a_folder_that_cannot_be_written_is_said(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("in the way")
    with pytest.raises(LoadFailed, match="check the path"):
        await fetch(make_sources(tmp_path), server.url)


async def test_what_was_given_up_long_ago_is_deleted(
    sources: ArtifactSources, server: FileServer, tmp_path: Path
) -> None:
    given_up, recent = (partial_folder(tmp_path, f"https://nowhere.invalid/{name}") for name in ("old", "new"))
    for folder in (given_up, recent):
        (folder / "file").write_bytes(b"part")
    for path in (given_up / "file", given_up):
        os.utime(path, (1, 1))
    await fetch(sources, server.url)
    assert not given_up.exists()
    assert (recent / "file").exists()


async def test_a_damaged_copy_is_fetched_again(sources: ArtifactSources, server: FileServer) -> None:
    artifact = await fetch(sources, server.url)
    os.chmod(artifact.path, 0o600)
    os.truncate(artifact.path, 10)
    with pytest.raises(LoadFailed):
        await sources.verify(artifact)
    for source in (server.url, f"{server.url}/other"):
        os.chmod(artifact.path, 0o600)
        os.truncate(artifact.path, 10)
        again = await fetch(sources, source, sha256=None if source == server.url else SHA256)
        assert content(again) == CONTENT
    await sources.verify(artifact)


async def test_a_damaged_note_is_no_obstacle(sources: ArtifactSources, server: FileServer, tmp_path: Path) -> None:
    artifact = await fetch(sources, server.url)
    for note in (tmp_path / "blobs" / "sources").iterdir():
        assert json.loads(note.read_bytes())["sha256"] == SHA256
        note.write_bytes(b"{")
    assert (await fetch(sources, server.url)).sha256 == artifact.sha256
    assert len(server.asked) == 2


async def test_nothing_is_left_open(sources: ArtifactSources, server: FileServer) -> None:
    await fetch(sources, server.url)
    before = psutil.Process().num_fds()
    for number in range(5):
        server.answer = in_turn(lambda a: ranged(CONTENT, a, cut=CUT), lambda _: Answer(404))
        with contextlib.suppress(LoadFailed):
            await fetch(sources, f"{server.url}/{number}")
    after = psutil.Process().num_fds()
    assert after <= before
