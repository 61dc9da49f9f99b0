"""Workdirs that tasks did not choose: made when they are needed, and taken away when nothing was left in them.

Most short commands leave nothing in their directory, and making it with its job.out is the dearest part of starting
them: two new inodes are 0.1 to 1 ms on a disk, more where the file system is another machine.  So what a task left
empty goes, under a name of ours, and then becomes the next task's; two renames are 15 us.  Whoever asks later for the
output of such a task gets it made (model.restored).  Knows paths only.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

OUTPUT: Final = "job.out"
_KEPT: Final = 64
"""Empty directories to hold; more than run at a time are of no use."""


class Workdirs:
    """data: the directory under which they lie.  name: tells this holder of empty ones from all others of the site."""

    def __init__(self, data: str, name: str) -> None:
        self._data = data
        self._name = name
        self._spares: list[str] = []
        self._made = 0
        mask = os.umask(0o077)
        os.umask(mask)
        self._modes = 0o777 & ~mask, 0o666 & ~mask

    def make(self, workdir: str) -> None:
        """Have this directory, which may be there already.  Raises OSError."""
        if not self._spares:
            os.makedirs(workdir, exist_ok=True)
            return
        spare = self._spares.pop()
        try:
            os.rename(spare, workdir)
        except OSError:              # something is there, or the directory above it is not
            os.makedirs(workdir, exist_ok=True)
            self._spares.append(spare)

    def take_back(self, workdir: str) -> bool:
        """Take a directory away if it is as when it was made, and the output in it empty; True: it has gone."""
        if len(self._spares) >= _KEPT:
            return False
        try:
            names = os.listdir(workdir)
            if names and (names != [OUTPUT] or not self._untouched(os.path.join(workdir, OUTPUT))):
                return False
            if os.lstat(workdir).st_mode & 0o40777 != stat.S_IFDIR | self._modes[0]:
                return False
            self._made += 1
            spare = os.path.join(self._data, f".empty-{self._name}-{self._made}")
            os.rename(workdir, spare)
        except OSError:              # somebody was faster, or it is not ours to move
            return False
        self._spares.append(spare)
        return True

    def _untouched(self, file: str) -> bool:
        seen = os.lstat(file)
        return seen.st_size == 0 and seen.st_nlink == 1 and seen.st_mode == stat.S_IFREG | self._modes[1]

    def close(self) -> None:
        """Remove the empty ones."""
        for spare in self._spares:
            remove(spare)
        self._spares.clear()


def sweep(data: str, name: str) -> None:
    """Remove what holders whose names begin so have left behind."""
    for path in Path(data).glob(f".empty-{name}-*"):
        remove(str(path))


def remove(spare: str) -> None:
    output = Path(spare, OUTPUT)
    try:
        if output.exists() and not output.stat().st_size:
            output.unlink()
        os.rmdir(spare)
    except OSError:                  # it is not empty after all
        pass
