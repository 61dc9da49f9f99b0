"""An ensemble on an Aurora node: an MPI program on its twelve GPU tiles, and 24 commands on a tile each.

    make demo                               # in the directory above; or:
    pip install -e .[examples]
    python examples/hello_affinity.py

This is the example of ALCF's page "Balsam on Aurora", in the words of balsamfut.  `hello_affinity` runs as 12 ranks,
through mpiexec; each `echo_hello` takes one tile and eight cores, so that twelve run at a time on a node.  The nodes
are pretended (this machine has no such tiles, and perhaps not the cores): placement, environment and launcher are real,
only binding to cores is left out.  Tasks and output stay in .balsamfut/, for `balsamfut task ls` and for

    cat .balsamfut/data/demo/*/job.out
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from balsamfut import Executor, app
from balsamfut.query import TaskInfo, open_site

PROGRAM = Path(__file__).with_name("print_affinity.py")   # in place of the page's compiled one


@app.shell("echo Hello, {{ say_hello_to }}! ZE_AFFINITY_MASK=$ZE_AFFINITY_MASK OMP_NUM_THREADS=$OMP_NUM_THREADS;"
           " sleep {{ seconds }}", gpus_per_rank=1, threads_per_rank=8)
def echo_hello(say_hello_to: str, seconds: float): ...


@app.shell(num_nodes=1, ranks_per_node=12, gpus_per_rank=1, threads_per_rank=8)
def hello_affinity():
    return [sys.executable, PROGRAM]


def main() -> None:
    parser = argparse.ArgumentParser(description="An ensemble on Aurora nodes; see the top of this file.")
    parser.add_argument("--nodes", type=int, default=1, help="pretended Aurora nodes (default: 1)")
    parser.add_argument("--seconds", type=float, default=1.0, help="that each echo_hello takes (default: 1)")
    asked = parser.parse_args()

    with Executor(platform="aurora", nodes=asked.nodes) as ex:
        affinity = hello_affinity.options(
            workdir="demo/hello_affinity", stdout=("job.out", "w"), tags={"workflow": "hello_affinity"})()
        hellos = [
            echo_hello.options(workdir=f"demo/hello_multi{n}", stdout=("job.out", "w"),
                               tags={"workflow": "hello_multi"})(f"Aurora_{n}", asked.seconds)
            for n in range(24)
        ]

        result = affinity.result()
        print(f"hello_affinity, 12 ranks through mpiexec; in {result.stdout}:")
        print(Path(result.stdout).read_text())
        for hello in hellos:
            hello.result()
        with open_site(ex.site) as site:
            tasks = site.tasks(campaign=ex.campaign, tags={"workflow": "hello_multi"})

    print("echo_hello, one tile each; times in seconds since the first began:")
    print(f"{'task':>4} {'workdir':19} {'node':>4} {'cores':8} {'tile':4} {'began':>6} {'ended':>6}  job.out")
    first = min(task.started or 0 for task in tasks)
    for task in sorted(tasks, key=lambda task: task.started or 0):
        node, cores, tile = where(task)
        said = Path(task.stdout).read_text().strip()
        print(f"{task.id:4} {'demo/' + Path(task.workdir).name:19} {node:>4} {cores:8} {tile:4} "
              f"{(task.started or 0) - first:6.2f} {(task.ended or 0) - first:6.2f}  {said}")
    for node in sorted({where(task)[0] for task in tasks}):
        here = [task for task in tasks if where(task)[0] == node]
        print(f"node {node}: {len(here)} echo_hello, at most {most_at_once(here)} at a time")


def where(task: TaskInfo) -> tuple[str, str, str]:
    """Node, cores and tile of a task of one rank: its place is written node:cores/tiles."""
    node, _, share = task.place.partition(":")
    cores, _, tile = share.partition("/")
    return node, cores, tile


def most_at_once(tasks: list[TaskInfo]) -> int:
    """How many of them ran at the same time, at most."""
    changes = sorted([(task.ended or 0, -1) for task in tasks] + [(task.started or 0, 1) for task in tasks])
    running = most = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


if __name__ == "__main__":
    main()
