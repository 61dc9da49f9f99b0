"""The PBS provider in a world where commands fail at random: no living block is called over, none is doubled or lost.

The world is a model of PBS in memory that prints what PBS prints; commands take no processes and no time but the
world's own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from balsamfut.provider.base import BlockSpec, BlockState, BlockStatus
from balsamfut.provider.commands import Result, Then
from balsamfut.provider.pace import Pace
from balsamfut.provider.pbs import PbsProvider

SERVER = "pbs.lab"
MOODS = ("well", "down", "hangs", "hangs after", "garbage", "blinks", "well", "well")
ACTIONS = st.one_of(
    st.tuples(st.just("mood"), st.sampled_from(MOODS)),
    st.tuples(st.just("pass"), st.sampled_from([1.0, 20.0, 200.0])),
    st.tuples(st.just("submit"), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 5)),
    st.tuples(st.just("job"), st.integers(0, 5)),
    st.tuples(st.just("restart"), st.just(0)),
)


@dataclass
class Job:
    id: str
    name: str
    state: str = "Q"
    status: int | None = None


class World:
    """PBS, and the Commands that reach it."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.mood = "well"
        self.waiting: list[tuple[float, Then, Result]] = []   # when it is over, and how

    # ---- what Commands is

    def start(self, argv: Sequence[str], now: float, limit: float, then: Then, text: str = "") -> None:
        words = tuple(argv)
        when, result = now + 0.1, Result(words, None, error=f"{words[0]} did not answer within {limit:g} s")
        if self.mood == "down":
            code = 255 if words[0] == "qstat" else 162
            result = Result(words, code, err=f"Connection refused\n{words[0]}: cannot connect to server {SERVER}\n")
        elif self.mood == "hangs":
            when = now + limit
        else:
            done = self.act(words, text)
            if self.mood == "hangs after":
                when = now + limit
            else:
                result = done
        self.waiting.append((when, then, result))

    def poll(self, now: float) -> None:
        over = [each for each in self.waiting if each[0] <= now]
        self.waiting = [each for each in self.waiting if each[0] > now]
        for _, then, result in over:
            then(result, now)

    def due(self) -> float | None:
        return min((when for when, _, _ in self.waiting), default=None)

    def ring(self) -> None: ...

    def close(self) -> None:
        self.waiting = []

    # ---- what PBS is

    def act(self, words: tuple[str, ...], text: str) -> Result:
        if words[0] == "qsub":
            name = next(line.split()[2] for line in text.splitlines() if line.startswith("#PBS -N"))
            self.jobs.append(Job(f"{len(self.jobs) + 1}.{SERVER}", name))
            return Result(words, 0, f"{self.jobs[-1].id}\n")
        if words[0] == "qselect":
            return Result(words, 0, "".join(f"{job.id}\n" for job in self.jobs if job.name == words[-1]))
        if words[0] == "qdel":
            job = next(job for job in self.jobs if job.id == words[-1])
            if job.state == "F":
                return Result(words, 35, err=f"qdel: Job has finished {job.id}\n")
            job.state, job.status = "F", None if job.state == "Q" else 271
            return Result(words, 0)
        asked = [job for job in self.jobs if job.id in words]
        if self.mood == "blinks":   # it knows no job, once
            self.mood = "well" if "-f" in words else "blinks"
            return Result(words, 153, "{}", "".join(f"qstat: Unknown Job Id {job.id}\n" for job in asked))
        if "-f" not in words:
            rows = "".join(f"{job.id[:15]}* name  user  0 {job.state} queue\n" for job in asked if job.state != "F")
            gone = "".join(f"qstat: {job.id} Job has finished, use -x\n" for job in asked if job.state == "F")
            return Result(words, 35 if gone else 0, rows, gone)
        shown = {job.id: {"job_state": job.state, **({} if job.status is None else {"Exit_status": job.status})}
                 for job in asked}
        if "json" in words:
            out = json.dumps({"Jobs": shown})
            return Result(words, 0, out[:-3] if self.mood == "garbage" else out)
        return Result(words, 0, "".join(f"Job Id: {id}\n" + "".join(f"    {k} = {v}\n" for k, v in job.items())
                                        for id, job in shown.items()))


class Play:
    """The provider's loop, and what was promised."""

    def __init__(self) -> None:
        self.world = World()
        self.now = 0.0
        self.tokens: list[str] = []
        self.over: dict[str, BlockStatus] = {}
        self.ids: dict[str, str] = {}
        self.cancelled: set[str] = set()
        self.provider = self.fresh()

    def fresh(self) -> PbsProvider:
        made = PbsProvider(pace=Pace())
        made.close()
        made._commands = self.world  # type: ignore[assignment]
        return made

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.provider.due()) is not None and due <= end:
            self.now = max(self.now, due)
            self.hear()
        self.now = end

    def hear(self) -> None:
        for status in self.provider.poll(self.now):
            assert status.token not in self.over, "told after its end"
            self.ids[status.token] = status.id or self.ids.get(status.token, "")
            if status.over:
                self.over[status.token] = status
                self.check_end(status)

    def check_end(self, status: BlockStatus) -> None:
        lives = [job for job in self.world.jobs if job.name == status.token and job.state != "F"]
        assert not lives, f"{status} and {lives}"
        mine = [job for job in self.world.jobs if job.name == status.token]
        if mine:
            status_of = mine[0].status
            assert status.state == BlockState.ENDED
            assert status.exit_code == (None if status_of is None else -15 if status_of == 271 else status_of)
        else:   # an interchange that has died had not submitted it yet, or it was cancelled before
            assert status.exit_code is None

    def act(self, action: str, value: object) -> None:
        living = [token for token in self.tokens if token not in self.over]
        if action == "mood":
            self.world.mood = str(value)
        elif action == "pass":
            self.advance(float(str(value)))
        elif action == "submit":
            self.tokens.append(f"bf-{len(self.tokens)}")
            self.provider.submit(BlockSpec(self.tokens[-1], ("true",), "/tmp/log", "/"), self.now)
        elif action == "cancel" and living:
            token = living[int(str(value)) % len(living)]
            self.cancelled.add(token)
            self.provider.cancel(token, self.now)
        elif action == "job" and self.world.jobs:
            job = self.world.jobs[int(str(value)) % len(self.world.jobs)]
            if job.state != "F":
                job.state, job.status = ("R", None) if job.state == "Q" else ("F", 7)
        elif action == "restart":
            self.hear()
            self.provider.close()
            self.provider = self.fresh()
            for token in self.tokens:
                if token not in self.over:
                    self.provider.adopt(token, self.ids.get(token, ""), self.now)
                    if token in self.cancelled:
                        self.provider.cancel(token, self.now)


@settings(max_examples=80, deadline=None)
@given(st.lists(ACTIONS, min_size=20, max_size=60))
def test_whatever_commands_do_each_block_is_one_job_and_its_end_is_told_once_and_truly(
        actions: list[tuple[str, object]]) -> None:
    play = Play()
    for action, value in actions:
        play.act(action, value)
    play.world.mood = "well"
    for _ in range(3):
        play.advance(2000.0)
        for job in play.world.jobs:
            if job.state != "F":
                job.state, job.status = "F", 7
    assert set(play.over) == set(play.tokens)
    assert len({job.name for job in play.world.jobs}) == len(play.world.jobs), "a block was submitted twice"
    assert play.provider.due() is None and play.provider.trouble() == ""
