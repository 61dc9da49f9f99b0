"""Whether it is the task or the node: what ended where, and which node is to be given nothing more.

Pure and without a clock: `succeeded` and `failed` are told of the end of each attempt, in order, and answer with what
is to be done.  Nodes are numbers, as in placements; kinds are whatever tasks have in common (their app).

A node is bad when different tasks fail on it one after the other, and their like do not elsewhere.  Each kind of task
on each node has a streak: the tasks that failed there since one of the kind last succeeded there.  A failure in it
weighs -ln q, where q is the share of the kind's attempts on the other nodes that failed in the same way, so a node is
put out when its streaks would be a coincidence of one in a million, were it like the others.  It follows that

* a kind that fails everywhere (a bad input, a program that was deployed wrongly) puts no node out;
* a task that fails on different nodes is its own fault, and counts against none of them;
* one task, however often it fails, puts no node out, and neither does a kind that runs nowhere else;
* deaths of workers and failed launches weigh as said (a streak of nothing else is compared with such ends elsewhere,
  any other with all failures), exceptions and exit codes half, unless that task succeeded on another node; exceptions
  after a long run say nothing, since a bad node fails fast, and so takes more and more work;
* an attempt on several nodes weighs on each of them a part, and its next end tells which of them it was not.

Attempts that still run elsewhere, for longer than this one did, count as not having failed: else a node that fails its
tasks in a second would have eaten many before the first of an hour was done elsewhere.

What a launcher says of a node by name (`blame`) puts it out at once.  Never more than a quarter of the nodes is out
because of statistics, since then something else is wrong; and never the last that is usable.  So a pilot with one node
keeps it: there is nothing to compare it with, and without it nothing would be left but to fail everything, which the
tasks' own `retries` do with better reasons.  A node that was put out by statistics comes back if what failed there
begins to fail elsewhere too.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable, Iterable, Sequence
from typing import Final

import msgspec

ODDS: Final = 1e-6
"""A streak that would be this unlikely on a node like the others puts the node out."""
SHARE: Final = 4
"""One in so many nodes may be out because of statistics (and one in any case, where there are several)."""
QUICK: Final = 10.0
"""Seconds: exceptions and exit codes count only when they came sooner, or in half the time of a success."""

_LIMIT: Final = -math.log(ODDS) - 1e-6
_RARE: Final = 0.01        # the smallest share of failures that is believed of others: so it takes three tasks at least
_PLAIN: Final = 0.5        # weight of an exception or an exit code
_LONGEST: Final = 64       # tasks of one streak that are kept
_REMEMBERED: Final = 10_000   # tasks that failed, and where
_TOO: Final = "what failed here fails on other nodes too"
_NOT_IT: Final = "what failed here failed because of another node"
_WINDOW: Final = 1000      # attempts of a kind after which the older ones count for half


class Quarantine(msgspec.Struct, frozen=True):
    """Give this node nothing more."""

    node: int
    why: str             # one sentence
    tasks: tuple[int, ...] = ()   # whose failures there were not their own


class Release(msgspec.Struct, frozen=True):
    """It was not this node: use it again."""

    node: int
    why: str


Verdict = Quarantine | Release


class _Suspect(msgspec.Struct):
    """One failure in a streak."""

    hard: bool           # a worker died, or the launch failed
    share: float         # 1 / the number of nodes that it may have been
    proven: bool = False   # the task succeeded on other nodes


class _Kind:
    """What became of the attempts of one kind, by node."""

    __slots__ = ("good", "goods", "plain", "plains", "hard", "hards", "streaks", "survivors", "usual")

    def __init__(self, nodes: int) -> None:
        self.good = array("I", bytes(array("I").itemsize * nodes))
        self.goods = 0
        self.plain: dict[int, int] = {}
        self.plains = 0
        self.hard: dict[int, int] = {}
        self.hards = 0
        self.streaks: dict[int, dict[int, _Suspect]] = {}    # by node, then by task
        self.survivors: dict[int, int] = {}                  # beside a streak: what went on elsewhere when it last grew
        self.usual = -1.0                                    # seconds that a success takes; < 0: not known

    def fail(self, nodes: Sequence[int], hard: bool) -> None:
        counts = self.hard if hard else self.plain
        for node in nodes:
            counts[node] = counts.get(node, 0) + 1
        if hard:
            self.hards += len(nodes)
        else:
            self.plains += len(nodes)

    def fade(self) -> None:
        """What is long ago counts for half."""
        for node, count in enumerate(self.good):
            self.good[node] = count >> 1
        self.plain = {node: count >> 1 for node, count in self.plain.items() if count > 1}
        self.hard = {node: count >> 1 for node, count in self.hard.items() if count > 1}
        self.goods, self.plains, self.hards = sum(self.good), sum(self.plain.values()), sum(self.hard.values())

    def elsewhere(self, node: int) -> tuple[int, int, int]:
        """Attempts on other nodes: how many, how many of them failed in any way, and how many hard."""
        hards = self.hards - self.hard.get(node, 0)
        fails = self.plains - self.plain.get(node, 0) + hards
        return self.goods - self.good[node] + self.survivors.get(node, 0) + fails, fails, hards


class Health:
    """See the module.  names: of the pilot's nodes."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.out: set[int] = set()               # given nothing: quarantined, or lost
        self._suspected: set[int] = set()        # ... because of statistics
        self._kinds: dict[Hashable, _Kind] = {}
        self._all = _Kind(len(self.names))       # all kinds together; without streaks
        self._streaks: dict[int, list[_Kind]] = {}       # by node: the kinds that have one there
        self._failures: dict[int, tuple[_Kind, tuple[int, ...]]] = {}    # by task: where it failed, and may not be why
        self._window = max(_WINDOW, 4 * len(self.names))

    # ---- what is told

    def succeeded(self, kind: Hashable, task: int, nodes: Sequence[int], seconds: float) -> list[Verdict]:
        """An attempt of this task succeeded there, in so many seconds."""
        found, everything = self._kinds.get(kind) or self._new(kind), self._all
        for node in nodes:
            found.good[node] += 1
            everything.good[node] += 1
            if found.streaks and node in found.streaks and node not in self.out:
                self._end_streak(found, node)
        found.goods += len(nodes)
        everything.goods += len(nodes)
        found.usual = seconds if found.usual < 0.0 else found.usual + (seconds - found.usual) * 0.1
        self._fade(found)
        return self._acquit(task, nodes) if task in self._failures else []

    def failed(self, kind: Hashable, task: int, nodes: Sequence[int], *, hard: bool, seconds: float = 0.0,
               survivors: int = 0, what: str = "") -> list[Verdict]:
        """An attempt of this task failed there: because its worker died or its launch failed (hard), or by itself.

        survivors: attempts of this kind that have been running on other nodes for longer.  what: the error, one line.
        """
        found = self._kinds.get(kind) or self._new(kind)
        for each in (found, self._all):
            each.fail(nodes, hard)
        self._fade(found)
        verdicts: list[Verdict] = []
        if hard or seconds <= max(QUICK, found.usual / 2):
            for node in self._suspect(found, task, nodes, hard, survivors):
                verdicts += self._judge(node, what)
        for node in sorted(node for node in self._suspected if node in found.streaks):
            verdicts += self._reconsider(node, _TOO)     # is it still a coincidence?
        return verdicts

    def blame(self, node: int, why: str) -> list[Verdict]:
        """Something that need not be compared says that this node is bad: a launcher by name, a test of the node."""
        if not self._may_go(node):
            return []
        self.out.add(node)
        return [Quarantine(node, why), *self._explained_by(node)]

    def lost(self, node: int) -> list[Verdict]:
        """The node has gone, as others have found out."""
        self.out.add(node)
        self._suspected.discard(node)
        return self._explained_by(node)

    # ---- suspicion

    def _new(self, kind: Hashable) -> _Kind:
        found = self._kinds[kind] = _Kind(len(self.names))
        return found

    def _fade(self, kind: _Kind) -> None:
        for each in (kind, self._all):
            if each.goods + each.plains + each.hards >= self._window:
                each.fade()

    def _suspect(self, kind: _Kind, task: int, nodes: Sequence[int], hard: bool, survivors: int) -> tuple[int, ...]:
        """Note a failure; returns the nodes that may be why."""
        before = self._failures.pop(task, None)
        mine = tuple(nodes)
        if len(mine) > 1 and not self.out.isdisjoint(mine):
            mine = ()                            # one of them is known to be bad: that is why
        if before is not None:
            mine = tuple(node for node in before[1] if node in mine)
            self._clear(before[0], task, before[1] if before[0] is not kind else set(before[1]).difference(mine))
        elif len(self._failures) >= _REMEMBERED:
            del self._failures[next(iter(self._failures))]
        self._failures[task] = kind, mine        # (): whatever it runs on, it fails
        for node in mine:
            streak = kind.streaks.get(node)
            if streak is None:
                streak = kind.streaks[node] = {}
                self._streaks.setdefault(node, []).append(kind)
            if len(streak) < _LONGEST or task in streak:
                streak[task] = _Suspect(hard, 1 / len(mine))
            kind.survivors[node] = survivors
        return mine

    def _end_streak(self, kind: _Kind, node: int) -> None:
        del kind.streaks[node], kind.survivors[node]
        self._streaks[node].remove(kind)

    def _clear(self, kind: _Kind, task: int, nodes: Iterable[int]) -> None:
        """These nodes are not why the task failed."""
        for node in nodes:
            streak = kind.streaks.get(node, {})
            if task in streak:
                del streak[task]
                if not streak:
                    self._end_streak(kind, node)

    def _acquit(self, task: int, nodes: Sequence[int]) -> list[Verdict]:
        """A task that failed has succeeded: it was not the task, and not these nodes."""
        kind, before = self._failures.pop(task)
        mine = [node for node in before if node not in nodes]
        verdicts: list[Verdict] = []
        for node in mine:
            suspect = kind.streaks.get(node, {}).get(task)
            if suspect is not None:
                suspect.share, suspect.proven = 1 / len(mine), True
                verdicts += self._judge(node, "they succeeded on other nodes")
        return verdicts

    def _explained_by(self, node: int) -> list[Verdict]:
        """A node is known to be bad: what failed on it and on others was not the others' fault."""
        for task, (kind, before) in list(self._failures.items()):
            if node in before and len(before) > 1:
                self._clear(kind, task, [each for each in before if each != node])
                self._failures[task] = kind, (node,)
        return [verdict for each in sorted(self._suspected) for verdict in self._reconsider(each, _NOT_IT)]

    # ---- judgement

    def _evidence(self, node: int) -> tuple[float, int]:
        """How unlikely this node's streaks are, as -ln of the odds, and how many different tasks are in them."""
        evidence, tasks, alone = 0.0, set[int](), 0.0
        for kind in self._streaks.get(node, ()):
            streak = kind.streaks[node]
            tasks |= streak.keys()
            others, fails, hards = kind.elsewhere(node)
            if not others:       # it runs nowhere else: one failure of it may say something, the same again does not
                alone += max((each.share for each in streak.values() if each.hard), default=0.0)
                continue
            suspects = streak.values()
            weight = _weight(hards if all(each.hard for each in suspects) else fails, others)
            evidence += weight * sum(each.share * (1.0 if each.hard or each.proven else _PLAIN) for each in suspects)
        if alone:
            others, _, hards = self._all.elsewhere(node)
            evidence += alone * _weight(hards, others)
        return evidence, len(tasks)

    def _judge(self, node: int, what: str) -> list[Verdict]:
        if not self._may_go(node) or len(self._suspected) >= max(1, len(self.names) // SHARE):
            return []
        evidence, tasks = self._evidence(node)
        if evidence < _LIMIT:
            return []
        self.out.add(node)
        self._suspected.add(node)
        counts = [kind.elsewhere(node) for kind in self._streaks[node]]
        others, fails = sum(each[0] for each in counts), sum(each[1] for each in counts)
        why = f"{tasks} different tasks in a row failed here, and of {others} like them elsewhere {fails or 'none'} did"
        blameless = tuple(sorted({task for kind in self._streaks[node] for task in kind.streaks[node]}))
        return [Quarantine(node, f"{why} (the last: {what})" if what else why, blameless)]

    def _reconsider(self, node: int, why: str) -> list[Verdict]:
        """A node that was put out by statistics, and about which these may say something else now."""
        if self._evidence(node)[0] >= _LIMIT / 2:
            return []
        self._suspected.discard(node)
        self.out.discard(node)
        for kind in list(self._streaks[node]):
            self._end_streak(kind, node)
        return [Release(node, why)]

    def _may_go(self, node: int) -> bool:
        """It is in use, and not the last that is."""
        return node not in self.out and len(self.out) + 1 < len(self.names)


def _weight(fails: int, others: int) -> float:
    """Of one failure, where so many of the others failed too: nothing if most did."""
    return 0.0 if 2 * fails >= others else -math.log(max(_RARE, (fails + 1) / (others + 2)))

