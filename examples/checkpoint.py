"""Tasks that are longer than their blocks: they are told before a block ends, and go on in the next one.

    python examples/checkpoint.py            # in a directory of its own

The blocks here are short, and this machine stands for the batch system: each is gone after --seconds.  Each task walks
at random, slowly, for longer than that.  When its block comes to its end it gets a SIGTERM, `stop_grace` seconds before
it has to be over; it writes down where it is and raises.  In the next block it runs again, in the same workdir, and
finds what it wrote.  `checkpoint=True` says that it does so: no block is too short for it, and nobody is warned.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from balsamfut import Executor, Site, app, time_left

SITE = "checkpoint-site"


@app(workdir="walk-{{ seed }}", checkpoint=True, stop_grace=1)
def walk(seed: int, steps: int) -> tuple[int, int]:
    """A walk of so many steps, ten a second: where it ends, and how many blocks it took."""
    import json
    import random
    import signal

    told = False

    def stop(*_: object) -> None:
        nonlocal told
        told = True

    signal.signal(signal.SIGTERM, stop)
    saved = Path("state.json")
    state = json.loads(saved.read_text()) if saved.exists() else {"step": 0, "place": 0, "blocks": 0}
    print(f"walk {seed} begins at step {state['step']}, with {time_left():.0f} s left")
    dice = random.Random(1000 * seed + state["step"])
    while state["step"] < steps and not told:
        time.sleep(0.1)
        state["place"] += dice.choice((-1, 1))
        state["step"] += 1
    state["blocks"] += 1
    saved.write_text(json.dumps(state))
    if state["step"] < steps:
        raise TimeoutError(f"told to stop at step {state['step']}")
    return state["place"], state["blocks"]


def balsamfut(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "balsamfut", *words], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tasks over several blocks; see the top of this file.")
    parser.add_argument("--seconds", type=float, default=12.0, help="of a block (default: 12)")
    parser.add_argument("--steps", type=int, default=200, help="of a walk, a tenth of a second each (default: 200)")
    asked = parser.parse_args()

    if not Path(SITE).exists():
        balsamfut("site", "init", SITE, "--platform", "workstation")
    balsamfut("site", "start", SITE)
    try:
        site, blocks = Site(SITE), 0
        with Executor("walks", site=SITE) as ex:
            walks = [walk(seed, asked.steps) for seed in (1, 2)]
            while not all(each.done() for each in walks):
                if not site.queue.ls():
                    site.queue.submit(num_nodes=1, wall_time_min=asked.seconds / 60.0)
                    blocks += 1
                    print(f"block {blocks} is asked for", flush=True)
                time.sleep(0.2)
            for seed, each in zip((1, 2), walks, strict=True):
                place, parts = each.result()
                print(f"walk {seed}: at {place} after {asked.steps} steps, in {parts} blocks")
            ex.detach()
        for block in site.queue.ls():
            site.queue.rm(block.id)
    finally:
        balsamfut("site", "stop", SITE)


if __name__ == "__main__":
    main()
