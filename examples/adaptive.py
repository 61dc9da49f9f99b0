"""A search that decides what to run next from each result as it arrives: the best packing of nineteen atoms.

    pip install -e .[examples]              # once, in the directory above
    python examples/adaptive.py

Nineteen atoms with Lennard-Jones forces have thousands of stable arrangements.  The best is known, two icosahedra
grown into each other, at -72.659782 (in units of the well depth).  The script looks for it by basin hopping from
random starts.  A hop moves the atoms a little and relaxes them, and is a task.  At most --in-flight of them are under
way; when one arrives, its search hops on from there if that is better, tries again if not, and makes room for the next
start when it is stuck.

What a search does next depends on its own results alone, never on which search was faster.  So run again the script
makes the same calls, and because the campaign has a name it finds their results: kill it at any moment and start anew.
"""

from __future__ import annotations

import argparse
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass

from balsamfut import Executor, TaskFuture, app

ATOMS = 19
# D. J. Wales, J. P. K. Doye et al., The Cambridge Cluster Database, table of Lennard-Jones clusters.
BEST_KNOWN = -72.659782

Positions = list[list[float]]


@app
def hop(start: Positions | None, seed: int) -> tuple[float, Positions]:
    """Move atoms at random (None: from nowhere) and relax them: the energy and positions of the nearest minimum."""
    import numpy as np
    from scipy.optimize import minimize

    rng = np.random.default_rng(seed)
    if start is None:
        moved = rng.uniform(-2.0, 2.0, (ATOMS, 3))
    else:
        moved = np.array(start) + rng.uniform(-0.4, 0.4, (ATOMS, 3))
    first, second = np.triu_indices(ATOMS, 1)

    def lennard_jones(flat: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy and its gradient."""
        x = flat.reshape(ATOMS, 3)
        apart = x[first] - x[second]
        squared = np.maximum((apart**2).sum(axis=1), 0.25)   # atoms on top of each other: far up, but finite
        sixth = squared**-3
        pull = (24 * (sixth - 2 * sixth**2) / squared)[:, None] * apart
        gradient = np.zeros((ATOMS, 3))
        np.add.at(gradient, first, pull)
        np.add.at(gradient, second, -pull)
        return float(4 * (sixth**2 - sixth).sum()), gradient.ravel()

    found = minimize(lennard_jones, moved.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 2000})
    return float(found.fun), found.x.reshape(ATOMS, 3).tolist()


@dataclass
class Search:
    """One random start and what came of it."""

    number: int
    energy: float = 0.0
    positions: Positions | None = None
    hops: int = 0
    since_better: int = 0
    steps_down: int = 0

    def next_hop(self) -> TaskFuture[tuple[float, Positions]]:
        self.hops += 1
        return hop(self.positions, seed=1000 * self.number + self.hops)

    def learn(self, energy: float, positions: Positions) -> None:
        self.since_better += 1
        if energy < self.energy - 1e-6:
            self.energy, self.positions, self.since_better = energy, positions, 0
            self.steps_down += 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Basin hopping as results arrive; see the top of this file.")
    parser.add_argument("--starts", type=int, default=12, help="random starts (default: 12)")
    parser.add_argument("--patience", type=int, default=10, help="hops in vain that end a search (default: 10)")
    parser.add_argument("--in-flight", type=int, default=4, help="tasks under way at most (default: 4)")
    asked = parser.parse_args()
    if min(asked.starts, asked.patience, asked.in_flight) < 1:
        parser.error("--starts, --patience and --in-flight take whole numbers, 1 or more")

    waiting = [Search(number) for number in range(1, asked.starts + 1)]
    ended: list[Search] = []
    flying: dict[TaskFuture[tuple[float, Positions]], Search] = {}
    known = most = 0
    with Executor(campaign="adaptive"):
        while waiting or flying:
            while waiting and len(flying) < asked.in_flight:
                search = waiting.pop(0)
                flying[search.next_hop()] = search
            most = max(most, len(flying))
            arrived, _ = wait(flying, return_when=FIRST_COMPLETED)
            for future in arrived:
                search = flying.pop(future)
                search.learn(*future.result())
                known += future.from_cache
                if search.since_better < asked.patience:
                    flying[search.next_hop()] = search
                else:
                    ended.append(search)
                    print(f"search {search.number:2}: {search.energy:.6f} after {search.hops} hops, "
                          f"{search.steps_down} of them downhill", flush=True)

    lowest = min(search.energy for search in ended)
    there = sorted(search.number for search in ended if search.energy < lowest + 1e-5)
    hops = sum(search.hops for search in ended)
    print(f"{hops} hops, at most {most} at once; {known} were known from an earlier run")
    print(f"lowest energy: {lowest:.6f}, reached by searches {', '.join(map(str, there))}")
    print(f"the best known is {BEST_KNOWN}" + (": found" if abs(lowest - BEST_KNOWN) < 1e-5 else "; try more --starts"))


if __name__ == "__main__":
    main()
