"""A block that is split: an agent for each part, with nodes and a pilot's number of its own.

    python -m balsamfut.pilot.parts --parts 3,1 ARGUMENTS OF THE FIRST PART'S AGENT

All agents are started here, on the first host of the block, and lead their nodes from here: only there does every
batch system and launcher promise that more can be started.  Passes SIGTERM on, lasts as long as the last agent, and
ends with the code of the first that failed.  Decides nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from balsamfut.pilot import agent
from balsamfut.provider.recipe import part_token, starts

log = logging.getLogger("balsamfut.pilot")


def agents(counts: Sequence[int], words: Sequence[str]) -> list[list[str]]:
    """The arguments of each agent.  counts: nodes of each part; words: the first one's arguments."""
    first = agent.parse(words)
    found = []
    for index, count in enumerate(counts):
        found.append([*words, "--pilot", str(first.pilot + index), "--token", part_token(first.token, index),
                      "--part", f"{sum(counts[:index])}:{count}"])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--parts")
    counts = [int(count) for count in words[at + 1].split(",")]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    children: list[subprocess.Popen[bytes]] = []
    told = False

    def stop(*_: object) -> None:
        nonlocal told
        told = True
        for child in children:
            child.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    for each in agents(counts, words[:at] + words[at + 2:]):
        if not told:
            children.append(_start(each, apart=bool(children)))
            if told:                 # while it was being started
                stop()
    codes = [child.wait() for child in children]
    for number, code in enumerate(codes, 1):
        if code:
            log.warning("the pilot of part %d, of %d nodes, ended with %d", number, counts[number - 1], code)
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


def _start(words: Sequence[str], *, apart: bool) -> subprocess.Popen[bytes]:
    """apart: with a log of its own; the first one's is that of the block."""
    options = agent.parse(words)
    argv = [*starts("agent"), *words]
    if not apart:
        return subprocess.Popen(argv)
    path = Path(options.site) / "log" / f"pilot-{options.pilot}.log"
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(argv, stdout=out, stderr=out)
    finally:
        os.close(out)


if __name__ == "__main__":
    sys.exit(main())
