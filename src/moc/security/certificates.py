"""A private authority, and the certificates it issues.

Plain X.509 as RFC 5280 has it: P-256 keys, one purpose for each certificate.
"""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from moc.kernel.errors import Conflict, InvalidRequest, NotFound

AUTHORITY = "ca"
SERVER = "server"
AUTHORITY_DAYS = 3650
LEAF_DAYS = 397
_CLOCK_SKEW = datetime.timedelta(minutes=5)


class PrivateAuthority:
    """An authority whose key lies in a folder: for a trial, a laptop or a closed network.

    A name's certificate is `NAME.pem`, its key `NAME.key` (0600); the authority's own is `ca.pem`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def certificate(self) -> Path:
        """What clients have to trust."""
        return self.folder / f"{AUTHORITY}.pem"

    def create(self) -> None:
        """Make it; Conflict when there is one already, whose certificates would all become worthless."""
        if self.certificate.exists():
            raise Conflict(f"{self.certificate} is there already; take another folder, or remove this one first")
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("ModelOps Coordinator private authority")
        usage = _usage(key_cert_sign=True, crl_sign=True)
        built = (
            _builder(name, name, key.public_key(), AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        self._write(AUTHORITY, built, key)

    def issue_server(self, hosts: Sequence[str]) -> Path:
        """A certificate for a listener that is called by these names and addresses."""
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        return self._issue(SERVER, hosts[0], ExtendedKeyUsageOID.SERVER_AUTH, names)

    def issue_client(self, key_id: str) -> Path:
        """A certificate that stands for the API key of this id."""
        if not (key_id.isascii() and key_id.isalnum() and len(key_id) <= 64):
            raise InvalidRequest(f"{key_id[:80]!r} is not the id of a key; `moc keys list` shows them")
        return self._issue(f"client-{key_id}", key_id, ExtendedKeyUsageOID.CLIENT_AUTH, None)

    def _issue(
        self, file: str, subject: str, purpose: x509.ObjectIdentifier, names: x509.SubjectAlternativeName | None
    ) -> Path:
        authority, signer = self._read()
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = (
            _builder(_name(subject), authority.subject, key.public_key(), LEAF_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(issuer, critical=False)
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return self._write(file, builder.sign(signer, hashes.SHA256()), key)

    def _read(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate.read_bytes())
            key = serialization.load_pem_private_key((self.folder / f"{AUTHORITY}.key").read_bytes(), None)
        except FileNotFoundError as error:
            raise NotFound(f"{error.filename} is not there; `moc certs init` makes an authority") from None
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"the authority in {self.folder} cannot be read: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InvalidRequest(f"the authority in {self.folder} was not made by `moc certs init`")
        return certificate, key

    def _write(self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Path:
        path = self.folder / f"{name}.pem"
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _put(self.folder / f"{name}.key", secret, 0o600)
        _put(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return path


def _put(path: Path, content: bytes, mode: int) -> None:
    """Replace a file whole; nobody sees half of it, or sees it with wider rights."""
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    aside.replace(path)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise InvalidRequest(f"{host[:100]!r} is neither a host name nor an address") from None
