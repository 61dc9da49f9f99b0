"""The examples and the README's first script, run as a user runs them; and the campaign killed halfway.

What they must find is checked against their printed tables and files, and against the database and the logs of workers.
"""

from __future__ import annotations

import csv
import fcntl
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DATABASE = Path(".balsamfut") / "balsamfut.db"
# What ASE's EMT gives, in GPa; another implementation of the same model (Jacobsen, Stoltze, Norskov 1996) agrees.
EMT = {"Al": 39.4, "Cu": 134.4, "Ag": 100.1, "Au": 173.7, "Ni": 174.6, "Pd": 179.1, "Pt": 277.9}


def environment() -> dict[str, str]:
    """With the repository importable and the environment's own mpiexec found first.

    Interchanges end at once when they are alone, and have two workers: a campaign whose script is killed stops halfway.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    programs = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PATH": os.pathsep.join(programs),
            "BALSAMFUT_INTERCHANGE_LINGER": "0", "BALSAMFUT_PILOT_MAX_WORKERS": "2"}


def run(script: Path, *arguments: str) -> str:
    """What the script prints; it must end well and say nothing on stderr."""
    done = subprocess.run([sys.executable, str(script), *arguments], env=environment(), capture_output=True, text=True,
                          timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def ask(query: str) -> list[tuple[int, ...]]:
    connection = sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True, timeout=10)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def done_tasks() -> dict[int, tuple[int, ...]]:
    """id -> (attempt, started, ended) of every task that is recorded as DONE."""
    return {row[0]: row[1:] for row in ask("SELECT id, attempt, started, ended FROM tasks WHERE state = 5")}


def printed() -> Counter[str]:
    """What workers printed, line by line."""
    return Counter(line for path in Path(".balsamfut/log").glob("pilot-*/worker-*.out")
                   for line in path.read_text().splitlines())


def until(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def nobody_owns_the_database() -> bool:
    """The interchange has ended: it holds this lock for as long as it lives."""
    lock = os.open(".balsamfut/interchange.owner", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


# ---- hello_affinity


@pytest.mark.parametrize("nodes", [1, 2])
def test_hello_affinity_shows_twelve_ranks_on_twelve_tiles_and_twelve_commands_at_a_time(
        site_dir: Path, nodes: int) -> None:
    said = run(EXAMPLES / "hello_affinity.py", "--nodes", str(nodes), "--seconds", "0.5")
    tiles = [f"{gpu}.{tile}" for gpu in range(6) for tile in range(2)]
    cores = [f"{first}-{first + 7}" for first in [*range(1, 42, 8), *range(53, 94, 8)]]
    ranks = re.findall(r"^rank (\d+) of 12 on \S+ ZE_AFFINITY_MASK=(\S+) OMP_NUM_THREADS=8 BALSAMFUT_CORES=(\S+)$",
                       said, re.MULTILINE)
    assert ranks == [(str(rank), tiles[rank], cores[rank]) for rank in range(12)]

    rows = re.findall(r"^ *\d+ demo/hello_multi(\d+) +(\d) (\S+) +(\S+) +([\d.]+) +([\d.]+)  (.*)$", said, re.M)
    assert sorted(int(row[0]) for row in rows) == list(range(24))
    for number, _, core, tile, _, _, output in rows:
        assert (tile, core) in zip(tiles, cores, strict=True)
        assert output == f"Hello, Aurora_{number}! ZE_AFFINITY_MASK={tile} OMP_NUM_THREADS=8"
        assert (site_dir / f".balsamfut/data/demo/hello_multi{number}/job.out").read_text() == output + "\n"
    on_nodes = re.findall(r"^node (\d): (\d+) echo_hello, at most (\d+) at a time$", said, re.MULTILINE)
    assert sum(int(count) for _, count, _ in on_nodes) == 24
    # With two nodes they begin beside the MPI program, which has the other; that one joins in when it is free.
    assert on_nodes == [("0", "24", "12")] if nodes == 1 else on_nodes[-1][::2] == ("1", "12")
    assert all(int(most) <= 12 for *_, most in on_nodes)
    # No tile is given to two at the same time.
    for place in {row[1:4] for row in rows}:
        times = sorted((float(row[4]), float(row[5])) for row in rows if row[1:4] == place)
        assert all(earlier[1] <= later[0] + 0.011 for earlier, later in zip(times, times[1:], strict=False))


# ---- bulk_moduli


def moduli() -> dict[str, dict[str, str]]:
    with Path("bulk_moduli.csv").open(newline="") as file:
        return {row["metal"]: row for row in csv.DictReader(file)}


def test_bulk_moduli_finds_the_moduli_of_seven_metals_and_computes_nothing_twice(site_dir: Path) -> None:
    pytest.importorskip("ase")
    said = run(EXAMPLES / "bulk_moduli.py")
    assert "225 tasks, of which 0 were known" in said
    table = moduli()
    assert set(table) == set(EMT)
    for metal, row in table.items():
        assert float(row["modulus"]) == pytest.approx(EMT[metal], rel=0.005)
        assert float(row["a"]) == pytest.approx(float(row["a_experiment"]), rel=0.02)
        assert float(row["deviation"]) == pytest.approx(
            100 * (float(row["modulus"]) / float(row["modulus_experiment"]) - 1))
        assert re.search(rf"^{metal} .* {float(row['modulus']):.1f} ", said, re.MULTILINE)
    before, lines = done_tasks(), printed()
    assert len(before) == 225
    assert len(lines) == 217
    assert set(lines.values()) == {1}

    again = run(EXAMPLES / "bulk_moduli.py")
    assert again == said.replace("of which 0 were", "of which 225 were")
    assert done_tasks() == before
    assert printed() == lines


def test_bulk_moduli_killed_halfway_goes_on_and_repeats_nothing_that_was_done(site_dir: Path) -> None:
    pytest.importorskip("ase")
    script = subprocess.Popen([sys.executable, str(EXAMPLES / "bulk_moduli.py")], env=environment(),
                              stdout=subprocess.DEVNULL)
    try:
        until(lambda: DATABASE.exists() and len(printed()) >= 40)
        os.kill(script.pid, signal.SIGKILL)
    finally:
        script.kill()
        script.wait()
    # The interchange ends because it is alone; everything that it has recorded by then is done for good.
    until(nobody_owns_the_database)
    before = done_tasks()
    assert 40 <= len(before) < 225
    assert not Path("bulk_moduli.csv").exists()

    said = run(EXAMPLES / "bulk_moduli.py")
    assert f"225 tasks, of which {len(before)} were known" in said
    assert {metal: float(row["modulus"]) for metal, row in moduli().items()} == pytest.approx(EMT, rel=0.005)
    after = done_tasks()
    assert len(after) == 225 == ask("SELECT count(*) FROM tasks")[0][0]
    assert {task: after[task] for task in before} == before
    lines = printed()
    assert len(lines) == 217
    assert sum(lines.values()) - 217 <= 2, "more was computed twice than can have been interrupted"


# ---- adaptive


def test_adaptive_finds_the_best_cluster_and_a_re_run_finds_all_of_its_hops(site_dir: Path) -> None:
    pytest.importorskip("scipy")
    said = run(EXAMPLES / "adaptive.py")
    hops, most, known = map(int, re.search(
        r"^(\d+) hops, at most (\d+) at once; (\d+) were known", said, re.MULTILINE).groups())  # type: ignore[union-attr]
    assert (most, known) == (4, 0)
    assert "the best known is -72.659782: found" in said
    ends = re.findall(r"^search +(\d+): (-[\d.]+) after (\d+) hops", said, re.MULTILINE)
    assert sorted(int(number) for number, *_ in ends) == list(range(1, 13))
    assert sum(int(count) for *_, count in ends) == hops
    before = done_tasks()
    assert len(before) == hops

    again = run(EXAMPLES / "adaptive.py")
    assert f"{hops} hops, at most 4 at once; {hops} were known" in again
    assert sorted(again.splitlines()[:12]) == sorted(said.splitlines()[:12])
    assert done_tasks() == before


# ---- the README


def test_the_readmes_first_script_works_as_pasted_and_its_second_run_computes_nothing(site_dir: Path) -> None:
    block = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    script = site_dir / "first.py"
    script.write_text(block[1])
    assert run(script) == "the mean of 40 energies is 1.335\n\n"
    before = done_tasks()
    assert len(before) == 42
    assert run(script) == "the mean of 40 energies is 1.335\n\n"
    assert done_tasks() == before


def test_a_wrong_argument_of_an_example_is_one_sentence(site_dir: Path) -> None:
    for script, arguments in (("bulk_moduli.py", ["--points", "3"]), ("adaptive.py", ["--in-flight", "0"])):
        done = subprocess.run([sys.executable, str(EXAMPLES / script), *arguments], env=environment(),
                              capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert arguments[0] in done.stderr.splitlines()[-1]
    assert not DATABASE.exists()


# ---- checkpoint


@pytest.mark.timeout(180)
def test_checkpoint_goes_on_over_three_blocks_from_where_it_was(
        site_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(site_dir / "config"))
    said = run(EXAMPLES / "checkpoint.py", "--seconds", "9", "--steps", "200")
    walks = re.findall(r"^walk (\d): at (-?\d+) after 200 steps, in (\d) blocks$", said, re.MULTILINE)
    assert [number for number, _, _ in walks] == ["1", "2"] and all(int(blocks) >= 3 for *_, blocks in walks)
    outs = sorted((site_dir / "checkpoint-site" / "log").glob("pilot-*/worker-*.out"))
    begun = re.findall(r"^walk 1 begins at step (\d+), with (\d+) s left$", "".join(map(Path.read_text, outs)), re.M)
    steps = [int(step) for step, _ in begun]
    assert steps[0] == 0 and sorted(set(steps)) == steps and len(steps) == int(walks[0][2]), "it began anew"
    assert all(2 < int(left) < 9 for _, left in begun)
