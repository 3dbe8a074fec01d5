"""`moc doctor` on this machine as it is, with folders and ports of our own."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from moc.cli.main import main

VERDICTS = {"ok", "info", "warn", "fail"}


def examine(capsys: pytest.CaptureFixture[str], data_dir: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--data-dir", str(data_dir), "--json"])
    document = json.loads(capsys.readouterr().out)
    findings = {finding["what"]: finding for finding in document["findings"]}
    assert document["ok"] == (ended.value.code == 0) == all(f["verdict"] != "fail" for f in findings.values())
    assert isinstance(ended.value.code, int)
    return ended.value.code, findings


def test_every_finding_has_a_verdict_and_every_trouble_an_advice(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, findings = examine(capsys, tmp_path / "new")
    assert {"python", "memory", "gpu", "extra llama", "data folder", "disk", "port 8008"} <= set(findings)
    for finding in findings.values():
        assert finding["verdict"] in VERDICTS
        assert finding["advice"] or finding["verdict"] not in ("warn", "fail")
    assert findings["python"]["verdict"] == "ok"
    assert findings["data folder"]["verdict"] == "ok"
    assert not (tmp_path / "new").exists()


def test_a_data_folder_that_cannot_be_is_a_failure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, findings = examine(capsys, tmp_path / "file")
    assert code == 1
    assert findings["data folder"]["verdict"] == "fail"
    assert "--data-dir" in findings["data folder"]["advice"]


def test_a_port_is_ours_only_if_our_coordinator_has_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", 7211))
        except OSError:
            pytest.skip("another program holds the port this test needs")
        listener.listen()
        assert "taken by another program" in examine(capsys, tmp_path)[1]["port 7211"]["found"]
        (tmp_path / "endpoints.json").write_text(json.dumps({"rest": "http://127.0.0.1:1", "pid": os.getpid()}))
        assert "our coordinator's" in examine(capsys, tmp_path)[1]["port 7211"]["found"]
