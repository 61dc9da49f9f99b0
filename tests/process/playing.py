"""The interchange's part, played for a real agent: one door, apps by function, and waiting for reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from balsamfut import serialize, wire
from balsamfut.calls import HOOKS
from balsamfut.messages import (
    BeatAck,
    Declined,
    Enrol,
    Enrolled,
    Exited,
    FromPilot,
    Item,
    Kill,
    Launch,
    Leaving,
    NodeNews,
    PilotBeat,
    Ran,
    Received,
    Reports,
    Return,
    Started,
    Stop,
    TooLate,
)
from balsamfut.model import AppKind, AppSpec, Extra, Hook, Options, Payload, Pool, Resources, TaskClass, TaskSpec

PATIENCE = 120.0


class Interchange:
    """What the tests need of an interchange: it launches what it is told to and keeps what it hears."""

    def __init__(self, site: Path, epoch: int = 1) -> None:
        self.site = site
        self.objects = site / "objects"
        self.door = wire.Door(wire.local_address(site, f"play-{epoch}"), FromPilot)
        self.poller = wire.Poller()
        self.poller.register(self.door)
        self.epoch = epoch
        self.peer = b""
        self.acknowledges = True
        self.enrolments: list[Enrol] = []
        self.nodes: dict[str, NodeNews] = {}      # what was last said of each node
        self.reports: list[Started | Exited | Ran] = []
        self.exits: dict[int, Exited] = {}
        self.messages: list[Reports] = []
        self.declined: list[Declined] = []
        self.left: list[Leaving] = []
        self.closed: set[int] = set()     # task classes that are to be sent no more
        self.beats = 0
        self.apps: dict[int, tuple[TaskClass, AppSpec, bytes]] = {}
        self.told: set[int] = set()
        self.pool = Pool(sys.executable, tuple(os.path.abspath(path) for path in sys.path), os.getcwd(),
                         tuple(sorted(os.environ.items())))
        self.pools = {b"P" * 16: self.pool}
        self.tasks = 0
        self.announce(os.getpid())

    def announce(self, pid: int) -> None:
        """Write the connection file."""
        said = {"pid": pid, "host": os.uname().nodename, "epoch": self.epoch, "clients": "ipc:///nobody",
                "pilots": self.door.address, "protocol": 1, "started": 0.0}
        temporary = self.site / "interchange.new"
        temporary.write_text(json.dumps(said))
        temporary.replace(self.site / "interchange.json")

    # ---- orders

    def app(self, func: Callable[..., Any] | None, kind: AppKind = AppKind.PYTHON, template: str | None = None, *,
            hooks: dict[str, Callable[..., Any]] | None = None, resources: Resources | None = None,
            pool: Pool | None = None, name: str = "", **options: Any) -> int:
        """Define an app; the number of its task class."""
        cls = len(self.apps) + 1
        digest = cls.to_bytes(16)
        pool_digest = b"P" * 16
        if pool is not None:
            pool_digest = cls.to_bytes(16)
            self.pools[pool_digest] = pool
        flags = Hook(0)
        for hook in hooks or {}:
            flags |= HOOKS[hook]
        spec = AppSpec(name or getattr(func, "__name__", "template"), kind, digest, flags)
        code = serialize.dumps_code(serialize.AppCode(func, template, hooks))
        self.apps[cls] = TaskClass(digest, pool_digest, resources or Resources(), Options(**options)), spec, code
        return cls

    def shell(self, command: str, **options: Any) -> int:
        return self.app(None, AppKind.TEMPLATE, command, **options)

    def item(self, cls: int, *args: Any, task: int = 0, attempt: int = 1, extra: Extra | None = None,
             values: list[Payload] | None = None, packed: Payload | None = None, again: Resources | None = None,
             ran: int | None = None, **kwargs: Any) -> Item:
        self.tasks = max(self.tasks + 1, task)
        kind, template = self.apps[cls][1].kind, serialize.loads_code(self.apps[cls][2]).template
        if kind is AppKind.TEMPLATE and not (args or kwargs):
            extra = extra or Extra()
            extra = Extra(**{name: getattr(extra, name) for name in Extra.__struct_fields__} | {"command": template})
        if packed is None and (args or kwargs):
            packed = serialize.stow(serialize.dumps_args(args, kwargs)[0], self.objects, 65536)
        spec = TaskSpec(self.tasks, cls, packed, extra=extra)
        return Item(task or self.tasks, attempt, cls, spec, values or [], again, ran)

    def launch(self, *items: Item) -> list[int]:
        """Send items in one message, with what the pilot was not told before."""
        new = {item.cls for item in items} - self.told
        self.told |= new
        self.send(Launch(
            list(items), [(cls, self.apps[cls][0]) for cls in new], [self.apps[cls][1] for cls in new],
            [(self.apps[cls][1].digest, self.apps[cls][2]) for cls in new],
            [(self.apps[cls][0].pool, self.pools[self.apps[cls][0].pool]) for cls in new]))
        return [item.task for item in items]

    def run(self, cls: int, *args: Any, **kwargs: Any) -> int:
        return self.launch(self.item(cls, *args, **kwargs))[0]

    def kill(self, task: int, attempt: int = 1) -> None:
        self.send(Kill([(task, attempt)]))

    def give_back(self, *tasks: int) -> list[int]:
        """Ask for tasks back; those that the pilot keeps."""
        number = len(self.declined)
        self.send(Return(number, list(tasks)))
        self.until(lambda: len(self.declined) > number)
        assert self.declined[number].request == number
        return self.declined[number].started

    def send(self, message: Any) -> None:
        self.door.send(self.peer, message)

    # ---- what is heard

    def pump(self, seconds: float = 0.2) -> None:
        self.poller.poll(seconds)
        for peer, message in self.door.receive(1000):
            self.peer = peer
            match message:
                case Reports():
                    self.messages.append(message)
                    self.reports += message.reports
                    self.exits.update((each.task, each) for each in message.reports if isinstance(each, Exited))
                    if self.acknowledges:
                        self.send(Received(message.seq))
                case Enrol():
                    self.enrolments.append(message)
                    self.send(Enrolled(self.epoch, []))
                case PilotBeat():
                    self.beats += 1
                    self.send(BeatAck())
                case NodeNews():
                    self.nodes[message.name] = message
                case Declined():
                    self.declined.append(message)
                case Leaving():
                    self.left.append(message)
                case TooLate():
                    self.closed |= set(message.classes)

    def until(self, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"it did not happen within {seconds} s; the last reports: {self.reports[-3:]}")
            self.pump(0.05)

    def end(self, task: int) -> Exited:
        """How a task ended, once it has."""
        self.until(lambda: task in self.exits)
        return self.exits[task]

    def started(self, task: int) -> Started:
        """The report that it started, once there is one."""
        def found() -> list[Started]:
            return [each for each in self.reports if isinstance(each, Started) and each.task == task]

        self.until(found)
        return found()[0]

    def value(self, task: int) -> Any:
        ended = self.end(task)
        assert ended.fault == 0, (ended.fault, ended.error)
        return self.loads(ended.payload)

    def loads(self, payload: Payload | None) -> Any:
        assert payload is not None
        return serialize.loads(payload, lambda blob: serialize.fetch(blob, self.objects))

    def error(self, task: int) -> BaseException:
        payload = self.end(task).payload
        assert payload is not None, self.end(task)
        return serialize.loads_exception(payload, lambda blob: serialize.fetch(blob, self.objects))

    def flagged(self, path: Path | str) -> None:
        """Wait until a task has made this file."""
        self.until(Path(path).exists)


    def close(self) -> None:
        self.poller.unregister(self.door)
        self.door.close()


class Pilot:
    """A real agent process."""

    def __init__(self, site: Path, door: wire.Door, *, cores: int = 2, platform: str = "workstation",
                 nodes: int = 1, environ: dict[str, str] | None = None, grace: float = 15.0, number: int = 1,
                 walltime: float = 0.0) -> None:
        argv = [sys.executable, "-P", "-m", "balsamfut.pilot.agent", "--site", str(site), "--pilot", str(number),
                "--token", f"t{os.getpid()}-{time.monotonic_ns()}", "--address", door.address,
                "--orphan-grace", str(grace), "--platform", platform, "--nodes", str(nodes)]
        argv += ["--cores", str(cores)] if platform == "workstation" else ["--pretend"]
        argv += ["--walltime", str(walltime)] if walltime else []
        # A session of its own, as a batch job has one.
        self.process = subprocess.Popen(argv, env={**os.environ, **(environ or {})}, start_new_session=bool(walltime))

    def wait(self, seconds: float = PATIENCE) -> int:
        return self.process.wait(seconds)


@contextmanager
def playing(site: Path, **how: Any) -> Iterator[tuple[Interchange, Pilot]]:
    """An interchange and the pilot that has enrolled with it; at the end the pilot is told to stop, and does."""
    interchange = Interchange(site)
    pilot = Pilot(site, interchange.door, **how)
    try:
        interchange.until(lambda: interchange.enrolments)
        yield interchange, pilot
        if pilot.process.poll() is None:
            interchange.send(Stop(0.0))
            interchange.until(lambda: pilot.process.poll() is not None)
    finally:
        if pilot.process.poll() is None:
            pilot.process.kill()
            pilot.process.wait()
        interchange.close()
