"""Certificates that a private authority issues, judged by OpenSSL, and a listener that takes up new ones."""

import asyncio
import os
import shutil
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from moc.kernel.errors import Conflict, InvalidRequest, NotFound
from moc.security.certificates import PrivateAuthority
from moc.security.tls import TlsFiles, TlsListener, common_name


@pytest.fixture
def authority(tmp_path: Path) -> PrivateAuthority:
    made = PrivateAuthority(tmp_path / "certs")
    made.create()
    made.issue_server(["localhost", "127.0.0.1"])
    return made


def files(authority: PrivateAuthority, *, mutual: bool = False) -> TlsFiles:
    folder = authority.folder
    return TlsFiles(folder / "server.pem", folder / "server.key", authority.certificate if mutual else None)


def trusting(authority: PrivateAuthority, *, as_client: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.certificate)
    if as_client is not None:
        context.load_cert_chain(as_client, as_client.with_suffix(".key"))
    return context


@asynccontextmanager
async def echo(listener: TlsListener) -> AsyncIterator[int]:
    """A server on a free port that answers each line with the name of the client's certificate and the line."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = common_name(writer.get_extra_info("peercert"))
        try:
            while line := await reader.readline():
                writer.write(f"{name} ".encode() + line)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=listener.context)
    async with server:
        port: int = server.sockets[0].getsockname()[1]
        yield port


class Caller:
    """A connection to `echo`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, context: ssl.SSLContext) -> "Caller":
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context))

    async def say(self, text: str) -> str:
        self.writer.write(f"{text}\n".encode())
        return (await self._reader.readline()).decode().strip()

    @property
    def serial(self) -> str:
        """Of the certificate that the server showed."""
        found: str = self.writer.get_extra_info("peercert")["serialNumber"]
        return found

    @classmethod
    async def is_refused(cls, port: int, context: ssl.SSLContext) -> bool:
        """Whether the server hangs up: at once, or with TLS 1.3 when the first line arrives."""
        try:
            caller = await cls.connect(port, context)
        except (ssl.SSLError, ConnectionError):
            return True
        try:
            return await caller.say("hello") == ""
        except (ssl.SSLError, ConnectionError):
            return True
        finally:
            caller.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def test_a_client_that_trusts_the_authority_is_served_under_every_name(authority: PrivateAuthority) -> None:
    async with echo(TlsListener(files(authority))) as port:
        caller = await Caller.connect(port, trusting(authority))
        assert await caller.say("hello") == "None hello"
        assert caller.writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        await caller.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            await Caller.connect(port, ssl.create_default_context())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_versions_of_tls_are_refused(authority: PrivateAuthority) -> None:
    context = trusting(authority)
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with echo(TlsListener(files(authority))) as port:
        assert await Caller.is_refused(port, context)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        caller = await Caller.connect(port, context)
        assert caller.writer.get_extra_info("ssl_object").version() == "TLSv1.2"
        await caller.close()


async def test_a_new_certificate_is_shown_to_new_connections_and_old_ones_go_on(authority: PrivateAuthority) -> None:
    listener = TlsListener(files(authority))
    async with echo(listener) as port:
        old = await Caller.connect(port, trusting(authority))
        authority.issue_server(["localhost", "127.0.0.1"])
        listener.refresh()
        new = await Caller.connect(port, trusting(authority))
        assert new.serial != old.serial
        assert await old.say("still here") == "None still here"
        await old.close()
        await new.close()


async def test_files_that_do_not_fit_together_are_not_taken_up(
    authority: PrivateAuthority, capsys: pytest.CaptureFixture[str]
) -> None:
    listener = TlsListener(files(authority))
    async with echo(listener) as port:
        before = await Caller.connect(port, trusting(authority))
        shutil.copy(authority.folder / "ca.key", authority.folder / "server.key")
        listener.refresh()
        assert "no certificate with its key" in capsys.readouterr().out
        after = await Caller.connect(port, trusting(authority))
        assert after.serial == before.serial
        await before.close()
        await after.close()


async def test_a_client_certificate_names_its_key_and_a_strangers_is_refused(
    authority: PrivateAuthority, tmp_path: Path
) -> None:
    stranger = PrivateAuthority(tmp_path / "stranger")
    stranger.create()
    listener = TlsListener(files(authority, mutual=True))
    async with echo(listener) as port:
        own = await Caller.connect(port, trusting(authority, as_client=authority.issue_client("a1b2c3")))
        assert await own.say("hello") == "a1b2c3 hello"
        await own.close()
        nobody = await Caller.connect(port, trusting(authority))
        assert await nobody.say("hello") == "None hello"
        await nobody.close()
        assert await Caller.is_refused(port, trusting(authority, as_client=stranger.issue_client("a1b2c3")))


async def test_another_authority_of_clients_is_taken_up(authority: PrivateAuthority, tmp_path: Path) -> None:
    other = PrivateAuthority(tmp_path / "other")
    other.create()
    listener = TlsListener(files(authority, mutual=True))
    old = trusting(authority, as_client=authority.issue_client("old"))
    new = ssl.create_default_context(cafile=authority.certificate)
    chain = other.issue_client("new")
    new.load_cert_chain(chain, chain.with_suffix(".key"))
    async with echo(listener) as port:
        pinned = ssl.create_default_context(cafile=authority.certificate)
        shutil.copy(other.certificate, tmp_path / "swap.pem")
        os.replace(tmp_path / "swap.pem", authority.certificate)
        listener.refresh()
        caller = await Caller.connect(port, new)
        assert await caller.say("hello") == "new hello"
        await caller.close()
        assert await Caller.is_refused(port, old)
        await (await Caller.connect(port, pinned)).close()


def test_keys_are_private_and_an_authority_is_not_made_twice(authority: PrivateAuthority) -> None:
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((authority.folder / name).stat().st_mode) == 0o600
    with pytest.raises(Conflict, match="is there already"):
        authority.create()


def test_what_is_missing_or_wrong_is_said(authority: PrivateAuthority, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="moc certs init"):
        PrivateAuthority(tmp_path / "none").issue_client("a1")
    with pytest.raises(InvalidRequest, match="not the id of a key"):
        authority.issue_client("../evil")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        TlsListener(TlsFiles(tmp_path / "none.pem", tmp_path / "none.key"))
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(InvalidRequest, match="client_ca"):
        TlsListener(TlsFiles(authority.folder / "server.pem", authority.folder / "server.key", tmp_path / "empty.pem"))
