"""Files and folders used where they are."""

import asyncio
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moc.kernel.errors import InvalidRequest, LoadFailed
from moc.models.model import Artifact, ModelSpec
from moc.models.sources import ArtifactSources, Bounds
from moc.models.sources.background import Job
from moc.models.sources.content import hash_of


def ignore(done: int, total: int | None) -> None:
    """A progress that nobody looks at."""


def spec(source: str, *, runtime: str = "onnx", **more: Any) -> ModelSpec:
    return ModelSpec(runtime=runtime, source=source, **more)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The allowed root, which is also where relative paths start."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def sources(tmp_path: Path, root: Path) -> ArtifactSources:
    return ArtifactSources(tmp_path / "blobs", bounds=Bounds(roots=[root]), base_dir=root, size_limit_bytes=1024**3)


async def fetch(sources: ArtifactSources, source: str, sha256: str | None = None) -> Artifact:
    return await sources.fetch(ModelSpec(runtime="python", source=source, sha256=sha256), ignore)


async def test_a_file_is_used_in_place(sources: ArtifactSources, root: Path, tmp_path: Path) -> None:
    (root / "m.bin").write_bytes(b"weights")
    for source in ("file:m.bin", f"file:{root}/m.bin", f"file://{root}/m.bin", f"file:{root}/../models/m.bin"):
        artifact = await fetch(sources, source)
        assert artifact.path == str(root / "m.bin")
    assert artifact.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert artifact.size_bytes == 7
    await sources.discard(artifact.path)
    assert (root / "m.bin").exists()
    assert not (tmp_path / "blobs").exists()


async def test_a_folder_has_the_hash_that_stock_tools_give(sources: ArtifactSources, root: Path) -> None:
    for name, content in {"b": b"1", "a/z": b"2", "a.b": b"3", "ü\nx": b""}.items():
        (root / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "m" / name).write_bytes(content)
    artifact = await fetch(sources, "file:m")
    assert artifact.size_bytes == 3
    listing = "find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum --zero | sha256sum"
    tools = await asyncio.create_subprocess_shell(listing, cwd=root / "m", stdout=asyncio.subprocess.PIPE)
    expected, _ = await tools.communicate()
    assert artifact.sha256 == expected.decode().split()[0]


async def test_names_and_contents_of_a_folder_count(sources: ArtifactSources, root: Path) -> None:
    (root / "m").mkdir()
    (root / "m" / "a").write_bytes(b"x")
    hashes = {(await fetch(sources, "file:m")).sha256}
    (root / "m" / "a").write_bytes(b"y")
    hashes.add((await fetch(sources, "file:m")).sha256)
    (root / "m" / "a").rename(root / "m" / "b")
    hashes.add((await fetch(sources, "file:m")).sha256)
    assert len(hashes) == 3


async def test_what_is_not_files_is_refused(sources: ArtifactSources, root: Path, tmp_path: Path) -> None:
    (root / "empty").mkdir()
    (root / "pipe").mkdir()
    os.mkfifo(root / "pipe" / "fifo")
    (root / "linked").mkdir()
    (root / "linked" / "elsewhere").symlink_to(tmp_path)
    for name in ("missing", "empty", "pipe", "pipe/fifo", "linked"):
        with pytest.raises(LoadFailed):
            await fetch(sources, f"file:{name}")
        with pytest.raises(InvalidRequest):
            sources.check(spec(f"file:{name}"), trusted=False)
        sources.check(spec(f"file:{name}"), trusted=True)  # it may be there when it is loaded


async def test_a_wrong_hash_names_both(sources: ArtifactSources, root: Path) -> None:
    (root / "m.bin").write_bytes(b"weights")
    with pytest.raises(LoadFailed) as caught:
        await fetch(sources, "file:m.bin", "0" * 64)
    assert "0" * 64 in caught.value.message
    assert hashlib.sha256(b"weights").hexdigest() in caught.value.message
    assert (root / "m.bin").exists()


async def test_a_file_that_is_being_written_is_refused(root: Path) -> None:
    class Meddler(Job):
        def step(self, done_bytes: int, total_bytes: int | None) -> None:
            (root / "m.bin").write_bytes(b"other weights")

    (root / "m.bin").write_bytes(b"weights")
    with pytest.raises(LoadFailed, match="is being changed"):
        hash_of(root / "m.bin", Meddler(asyncio.get_running_loop(), None))


