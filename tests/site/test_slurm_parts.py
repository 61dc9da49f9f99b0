"""A block that is split, on a real Slurm: two nodes for MPI tasks, one for others, led from the same host by srun."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_site_slurm import site as site
from test_site_slurm import wide

from balsamfut import Executor, Site, app, query

pytestmark = pytest.mark.timeout(240)


@app
def node() -> str:
    return os.environ["SLURMD_NODENAME"]


def test_the_parts_of_a_block_run_side_by_side_on_nodes_of_their_own(site: Site) -> None:
    text = site.queue.submit(3, 10, queue="debug", dry_run=True)
    assert "#SBATCH --nodes=3\n" in text
    number = site.queue.submit(3, 10, queue="debug", parts=[
        {"num_nodes": 2, "job_mode": "mpi"}, {"num_nodes": 1, "job_mode": "serial", "filter_tags": {"kind": "post"}}])
    with Executor("parts", site="slurm") as ex:
        wides = [wide() for _ in range(3)]
        nodes = [node.options(tags={"kind": "post"})() for _ in range(4)]
        mine = {word for call in wides for line in Path(call.result(120).stdout).read_text().splitlines()
                for word in line.split()[:1] if word != "srun:"}
        theirs = {call.result(120) for call in nodes}
        assert len(mine) == 2 and len(theirs) == 1 and not mine & theirs
        ex.detach()
    with query.open_site(site.path) as reader:
        assert {reader.task(call.task_id).pilot for call in wides} == {number}
        assert {reader.task(call.task_id).pilot for call in nodes} == {number + 1}
        assert {(each.pilot, each.state) for each in reader.nodes()} == {(number, "up"), (number + 1, "up")}
        assert len({each.name for each in reader.nodes()}) == 3
