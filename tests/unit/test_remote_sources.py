"""What the source of a remote may be, and what a caller over the API may name in it."""

import os
from pathlib import Path
from typing import Any

import pytest

from moc.kernel.errors import InvalidRequest, LoadFailed
from moc.models.model import ModelSpec
from moc.models.sources import ArtifactSources, Bounds

CLOUD = "https://api.example.com/v1"
NO_URLS = (
    "",
    "file:model.onnx",
    "api.example.com/v1",
    "https://",
    "https:///v1",
    "https://user:word@h/v1",
    "https://h/v1?k=1",
    "https://h/v1#x",
    "https://h:port/v1",
    "https://h/a b",
    "https://h/\n",
    "https://ä.example/v1",
    "https://intern.example..:8000/v1",
    "https://.example/v1",
    "https://a..example/v1",
    "https://in%74ern.example/v1",
    "https://a.example\\b/v1",
)


@pytest.fixture
def sources(tmp_path: Path) -> ArtifactSources:
    bounds = Bounds(hosts=frozenset({"box.lan", "10.0.0.7:80", "[fd00::7]:8000"}), secrets=tmp_path / "secrets")
    return ArtifactSources(tmp_path / "blobs", bounds=bounds, base_dir=tmp_path, size_limit_bytes=2**30)


def remote(source: str, **options: Any) -> ModelSpec:
    return ModelSpec(runtime="remote", source=source, options=options)


def refused(sources: ArtifactSources, spec: ModelSpec, *, trusted: bool = False) -> str:
    with pytest.raises(InvalidRequest) as caught:
        sources.check(spec, trusted=trusted)
    return caught.value.message


async def test_its_url_stands_for_files(sources: ArtifactSources, tmp_path: Path) -> None:
    artifact = await sources.fetch(remote(f"{CLOUD}/"), lambda done, total: None)
    assert (artifact.path, artifact.size_bytes) == (CLOUD, 0)
    assert artifact == await sources.fetch(remote(CLOUD), lambda done, total: None)
    assert artifact.sha256 != (await sources.fetch(remote(f"{CLOUD}/x"), lambda done, total: None)).sha256
    await sources.verify(artifact)
    await sources.discard(artifact.path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("source", NO_URLS)
def test_what_is_no_url_is_refused_of_anybody(sources: ArtifactSources, source: str) -> None:
    assert "secret" not in refused(sources, remote(source), trusted=True)


def test_the_configuration_may_name_anything(sources: ArtifactSources) -> None:
    sources.check(remote("http://192.168.1.5:11434/v1", key_env="KEY", ca_file="/etc/ca.pem"), trusted=True)
    sources.check(remote("http://localhost:8008/v1", key_file="/run/secrets/key"), trusted=True)


def test_over_the_api_it_is_a_public_host_or_a_named_one(sources: ArtifactSources) -> None:
    for good in (CLOUD, "https://box.lan/v1", "http://box.lan:11434/v1", "http://10.0.0.7/v1", "http://[FD00::7]:8000"):
        sources.check(remote(good), trusted=False)
    sources.check_address("10.0.0.7", 80, "10.0.0.7")
    for other_port in ("https://10.0.0.7/v1", "http://10.0.0.7:22/v1", "https://[fd00::7]/v1"):
        assert "private or local" in refused(sources, remote(other_port))
    for private in ("http://localhost/v1", "https://127.0.0.1/v1", "https://[::1]/v1", "http://192.168.1.5/v1"):
        assert "allowed_model_hosts" in refused(sources, remote(private))
    assert "can be read on its way" in refused(sources, remote("http://api.example.com/v1"))


def test_over_the_api_secrets_are_those_kept_for_it(sources: ArtifactSources, tmp_path: Path) -> None:
    sources.check(remote(CLOUD, key_file="cloud", ca_file=str(tmp_path / "secrets" / "ca.pem")), trusted=False)
    assert "key_env" in refused(sources, remote(CLOUD, key_env="HOME"))
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "link").symlink_to("/etc/passwd")
    for outside in ("/etc/passwd", "../admin.key", "link", "a\0b"):
        assert "DATA_DIR/secrets" in refused(sources, remote(CLOUD, key_file=outside))
        assert "DATA_DIR/secrets" in refused(sources, remote(CLOUD, ca_file=outside))


def test_over_the_api_no_proxy_is_gone_by(sources: ArtifactSources) -> None:
    assert "use_proxy" in refused(sources, remote(CLOUD, use_proxy=True))
    sources.check(remote(CLOUD, use_proxy=False), trusted=False)
    sources.check(remote(CLOUD, use_proxy=True), trusted=True)


def test_a_secret_is_refused_before_it_is_kept(sources: ArtifactSources) -> None:
    for options in ({"key": "sk-1"}, {"api_key": "sk-1"}, {"headers": {"Authorization": "Bearer sk-1"}}):
        message = refused(sources, remote(CLOUD, **options), trusted=True)
        assert "key_file" in message
        assert "sk-1" not in message
    sources.check(remote(CLOUD, headers={"x-team": "blue"}), trusted=True)


def test_a_hash_means_nothing(sources: ArtifactSources) -> None:
    spec = ModelSpec(runtime="remote", source=CLOUD, sha256="0" * 64)
    assert "sha256" in refused(sources, spec, trusted=True)


def test_where_it_turns_out_to_be_is_checked_too(sources: ArtifactSources) -> None:
    sources.check_address("api.example.com", 443, "93.184.216.34")
    sources.check_address("box.lan", 11434, "10.0.0.9")
    with pytest.raises(LoadFailed, match="private or local"):
        sources.check_address("api.example.com", 443, "10.0.0.9")
