"""An interchange in the test's own process: speaks the clients' protocol, runs calls in its thread, keeps nothing."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from balsamfut import messages as m
from balsamfut import serialize
from balsamfut.errors import TaskKilled
from balsamfut.model import AppKind, TaskState
from balsamfut.wire import Door, Poller, Waker, local_address


class FakeInterchange:
    """`hold`: calls are accepted but not run until `release`.  `mute`: nothing is answered but Hello."""

    def __init__(self, site: Path, epoch: int = 1, *, hold: bool = False, mute: bool = False, first_task: int = 100,
                 **welcome: Any) -> None:
        self.site = site
        self.epoch = epoch
        self.hold = hold
        self.mute = mute
        self.welcome = welcome
        self.got: list[m.Message] = []
        self.hellos: list[m.Hello] = []
        self.specs: dict[int, Any] = {}       # by task
        self.tasks: dict[tuple[str, int], int] = {}
        self.values: dict[int, bytes] = {}
        self.failures: dict[int, bytes] = {}
        self.states: dict[int, TaskState] = {}
        self.codes: dict[bytes, Any] = {}
        self.apps: dict[bytes, Any] = {}
        self.classes: dict[tuple[str, int], Any] = {}
        self.peers: dict[bytes, str] = {}
        self.promised: dict[tuple[str, int], m.Keep] = {}
        self.owners: dict[int, bytes] = {}
        self.reject: Callable[[Any], m.Rejected | None] = lambda spec: None
        self.next_task = first_task
        self.running = True
        self._do: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._waker = Waker()
        site.mkdir(parents=True, exist_ok=True)
        (site / "objects").mkdir(exist_ok=True)
        self.door = Door(local_address(site, f"fake{epoch}"), m.FromClient)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        connection = {"pid": os.getpid(), "host": os.uname().nodename, "epoch": epoch, "clients": self.door.address,
                      "pilots": "", "protocol": m.PROTOCOL, "started": time.time()}
        part = site / "interchange.json.part"
        part.write_text(json.dumps(connection))
        part.rename(site / "interchange.json")

    # ---- for tests

    def stop(self) -> None:
        self.running = False
        self._waker.wake()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def wait(self, condition: Callable[[], bool], timeout: float = 10.0) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout), f"did not happen; got {self.got}"

    def do(self, action: Callable[[], None]) -> None:
        """Run something in the serving thread."""
        self._do.append(action)
        self._waker.wake()

    def release(self) -> None:
        def go() -> None:
            self.hold = False
            self._run_all()

        self.do(go)

    def say(self, message: m.Message) -> None:
        self.do(lambda: [self.door.send(peer, message) for peer in self.peers] and None)

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.got if isinstance(message, kind)]

    # ---- the serving thread

    def _serve(self) -> None:
        poller = Poller()
        poller.register(self.door)
        poller.register(self._waker)
        while self.running:
            self._waker.arm()
            if not self._do:
                poller.poll(0.5)
            self._waker.clear()
            while self._do:
                self._do.pop(0)()
            for peer, message in self.door.receive(100):
                with self._changed:      # first: once it is answered, a test may look for it
                    self.got.append(message)
                self._handle(peer, message)
                with self._changed:
                    self._changed.notify_all()
        self.door.close(0.5)

    def _handle(self, peer: bytes, message: Any) -> None:
        if isinstance(message, m.Hello):
            self.peers[peer] = message.token
            self.hellos.append(message)
            given = {"protocol": m.PROTOCOL, "session": len(self.peers), "campaign": message.campaign or "made-up",
                     "epoch": self.epoch, "data": str(self.site / "data"), "objects": str(self.site / "objects"),
                     "inline": 65536, "nodes": 1, "platform": "workstation", "cores": 2}
            self.door.send(peer, m.Welcome(**(given | self.welcome)))
        elif self.mute:
            return
        elif isinstance(message, m.Submit):
            self._submit(peer, message)
        elif isinstance(message, m.Cancel | m.KillTasks):
            self._end(peer, message)
        elif isinstance(message, m.Keep):
            self.promised[self.peers[peer], message.n] = message
            self._run_all()
        elif isinstance(message, m.Watch):
            over = [task for task in message.tasks if task in self.values or task in self.failures]
            self.owners.update(dict.fromkeys(message.tasks, peer))
            for task in over:
                self._tell(task)
        elif isinstance(message, m.Beat):
            self.door.send(peer, m.BeatBack())

    def _submit(self, peer: bytes, message: m.Submit) -> None:
        token = self.peers[peer]
        self.codes.update(message.codes)
        self.apps.update((app.digest, app) for app in message.apps)
        self.classes.update(((token, number), cls) for number, cls in message.classes)
        calls = []
        for spec in message.specs:
            refused = self.reject(spec)
            if refused is not None:
                self.door.send(peer, refused)
                continue
            known = (token, spec.n) in self.tasks
            if not known:
                self.tasks[token, spec.n] = self.next_task
                self.next_task += 1
            task = self.tasks[token, spec.n]
            self.specs[task] = (token, spec)
            self.owners[task] = peer
            self.states.setdefault(task, TaskState.READY)
            calls.append((spec.n, task, self.states[task], False))
        self.door.send(peer, m.Accepted(calls))
        self._run_all()

    def task_of(self, token: str, ref: int) -> int:
        return ref if ref > 0 else self.tasks[token, -ref]

    def _end(self, peer: bytes, message: Any) -> None:
        results = []
        for ref in message.refs:
            task = self.task_of(self.peers[peer], ref)
            may = self.states[task] == TaskState.READY
            if may:
                self.states[task] = TaskState.CANCELLED
                self.door.send(peer, m.Settled([m.Ending(task, TaskState.CANCELLED, None, "it was cancelled")]))
            elif isinstance(message, m.KillTasks) and self.states[task] == TaskState.RUNNING:
                may = True
                self.states[task] = TaskState.CANCELLED
                killed = serialize.error_payload(TaskKilled("killed by you"))
                self.door.send(peer, m.Settled([m.Ending(task, TaskState.CANCELLED, killed, "killed by you")]))
            results.append(may)
        self.door.send(peer, m.Answer(message.request, results))

    def _run_all(self) -> None:
        progress = True
        while progress and not self.hold:
            progress = False
            for task, (token, spec) in list(self.specs.items()):
                if self.states[task] == TaskState.READY and self._run(task, token, spec):
                    progress = True

    def _run(self, task: int, token: str, spec: Any) -> bool:
        cls = self.classes[token, spec.cls]
        if self.apps[cls.app].kind == AppKind.PROMISE:
            kept = self.promised.get((token, spec.n))
            if kept is None:
                return False
            (self.values if kept.ok else self.failures)[task] = kept.payload
            self.states[task] = TaskState.DONE if kept.ok else TaskState.FAILED
            self._tell(task)
            return True
        needs = [self.task_of(token, need) for need in spec.needs]
        bad = [need for need in needs if self.states.get(need) in (TaskState.FAILED, TaskState.UPSTREAM_FAILED)]
        if bad:
            self.states[task] = TaskState.UPSTREAM_FAILED
            self.failures[task] = self.failures[bad[0]]
            ending = m.Ending(task, TaskState.UPSTREAM_FAILED, self.failures[task], root=bad[0])
            self.door.send(self.owners[task], m.Settled([ending]))
            return True
        if any(need not in self.values for need in needs):
            return False
        objects = self.site / "objects"
        read = lambda blob: serialize.fetch(blob, objects)  # noqa: E731
        values = [serialize.loads(self.values[need], read) for need in needs]
        try:
            code = self.codes[cls.app]
            func = serialize.loads_code(code if isinstance(code, bytes) else read(code)).func
            data = spec.args if isinstance(spec.args, bytes | None) else read(spec.args)
            args, kwargs = ((), {}) if data is None else serialize.loads_args(data, values)
            self.values[task] = serialize.dumps_result(func(*args, **kwargs))[0]
            self.states[task] = TaskState.DONE
        except BaseException as exc:
            self.failures[task] = serialize.dumps_exception(exc, host="fakehost", worker="worker 1")
            self.states[task] = TaskState.FAILED
        self._tell(task)
        return True

    def _tell(self, task: int) -> None:
        payload = self.values.get(task) or self.failures.get(task)
        self.door.send(self.owners[task], m.Settled([m.Ending(task, self.states[task], payload)]))
