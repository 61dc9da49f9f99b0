"""Every exception that balsamfut raises.  The tree is the documentation; each docstring is what happened.

    BalsamfutError
    |-- UsageError                 the caller can mend it, before anything runs
    |   |-- InvalidOption          an option that does not exist or has a wrong value
    |   |-- InvalidResources       a request that no node, or no number of nodes, can satisfy
    |   |-- TemplateError          a command template that cannot be rendered
    |   |-- LeftBehind             the future of a task that a script has left to its site
    |   |-- SettingsError          a settings file or variable that is not understood
    |   `-- NoExecutor             an app was called while no Executor is open
    |-- SiteError                  the service behind the Executor
    |   |-- InterchangeLost        the interchange did not answer, or could not be started
    |   |-- ProtocolMismatch       two versions of balsamfut that do not understand each other
    |   |-- DatabaseTooNew         the database was written by a newer balsamfut
    |   `-- SiteTaken              another interchange owns this database
    |-- SerializationError         an argument, function or result that cannot be pickled
    |-- DeserializationError       an argument, function or result that cannot be unpickled
    |-- InitializerFailed          a worker's initializer raised; also a concurrent.futures.BrokenExecutor
    |-- RemoteTraceback            the traceback of an exception, as text, from where the task ran
    `-- TaskError                  how a task ended, other than by its own exception
        |-- ShellError             a command ended with a code that is not 0
        |-- WalltimeExceeded       also a TimeoutError
        |-- BlockEnded             its block ended while it ran; only its on_timeout hook hears of it
        |-- OutOfMemory            also a MemoryError
        |-- WorkerLost             the process that ran the task died
        |-- TaskKilled             somebody called kill()
        |-- PoisonTask             the task took several healthy pilots or nodes with it
        |-- LaunchFailed           the launcher or the node could not start it, again and again
        |-- MissingInputs          declared input files that are not there
        |-- MissingOutputs         declared output files that were not made
        |-- BadStdStream           a stdout= or stderr= file that cannot be opened
        |-- UpstreamFailed         a task that this one needed did not succeed; __cause__ is the root
        `-- JoinError              a task that the returned futures stand for did not succeed

All of them survive pickling with their attributes.  This module imports nothing of balsamfut.
"""

from __future__ import annotations

import pickle
from concurrent.futures import BrokenExecutor
from typing import Any


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    try:
        exc = cls.__new__(cls, *args)
    except TypeError:   # MemoryError has a __new__ of its own, which CPython refuses for a class that has two bases
        exc = BaseException.__new__(cls, *args)
    exc.args = args
    exc.__dict__.update(state)
    return exc


class BalsamfutError(Exception):
    """The root of all errors that balsamfut itself raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle as cls(*args), which fails for constructors of another shape.
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class UsageError(BalsamfutError):
    """Something in the call, the decoration, the command line or the settings is wrong; nothing was run."""


class InvalidOption(UsageError, TypeError, ValueError):
    """An option does not exist, or its value is not of the kind that it takes."""


class InvalidResources(UsageError, ValueError):
    """No node, or no number of nodes that this pilot may have, can satisfy the request."""


class TemplateError(UsageError, ValueError):
    """A command template uses what was not declared or given, or is not valid Jinja."""


class SettingsError(UsageError, ValueError):
    """A settings file or an environment variable holds something that is not understood."""


class LeftBehind(UsageError):
    """A script left its task to the site before it was over; the script's future of it hears no more."""


class NoExecutor(UsageError, RuntimeError):
    """An app was called while no Executor is open in this process."""


class SiteError(BalsamfutError):
    """The interchange or its database cannot do what was asked of it."""


class InterchangeLost(SiteError, ConnectionError):
    """The interchange could not be started or reached."""


class SiteStopped(InterchangeLost):
    """A site that is kept is not running; whoever keeps it starts it."""


class ProtocolMismatch(SiteError):
    """The peer speaks another version of the wire protocol."""


class DatabaseTooNew(SiteError):
    """The database's schema is newer than this balsamfut knows; it was left as it is."""


class SiteTaken(SiteError):
    """Another interchange owns this database."""


class SerializationError(BalsamfutError, pickle.PicklingError):
    """A function, an argument, a result or an exception cannot be pickled."""


class DeserializationError(BalsamfutError, pickle.UnpicklingError):
    """A function, an argument, a result or an exception cannot be unpickled where it arrived."""


class InitializerFailed(BalsamfutError, BrokenExecutor):
    """A worker's initializer raised, so this Executor cannot run Python tasks; __cause__ is what it raised."""


class RemoteTraceback(BalsamfutError):
    """Where the exception happened: host, worker and the remote traceback, as text."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return "\n" + self.text


class TaskError(BalsamfutError):
    """A task did not succeed, for a reason other than an exception of its own."""


class ShellError(TaskError):
    """A command ended with a code that is not 0.

    Attributes: returncode (negative: -signal), host, workdir, command, stderr (path), tail (the end of stderr).
    """

    def __init__(self, message: str = "", *, returncode: int = 0, host: str = "", workdir: str = "",
                 command: str = "", stderr: str = "", tail: str = "") -> None:
        super().__init__(message)
        self.returncode = returncode
        self.host = host
        self.workdir = workdir
        self.command = command
        self.stderr = stderr
        self.tail = tail


class WalltimeExceeded(TaskError, TimeoutError):
    """The attempt ran longer than the task's walltime; its processes are gone."""


class BlockEnded(TaskError):
    """The block ended while the attempt ran.  It goes on in the next block, so only on_timeout hooks are told."""


class OutOfMemory(TaskError, MemoryError):
    """The attempt used more memory than the task asked for, or the kernel ended it for want of memory."""


class WorkerLost(TaskError):
    """The process that ran the task died (segmentation fault, os._exit, a signal)."""


class TaskKilled(TaskError):
    """kill() ended the task."""


class PoisonTask(TaskError):
    """The task was running when several pilots or nodes were lost, or its worker died on several nodes that are well
    otherwise, so it is not tried again."""


class LaunchFailed(TaskError):
    """The task could not be started: the launcher or the node refused, again and again."""


class MissingInputs(TaskError):
    """Input files that the task declared do not exist.  Attribute: paths."""

    def __init__(self, message: str = "", *, paths: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.paths = paths


class MissingOutputs(TaskError):
    """Output files that the task declared were not made.  Attribute: paths."""

    def __init__(self, message: str = "", *, paths: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.paths = paths


class BadStdStream(TaskError, OSError):
    """A file for stdout or stderr cannot be opened."""


class UpstreamFailed(TaskError):
    """A task that this one needed did not succeed, so this one never ran.

    __cause__ is the root: the exception of the first task that failed.  Attribute: task_id (of the root).
    """

    def __init__(self, message: str = "", *, task_id: int = 0) -> None:
        super().__init__(message)
        self.task_id = task_id


class JoinError(TaskError):
    """Tasks whose futures this task returned did not succeed.  Attribute: task_ids."""

    def __init__(self, message: str = "", *, task_ids: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.task_ids = task_ids
