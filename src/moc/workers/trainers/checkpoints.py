"""Checkpoints: states a training can go on from, each complete and true, or not there.

One is built aside, every file of it brought to the disk and hashed into a manifest, and only then given its name. So
whatever ends the process or the machine, the one before is still there, and a torn one is known as such.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"


class Checkpoints:
    """Those in `folder`, each named after its step; the last `kept` stay. `warn` is told of one that is refused."""

    def __init__(self, folder: Path, *, kept: int, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._kept = kept
        self._warn = warn
        folder.mkdir(parents=True, exist_ok=True)
        self._clear_aside()

    def save(self, step: int, build: Callable[[Path], object], *, best: int | None = None) -> Path:
        """Make the checkpoint of a step of what `build` puts into the folder it is given; durable when this returns.

        Older ones go, but for that of the step `best`.
        """
        aside = self._folder / f".new-{step}"
        self._clear_aside()
        aside.mkdir()
        build(aside)
        seal(aside)
        made = self.of(step)
        shutil.rmtree(made, ignore_errors=True)
        aside.rename(made)
        _sync(self._folder)
        for old in self._steps()[self._kept :]:
            if old != best:
                shutil.rmtree(self.of(old))
        return made

    def newest(self) -> Path | None:
        """The last one that is as it was saved, None when there is none; the torn ones after it are deleted."""
        return next(filter(None, map(self.sound, self._steps())), None)

    def sound(self, step: int) -> Path | None:
        """The checkpoint of a step; None when there is none, or it was torn and so is deleted now."""
        found = self.of(step)
        wrong = flaw(found)
        if wrong is None:
            return found
        self._warn(f"{found.name} is not what was saved and cannot be used: {wrong}")
        shutil.rmtree(found, ignore_errors=True)
        return None

    def of(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self._folder / f"{PREFIX}{step}"

    def _steps(self) -> list[int]:
        """The steps there are checkpoints of, the last one first."""
        found = (path.name.removeprefix(PREFIX) for path in self._folder.glob(f"{PREFIX}*"))
        return sorted((int(step) for step in found if step.isdecimal()), reverse=True)

    def _clear_aside(self) -> None:
        for left in self._folder.glob(".new-*"):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


def seal(folder: Path) -> None:
    """Bring all of a folder to the disk, with a manifest of what is in it."""
    files = _files(folder)
    manifest = {name: {"sha256": _sha256(path), "bytes": path.stat().st_size} for name, path in files.items()}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
    for path in (*files.values(), folder / MANIFEST):
        _sync(path)
    for below in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        _sync(below)


def flaw(folder: Path) -> str | None:
    """What is wrong with a folder that was sealed, None when nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError) as error:
        return f"its {MANIFEST} cannot be read: {error}"
    try:
        files = _files(folder)
        if not isinstance(manifest, dict) or files.keys() != manifest.keys():
            return f"its files are not those of its {MANIFEST}"
        for name, path in files.items():
            if manifest[name] != {"sha256": _sha256(path), "bytes": path.stat().st_size}:
                return f"{name} has changed"
    except OSError as error:
        return f"it cannot be read: {error}"
    return None


def _files(folder: Path) -> dict[str, Path]:
    """Every file but the manifest, by its name below the folder."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    found.pop(MANIFEST, None)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
