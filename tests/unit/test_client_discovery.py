"""Where the client thinks the coordinator is, and which key it shows to whom."""

import json
from pathlib import Path

import pytest

from moc.client.discovery import DEFAULT_URL, choose_data_dir, locate, read_admin_key
from moc.kernel.errors import Forbidden, InvalidRequest


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MOC_URL", "MOC_KEY", "MOC_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "admin.key").write_text("moc_file_key\n")
    (tmp_path / "endpoints.json").write_text(json.dumps({"rest": "http://127.0.0.1:9999", "pid": 1}))
    return tmp_path


def test_what_is_given_wins_over_the_environment_over_the_folder(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locate(data_dir=data_dir).url == "http://127.0.0.1:9999"
    assert locate(data_dir=data_dir).key == "moc_file_key"
    monkeypatch.setenv("MOC_URL", "http://localhost:1/")
    monkeypatch.setenv("MOC_KEY", "moc_environment_key")
    assert locate(data_dir=data_dir).url == "http://localhost:1"
    assert locate(data_dir=data_dir).key == "moc_environment_key"
    given = locate("http://127.0.0.1:2", "moc_given_key", data_dir)
    assert (given.url, given.key) == ("http://127.0.0.1:2", "moc_given_key")


def test_an_empty_folder_means_the_default_address_and_no_key(tmp_path: Path) -> None:
    target = locate(data_dir=tmp_path / "missing")
    assert (target.url, target.key) == (DEFAULT_URL, None)


def test_the_data_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert choose_data_dir() == tmp_path / "home" / "moc"
    monkeypatch.setenv("MOC_DATA_DIR", str(tmp_path / "other"))
    assert choose_data_dir() == tmp_path / "other"
    assert choose_data_dir(tmp_path) == tmp_path


@pytest.mark.parametrize(
    "url", ["https://coordinator.example:8008", "http://10.0.0.7:8008", "http://127.0.0.1.example"]
)
def test_the_admin_key_is_never_shown_to_another_machine(data_dir: Path, url: str) -> None:
    assert locate(url, data_dir=data_dir).key is None
    assert locate(url, "moc_own_key", data_dir).key == "moc_own_key"


@pytest.mark.parametrize("url", ["127.0.0.1:8008", "ftp://here", "http://", "http://here:port", "http://here/?a=1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="not an address"):
        locate(url)


def test_a_damaged_endpoints_file_says_what_to_do(data_dir: Path) -> None:
    (data_dir / "endpoints.json").write_text("{")
    with pytest.raises(InvalidRequest, match=r"endpoints\.json is damaged .* delete it"):
        locate(data_dir=data_dir)
    assert locate("http://127.0.0.1:1", data_dir=data_dir).key == "moc_file_key"


def test_a_key_file_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "admin.key").mkdir()
    with pytest.raises(Forbidden, match="MOC_KEY"):
        read_admin_key(tmp_path)


def test_a_target_does_not_tell_its_key(data_dir: Path) -> None:
    assert "moc_file_key" not in repr(locate(data_dir=data_dir))
