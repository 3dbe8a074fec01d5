"""Files of versions that were trained here: a folder for each job, never seen before it is whole."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


class Results:
    """The folders below `root`, an absolute path that only coordinators write to. All but `owns` blocks."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def keep(self, job: str, files: Mapping[str, Path]) -> Path:
        """Have these files and folders in the job's folder, durably, under new names; the folder.

        Where the disk can, they are linked, not copied. Nothing is done when it is there.
        """
        folder = self._root / job
        if folder.is_dir():
            return folder
        aside = self._root / f".new-{job}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True, mode=0o700)
        for name, source in files.items():
            if source.is_dir():
                shutil.copytree(source, aside / name, copy_function=link)
            else:
                link(source, aside / name)
        for path in [*aside.rglob("*"), aside]:
            _sync(path)
        aside.rename(folder)
        _sync(self._root)
        return folder

    def owns(self, path: Path) -> bool:
        """Whether it is one of these files, or was."""
        return path.is_relative_to(self._root) and path != self._root

    def delete(self, path: Path) -> None:
        """Delete the whole folder that a file of ours is in; fine when it is gone."""
        shutil.rmtree(self._root / path.relative_to(self._root).parts[0], ignore_errors=True)


def link(source: str | Path, target: str | Path) -> None:
    """Have the file under another name too, or a copy of it where the disk cannot."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
