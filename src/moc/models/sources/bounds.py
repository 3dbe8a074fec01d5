"""What a source may name when it is not the operator's own word, and where a download may go."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moc.kernel.errors import InvalidRequest, LoadFailed
from moc.models.sources.content import measure, members
from moc.models.sources.failure import failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """`roots` are the folders that files may lie in, `python_roots` those whose Python code may be run.

    `commands` are the programs that may be started, `secrets` the folder whose keys may be shown to remotes. Downloads
    and requests to remotes go to public addresses, and to `hosts`, which the operator named: HOST, any port of it, or
    what `place` makes of a host and a port.
    """

    roots: Sequence[Path] = ()
    python_roots: Sequence[Path] = ()
    commands: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    secrets: Path | None = None

    def check_file(self, path: Path) -> None:
        """InvalidRequest unless a file or folder lies in `roots` with everything it links to."""
        _check_within(path, self.roots, "security.allowed_model_roots")

    def check_code(self, path: Path | None) -> None:
        """InvalidRequest unless Python code lies in `python_roots`; None is code from anywhere else."""
        if path is None:
            raise InvalidRequest(
                "a Python model is code: over the API it must be a file: in security.trusted_python_roots; "
                "name it in moc.yaml, or put it there"
            )
        _check_within(path, self.python_roots, "security.trusted_python_roots")

    def check_command(self, options: Mapping[str, Any]) -> None:
        """InvalidRequest unless the program of a command is one of `commands`, in the environment they all have."""
        command = options.get("command")
        program = command[0] if isinstance(command, list) and command else None
        if not isinstance(program, str) or program not in self.commands:
            known = ", ".join(sorted(self.commands)) or "none"
            raise InvalidRequest(
                f"a command is a program: over the API it must be one of security.trusted_commands ({known}), "
                f"not {str(program)[:200]!r}; name the model in moc.yaml, or the program there"
            )
        if options.get("env"):
            raise InvalidRequest("over the API a command has no `env`, which could make it run anything")

    def check_secret(self, file: str, option: str) -> None:
        """InvalidRequest unless `file`, which `option` names, lies in `secrets`, where relative paths start."""
        root = None if self.secrets is None else self.secrets.resolve()
        try:
            inside = root is not None and (root / Path(file).expanduser()).resolve().is_relative_to(root)
        except (OSError, RuntimeError, ValueError):
            inside = False
        if not inside:
            raise InvalidRequest(f"over the API `{option}` names a file below DATA_DIR/secrets, not {file[:200]!r}")

    def allows(self, host: str, port: int) -> bool:
        """Whether the operator named a host, or this port of it."""
        return host in self.hosts or place(host, port) in self.hosts

    def check_host(self, host: str, port: int) -> None:
        """InvalidRequest for a host that is, as it is written, not a public one."""
        if not self.allows(host, port) and (host == "localhost" or not is_public(host)):
            raise InvalidRequest(f"{host} is a private or local address; {_advice(host)}")

    def check_address(self, host: str, port: int, address: str) -> None:
        """LoadFailed when a host turns out to be at an address that is not public."""
        if not self.allows(host, port) and not is_public(address):
            raise failed(f"{host} is at {address}, a private or local address; {_advice(host)}")


def _check_within(path: Path, folders: Sequence[Path], option: str) -> None:
    roots = [root.resolve() for root in folders]
    if not _lies_within(path, roots):
        shown = ", ".join(str(root) for root in roots) or "none"
        raise InvalidRequest(f"{path} lies outside {option} ({shown}); put it there, or add its folder")
    try:
        inside = [member for _, member in members(path)]
        measure(path)
    except (OSError, LoadFailed) as error:
        raise InvalidRequest(f"{path} cannot be a model: {error}; put the model there first") from None
    for member in inside:
        if not _lies_within(member.resolve(), roots):
            raise InvalidRequest(f"{member} is a link that leaves {option}; copy the file there")


def _lies_within(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _advice(host: str) -> str:
    return f"add {host} to security.allowed_model_hosts if that is meant"


def place(host: str, port: int) -> str:
    """One port of a host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_public(host: str) -> bool:
    """Whether it is a name, or an address that anybody on the Internet may use."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return True
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_global and not address.is_multicast
