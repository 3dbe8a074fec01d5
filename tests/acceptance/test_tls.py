"""TLS as an operator sets it up: `moc certs init`, the lines it prints in moc.yaml, clients that judge it."""

import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.acceptance.conftest import served
from tests.coordinator import MOC, Coordinator, eventually, short_home


def certs(data_dir: Path, *arguments: str) -> str:
    """What `moc certs` prints."""
    command = [*MOC, "certs", *arguments, "--data-dir", str(data_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def coordinator() -> Iterator[Coordinator]:
    with short_home() as data_dir:
        data_dir.mkdir(mode=0o700)
        printed = certs(data_dir, "init")
        config = yaml.safe_load(printed[printed.index("server:") :])
        yield from served(Coordinator(data_dir, config=config, ca_file=data_dir / "certs" / "ca.pem"))


def serial(coordinator: Coordinator) -> str:
    """Of the certificate that is shown to a new connection, as OpenSSL prints it."""
    place = f"127.0.0.1:{coordinator.port}"
    shown = subprocess.run(
        ["openssl", "s_client", "-connect", place, "-CAfile", coordinator.data_dir / "certs" / "ca.pem"],
        input=b"",
        capture_output=True,
        timeout=30,
    )
    assert b"Verify return code: 0 (ok)" in shown.stdout, shown.stdout.decode()[-2000:]
    read = subprocess.run(["openssl", "x509", "-noout", "-serial"], input=shown.stdout, capture_output=True, check=True)
    return read.stdout.decode()


def local_port(answer: httpx.Response) -> int:
    """Our end of the connection that an answer came over."""
    assert answer.status_code == 200
    port: int = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
    return port


def test_the_command_line_and_clients_find_it_and_trust_it(coordinator: Coordinator) -> None:
    environment = {**os.environ, "MOC_DATA_DIR": str(coordinator.data_dir)}
    done = subprocess.run(
        [*MOC, "status", "--json"], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert f'"rest": "{coordinator.url}"' in done.stdout
    assert "REST       https://" in coordinator.output


def test_plain_http_and_old_tls_get_nothing(coordinator: Coordinator) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(coordinator.url.replace("https", "http") + "/livez")
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{coordinator.url}/livez", verify=ssl.create_default_context())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_new_certificate_is_taken_up_while_a_connection_stays(coordinator: Coordinator) -> None:
    before = serial(coordinator)
    with httpx.Client(base_url=coordinator.url, verify=coordinator.tls) as held:
        port = local_port(held.get("/livez"))
        certs(coordinator.data_dir, "server", "localhost", "127.0.0.1")
        eventually(lambda: serial(coordinator) != before, timeout_s=15)
        assert local_port(held.get("/livez")) == port


def test_a_client_certificate_stands_for_its_key_until_that_is_revoked(coordinator: Coordinator) -> None:
    made = coordinator.post("/api/v1/keys", {"name": "robot", "role": "viewer"}).json()
    key_id = made["id"]
    certificate = Path(certs(coordinator.data_dir, "client", key_id).strip())
    environment = {"MOC_URL": coordinator.url, "MOC_CA_FILE": str(coordinator.data_dir / "certs" / "ca.pem")}
    script = "from moc.client import Client; import sys; print(Client(key=None).models.list())"
    shown = {**os.environ, **environment, "MOC_CERTIFICATE": str(certificate), "MOC_DATA_DIR": str(certificate.parent)}

    def ask() -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-c", script], env=shown, capture_output=True, text=True, timeout=60)

    assert ask().returncode == 0, ask().stderr
    assert coordinator.post(f"/api/v1/keys/{key_id}/rotate").status_code == 200
    assert ask().returncode == 0, ask().stderr
    answer = httpx.delete(
        f"{coordinator.url}/api/v1/keys/{key_id}", headers=coordinator.headers, verify=coordinator.tls
    )
    assert answer.status_code in (200, 204), answer.text
    refused = ask()
    assert refused.returncode == 1
    assert "revoked" in refused.stderr


def test_wrong_files_are_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "moc.yaml").write_text("server: {tls: {certificate: /none.pem}}")
    command = [*MOC, "serve", "--data-dir", str(tmp_path), "--rest-port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "`certificate` and `key` go together" in ended.stderr
    (tmp_path / "moc.yaml").write_text("server: {tls: {certificate: /none.pem, key: /none.key}}")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "/none.pem cannot be read" in ended.stderr


def test_what_others_on_the_network_can_read_is_warned_of() -> None:
    with short_home() as data_dir:
        for _ in served(Coordinator(data_dir, config={"server": {"host": "0.0.0.0"}})):
            pass
        assert "without TLS" in (data_dir.parent / "data.log").read_text()
