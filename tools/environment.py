"""Make the virtual environment FOLDER and have pip install into it: `environment.py FOLDER [PIP ARGUMENT]...`.

Python 3.7 can read it, so that one that is too old is told so instead of failing on its first line.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

PYTHON_MIN = (3, 11)
PIP = "26.3"  # knows dependency groups, which Debian's own does not
LIBRARIES = (("libgomp.so.1", "libgomp1"), ("libstdc++.so.6", "libstdc++6"))


def lacking() -> list[str]:
    """What this machine must have before anything can be installed, each with what to do about it."""
    found = []
    if sys.version_info < PYTHON_MIN:
        wanted, here = (".".join(map(str, version)) for version in (PYTHON_MIN, sys.version_info[:3]))
        found.append(
            f"Python {wanted} or newer; {sys.executable} is {here}. Name another one: make PYTHON=python{wanted}"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        found.append("Python's venv module. On Debian: apt-get install python3-venv")
    if sys.platform.startswith("linux"):
        for library, package in LIBRARIES:
            try:
                ctypes.CDLL(library)
            except OSError:
                found.append(f"{library}, which llama.cpp needs. On Debian: apt-get install {package}")
    return found


def works(python: str) -> bool:
    """Whether there is an environment already, of the same Python and not moved here from elsewhere."""
    look = "import sys; print(sys.prefix, *sys.version_info[:3], sep='\\n')"
    try:
        answer = subprocess.check_output([python, "-c", look], text=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return False
    prefix = os.path.dirname(os.path.dirname(python))
    return answer.splitlines() == [prefix, *map(str, sys.version_info[:3])]


def install(folder: str, arguments: list[str]) -> int:
    """Make the environment unless it works, then install; the exit status of the first step that failed, or 0."""
    python = os.path.join(os.path.realpath(folder), "bin", "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    steps = [] if works(python) else [[sys.executable, "-m", "venv", "--clear", folder]]
    steps += [[*pip, f"pip=={PIP}"], [*pip, *arguments]]
    print(f"installing into {folder} (about a minute the first time)", flush=True)
    for step in steps:
        status = subprocess.call(step, stdin=subprocess.DEVNULL)
        if status:
            return status
    return 0


def main() -> int:
    missing = lacking()
    for line in missing:
        print(f"missing: {line}", file=sys.stderr)
    if missing:
        return 1
    return install(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
