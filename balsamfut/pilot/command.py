"""Before a command is started: where it is, what its descriptors are, and why it cannot be run.

A shell's 127 and 126 are told apart from what is not the command's fault.  Knows files, descriptors and errno; starts
nothing (balsamfut.pilot.process does).
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

NOT_FOUND: Final = 127
NOT_RUN: Final = 126
# What says something about the command, as opposed to this machine: what a shell would answer with 126.
_COMMANDS_FAULT: Final = {errno.EACCES, errno.ENOEXEC, errno.E2BIG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
                          errno.ENAMETOOLONG, errno.ETXTBSY, errno.EPERM, errno.EINVAL, errno.ELIBBAD}


class StartError(OSError):
    """A command could not be started.

    Attributes: errno; returncode: what a shell would have returned, 127 (not found) or 126 (found, but not to be run);
    None where the command is not to blame: a directory that is not there, no more processes, memory or descriptors.
    """

    def __init__(self, number: int, text: str, returncode: int | None) -> None:
        super().__init__(number, text)
        self.returncode = returncode

    def __str__(self) -> str:
        return str(self.strerror)


def refusal(name: str, number: int) -> StartError:
    if number == errno.ENOENT:
        where = "no such file, or its interpreter is missing" if "/" in name else "command not found in PATH"
        return StartError(number, f"cannot run {name!r}: {where}", NOT_FOUND)
    returncode = NOT_RUN if number in _COMMANDS_FAULT else None
    return StartError(number, f"cannot run {name!r}: {os.strerror(number)}", returncode)


def copies(wanted: dict[int, int], opened: list[int]) -> list[tuple[int, int, int]]:
    """What posix_spawn is to do so that the child has `wanted` ({number in the child: ours}).

    One copy must not overwrite what another still needs: such are duplicated first, and noted in `opened`.
    """
    actions = []
    for number, fd in wanted.items():
        if fd != number and fd in wanted:
            fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(wanted) + 1)
            opened.append(fd)
        actions.append((os.POSIX_SPAWN_DUP2, fd, number))
    return actions


class Finder:
    """Finds commands as execvp would, but in the child's PATH and directory, and remembers where: a shared file system
    is not asked again for each task."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], str] = {}

    def find(self, name: str, path: str) -> str:
        """The file of the command `name` with this PATH, seen from the current directory.  Raises StartError."""
        if "/" in name:
            return name
        file = self._found.get((name, path))
        if file is not None:
            return file
        number = errno.ENOENT
        for folder in path.split(os.pathsep):
            file = os.path.join(folder or ".", name)
            if os.path.isfile(file):
                if os.access(file, os.X_OK):
                    if os.path.isabs(file):  # others depend on the directory
                        self._found[name, path] = file
                    return file
                number = errno.EACCES
        raise refusal(name, number)

    def forget(self, name: str, path: str) -> None:
        """Look anew at the next find()."""
        self._found.pop((name, path), None)
