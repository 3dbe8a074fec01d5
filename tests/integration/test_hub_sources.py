"""Files from a model hub, by its own client from a hub made here."""

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import stamina

from moc.kernel.errors import LoadFailed
from moc.models.model import Artifact, ModelSpec
from moc.models.sources import ArtifactSources, Bounds
from tests.file_server import Answer, Asked, FileServer, ranged

COMMIT = "c0ffee" * 6 + "c0ff"
WEIGHTS = bytes(range(256)) * 10_000
FILES = {"config.json": b"{}", "onnx/model.onnx": b"graph", "onnx/model.onnx_data": WEIGHTS, "README.md": b"# hi"}


class Hub:
    """What a hub answers about the repository `org/tiny`; tests change what there is."""

    def __init__(self) -> None:
        self.commit = COMMIT
        self.files = dict(FILES)
        self.lfs = {"onnx/model.onnx_data": hashlib.sha256(WEIGHTS).hexdigest()}
        self.store = ""  # where large files are kept, if not here
        self.cut: int | None = None

    def __call__(self, asked: Asked) -> Answer:
        where = asked.path.strip("/")
        if where.startswith("api/models/org/tiny/revision/"):
            return Answer(body=json.dumps(self._about()).encode(), headers={"content-type": "application/json"})
        name = where.removeprefix(f"org/tiny/resolve/{self.commit}/")
        if name not in self.files:
            missing = {"x-error-code": "RepoNotFound", "x-error-message": "Repository not found"}
            return Answer(404, headers=missing)
        if self.store and name in self.lfs:
            return Answer(302, headers={"location": f"{self.store}/{name}"})
        cut, self.cut = self.cut if name in self.lfs else None, self.cut if name not in self.lfs else None
        return ranged(self.files[name], asked, cut=cut)

    def _about(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "b" * 40}
            if name in self.lfs:
                sibling["lfs"] = {"sha256": self.lfs[name], "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        return {"_id": "1", "id": "org/tiny", "sha": self.commit, "siblings": siblings}


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
async def server(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[FileServer]:
    async with FileServer(hub) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        with stamina.set_testing(True, attempts=3, cap=True):
            yield running


@pytest.fixture
def sources(tmp_path: Path) -> ArtifactSources:
    return ArtifactSources(tmp_path / "blobs", bounds=Bounds(), base_dir=tmp_path, size_limit_bytes=4 * 1024**2)


async def fetch(sources: ArtifactSources, source: str) -> Artifact:
    return await sources.fetch(ModelSpec(runtime="onnx", source=source), lambda done, total: None)


def asked_of(server: FileServer) -> list[Asked]:
    """What was asked about the repository; the client also asks for things of its own."""
    return [asked for asked in server.asked if "org/tiny" in asked.path]


def contents(folder: str) -> dict[str, bytes]:
    """The files of a folder by their names in it."""
    root = Path(folder)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def test_a_repository_becomes_a_folder(sources: ArtifactSources, server: FileServer, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    spec = ModelSpec(runtime="onnx", source="hf:org/tiny")
    artifact = await sources.fetch(spec, lambda done, total: told.append((done, total)))
    assert contents(artifact.path) == FILES
    assert artifact.path == str(tmp_path / "blobs" / "sha256" / artifact.sha256[:2] / artifact.sha256)
    total = sum(len(content) for content in FILES.values())
    assert artifact.size_bytes == total
    assert (total, total) in told
    assert not any((tmp_path / "blobs" / "partial").iterdir())
    assert {asked.headers.get("authorization") for asked in asked_of(server)} == {"Bearer hf_secret"}
    await server.close()
    assert await fetch(sources, "hf:org/tiny") == artifact
    await sources.verify(artifact)
    await sources.discard(artifact.path)
    assert contents(artifact.path) == {}


async def test_a_branch_is_resolved_to_its_commit_first(sources: ArtifactSources, server: FileServer) -> None:
    await fetch(sources, "hf:org/tiny@v1#config.json")
    assert [asked.path for asked in asked_of(server)] == [
        "/api/models/org/tiny/revision/v1",
        f"/org/tiny/resolve/{COMMIT}/config.json",
    ]


async def test_one_match_is_that_file_several_are_a_folder(sources: ArtifactSources, server: FileServer) -> None:
    alone = await fetch(sources, "hf:org/tiny#*.onnx_data")
    assert alone.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    await sources.verify(alone)
    several = await fetch(sources, "hf:org/tiny#onnx/*")
    assert contents(several.path) == {name: data for name, data in FILES.items() if name.startswith("onnx/")}


async def test_no_match_names_what_there_is(sources: ArtifactSources, server: FileServer) -> None:
    with pytest.raises(LoadFailed, match=r"no file of org/tiny matches '\*.gguf'; it has config.json, onnx/model"):
        await fetch(sources, "hf:org/tiny#*.gguf")


async def test_goes_on_where_it_broke_off(sources: ArtifactSources, server: FileServer, hub: Hub) -> None:
    hub.cut = 1_500_000
    assert contents((await fetch(sources, "hf:org/tiny")).path) == FILES
    ranges = [asked.headers["range"] for asked in server.asked if "range" in asked.headers]
    assert ranges == ["bytes=1500000-"]


async def test_a_later_try_fetches_only_what_is_missing(sources: ArtifactSources, server: FileServer, hub: Hub) -> None:
    data = hub.files.pop("README.md")
    about = Hub()
    server.answer = lambda asked: about(asked) if asked.path.startswith("/api/") else hub(asked)
    with pytest.raises(LoadFailed, match=r"README\.md: the server answered 404"):
        await fetch(sources, "hf:org/tiny")
    server.asked.clear()
    hub.files["README.md"] = data
    assert contents((await fetch(sources, "hf:org/tiny")).path) == FILES
    assert [asked.path for asked in asked_of(server)[1:]] == [f"/org/tiny/resolve/{COMMIT}/README.md"]


async def test_what_another_commit_left_is_not_mixed_in(sources: ArtifactSources, server: FileServer, hub: Hub) -> None:
    about = Hub()
    del hub.files["README.md"]
    server.answer = lambda asked: about(asked) if asked.path.startswith("/api/") else hub(asked)
    with pytest.raises(LoadFailed):
        await fetch(sources, "hf:org/tiny")
    hub.commit = "beef" * 10
    hub.files = {"new.onnx": b"new"}
    server.answer = hub
    assert contents((await fetch(sources, "hf:org/tiny")).path) == {"new.onnx": b"new"}


async def test_what_is_not_what_the_hub_says_is_refused(sources: ArtifactSources, server: FileServer, hub: Hub) -> None:
    hub.lfs["onnx/model.onnx_data"] = "0" * 64
    with pytest.raises(LoadFailed, match="the hub says 0000"):
        await fetch(sources, "hf:org/tiny#*_data")
    hub.lfs["onnx/model.onnx_data"] = hashlib.sha256(WEIGHTS).hexdigest()
    assert (await fetch(sources, "hf:org/tiny#*_data")).size_bytes == len(WEIGHTS)


async def test_the_token_stays_with_the_hub(sources: ArtifactSources, server: FileServer, hub: Hub) -> None:
    async with FileServer(lambda asked: ranged(WEIGHTS, asked)) as elsewhere:
        hub.store = elsewhere.url
        assert (await fetch(sources, "hf:org/tiny#*_data")).size_bytes == len(WEIGHTS)
    assert [asked.headers.get("authorization") for asked in elsewhere.asked] == [None]


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/../../evil", "..", "a\nb"])
async def test_a_name_that_climbs_out_is_refused(
    sources: ArtifactSources, server: FileServer, hub: Hub, tmp_path: Path, name: str
) -> None:
    hub.files[name] = b"evil"
    with pytest.raises(LoadFailed, match="cannot be trusted"):
        await fetch(sources, "hf:org/tiny")
    assert not [name for name in contents(str(tmp_path)) if name.endswith("evil")]


async def test_a_commit_that_is_none_is_refused(sources: ArtifactSources, server: FileServer, hub: Hub) -> None:
    hub.commit = "../../../evil"
    with pytest.raises(LoadFailed, match="names no commit"):
        await fetch(sources, "hf:org/tiny")


async def test_too_much_is_refused_before_it_is_fetched(sources: ArtifactSources, server: FileServer, hub: Hub) -> None:
    hub.files["more"] = bytes(4 * 1024**2)
    with pytest.raises(LoadFailed, match="at most 4MiB"):
        await fetch(sources, "hf:org/tiny")
    assert len(asked_of(server)) == 1


async def test_a_repository_that_is_not_there_is_said(sources: ArtifactSources, server: FileServer) -> None:
    with pytest.raises(LoadFailed, match="could not be asked for hf:org/other"):
        await fetch(sources, "hf:org/other")
    await server.close()
    with pytest.raises(LoadFailed, match="could not be asked for hf:org/other"):
        await fetch(sources, "hf:org/other")
