"""A small campaign whose tasks leave a mark outside of the database each time that they run."""

from __future__ import annotations

import os
import sys

from balsamfut import Executor, app

SIDE = os.environ["SIDE"]


def note(what: str) -> None:
    with open(SIDE, "a") as side:
        side.write(f"{what}\n")


@app
def part(i: int) -> int:
    note(f"part{i}")
    return i * i


@app.shell("echo shell{{ i }} >> {{ side }}; echo out {{ i }}")
def command(i: int, side: str) -> None: ...


@app
def total(parts: list[int], shells: list[object]) -> int:
    note("total")
    return sum(parts) + len(shells)


if __name__ == "__main__":
    with Executor("crashes"):
        parts = [part(i) for i in range(4)]
        assert parts[-1].task_id                # recorded: what follows goes in a message of its own
        shells = [command(i, SIDE) for i in range(2)]
        print("TOTAL", total(parts, shells).result(timeout=60))
    sys.exit(0)
