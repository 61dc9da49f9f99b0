"""Workdirs that tasks did not choose: made when they are needed, and taken away when nothing was left in them.

Most short commands leave nothing in their directory but a little output, and making it with its job.out is the dearest
part of starting them: two new inodes are 0.1 to 1 ms on a disk, more where the file system is another machine, and
there they stay.  So what a task left empty, or with no more in it than a small job.out that has been kept elsewhere,
goes, under a name of ours, and then becomes the next task's; two renames are 15 us.  Whoever asks later for such a
directory gets it made (model.restored).  Knows paths only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

OUTPUT: Final = "job.out"
SMALL: Final = 4096
"""Bytes of output that need no file of their own."""
_MOST: Final = 64
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

    def take_back(self, workdir: str, keep: Callable[[bytes], object] | None = None) -> bool:
        """Take a directory away if it is as when it was made, and the output in it empty, or small and kept by what is
        given for that; True: it has gone.

        keep may raise OSError: then the directory stays.
        """
        try:
            names = os.listdir(workdir)
            output = os.path.join(workdir, OUTPUT)
            data = b""
            if names:
                seen = os.lstat(output) if names == [OUTPUT] else None
                if seen is None or seen.st_size > (SMALL if keep is not None else 0) or not self._untouched(seen):
                    return False
                data = _content(output) if seen.st_size else b""
                if len(data) != seen.st_size:        # it still grows
                    return False
            if os.lstat(workdir).st_mode & 0o40777 != stat.S_IFDIR | self._modes[0]:
                return False
            if data and keep is not None:
                keep(data)
            self._made += 1
            spare = os.path.join(self._data, f".empty-{self._name}-{self._made}")
            os.rename(workdir, spare)
        except OSError:              # somebody was faster, or it is not ours to move
            return False
        self._clear(spare, bool(data))
        return True

    def _clear(self, spare: str, said: bool) -> None:
        """Have it as if it were new."""
        try:
            if said:                 # whoever has it open shall not find the next task's output in it
                os.unlink(os.path.join(spare, OUTPUT))
            if len(self._spares) < _MOST:
                self._spares.append(spare)
            else:
                remove(spare)
        except OSError:              # then nobody gets it
            pass

    def _untouched(self, seen: os.stat_result) -> bool:
        return seen.st_nlink == 1 and seen.st_mode == stat.S_IFREG | self._modes[1]

    def close(self) -> None:
        """Remove the empty ones."""
        for spare in self._spares:
            remove(spare)
        self._spares.clear()


def _content(path: str) -> bytes:
    """Of a file that should be a small one: a byte more than that if it is not."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return os.read(fd, SMALL + 1)
    finally:
        os.close(fd)


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
