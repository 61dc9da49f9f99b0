"""The agent's slices as processes: launched, fed, heard, and buried.

Performs what the brain decides about slices and tells it what their ranks say and how they end.  It must not know
queues, placements' making or the interchange.

Which rank died first is read from pidfds: an epoll lists them in the order in which they became readable, while what
launchers write names any rank that died, mostly one that the launcher itself has killed.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
from pathlib import Path
from typing import Final

from balsamfut import wire
from balsamfut.errors import InvalidOption
from balsamfut.pilot import hand, launch
from balsamfut.pilot.desk import Desk, tail
from balsamfut.pilot.hand import Setup
from balsamfut.pilot.poolwire import Able, Aboard, FromRank, Made, Make, Unable
from balsamfut.pilot.process import Exit, Processes, StartError
from balsamfut.pilot.slicenews import (
    CallDone,
    CallFaltered,
    EndSlice,
    HaveMade,
    SignalCall,
    SliceBroken,
    SliceEvent,
    SliceGone,
    SliceOrder,
    SliceReady,
    StartSlice,
)
from balsamfut.pilot.slicepost import Call, Rank, Slice, size
from balsamfut.pilot.verdict import judge
from balsamfut.platforms import probe

KEY: Final = "slice"
# -P and a path of our own: a file named like one of ours in the user's directory is not to be imported in its place.
_START: Final = "import sys; sys.path.append({home!r}); from balsamfut.pilot.poolrank import main; main()"
COMING: Final = 300.0
"""Seconds that the processes of a launch have to come; MPI and initializers take as long as they take."""
PARTING: Final = 2.0
"""Seconds that a slice has to end by itself, when it was told to or one of its ranks is dead."""
_ABORTED: Final = re.compile(r"^Abort\(-?\d+\) on node (\d+)|^MPI_ABORT was invoked on rank (\d+) ", re.MULTILINE)


class SliceHand:
    """All slices of one agent."""

    def __init__(self, desk: Desk, processes: Processes) -> None:
        self._desk = desk
        self._processes = processes
        self._epoll = select.epoll()          # everything of ours
        self._deaths = select.epoll()         # pidfds of ranks: readable in the order of their deaths
        self._epoll.register(self._deaths.fileno(), select.EPOLLIN)
        self._door: socket.socket | None = None
        self._address = ""
        self._lines: dict[int, Rank] = {}
        self._pidfds: dict[int, Rank] = {}
        self._slices: dict[int, Slice] = {}
        self._unborn: list[SliceGone] = []
        self._lingering: dict[int, Exit] = {}
        self._folder = desk.site / "log" / f"pilot-{desk.pilot}"
        self._home = str(Path(__file__).resolve().parents[2])

    def fileno(self) -> int:
        """Readable when a rank has said something or died."""
        return self._epoll.fileno()

    @property
    def busy(self) -> bool:
        """Something is to be done at each tick."""
        return bool(self._unborn or self._lingering or any(rank.backlog for rank in self._lines.values())
                    or any(slice.deadline for slice in self._slices.values()))

    # ---- what the brain orders

    def obey(self, order: SliceOrder, now: float) -> None:
        match order:
            case StartSlice():
                self.start(order, now)
            case HaveMade():
                self.give(order)
            case SignalCall():
                self.signal(order)
            case EndSlice():
                self.end(order, now)

    def start(self, effect: StartSlice, now: float) -> None:
        """Launch a slice; that it could not be launched is told like its end."""
        number, pool = effect.slice, self._desk.pools[effect.pool]
        slice = self._slices[number] = Slice(number, effect.resources.ranks_per_node, pool,
                                             self._folder / f"slice-{number}")
        try:
            slice.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._spawn(slice, effect)
            slice.deadline = now + COMING
        except (OSError, InvalidOption) as exc:
            del self._slices[number]
            why = exc if isinstance(exc, StartError | InvalidOption) else exc.strerror or exc
            lost = f"slice {number} on {self._desk.host} cannot be started: {why}"
            self._unborn.append(SliceGone(number, None, lost))

    def _spawn(self, slice: Slice, effect: StartSlice) -> None:
        desk, pool, folder = self._desk, slice.pool, str(slice.folder)
        launcher = desk.platform.launcher
        if desk.pretend or not launcher.flavour:
            found = probe.launcher(desk.environ(pool))
            if isinstance(found, str):
                raise StartError(0, found, None)
            launcher = found
        slice.flavour = launcher.flavour
        words = [pool.python, "-u", "-P", "-c", _START.format(home=self._home), self._listen_at(), desk.token,
                 str(slice.number)]
        plan = launch.plan(effect.resources, effect.placement, desk.platform, desk.names, command=words,
                           environ=dict(effect.environment), preamble=effect.preamble, directory=folder,
                           launcher=launcher, pretend=desk.pretend, apart=desk.apart)
        for name, content in plan.files.items():
            Path(folder, name).write_bytes(content)
        self._processes.spawn((KEY, slice.number), plan.argv, env={**desk.environ(pool), **plan.env},
                              cwd=pool.cwd or str(desk.site), mark=f"{desk.token}:slice-{slice.number}:0",
                              stdout=str(slice.folder / "launcher.out"), cores=plan.cores)

    def _listen_at(self) -> str:
        """The address at which ranks come in."""
        if self._door is None:
            self._address = wire.local_address(self._desk.site, "slices").removeprefix("ipc://")
            self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._door.bind(self._address)
            self._door.listen(1024)
            self._door.setblocking(False)
            self._epoll.register(self._door.fileno(), select.EPOLLIN)
        return self._address

    def give(self, order: HaveMade) -> None:
        """Have ranks make a call."""
        slice, define = self._slices.get(order.slice), order.define
        if slice is None:
            return                            # its end is on the way
        if define.cls not in slice.told:
            slice.told.add(define.cls)
            for rank in slice.ranks.values():
                rank.tell(hand.Code(define.app, self._desk.codes[define.app]))
                rank.tell(define)
        slice.calls[order.order.task, order.order.attempt] = Call(order.order, define.options.gather, order.ranks)
        for each in order.ranks:
            slice.ranks[each].tell(Make(order.ranks, order.order))

    def signal(self, effect: SignalCall) -> None:
        """Send a signal to those ranks of a call that have not come to its end."""
        slice = self._slices.get(effect.slice)
        call = slice.calls.get(effect.key) if slice is not None else None
        for number in call.ranks if call is not None else ():
            assert slice is not None and call is not None
            if number not in call.made and slice.ranks[number].pidfd >= 0:
                try:
                    signal.pidfd_send_signal(slice.ranks[number].pidfd, effect.signal)
                except ProcessLookupError:
                    pass

    def end(self, order: EndSlice, now: float) -> None:
        """Kill a slice, or let it leave."""
        slice = self._slices.get(order.slice)
        if slice is None:
            return
        slice.ending = True
        if order.now:
            self._processes.kill((KEY, order.slice))
            return
        slice.deadline = now + PARTING
        for rank in slice.ranks.values():
            try:
                rank.line.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    # ---- what the ranks do

    def listen(self, now: float) -> list[SliceEvent]:
        """What ranks have said, and who of them has died."""
        events: list[SliceEvent] = []
        for fd, _ in self._epoll.poll(0):
            if self._door is not None and fd == self._door.fileno():
                self._welcome()
            elif fd in self._lines:
                self._hear(self._lines[fd], events)
        for fd, _ in self._deaths.poll(0):
            rank = self._pidfds.pop(fd)
            self._deaths.unregister(fd)
            slice = rank.slice
            assert slice is not None
            self._hear(rank, events)          # what it said before
            if slice.first is None and not slice.ending:
                slice.first = rank.number
                slice.deadline = now + PARTING
        return events

    def _welcome(self) -> None:
        assert self._door is not None
        while True:
            try:
                line, _ = self._door.accept()
            except OSError:
                return
            line.setblocking(False)
            self._lines[line.fileno()] = Rank(line)
            self._epoll.register(line.fileno(), select.EPOLLIN)

    def _hear(self, rank: Rank, events: list[SliceEvent]) -> None:
        fd = rank.line.fileno()
        if fd < 0:
            return
        messages, over = rank.hear()
        for message in messages:
            self._take(rank, message, events)
        if over:
            self._lines.pop(fd, None)
            self._epoll.unregister(fd)
            rank.line.close()
        elif rank.backlog:
            rank.push()

    def _take(self, rank: Rank, message: FromRank, events: list[SliceEvent]) -> None:
        slice = rank.slice
        if isinstance(message, Aboard):
            self._aboard(rank, message)
        elif slice is None:
            return                            # nobody that we know
        elif isinstance(message, Able):
            rank.able = True
            rank.ends = [size(slice.path(rank.number, stream)) for stream in ("out", "err")]
            if len(slice.ranks) == slice.size and all(each.able for each in slice.ranks.values()):
                events.append(SliceReady(slice.number))
        elif isinstance(message, Unable):
            if not slice.ending:
                events.append(SliceBroken(slice.number, message.fault, message.payload, message.error))
        else:
            self._made(slice, rank, message, events)

    def _aboard(self, rank: Rank, message: Aboard) -> None:
        slice = self._slices.get(message.slice)
        if slice is None or message.token != self._desk.token or message.rank in slice.ranks:
            return
        try:
            rank.pidfd = os.pidfd_open(message.pid)
        except OSError:                       # dead already
            return
        rank.slice, rank.number, rank.pid = slice, message.rank, message.pid
        slice.ranks[message.rank] = rank
        if len(slice.ranks) == slice.size and slice.first is None and not slice.ending:
            slice.deadline = 0.0
        self._pidfds[rank.pidfd] = rank
        self._deaths.register(rank.pidfd, select.EPOLLIN)
        desk = self._desk
        rank.tell(Setup(slice.pool, str(desk.site), str(desk.objects), desk.inline, desk.clients, desk.host,
                        f"pilot-{desk.pilot}/slice-{slice.number}", slice.path(rank.number, "out"),
                        slice.path(rank.number, "err")))

    def _made(self, slice: Slice, rank: Rank, made: Made, events: list[SliceEvent]) -> None:
        key = made.task, made.attempt
        call = slice.calls.get(key)
        if call is None:
            return
        call.made[rank.number] = made
        if not made.ok and call.failed is None:
            call.failed = made
            if len(call.made) < len(call.ranks):
                assert made.payload is not None
                events.append(CallFaltered(slice.number, key, made.payload, made.error))
        if len(call.made) < len(call.ranks):
            return
        del slice.calls[key]
        payload, error = call.payload() if call.failed is None else call.failed.payload, ""
        if call.failed is not None:
            error = call.failed.error
        assert payload is not None
        each = call.made.values()
        detail = slice.detail(call, self._desk.host)
        events.append(CallDone(slice.number, key, call.failed is None, payload, error,
                               min(made.started for made in each), max(made.ended for made in each), detail))

    # ---- ends

    def tick(self, now: float) -> list[SliceEvent]:
        """Look at what nobody tells."""
        events: list[SliceEvent] = list(self._unborn)
        self._unborn.clear()
        for rank in self._lines.values():
            if rank.backlog:
                rank.push()
        for slice in list(self._slices.values()):
            if slice.deadline and now > slice.deadline:
                slice.deadline, slice.killed = 0.0, True
                self._processes.kill((KEY, slice.number))
        for exit in list(self._lingering.values()):
            events += self.buried(exit, now)
        return events

    def buried(self, exit: Exit, now: float) -> list[SliceEvent]:
        """A slice's launcher has ended: what its ranks said to the last, then its end, once nothing of it is left."""
        key = exit.key
        number: int = key[1]  # type: ignore[index]
        events = self.listen(now)
        if self._processes.remains(key, thorough=True):
            self._processes.kill(key)
            if self._processes.remains(key, thorough=True):
                self._lingering[number] = exit
                return events
        self._lingering.pop(number, None)
        slice = self._slices.pop(number)
        for rank in slice.ranks.values():
            self._hear(rank, events)
        first = self._first(slice, exit)
        lost = self._lost(slice, exit, first)
        details = [(key, detail) for key, call in slice.calls.items()
                   if (detail := slice.detail(call, self._desk.host)) is not None]
        events.append(SliceGone(number, first, lost, details))
        for rank in slice.ranks.values():
            self._forget(rank)
        return events

    def _first(self, slice: Slice, exit: Exit) -> int | None:
        """The rank to blame."""
        said = [tail(str(slice.folder / "launcher.out"), 8192)]
        said += [tail(slice.path(number, "err"), 1024, rank.ends[1]) for number, rank in slice.ranks.items()]
        aborted = _ABORTED.search("\n".join(said))
        if aborted:
            return int(aborted[1] or aborted[2])
        if exit.returncode < 0 and not slice.killed:     # the launcher was killed, and took its ranks with it
            return None
        return slice.first

    def _lost(self, slice: Slice, exit: Exit, first: int | None) -> str:
        """How it ended, in one sentence."""
        said = tail(str(slice.folder / "launcher.out"), 8192)
        line = judge(slice.flavour, exit.returncode, said).line
        name = f"slice {slice.number} on {self._desk.host}"
        if first is None or first not in slice.ranks:
            last = said.strip().splitlines()
            return f"{name} ended ({line or 'with exit code 0'})" + (f": {last[-1].strip()[:200]}" if last else "")
        rank = slice.ranks[first]
        last = tail(slice.path(first, "err"), 1024, rank.ends[1]).strip().splitlines()
        return (f"rank {first} of {name} (process {rank.pid}) died ({line or 'with exit code 0'})"
                + (f"; its last output: {last[-1].strip()[:200]}" if last else ""))

    def _forget(self, rank: Rank) -> None:
        fd = rank.line.fileno()
        if fd >= 0 and self._lines.pop(fd, None) is not None:
            self._epoll.unregister(fd)
        if self._pidfds.pop(rank.pidfd, None) is not None:
            self._deaths.unregister(rank.pidfd)
        rank.close()

    def close(self) -> None:
        """Nothing runs any more."""
        for rank in (*self._lines.values(), *self._pidfds.values()):
            rank.close()
        if self._door is not None:
            self._door.close()
            Path(self._address).unlink(missing_ok=True)
        self._deaths.close()
        self._epoll.close()
