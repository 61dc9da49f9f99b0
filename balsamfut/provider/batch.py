"""What all batch systems have in common for us: blocks are submitted once, looked at together, cancelled, lost.

Commands run one after the other for a block, and at most one look at all of them is under way.  What commands there are
and what their output means is the dialect's to say.  The rules are here:

* A submission that may have succeeded is looked up by its name before it is tried again.
* A job that the batch system does not know is not over.  It is given up when that was the answer at every look for
  `patience` seconds; a batch system that cannot be asked says nothing about any job.
* While it cannot be asked, states stay, each block says why, once, and it is asked less and less often.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from balsamfut.provider.base import BlockSpec, BlockState, BlockStatus, Provider
from balsamfut.provider.commands import Commands, Result
from balsamfut.provider.dialect import Dialect, Sight
from balsamfut.provider.pace import Pace
from balsamfut.provider.script import bad_directive, bad_token, refusal


@dataclass(slots=True)
class _Block:
    token: str
    spec: BlockSpec | None                # None: adopted
    id: str = ""
    state: BlockState | None = None       # None: adopted and not seen yet
    text: str = ""
    stuck: bool = False
    told: BlockStatus | None = None
    seen: bool = False                    # the batch system has shown it to us
    unknown: float | None = None          # since when it has been unknown at every look
    explain: float = 0.0                  # when to ask next why it waits
    busy: bool = False                    # a command of its own is under way
    step: float = 0.0                     # not to be touched before
    failures: int = 0                     # of its own commands, in a row
    tries: int = 0                        # submissions that ended in something unclear
    absences: int = 0                     # searches that must find nothing before it counts as not submitted
    refusal: str = ""                     # ... and as refused, with these words
    cancel: bool = False
    deleting: bool = False                # the deletion was taken
    force: bool = False
    complaint: str = ""                   # why it could not be deleted


ABSENCES: Final = 2   # of a submission that got no answer: it may be in the server's hands still at the first search


@dataclass(slots=True)
class _Turn:
    """A look at all blocks, and the questions that follow from it."""

    commands: int = 0
    down: str = ""
    answered: bool = False
    silent: list[str] = field(default_factory=list)


class BatchProvider(Provider):
    """A Provider for what a Dialect describes."""

    def __init__(self, dialect: Dialect, pace: Pace | None = None) -> None:
        self._dialect = dialect
        self.pace = pace or Pace()
        self._blocks: dict[str, _Block] = {}
        self._commands = Commands()
        self._news: list[BlockStatus] = []
        self._turn: _Turn | None = None
        self._look_at = 0.0
        self._failures = 0     # looks in a row that were not answered
        self._trouble = ""

    # ---------------------------------------------------------------- Provider

    def script(self, spec: BlockSpec) -> str:
        """The job script that would be submitted.  Raises ValueError where none can be written."""
        if why := refusal(spec) or bad_directive(spec):
            raise ValueError(why)
        return self._dialect.script(spec)

    def submit(self, spec: BlockSpec, now: float) -> str:
        if why := bad_token(spec.token):
            raise ValueError(why)
        block = self._add(_Block(spec.token, spec, state=BlockState.SUBMITTING))
        if why := refusal(spec) or bad_directive(spec) or _no_log(spec):
            self._over(block, BlockState.REFUSED, why)
        else:
            self._tell(block)
            self._step(block, now)
        return spec.token

    def adopt(self, token: str, id: str, now: float, spec: BlockSpec | None = None) -> None:
        block = self._add(_Block(token, spec, id, BlockState.SUBMITTING if spec and not id else None, seen=bool(id),
                                 absences=ABSENCES))
        self._look_at = min(self._look_at, now)
        self._step(block, now)

    def poll(self, now: float) -> list[BlockStatus]:
        self._commands.poll(now)
        for block in list(self._blocks.values()):
            self._step(block, now)
        if self._turn is None and now >= self._look_at and any(block.id for block in self._blocks.values()):
            self._look(now)
        news, self._news = self._news, []
        return news

    def cancel(self, token: str, now: float) -> None:
        block = self._blocks.get(token)
        if block is None:
            return
        if now >= block.step:   # asked again, and what was told to end has not ended for long
            block.deleting = False
        block.cancel = True
        self._step(block, now)

    def fds(self) -> tuple[int, ...]:
        return self._commands.fds()

    def due(self) -> float | None:
        times = [block.step for block in self._blocks.values() if not block.busy and self._next(block) is not None]
        if self._turn is None and any(block.id for block in self._blocks.values()):
            times.append(self._look_at)
        if (due := self._commands.due()) is not None:
            times.append(due)
        return min(times, default=None)

    def trouble(self) -> str:
        return self._trouble if self._blocks else ""   # without blocks nobody asks, and only a submission can tell

    def close(self) -> None:
        self._commands.close()

    # ---------------------------------------------------------------- one block

    def _add(self, block: _Block) -> _Block:
        if block.token in self._blocks:
            raise ValueError(f"there is a block {block.token!r} already")
        self._blocks[block.token] = block
        return block

    def _next(self, block: _Block) -> Callable[[_Block, float], None] | None:
        """What is to be done for a block as soon as its `step` has come."""
        if not block.id:
            return self._find if block.absences else self._submit
        return self._delete if block.cancel and not block.deleting else None

    def _step(self, block: _Block, now: float) -> None:
        if not block.busy and now >= block.step and (action := self._next(block)) is not None:
            action(block, now)

    def _start(self, block: _Block, argv: Sequence[str], now: float, then: Callable[[_Block, Result, float], None],
               text: str = "") -> None:
        block.busy = True
        self._commands.start(argv, now, self.pace.timeout, partial(self._done, block, then), text)

    def _done(self, block: _Block, then: Callable[[_Block, Result, float], None], result: Result, now: float) -> None:
        block.busy = False
        if self._blocks.get(block.token) is block:   # else it was over before its command was
            then(block, result, now)

    def _wait(self, block: _Block, now: float) -> None:
        """Something failed: it is tried again, later at each failure."""
        block.step = now + self._backoff(block.failures)
        block.failures += 1

    def _backoff(self, failures: int) -> float:
        return min(self.pace.retry * 2.0 ** min(failures, 20), self.pace.most)

    def _submit(self, block: _Block, now: float) -> None:
        if block.cancel:
            self._over(block, BlockState.REFUSED, f"it was cancelled before {self._dialect.name} had taken it")
        elif block.tries >= self.pace.tries:
            self._over(block, BlockState.REFUSED, f"given up after {block.tries} tries: {block.text}", again=True)
        elif block.spec is not None:
            self._start(block, self._dialect.submit(block.spec), now, self._submitted,
                        self._dialect.script(block.spec))

    def _submitted(self, block: _Block, result: Result, now: float) -> None:
        answer = self._dialect.submitted(result)
        if answer.ids:
            self._taken(block, answer.ids[0], now)
            return
        if answer.refused and not answer.doubtful:
            self._over(block, BlockState.REFUSED, answer.refused, again=answer.again)
            return
        if answer.refused:   # at once: if it was done all the same, that is known by now
            block.refusal, block.absences, block.step = answer.refused, 1, now
            return
        block.text = answer.down or answer.unclear
        self._trouble = self._trouble or answer.down
        if answer.unclear:
            block.tries += 1
        # Looked for in any case: a server that breaks off has been asked all the same.
        block.absences = 1 if answer.down else ABSENCES
        self._wait(block, now)
        self._tell(block)

    def _find(self, block: _Block, now: float, way: int = 0) -> None:
        argv = self._dialect.find(block.token, way)
        if argv is None:
            self._wait(block, now)
        else:
            self._start(block, argv, now, partial(self._found, way))

    def _found(self, way: int, block: _Block, result: Result, now: float) -> None:
        answer = self._dialect.found(result)
        if answer is None:
            self._find(block, now, way + 1)
        elif answer.ids:
            for surplus in answer.ids[1:]:   # two jobs of one block would be two pilots under one name
                self._commands.start(self._dialect.delete(surplus, False), now, self.pace.timeout, _ignore)
            self._taken(block, answer.ids[0], now)
        elif answer.down or answer.unclear or answer.refused:
            self._wait(block, now)
        else:
            block.absences -= 1
            block.step = now + (self.pace.retry if block.absences else 0.0)
            if not block.absences and block.refusal:
                self._over(block, BlockState.REFUSED, block.refusal)
            elif not block.absences and block.spec is None:
                self._over(block, BlockState.ENDED, f"{self._dialect.name} knows no job of this name: "
                           "it was never submitted, or has been over for long")

    def _taken(self, block: _Block, id: str, now: float) -> None:
        block.id, block.text, block.failures, block.step, block.absences, block.refusal = id, "", 0, now, 0, ""
        self._look_at = min(self._look_at, now + self.pace.soon)
        if block.spec is not None:
            block.state, self._trouble = BlockState.QUEUED, ""
            self._tell(block)

    def _delete(self, block: _Block, now: float) -> None:
        self._start(block, self._dialect.delete(block.id, block.force), now, self._deleted)

    def _deleted(self, block: _Block, result: Result, now: float) -> None:
        answer = self._dialect.deleted(result)
        if answer.force and not block.force:
            block.force, block.step = True, now
        elif answer.down or answer.unclear or answer.force:
            self._wait(block, now)
        else:   # done; or refused, of which only the next look can say what it means, or a person who asks again
            block.deleting, block.failures, block.complaint = True, 0, answer.refused
            block.step = now if answer.refused else now + self.pace.timeout
            self._look_at = min(self._look_at, now + self.pace.soon)
            self._tell(block)

    # ---------------------------------------------------------------- all blocks

    def _look(self, now: float) -> None:
        ids = [block.id for block in self._blocks.values() if block.id]
        self._turn = turn = _Turn()
        self._question(turn, self._dialect.look(ids), now, partial(self._looked, turn, ids))

    def _question(self, turn: _Turn, argv: Sequence[str], now: float, then: Callable[[Result, float], None]) -> None:
        turn.commands += 1
        self._commands.start(argv, now, self.pace.timeout, partial(self._answered, turn, then))

    def _answered(self, turn: _Turn, then: Callable[[Result, float], None], result: Result, now: float) -> None:
        turn.commands -= 1
        then(result, now)
        if turn.commands == 0:
            self._end_turn(turn, now)

    def _looked(self, turn: _Turn, ids: Sequence[str], result: Result, now: float) -> None:
        look = self._dialect.looked(result, ids)
        if look.down:
            turn.down = look.down
            return
        turn.answered = bool(look.jobs)
        past, waiting = [], []
        for block in self._with(ids):
            sight = look.jobs.get(block.id)
            if sight is None or sight.state is None or sight.state == BlockState.ENDED:
                past.append(block.id)
                continue
            self._alive(block, sight)
            if sight.state == BlockState.QUEUED and sight.text is None:
                waiting.append(block)
        self._ask(turn, past, True, now)
        if any(now >= block.explain for block in waiting):   # all at once, so that many blocks need no more questions
            for block in waiting:
                block.explain = now + self.pace.explain
            self._ask(turn, [block.id for block in waiting], False, now)

    def _ask(self, turn: _Turn, ids: Sequence[str], past: bool, now: float, way: int = 0) -> None:
        for first in range(0, len(ids), self._dialect.at_once):
            some = ids[first:first + self._dialect.at_once]
            argv = self._dialect.ask(some, past, way)
            if argv is None:
                turn.silent += some
            else:
                self._question(turn, argv, now, partial(self._asked, turn, some, past, way))

    def _asked(self, turn: _Turn, ids: Sequence[str], past: bool, way: int, result: Result, now: float) -> None:
        look = self._dialect.asked(result, ids)
        if look.down:
            turn.down = turn.down or look.down
            return
        turn.answered = turn.answered or bool(look.jobs)
        for block in self._with(ids):
            sight = look.jobs.get(block.id)
            if sight is None:
                continue
            if sight.state is None:
                self._unknown(block, sight, now)
            elif sight.state == BlockState.ENDED:
                self._over(block, BlockState.ENDED, sight.text or "", sight.exit_code, sight.again)
            else:
                self._alive(block, sight)
        if silent := [id for id in ids if id not in look.jobs]:
            self._ask(turn, silent, past, now, way + 1)

    def _end_turn(self, turn: _Turn, now: float) -> None:
        self._turn = None
        down = turn.down
        if not down and not turn.answered and turn.silent:
            down = f"{self._dialect.name} said nothing that could be read about {', '.join(turn.silent)}"
        if down:
            self._look_at = now + max(self._backoff(self._failures), self.pace.every)
            self._failures += 1
            self._trouble = self._trouble or down
            for block in self._blocks.values():
                block.unknown = None   # a server that has only just come back may not know all of its jobs
        else:
            hurry = any(block.deleting and now < block.step for block in self._blocks.values())
            self._look_at = now + (min(self.pace.soon, self.pace.every) if hurry else self.pace.every)
            self._failures, self._trouble = 0, ""
        for block in self._blocks.values():
            self._tell(block)

    def _with(self, ids: Sequence[str]) -> list[_Block]:
        wanted = set(ids)
        return [block for block in self._blocks.values() if block.id in wanted]

    def _alive(self, block: _Block, sight: Sight) -> None:
        if block.state != sight.state:
            block.text, block.stuck = "", False
        block.state, block.seen, block.unknown = sight.state, True, None
        if sight.text is not None:
            block.text, block.stuck = sight.text, sight.stuck
        self._tell(block)

    def _unknown(self, block: _Block, sight: Sight, now: float) -> None:
        if block.unknown is None:
            block.unknown = now
        elif now - block.unknown < self.pace.patience:
            return
        elif block.seen:
            self._over(block, BlockState.ENDED, f"{sight.text} (for {now - block.unknown:.0f} s): nobody can tell how "
                       "it ended")
        else:
            self._over(block, BlockState.REFUSED, f"{sight.text}: {self._dialect.dropped(block.spec)}")

    def _tell(self, block: _Block) -> None:
        if block.state is None:   # adopted: whoever did it knows more than we do
            return
        text = block.complaint or block.text
        if self._trouble and block.id:
            text = f"{self._trouble}; before that: {text}" if text else self._trouble
        status = BlockStatus(block.token, block.state, block.id, None, text, stuck=block.stuck or bool(block.complaint))
        if status != block.told:
            block.told = status
            self._put(status)

    def _over(self, block: _Block, state: BlockState, text: str, exit_code: int | None = None,
              again: bool = False) -> None:
        del self._blocks[block.token]
        self._put(BlockStatus(block.token, state, block.id, exit_code, text, again))

    def _put(self, status: BlockStatus) -> None:
        self._news.append(status)
        self._commands.ring()


def _no_log(spec: BlockSpec) -> str | None:
    """Why there can be no log; a batch system that cannot write its output holds the job, or loses what it said."""
    try:
        os.makedirs(os.path.dirname(spec.log), mode=0o700, exist_ok=True)
    except OSError as exc:
        return f"the directory of its log cannot be made: {exc}"
    return None


def _ignore(result: Result, now: float) -> None:
    """Nothing follows from it."""
