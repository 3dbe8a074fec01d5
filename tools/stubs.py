"""Write the Python classes of proto/ into the gRPC transport; with `--check`, only tell whether they are up to date.

protoc takes a file's path for its package, so `moc/v1/models.proto` would become the module `moc.v1.models_pb2`; the
imports are turned to where the modules are. Only messages are made: handlers take and give bytes.
"""

import re
import sys
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
PROTO = ROOT / "proto"
STUBS = ROOT / "src" / "moc" / "transports" / "grpc" / "stubs"
PACKAGE = "moc.transports.grpc.stubs"
IMPORT = re.compile(r"^from (?!google\b)(\w+(?:\.\w+)*) import (\w+_pb2\b)", re.MULTILINE)


def generate(target: Path) -> None:
    """Every file of proto/, as modules in `target`."""
    sources = [str(path.relative_to(PROTO)) for path in sorted(PROTO.rglob("*.proto"))]
    include = files("grpc_tools") / "_proto"
    options = [f"-I{PROTO}", f"-I{include}", f"--python_out={target}", f"--pyi_out={target}"]
    if protoc.main(["protoc", *options, *sources]):
        raise SystemExit("protoc refused what is in proto/")
    for module in target.rglob("*_pb2.py*"):
        module.write_text(IMPORT.sub(rf"from {PACKAGE}.\1 import \2", module.read_text()))


def differences(made: Path) -> Iterator[str]:
    """A line for each module that is missing, stale or left over."""
    wanted = {path.relative_to(made): path for path in made.rglob("*_pb2.py*")}
    there = {path.relative_to(STUBS): path for path in STUBS.rglob("*_pb2.py*")}
    for name in sorted(wanted.keys() | there.keys()):
        if name not in there:
            yield f"{name} is missing"
        elif name not in wanted:
            yield f"{name} has no source"
        elif wanted[name].read_text() != there[name].read_text():
            yield f"{name} is not what its source says"


def write(made: Path) -> None:
    """Make the stubs what is in `made`."""
    for stale in STUBS.rglob("*_pb2.py*"):
        stale.unlink()
    for module in made.rglob("*_pb2.py*"):
        target = STUBS / module.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(module.read_text())


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        generate(made)
        found = list(differences(made))
        if sys.argv[1:] == ["--check"]:
            print("\n".join([*found, "run `make generated`"]) if found else "the stubs are what proto/ says")
            return 1 if found else 0
        write(made)
    print(f"wrote {len(found)} stubs" if found else "the stubs are what proto/ says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
