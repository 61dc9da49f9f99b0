"""The agent's commands: each started in its directory with its output in a file, and judged when it is over.

Performs what the brain decides about commands and tells it how they ended.  It must not know queues, placements'
making or the interchange.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import pickle
import shlex
import signal
import time
from pathlib import Path
from typing import Final

import msgspec

from balsamfut.errors import BadStdStream, InvalidOption, LaunchFailed
from balsamfut.messages import Detail, Fault
from balsamfut.model import AppKind, Extra, Pool, Resources, ShellResult
from balsamfut.outlog import OutputLog, Span
from balsamfut.pilot import dialects, launch, ranks
from balsamfut.pilot.desk import Desk, tail
from balsamfut.pilot.events import Commanded, Event, Key
from balsamfut.pilot.launching import VniLatch
from balsamfut.pilot.orders import Job
from balsamfut.pilot.output import no_workdir
from balsamfut.pilot.process import Exit, Processes, StartError
from balsamfut.pilot.stage import missing_files, missing_outputs
from balsamfut.pilot.verdict import Cause, Verdict, failed
from balsamfut.pilot.workdirs import Workdirs, sweep
from balsamfut.platforms import Launcher
from balsamfut.raised import error_payload

log = logging.getLogger("balsamfut.pilot")

LOOK: Final = 1.0
"""Seconds between looks at what launchers say."""
HANGS: Final = 10.0
"""Seconds after which a launcher that has told that its launch failed, and is still there, is ended."""
_NO_EXTRA: Final = Extra()
_ASKED: Final = {errno.EACCES, errno.EEXIST, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT,
                 errno.ENOTDIR, errno.EPERM, errno.EROFS}
"""What says something about the directory that a call asked for, as opposed to this machine's disks."""


class Command:
    """One command that runs."""

    __slots__ = ("job", "workdir", "stdout", "stderr", "started", "text", "flavour", "call", "mark", "resources",
                 "launches", "signalled", "heard", "failed")

    def __init__(self, job: Job, mark: str, workdir: str, stdout: str, stderr: str, started: float) -> None:
        self.job = job
        self.mark = mark                          # in the environment of all its processes
        self.workdir = workdir
        self.stdout = stdout
        self.stderr = stderr
        self.started = started
        self.resources = job.resources            # as they are launched
        self.launches = 0
        self.signalled = False                    # somebody wants it to end
        self.heard = 0                            # bytes of output when we last looked
        self.failed = 0.0                         # when its launcher was seen to say that the launch has failed
        self.text = ""                            # for people
        self.flavour = ""                         # of the MPI launcher
        self.call: ranks.Call | None = None       # of a Python function that all ranks run


