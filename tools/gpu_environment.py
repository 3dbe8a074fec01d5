"""What `make test-gpu` runs in: a virtual environment beside a Python that brings torch, transformers and NumPy along.

gpu_environment.py fetch FOLDER PYTHON   fetch wheels for Linux on x86-64 and that Python, as 3.12, into FOLDER
gpu_environment.py make FOLDER WHEELS    make the environment FOLDER for the Python that runs this, of the wheels in
                                         the folder WHEELS if it is there, else from a package index
"""

import ctypes
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
BROUGHT = ("numpy", "torch", "transformers")
TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout")
MACHINE = "x86_64"
GLIBC = 28
"""The newest glibc, 2.28, that a wheel may ask for."""
PLATFORMS = [f"manylinux_2_{minor}_{MACHINE}" for minor in range(GLIBC, 4, -1)] + [
    f"manylinux{year}_{MACHINE}" for year in ("2014", "2010", "1")
]
PIP = [*("-m", "pip", "--disable-pip-version-check", "--no-input")]


def wanted() -> list[str]:
    """What the project and its tests on a GPU require, but for what the Python there brings along."""
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [*(line for line in required if not line.startswith(BROUGHT)), *TOOLS]


def pins(python: str) -> list[str]:
    """`wanted` with all that it requires on such a machine, pinned."""
    compiler = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "-", "--constraint", str(CONSTRAINTS)]
    target = ["--python-version", python, "--python-platform", f"{MACHINE}-manylinux_2_{GLIBC}"]
    output = ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]
    lines = "\n".join(wanted())
    done = subprocess.run([*compiler, *target, *output], input=lines, check=True, capture_output=True, text=True)
    return done.stdout.split("\n")


def fetch(folder: Path, python: str) -> int:
    """Fill `folder` with the wheels anew; prints how large they are together."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = [pin for pin in pins(python) if pin and not pin.startswith(BROUGHT)]
    target = ["--implementation", "cp", "--python-version", python, "--only-binary=:all:", "--no-deps"]
    target += [f"--platform={platform}" for platform in PLATFORMS]
    subprocess.run([sys.executable, *PIP, "download", "--quiet", "--dest", str(folder), *target, *found], check=True)
    sizes = [wheel.stat().st_size for wheel in folder.iterdir()]
    print(f"{len(sizes)} wheels, {sum(sizes) / 2**20:.1f} MiB, in {folder}")
    return 0


def lacking() -> str:
    """Why the tests cannot be run here, empty when they can."""
    try:
        driver = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return "no NVIDIA GPU here: there is no driver (libnvidia-ml.so.1)"
    count = ctypes.c_uint()
    if driver.nvmlInit_v2() or driver.nvmlDeviceGetCount_v2(ctypes.byref(count)) or not count.value:
        return "no NVIDIA GPU here: the driver lists none (see nvidia-smi)"
    missing = [name for name in ("pip", *BROUGHT) if find_spec(name) is None]
    if missing:
        return f"{sys.executable} lacks {', '.join(missing)}. Name a Python that has them: make PYTHON=python3 test-gpu"
    return ""


def make(folder: Path, wheels: Path) -> int:
    """Make the environment, or bring it up to date; the exit status of the step that failed, or 0."""
    problem = lacking()
    if problem:
        print(problem, file=sys.stderr)
        return 1
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # The Python that brings the rest may be an environment itself, which --system-site-packages would pass over.
    there = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "beside.pth").write_text("\n".join([str(ROOT / "src"), *there]) + "\n")
    origin = ["--no-index", "--find-links", str(wheels)] if wheels.is_dir() else []
    pip = [sys.executable, *PIP, "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    return subprocess.call([*pip, "--constraint", str(CONSTRAINTS), *origin, *wanted()])


def main() -> int:
    command, folder, other = sys.argv[1:]
    return fetch(Path(folder), other) if command == "fetch" else make(Path(folder), Path(other))


if __name__ == "__main__":
    sys.exit(main())
