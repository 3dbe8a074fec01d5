"""`devices:` and `resources:` of moc.yaml."""

from pathlib import Path

import pytest

from moc.config import Config, DeviceChoice, load
from moc.kernel.errors import InvalidRequest


def configured(folder: Path, text: str) -> Config:
    (folder / "moc.yaml").write_text(text)
    return load(data_dir=folder, file=None, ports={})


def test_every_device_there_is_unless_said_otherwise(tmp_path: Path) -> None:
    config = configured(tmp_path, "")
    assert config.devices is None
    assert (config.settings.resources.gpu_poll_interval_s, config.settings.resources.soft_limit_pct) == (5.0, 90.0)
    assert configured(tmp_path, "devices: auto\nresources: {gpu_poll_interval_s: 1}\n").devices is None


def test_devices_are_chosen_limited_and_declared(tmp_path: Path) -> None:
    config = configured(
        tmp_path,
        "devices:\n- {id: 'cuda:1/mig:0', kind: cuda}\n- {id: host, kind: host, memory: 2GiB}\n"
        "- {id: 'declared:0', kind: declared, memory: 24GiB}\n",
    )
    assert config.devices == (
        DeviceChoice(id="cuda:1/mig:0", kind="cuda", memory_bytes=None),
        DeviceChoice(id="host", kind="host", memory_bytes=2 * 2**30),
        DeviceChoice(id="declared:0", kind="declared", memory_bytes=24 * 2**30),
    )


@pytest.mark.parametrize("value", ["auto", '[{"id": "host", "kind": "host"}]'])
def test_the_environment_says_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MOC_DEVICES", value)
    config = configured(tmp_path, "devices:\n- {id: 'cuda:0', kind: cuda}\n")
    assert config.devices == (None if value == "auto" else (DeviceChoice(id="host", kind="host", memory_bytes=None),))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("devices: all", "moc.yaml:1: devices: 'all' is neither `auto` nor a list"),
        ("devices:\n- {id: host, kind: ram}", r"devices\[0\]: `kind` is 'ram'; known are cuda, host, declared"),
        ("devices:\n- {id: 'gpu:0', kind: cuda}", "`id` is 'gpu:0'; one of kind cuda is called cuda:0"),
        ("devices:\n- {id: 'declared:0', kind: declared}", "declared:0 needs `memory`"),
        ("devices:\n- {id: host, kind: host, memory: much}", "`memory`: not a size: 'much'"),
        ("devices:\n- {id: host, kind: host, memory: 0}", "must be more than 0"),
        ("devices:\n- {id: host, kind: host, memroy: 1}", "unknown key 'memroy'; did you mean 'memory'"),
        ("devices:\n- {id: host, kind: host}\n- {id: host, kind: host}", "there twice: host"),
        ("devices: [host]", r"moc.yaml:1: devices\[0\]: must be a mapping"),
        ("resources: {soft_limit_pct: 101}", "resources.soft_limit_pct: .*less than or equal to 100"),
        ("resources: {gpu_poll_interval_s: 0}", "resources.gpu_poll_interval_s"),
        ("resources: {soft_limit: 50}", "unknown key; did you mean 'soft_limit_pct'"),
    ],
)
def test_mistakes_are_shown_where_they_stand(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        configured(tmp_path, text)
