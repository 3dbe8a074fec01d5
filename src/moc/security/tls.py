"""TLS of a listener: the files it proves itself with, taken up again when they change."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import structlog

from moc.kernel.errors import InvalidRequest

log = structlog.get_logger(__name__)

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""What TLS 1.2 may use: forward secrecy and authenticated encryption. TLS 1.3 has nothing else."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the listener's certificate chain and its key, and the authority of clients' certificates, if any."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Differs when a file does; InvalidRequest when one cannot be read."""
        try:
            found = [path.stat() for path in (self.certificate, self.key, self.client_ca) if path is not None]
        except OSError as error:
            raise InvalidRequest(f"server.tls: {error.filename} cannot be read: {error.strerror}") from None
        return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or later with these files; InvalidRequest says which of them is wrong."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidRequest(
                f"server.tls: {self.certificate} with {self.key} is no certificate with its key: {_why(error)}"
            ) from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ssl.SSLError) as error:
                raise InvalidRequest(
                    f"server.tls.client_ca: {self.client_ca} has no certificates: {_why(error)}"
                ) from None
            context.verify_mode = ssl.CERT_OPTIONAL  # who shows none has to show a key
        return context


class TlsListener:
    """The TLS of one listener. `context` is for the listener; each new connection gets the newest good files."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamp = files.stamp()
        self.context = self._newest = files.context()
        self.context.sni_callback = self._choose

    def refresh(self) -> None:
        """Look whether the files changed. Those that do not fit together are said in the log and not used."""
        try:
            stamp = self._files.stamp()
            if stamp == self._stamp:
                return
            self._newest, self._stamp = self._files.context(), stamp
        except InvalidRequest as error:
            log.warning("the certificate stays as it was", problem=error.message)
            return
        log.info("certificate taken up", certificate=str(self._files.certificate))

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        if self._newest is not self.context:
            connection.context = self._newest


def common_name(certificate: dict[str, object] | None) -> str | None:
    """Whom a peer's certificate, as `ssl` tells it, names; None when there is none."""
    subject = (certificate or {}).get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]  # type: ignore[attr-defined]
    return names[0] if names else None


def _why(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