def test_only_the_operator_may_leave_the_roots(sources: ArtifactSources, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    (tmp_path / "models-too").mkdir()
    (tmp_path / "models-too" / "m").write_bytes(b"s")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").mkdir()
    (root / "folder" / "link").symlink_to(tmp_path / "secret")
    outside = ["../secret", str(tmp_path / "secret"), "link", "folder", "../models-too/m", "../nothing-here", "~"]
    for path in outside:
        with pytest.raises(InvalidRequest, match="allowed_model_roots"):
            sources.check(spec(f"file:{path}"), trusted=False)
        sources.check(spec(f"file:{path}"), trusted=True)


def test_code_is_only_taken_from_folders_that_are_trusted(tmp_path: Path, root: Path) -> None:
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    for folder in (root, trusted):
        (folder / "model.py").write_text("class Model: ...")
    (trusted / "link.py").symlink_to(root / "model.py")
    bounds = Bounds(roots=[root], python_roots=[trusted])
    sources = ArtifactSources(tmp_path / "blobs", bounds=bounds, base_dir=root, size_limit_bytes=1024)
    sources.check(spec(f"file:{trusted / 'model.py'}", runtime="python"), trusted=False)
    for path in (root / "model.py", trusted / "link.py", trusted / ".." / "root" / "model.py"):
        with pytest.raises(InvalidRequest, match="trusted_python_roots"):
            sources.check(spec(f"file:{path}", runtime="python"), trusted=False)
        sources.check(spec(f"file:{path}", runtime="python"), trusted=True)
    for source in ("pypi:x==1#*.py", "https://example.com/model.py", "hf:org/repo@main#model.py"):
        with pytest.raises(InvalidRequest, match="a Python model is code"):
            sources.check(spec(source, runtime="python"), trusted=False)


def test_a_program_is_only_started_for_others_when_it_is_trusted(tmp_path: Path, root: Path) -> None:
    (root / "m.gguf").write_bytes(b"weights")
    bounds = Bounds(roots=[root], commands=frozenset({"llama-server", "/opt/vllm/bin/vllm"}))
    sources = ArtifactSources(tmp_path / "blobs", bounds=bounds, base_dir=root, size_limit_bytes=1024)

    def command(*words: object, source: str = "", **more: object) -> ModelSpec:
        return spec(source, runtime="command", options={"command": list(words), **more})

    sources.check(command("llama-server", "-m", "{path}", source="file:m.gguf"), trusted=False)
    sources.check(command("/opt/vllm/bin/vllm", "serve"), trusted=False)
    refused = [
        command("/usr/bin/llama-server"),
        command("vllm"),
        command("sh", "-c", "llama-server"),
        command("{path}", source="file:m.gguf"),
        command(["llama-server"]),
        command(),
        spec("", runtime="command", options={"command": "llama-server"}),
        spec("", runtime="command"),
    ]
    for each in refused:
        with pytest.raises(InvalidRequest, match="trusted_commands"):
            sources.check(each, trusted=False)
        sources.check(each, trusted=True)
    with pytest.raises(InvalidRequest, match="no `env`"):
        sources.check(command("llama-server", env={"LD_PRELOAD": "/tmp/x.so"}), trusted=False)
    with pytest.raises(InvalidRequest, match="allowed_model_roots"):
        sources.check(command("llama-server", source="file:../secret"), trusted=False)


async def test_a_model_without_files_is_there_at_once_and_stays_what_it_is(sources: ArtifactSources) -> None:
    artifact = await sources.fetch(spec("", runtime="command"), lambda *_: None)
    assert (artifact.path, artifact.size_bytes) == ("", 0)
    await sources.verify(artifact)
    await sources.discard(artifact.path)


def test_files_that_options_name_lie_within_the_roots_too(sources: ArtifactSources, root: Path, tmp_path: Path) -> None:
    for path in (root / "m.gguf", root / "adapter.gguf", tmp_path / "secret.gguf"):
        path.write_bytes(b"weights")
    inside = {"lora": [{"path": str(root / "adapter.gguf"), "scale": 1.0}]}
    outside = {"lora": [{"path": str(tmp_path / "secret.gguf")}]}
    sources.check(spec("file:m.gguf", runtime="llama_cpp", options=inside), trusted=False)
    with pytest.raises(InvalidRequest, match="allowed_model_roots"):
        sources.check(spec("file:m.gguf", runtime="llama_cpp", options=outside), trusted=False)
    sources.check(spec("file:m.gguf", runtime="llama_cpp", options=outside), trusted=True)


async def test_an_adapter_with_a_hash_is_held_against_it(sources: ArtifactSources, root: Path) -> None:
    adapter = root / "adapter.gguf"
    adapter.write_bytes(b"weights")
    (root / "m.gguf").touch()
    sha256 = hashlib.sha256(b"weights").hexdigest()

    def served(**entry: Any) -> ModelSpec:
        return spec("file:m.gguf", runtime="llama_cpp", options={"lora": [{"path": str(adapter), **entry}]})

    with pytest.raises(InvalidRequest, match="not a sha256"):
        sources.check(served(sha256="weights"), trusted=True)
    sources.check(served(sha256=f"sha256:{sha256}"), trusted=False)
    await sources.verify_adapters(served(sha256=sha256))
    adapter.write_bytes(b"changed")
    await sources.verify_adapters(served())
    with pytest.raises(LoadFailed, match="no longer what was registered"):
        await sources.verify_adapters(served(sha256=sha256))
    adapter.write_bytes(b"weights")
    await sources.verify_adapters(served(sha256=sha256))
    adapter.unlink()
    with pytest.raises(LoadFailed, match="cannot be read"):
        await sources.verify_adapters(served(sha256=sha256))


LOCAL = ["127.0.0.1", "localhost", "169.254.169.254", "10.0.0.8", "[::1]", "[::ffff:10.0.0.8]", "[fe80::1]", "0.0.0.0"]


@pytest.mark.parametrize("host", LOCAL)
def test_a_private_address_has_to_be_named_by_the_operator(host: str, tmp_path: Path) -> None:
    source = f"https://{host}/model.onnx"
    closed = ArtifactSources(tmp_path, bounds=Bounds(), base_dir=tmp_path, size_limit_bytes=1024)
    with pytest.raises(InvalidRequest, match="allowed_model_hosts"):
        closed.check(spec(source), trusted=False)
    named = Bounds(hosts=frozenset({host.strip("[]")}))
    ArtifactSources(tmp_path, bounds=named, base_dir=tmp_path, size_limit_bytes=1024).check(spec(source), trusted=False)


def test_a_link_within_the_roots_is_fine(sources: ArtifactSources, root: Path) -> None:
    (root / "real").mkdir()
    (root / "real" / "m").write_bytes(b"m")
    (root / "link").symlink_to("real/m")
    (root / "folder").symlink_to("real")
    sources.check(spec("file:link"), trusted=False)
    sources.check(spec("file:folder"), trusted=False)


def test_a_path_that_cannot_be_is_refused(sources: ArtifactSources, root: Path) -> None:
    (root / "loop").symlink_to("loop")
    for path in ("loop", "~nobody-has-this-name/m"):
        with pytest.raises(InvalidRequest):
            sources.check(spec(f"file:{path}"), trusted=True)


async def test_verify_notices_changes(sources: ArtifactSources, root: Path) -> None:
    file = root / "m.bin"
    file.write_bytes(b"weights")
    artifact = await fetch(sources, "file:m.bin")
    await sources.verify(artifact)
    os.utime(file, (1, 1))
    await sources.verify(artifact)  # another time, the same content
    await sources.verify(artifact)
    file.write_bytes(b"wEights")
    os.utime(file, (2, 2))
    with pytest.raises(LoadFailed, match="no longer what was registered"):
        await sources.verify(artifact)
    file.write_bytes(b"more weights")
    with pytest.raises(LoadFailed, match="no longer what was registered"):
        await sources.verify(artifact)
    file.unlink()
    with pytest.raises(LoadFailed, match="put it back"):
        await sources.verify(artifact)


async def test_verify_trusts_size_and_time_unless_told_not_to(root: Path, tmp_path: Path) -> None:
    (root / "m.bin").write_bytes(b"weights")
    quick, thorough = (
        ArtifactSources(
            tmp_path / "blobs", bounds=Bounds(roots=[root]), base_dir=root, size_limit_bytes=1024, rehash=rehash
        )
        for rehash in (False, True)
    )
    artifact = replace(await fetch(quick, "file:m.bin"), sha256="0" * 64)
    await quick.verify(artifact)
    with pytest.raises(LoadFailed):
        await thorough.verify(artifact)
