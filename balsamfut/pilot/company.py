"""The followers of a pilot, as their leader sees them: who is there, what each has been told, what it is to be told.

One door for all; what a turn has for a follower travels together.  An answer that the brain waits for (what a worker
had not read) comes later than on the leader's own host, so the event that stands behind it is held back until then.
What several hosts have run is over when no host has anything left of it.  Knows no task and no queue.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Final

from balsamfut.messages import PROTOCOL, Fault, Message
from balsamfut.pilot.desk import Desk
from balsamfut.pilot.events import Commanded, Event, NodeGone, Stolen, WorkerGone
from balsamfut.pilot.orders import (
    Clean,
    Cleaned,
    Disband,
    Enlist,
    Enlisted,
    Equip,
    Give,
    Gone,
    Hire,
    News,
    Pulse,
    Run,
    SignalRanks,
    Take,
    ToLeader,
)
from balsamfut.pilot.slicenews import HaveMade, StartSlice
from balsamfut.pilot.staff import Order
from balsamfut.wire import Door, Keys

log = logging.getLogger("balsamfut.pilot")

SILENCE: Final = 20.0
"""Seconds without a sign after which a follower is lost: by then one that was only cut off has ended everything."""


class Follower:
    """One host."""

    __slots__ = ("peer", "heard", "queue", "codes", "pools")

    def __init__(self, now: float) -> None:
        self.peer = b""                              # not here yet
        self.heard = now
        self.queue: list[Message] = []               # of this turn
        self.codes: set[bytes] = set()               # what it has been told
        self.pools: set[bytes] = set()


class Company:
    """See the module.  hosts: names by index, the leader's own first."""

    def __init__(self, desk: Desk, hosts: list[str], address: str, keys: Keys, now: float) -> None:
        self.door = Door(address, ToLeader, keys)
        self.hosts = hosts
        self.missing: dict[int, str] = {}            # hosts that are not used, and why
        self._desk = desk
        self._followers = {index: Follower(now) for index in range(1, len(hosts))}
        self._by_peer: dict[bytes, int] = {}
        self._workers: dict[int, int] = {}           # worker -> host
        self._asked: defaultdict[int, int] = defaultdict(int)       # worker -> Takes that were sent ...
        self._answered: defaultdict[int, int] = defaultdict(int)    # ... and answered
        self._held: list[tuple[list[tuple[int, int]], Event]] = []
        self._spread: dict[tuple[int, int], tuple[int, str, list[int]]] = {}   # commands on several hosts
        self._cleaning: dict[str, tuple[set[int], Commanded]] = {}             # by mark: who is still at it
        self._loud: set[int] = set()                 # followers with something in their queue
        self._last = now

    # ---- orders

    def send(self, host: int, order: Order) -> None:
        """Queue an order, and what it refers to that the follower has not been told."""
        follower = self._followers.get(host)
        if follower is None:       # it is lost; that is told
            return
        desk = self._desk
        pool, codes = b"", []
        if isinstance(order, Hire):
            pool = order.pool
            self._workers[order.worker] = host
        elif isinstance(order, StartSlice):
            pool = order.pool
        elif isinstance(order, HaveMade):
            codes = [order.define.app]
        elif isinstance(order, Run):
            pool, codes = order.job.pool, [order.job.define.app]
        elif isinstance(order, Give):
            codes = [define.app for define in order.defines]
        news = [code for code in codes if code not in follower.codes and code in desk.codes]
        if news or (pool and pool not in follower.pools):
            follower.codes.update(news)
            pools = [(pool, desk.pools[pool])] if pool and pool not in follower.pools else []
            follower.pools.update(digest for digest, _ in pools)
            follower.queue.append(Equip([(code, desk.codes[code]) for code in news], pools))
        follower.queue.append(order)
        self._loud.add(host)

    def take(self, host: int, worker: int) -> tuple[int, int]:
        """Ask for what a worker has not read; a ticket for `hold`."""
        self.send(host, Take(worker))
        self._asked[worker] += 1
        return worker, self._asked[worker]

    def hold(self, tickets: list[tuple[int, int]], event: Event) -> None:
        """Keep an event until these are answered."""
        self._held.append((tickets, event))

    def spread(self, host: int, key: tuple[int, int], mark: str, others: list[int]) -> None:
        """A command is started on a host that has parts on others."""
        self._spread[key] = host, mark, others

    def signal(self, key: tuple[int, int], number: int) -> None:
        """A command is told to stop on the host that started it: its ranks on others are told there."""
        _, mark, others = self._spread.get(key, (0, "", []))
        for each in others:
            if each in self._followers:
                self._followers[each].queue.append(SignalRanks(mark, number))
                self._loud.add(each)

    def flush(self) -> None:
        """Send what this turn has for followers."""
        for host in self._loud:
            follower = self._followers.get(host)
            if follower is not None and follower.peer:
                self.door.send(follower.peer, *follower.queue)
                follower.queue = []
        self._loud.clear()

    # ---- events

    def listen(self, now: float) -> list[Event]:
        """What followers have said."""
        events: list[Event] = []
        for peer, message in self.door.receive(512):
            if isinstance(message, Enlist):
                self._enlist(peer, message, now)
                continue
            host = self._by_peer.get(peer)
            follower = self._followers.get(host) if host is not None else None
            if host is None or follower is None:       # it was given up
                self.door.send(peer, Disband())
                continue
            follower.heard = now
            if isinstance(message, News):
                for event in message.events:
                    events += self.arrived(event)
            elif isinstance(message, Cleaned):
                events += self._cleaned(host, message.mark)
            elif isinstance(message, Gone):
                events += self.lose(host, f"the agent of {self.hosts[host]} has left", now)
            else:
                follower.queue.append(Pulse())
                self._loud.add(host)
        return events

    def arrived(self, event: Event) -> list[Event]:
        """An event of a host, in so far as it can be told now, and those that had waited for it."""
        if isinstance(event, Commanded) and event.key in self._spread:
            host, mark, others = self._spread.pop(event.key)
            there = {each for each in others if each in self._followers}
            for each in there:
                self._followers[each].queue.append(Clean(mark))
            self._loud |= there
            if there:
                self._cleaning[mark] = there, event
                return []
        events = [event]
        if isinstance(event, Stolen):
            self._answered[event.worker] += 1
            events += self._released(event.worker)
        elif isinstance(event, WorkerGone):
            self._answered[event.worker] = self._asked[event.worker]
            events += self._released(event.worker)
            del self._answered[event.worker], self._asked[event.worker]
            self._workers.pop(event.worker, None)
        return events

    def _released(self, worker: int) -> list[Event]:
        answered, free, held = self._answered, [], []
        for tickets, event in self._held:
            left = [ticket for ticket in tickets if ticket[0] != worker or ticket[1] > answered[worker]]
            if left:
                held.append((left, event))
            else:
                free.append(event)
        self._held = held
        return free

    def _cleaned(self, host: int, mark: str) -> list[Event]:
        waiting = self._cleaning.get(mark)
        if waiting is None:
            return []
        waiting[0].discard(host)
        if waiting[0]:
            return []
        del self._cleaning[mark]
        return [waiting[1]]

    # ---- who is there

    def _enlist(self, peer: bytes, message: Enlist, now: float) -> None:
        follower = self._followers.get(message.host)
        if message.protocol != PROTOCOL or message.token != self._desk.token or follower is None or follower.peer:
            log.warning("turned away an agent on %s that says it is host %d", message.name, message.host)
            self.door.send(peer, Disband())
            return
        if message.problems:
            self.give_up(message.host, "; ".join(message.problems))
            self.door.send(peer, Disband())
            return
        follower.peer, follower.heard = peer, now
        self._by_peer[peer] = message.host
        follower.queue.insert(0, Enlisted(message.host, str(self._desk.site), self._desk.clients))
        self._loud.add(message.host)

    @property
    def complete(self) -> bool:
        """Everybody is here, or is known not to come."""
        return all(follower.peer for follower in self._followers.values())

    def absent(self) -> list[int]:
        """Hosts whose agents are not here yet."""
        return [host for host, follower in self._followers.items() if not follower.peer]

    def anew(self, now: float) -> list[int]:
        """Their launch has failed, and launchers take those who are here along: all of them are awaited once more."""
        for host, follower in self._followers.items():
            if follower.peer:
                self._by_peer.pop(follower.peer, None)
                self.door.send(follower.peer, Disband())
                self._followers[host] = Follower(now)
        return list(self._followers)

    def give_up(self, host: int, why: str) -> None:
        """Do not use a host."""
        self._followers.pop(host, None)
        self.missing[host] = why
        log.warning("node %s is not used: %s", self.hosts[host], why)

    def lose(self, host: int, why: str, now: float) -> list[Event]:
        """A host that was there is lost: what it ran is over, and what that had on other hosts is cleaned up there."""
        follower = self._followers.pop(host, None)
        if follower is None:
            return []
        self._by_peer.pop(follower.peer, None)
        self.missing[host] = why
        log.warning("node %s is lost: %s", self.hosts[host], why)
        events: list[Event] = []
        for key, (starter, _, _) in list(self._spread.items()):
            if starter == host:
                events += self.arrived(Commanded(key, None, now, Fault.NODE, None, why))
        for mark, _ in list(self._cleaning.items()):
            events += self._cleaned(host, mark)
        for worker in [worker for worker, where in self._workers.items() if where == host]:
            self._answered[worker] = self._asked[worker]
            events += self._released(worker)
            del self._workers[worker]
        return [*events, NodeGone(host, why)]

    def tick(self, now: float) -> list[Event]:
        """Called about once a second: who has been silent for too long?"""
        if now - self._last > 3.0:               # we stood still ourselves: that is nobody's silence
            for follower in self._followers.values():
                follower.heard += now - self._last
        self._last = now
        silent = [host for host, follower in self._followers.items()
                  if follower.peer and now - follower.heard > SILENCE]
        return [event for host in silent
                for event in self.lose(host, f"nothing was heard of its agent for {SILENCE:g} s", now)]

    def disband(self) -> None:
        """Have all followers end everything and leave."""
        for host, follower in self._followers.items():
            follower.queue.append(Disband())
            self._loud.add(host)
        self.flush()

    @property
    def empty(self) -> bool:
        """Nobody is here any more."""
        return not any(follower.peer for follower in self._followers.values())


