"""`moc doctor`: what this machine has and lacks. It needs no coordinator and changes nothing."""

import contextlib
import ctypes
import importlib.util
import os
import platform
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import psutil
import typer

from moc.cli import screen
from moc.cli.session import JsonOption, Session, connected
from moc.client.discovery import read_endpoints
from moc.kernel.errors import MocError
from moc.kernel.units import Bytes

Verdict = Literal["ok", "info", "warn", "fail"]

_PYTHON_MIN = (3, 11)
_DISK_FAIL = Bytes.parse("100MiB")
_DISK_WARN = Bytes.parse("2GiB")
_MEMORY_WARN = Bytes.parse("1GiB")
_HOST = "127.0.0.1"
_GPU_TIMEOUT_S = 15
_EXTRAS = (
    ("llama", "xllamacpp", "language models in GGUF files"),
    ("onnx", "onnxruntime", "ONNX models"),
    ("transformers", "transformers", "models in safetensors, on the CPU or a GPU"),
    ("hub", "huggingface_hub", "hf: sources"),
)
_LIBRARIES = (("libgomp.so.1", "libgomp1"), ("libstdc++.so.6", "libstdc++6"))


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at. `advice` is what to do about it; `fail` means the coordinator cannot work like this."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""


@connected
def doctor(session: Session, as_json: JsonOption = False) -> None:
    """Check what this machine has and lacks; exit 1 if the coordinator cannot work here."""
    findings = list(_examine(session.folder))
    failed = any(finding.verdict == "fail" for finding in findings)
    if as_json:
        screen.json({"ok": not failed, "findings": findings})
    else:
        rows = [(finding.verdict, finding.what, finding.found, finding.advice) for finding in findings]
        screen.table(("verdict", "what", "found", "what to do"), rows)
    if failed:
        raise typer.Exit(1)


def _examine(data_dir: Path) -> Iterator[Finding]:
    yield _python()
    yield _memory()
    yield from _gpus()
    yield from _extras()
    yield from _libraries()
    yield from _folder(data_dir)
    yield from _ports(data_dir)
    for program, use in (("redis-server", "several replicas"), ("haproxy", "one address for several replicas")):
        path = shutil.which(program)
        yield Finding(what=program, verdict="info", found=path or f"not here; only {use} would need it")


def _python() -> Finding:
    new_enough = sys.version_info >= _PYTHON_MIN
    return Finding(
        what="python",
        verdict="ok" if new_enough else "fail",
        found=f"{platform.python_version()} at {sys.executable}",
        advice="" if new_enough else f"install Python {'.'.join(map(str, _PYTHON_MIN))} or newer",
    )


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    enough = memory.available >= _MEMORY_WARN
    return Finding(
        what="memory",
        verdict="ok" if enough else "warn",
        found=f"{Bytes(memory.available)} of {Bytes(memory.total)} free, {os.cpu_count()} CPUs",
        advice="" if enough else "end other programs, or serve small models only",
    )


def _gpus() -> Iterator[Finding]:
    """Each GPU as the coordinator will see it; asked aside, because a driver in trouble may never answer."""
    from moc.gpu.device import DeviceReading
    from moc.hardware.nvml import NvmlDevices

    found, trouble = list[DeviceReading](), list[Exception]()

    def ask() -> None:
        try:
            found.extend(NvmlDevices().read())
        except Exception as error:
            trouble.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_GPU_TIMEOUT_S)
    advice = "run nvidia-smi and follow what it says; a driver update often needs a restart"
    if asking.is_alive() or trouble:
        said = str(trouble[0]) if trouble else f"it does not answer within {_GPU_TIMEOUT_S} s"
        yield Finding(what="gpu", verdict="warn", found=f"driver there, devices not: {said}", advice=advice)
    elif not found:
        yield Finding(what="gpu", verdict="info", found="no NVIDIA device or no driver; models run on the CPU")
    for reading in found:
        device = reading.device
        free = Bytes(device.capacity_bytes - reading.used_bytes)
        yield Finding(
            what=f"gpu {device.id}",
            verdict="warn" if reading.problem else "ok",
            found=reading.problem or f"{device.name}, {free} of {Bytes(device.capacity_bytes)} free",
            advice=advice if reading.problem else "",
        )


def _extras() -> Iterator[Finding]:
    for extra, module, use in _EXTRAS:
        there = importlib.util.find_spec(module) is not None
        yield Finding(
            what=f"extra {extra}",
            verdict="ok" if there else "warn",
            found=f"{module} is {'installed' if there else 'not installed'} (for {use})",
            advice="" if there else f"pip install 'modelops-coordinator[{extra}]'",
        )


def _libraries() -> Iterator[Finding]:
    if sys.platform != "linux":
        return
    for library, package in _LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError:
            advice = f"apt-get install {package}, or your system's package of it"
            yield Finding(what=library, verdict="warn", found="not here; llama_cpp models need it", advice=advice)
        else:
            yield Finding(what=library, verdict="ok", found="there (for llama_cpp models)")


def _folder(data_dir: Path) -> Iterator[Finding]:
    nearest = next(folder for folder in (data_dir.absolute(), *data_dir.absolute().parents) if folder.exists())
    advice = f"give {nearest} to this user, or choose another with --data-dir or MOC_DATA_DIR"
    state = "" if nearest == data_dir.absolute() else ", made by the first start"
    try:
        if not nearest.is_dir():
            raise NotADirectoryError(f"{nearest} is a file")
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        yield Finding(what="data folder", verdict="fail", found=f"{data_dir} cannot be written: {error}", advice=advice)
        return
    yield Finding(what="data folder", verdict="ok", found=f"{data_dir}{state}")
    free = shutil.disk_usage(nearest).free
    verdict: Verdict = "fail" if free < _DISK_FAIL else "warn" if free < _DISK_WARN else "ok"
    advice = "" if verdict == "ok" else "make room: models are kept in the data folder"
    yield Finding(what="disk", verdict=verdict, found=f"{Bytes(free)} free", advice=advice)


def _ports(data_dir: Path) -> Iterator[Finding]:
    ours = _our_ports(data_dir)
    protocols = (("REST", 8008, "--rest-port"), ("gRPC", 7212, "--grpc-port"), ("ZeroMQ", 7211, "--zmq-port"))
    for protocol, port, option in protocols:
        what = f"port {port}"
        if port in ours:
            yield Finding(what=what, verdict="ok", found=f"our coordinator's, for {protocol}")
        elif _is_free(port):
            yield Finding(what=what, verdict="ok", found=f"free, for {protocol}")
        else:
            advice = f"stop what holds it, or start with `moc serve {option} N`"
            yield Finding(what=what, verdict="fail", found=f"taken by another program ({protocol})", advice=advice)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _our_ports(data_dir: Path) -> set[int]:
    """The ports that the coordinator of this data folder listens on."""
    with contextlib.suppress(MocError, psutil.Error):
        pid = read_endpoints(data_dir).get("pid")
        if isinstance(pid, int) and pid > 0:
            connections = psutil.Process(pid).net_connections(kind="tcp")
            return {line.laddr.port for line in connections if line.status == psutil.CONN_LISTEN}
    return set()