class Commands:
    """All commands of one agent."""

    def __init__(self, desk: Desk, processes: Processes) -> None:
        self._desk = desk
        self._processes = processes
        self._running: dict[Key, Command] = {}
        self._workdirs = Workdirs(desk.data, f"{desk.pilot}-{desk.host}")
        self._log = OutputLog(desk.site / "log" / f"pilot-{desk.pilot}", desk.host)
        self._launcher: Launcher | None = None
        self._vni = VniLatch()
        self._lingering: dict[Key, tuple[Exit, float]] = {}    # ended, but something of them is left
        self._looked = 0.0

    def limited(self) -> list[Key]:
        """Those whose memory is limited."""
        return [key for key, command in self._running.items() if command.job.resources.memory]

    @property
    def busy(self) -> bool:
        """Something is to be done at each tick."""
        return bool(self._lingering)

    def start(self, job: Job, now: float) -> Commanded | None:
        """Start a command; what is returned at once is that it could not be started."""
        desk, extra = self._desk, job.extra
        workdir = desk.workdir(job.task, extra)
        mark = f"{desk.token}:{job.task}:{job.attempt}"
        command = Command(job, mark, workdir, *desk.streams(extra, workdir), now)
        command.resources = self._vni.adapted(job.resources)
        try:
            if extra is not None and extra.workdir:
                os.makedirs(workdir, exist_ok=True)
            else:
                self._workdirs.make(workdir)
            self._spawn(command)
        except StartError as exc:
            if exc.returncode is None:
                return self._unstarted(command, LaunchFailed(f"{exc} (on {desk.host})"), Fault.LAUNCHER)
            self._note(command, f"{exc}\n")
            return self._judged(command, exc.returncode, Verdict(Cause.TASK, str(exc)))
        except (BadStdStream, InvalidOption) as exc:
            return self._unstarted(command, exc, Fault.TASK)
        except OSError as exc:
            error = LaunchFailed(no_workdir(job.define.name, workdir, desk.host, exc))
            asked = extra is not None and bool(extra.workdir)
            return self._unstarted(command, error, Fault.TASK if asked and exc.errno in _ASKED else Fault.LAUNCHER)
        self._running[job.key] = command
        return None

    def _spawn(self, command: Command) -> None:
        desk, job = self._desk, command.job
        extra, options, resources = job.extra or _NO_EXTRA, job.define.options, command.resources
        pool = desk.pools[job.pool]
        words = job.command
        if job.define.kind is AppKind.PYTHON:
            command.call = ranks.prepare(desk, job, command.workdir)
            words = command.call.argv
        assert words is not None
        command.text = words if isinstance(words, str) else shlex.join(words)
        directory = os.path.join(command.workdir, f".balsamfut-{job.attempt}")
        environ = {**dict(options.environment), "BALSAMFUT_TASK_ID": str(job.task),
                   "BALSAMFUT_ATTEMPT": str(job.attempt), "BALSAMFUT_WORKDIR": command.workdir}
        launcher = None if resources.serial else self._launcher_for(pool)
        if launcher is not None:
            command.flavour = launcher.flavour
        plan = launch.plan(resources, job.placement, desk.platform, desk.names, command=words, environ=environ,
                           preamble=options.shell_preamble, directory=directory, launcher=launcher,
                           pretend=desk.pretend, apart=desk.apart, base=desk.environ(pool))
        if plan.files:
            os.makedirs(directory, exist_ok=True)
            for name, content in plan.files.items():
                Path(directory, name).write_bytes(content)
        # What an earlier task wrote to a job.out of the same place goes; what an earlier attempt wrote stays.
        stdout_mode = extra.stdout_mode if extra.stdout else "w" if job.attempt == 1 else "a"
        command.launches += 1
        if command.launches > 1:
            stdout_mode = "a"
        self._processes.spawn(
            job.key, plan.argv, env={**desk.environ(pool), **plan.env}, cwd=command.workdir, mark=command.mark,
            stdout=command.stdout, stderr=command.stderr if command.stderr != command.stdout else None,
            stdout_mode=stdout_mode, stderr_mode=extra.stderr_mode, cores=plan.cores)

    def _launcher_for(self, pool: Pool) -> Launcher:
        """The MPI launcher, found once."""
        if self._launcher is None:
            found = self._desk.launcher(self._desk.environ(pool))
            if isinstance(found, str):
                raise StartError(errno.ENOENT, found, None)
            self._launcher = found
        return self._launcher

    def _note(self, command: Command, text: str) -> None:
        """What a shell would have written, where a shell would have written it."""
        try:
            with open(command.stderr, "a") as file:
                file.write(text)
        except OSError:
            pass

    def signal(self, key: Key, number: int) -> None:
        """Send a signal to all processes of a command; 9: until none is left."""
        if key not in self._running:
            return
        self._running[key].signalled = True
        if number == signal.SIGKILL:
            self._processes.kill(key)
        else:
            self._processes.signal(key, number, ranks=bool(self._running[key].flavour))

    def ended(self, exit: Exit, now: float) -> list[Event]:
        """A command's first process has ended: what it left behind is ended too, then its end is told."""
        key: Key = exit.key  # type: ignore[assignment]
        command = self._running[key]
        thorough = bool(command.flavour)
        if self._processes.remains(key, thorough=thorough):
            self._processes.kill(key)
            if self._processes.remains(key, thorough=thorough):
                self._lingering[key] = (exit, now)
                return []
        del self._running[key]
        verdict = self._verdict(command, exit.returncode)
        again = None if command.signalled else self._vni.again(command.resources, verdict)
        if again is not None:
            return self._once_more(command, again, verdict)
        return [self._judged(command, exit.returncode, verdict)]

    def _once_more(self, command: Command, resources: Resources, verdict: Verdict) -> list[Event]:
        """Launch it again in another way: nothing of it has run."""
        log.warning("task %d on %s: %s; it is launched again with %s", command.job.task, self._desk.host, verdict.line,
                    dict(resources.launch_params))
        command.resources = resources
        self._note(command, "balsamfut: launched again without a VNI\n")
        try:
            self._spawn(command)
        except OSError as exc:
            return [self._unstarted(command, LaunchFailed(f"{exc} (on {self._desk.host})"), Fault.LAUNCHER)]
        self._running[command.job.key] = command
        return []

    def linger(self) -> list[Event]:
        """Look again for what ended commands left behind; and for launchers that do not end though they should."""
        events: list[Event] = []
        if time.monotonic() - self._looked >= LOOK:
            self._looked = time.monotonic()
            for command in [each for each in self._running.values() if each.flavour]:
                self._look(command)
        for key, (exit, when) in list(self._lingering.items()):
            del self._lingering[key]
            events += self.ended(exit, when)
        return events

    def _look(self, command: Command) -> None:
        """Launchers are known to hang when a rank dies while others connect: what they have given up is ended."""
        if command.failed:
            if self._looked - command.failed >= HANGS:
                log.warning("the launcher of task %d on %s has told that it failed, and hangs", command.job.task,
                            self._desk.host)
                command.failed = math.inf
                self._note(command, "balsamfut: the launcher had told that it failed, but did not end: it was ended\n")
                self._processes.kill(command.job.key)
            return
        try:
            size = os.stat(command.stderr).st_size
        except OSError:
            return
        if size != command.heard and dialects.aborts(dict(command.resources.launch_params)):
            start, command.heard = max(0, command.heard - 200), size     # of lines that were half there, too
            if failed(command.flavour, tail(command.stderr, 65536, start)):
                command.failed = self._looked

    # ---- how it ended

    def _detail(self, command: Command, returncode: int | None) -> Detail:
        return Detail(returncode=returncode, host=self._desk.host, workdir=command.workdir, stdout=command.stdout,
                      stderr=command.stderr, attempt=command.job.attempt)

    def _unstarted(self, command: Command, error: Exception, fault: Fault) -> Commanded:
        return Commanded(command.job.key, None, command.started, fault, error_payload(error), str(error),
                         self._detail(command, None))

    def _judged(self, command: Command, returncode: int, verdict: Verdict) -> Commanded:
        job, fault = command.job, verdict.fault
        detail = self._detail(command, returncode)
        key, app = job.key, job.define.name
        if verdict.cause is Cause.REQUEST and job.resources.launch_params:
            given = ", ".join(f"{name}={value!r}" for name, value in job.resources.launch_params)
            refusal = InvalidOption(f"{app} (task {job.task}): {command.flavour} refuses what launch_params ({given}) "
                                    f"ask for: {verdict.line}")
            return Commanded(key, returncode, command.started, Fault.TASK, error_payload(refusal), str(refusal), detail)
        if fault not in (Fault.NONE, Fault.TASK):
            text = f"{app} (task {job.task}) on {self._desk.host}: {verdict.line}"
            return Commanded(key, returncode, command.started, fault, error_payload(LaunchFailed(text)), text, detail,
                             verdict.host)
        if command.call is not None:
            outcome = command.call.outcome(returncode)
            if outcome is not None:
                ok, payload, error = outcome
                return Commanded(key, returncode, command.started, Fault.NONE if ok else Fault.TASK, payload, error,
                                 detail)
        if fault is Fault.TASK:
            payload, text = self._desk.shell_error(job.task, job.extra, app, returncode, verdict.line, command.text)
            return Commanded(key, returncode, command.started, fault, payload, text, detail)
        missing = missing_files((job.extra or _NO_EXTRA).outputs, command.workdir)
        if missing:
            exc = missing_outputs(app, missing)
            return Commanded(key, returncode, command.started, Fault.TASK, error_payload(exc), str(exc), detail)
        logged = None
        if self._forgettable(command):
            detail, logged = self._forgotten(command, detail)
        result = ShellResult(returncode, command.stdout, command.stderr, command.workdir, logged)
        return Commanded(key, returncode, command.started, Fault.NONE, pickle.dumps(result, 5), "", detail)

    def _forgettable(self, command: Command) -> bool:
        """Nobody asked for anything in its directory, and nobody is left who could write there."""
        extra = command.job.extra or _NO_EXTRA
        return not (extra.workdir or extra.stdout or extra.stderr or extra.outputs or extra.inputs or command.flavour
                    or command.call is not None or command.signalled or self._processes.strangers
                    or command.job.followed)

    def _forgotten(self, command: Command, detail: Detail) -> tuple[Detail, Span | None]:
        """Have its directory go, if there is nothing in it that would not be found in the output log."""
        logged: list[Span] = []

        def keep(data: bytes) -> None:
            logged.append(self._log.append(command.job.task, command.job.attempt, data))

        if not self._workdirs.take_back(command.workdir, keep):
            return detail, None
        if not logged:
            return msgspec.structs.replace(detail, stdout="", stderr=""), None
        path, start, end = logged[0]
        return msgspec.structs.replace(detail, stdout=path, stderr=path, stdout_span=(start, end),
                                       stderr_span=(start, end)), logged[0]

    def close(self) -> None:
        """Nothing runs any more."""
        self._log.close()
        sweep(self._desk.data, str(self._desk.pilot))

    def _verdict(self, command: Command, returncode: int) -> Verdict:
        return launch.judge(command.flavour, returncode, self._said(command) if returncode else "")

    def _said(self, command: Command) -> str:
        """What a launcher's verdict is read from: a line for each rank may follow the one that counts."""
        if not command.flavour:
            return ""
        most = 8192 + 128 * command.resources.ranks
        ours = os.path.join(command.workdir, f".balsamfut-{command.job.attempt}", f"{launch.WRAPPER}.said")
        said = tail(ours) + tail(command.stderr, most)
        return said if command.stderr == command.stdout else tail(command.stdout, most) + said
