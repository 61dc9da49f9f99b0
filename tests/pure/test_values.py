"""How options are written: every accepted form, and one clear sentence for everything else."""

from __future__ import annotations

import math
import signal
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsamfut import values
from balsamfut.errors import InvalidOption
from balsamfut.model import TILE, Extra, Options, Resources
from balsamfut.options import EXTRA, NOTHING, OPTIONS, RESOURCES, combine, normalise
from balsamfut.values import READERS


@pytest.mark.parametrize(("written", "seconds"), [
    ("20m", 1200), ("1:30:00", 5400), ("90s", 90), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800),
    ("20 min", 1200), ("5:30", 330), ("0:00:01.5", 1.5), ("45", 45), (90, 90), (0.25, 0.25),
    (timedelta(minutes=3), 180), (Decimal("1.5"), 1.5), ("100:00:00", 360000),
])
def test_walltime_is_read_as_people_and_batch_systems_write_it(written: object, seconds: float) -> None:
    assert normalise({"walltime": written}).options.walltime == seconds


@pytest.mark.parametrize("written", ["", "m", "1:60:00", "0:00:75", "20x", "-20m", "1h 30", "soon", 0, -1, True,
                                     math.nan, math.inf, "0s", timedelta(0), [20], b"20m"])
def test_a_walltime_that_is_none_is_refused(written: object) -> None:
    with pytest.raises(InvalidOption, match="walltime takes a duration"):
        normalise({"walltime": written})


def test_wall_time_min_is_walltime_in_minutes() -> None:
    assert normalise({"wall_time_min": 2.5}).options.walltime == 150
    with pytest.raises(InvalidOption, match="walltime and wall_time_min mean the same"):
        normalise({"wall_time_min": 2, "walltime": "2m"})
    with pytest.raises(InvalidOption, match="wall_time_min takes a number of minutes"):
        normalise({"wall_time_min": "2m"})


@pytest.mark.parametrize(("written", "size"), [
    ("4GB", 4 * 10**9), ("4GiB", 4 * 2**30), ("1.5 kb", 1500), ("512MiB", 2**29), ("100B", 100), (4096, 4096),
    ("1TB", 10**12),
])
def test_memory_is_bytes_or_says_its_unit(written: object, size: int) -> None:
    assert normalise({"memory": written}).resources.memory == size


@pytest.mark.parametrize("written", ["4G", "4", "lots", "0GB", "0.1B", 0, -1, 1.5, True, math.nan, "-1GB"])
def test_memory_that_is_none_is_refused(written: object) -> None:
    with pytest.raises(InvalidOption, match='memory takes bytes per node.*"4GB"'):
        normalise({"memory": written})


@pytest.mark.parametrize(("written", "shares"), [
    (0, 0), (1, TILE), (2, 2 * TILE), (2.0, 2 * TILE), (0.5, 5000), (0.29, 2900), (0.7, 7000),
])
def test_gpus_become_shares_of_tiles(written: float, shares: int) -> None:
    assert normalise({"gpus_per_rank": written}).resources.gpu_shares == shares


@pytest.mark.parametrize("written", [-1, 1.5, True, math.nan, math.inf, "1", 1e-9, None])
def test_gpus_that_cannot_be_had_are_refused(written: object) -> None:
    with pytest.raises(InvalidOption, match="gpus_per_rank takes a whole number of GPUs"):
        normalise({"gpus_per_rank": written})


@given(st.integers(1, TILE))
def test_equal_fractions_of_a_tile_fit_on_it(parts: int) -> None:
    shares = normalise({"gpus_per_rank": 1 / parts}).resources.gpu_shares
    assert 0 < shares * parts <= TILE


COUNTS = ["num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core", "node_packing_count"]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("written", [0, -3, True, False, 1.5, 2.0, "2", math.nan, [1]])
def test_counts_are_whole_and_positive(name: str, written: object) -> None:
    with pytest.raises(InvalidOption, match=f"^{name} takes a whole number, 1 or more, not "):
        normalise({name: written})


def test_counts_of_numpy_are_counts() -> None:
    numpy = pytest.importorskip("numpy")
    resources = normalise({"num_nodes": numpy.int64(3), "gpus_per_rank": numpy.float32(0.5)}).resources
    assert (resources.num_nodes, resources.gpu_shares) == (3, 5000)
    assert type(resources.num_nodes) is int
    with pytest.raises(InvalidOption):
        normalise({"num_nodes": numpy.bool_(True)})


@pytest.mark.parametrize(("given_", "fields"), [
    ({"retries": 0}, {"retries": 0}),
    ({"priority": -5}, {"priority": -5}),
    ({"environment": {"B": 1, "A": Path("/x")}}, {"environment": (("A", "/x"), ("B", "1"))}),
    ({"shell_preamble": ["module load lammps", "ulimit -s unlimited"]},
     {"shell_preamble": "module load lammps\nulimit -s unlimited"}),
    ({"cleanup_files": "*.tmp"}, {"cleanup_files": ("*.tmp",)}),
    ({"stop_signal": "SIGUSR1"}, {"stop_signal": int(signal.SIGUSR1)}),
    ({"stop_signal": "usr2"}, {"stop_signal": int(signal.SIGUSR2)}),
    ({"stop_signal": signal.SIGINT}, {"stop_signal": 2}),
    ({"stop_grace": "2m"}, {"stop_grace": 120.0}),
    ({"cache": True}, {"cache": True}),
])
def test_options_of_an_attempt(given_: dict[str, object], fields: dict[str, object]) -> None:
    assert normalise(given_).options == Options(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("given_", "fields"), [
    ({"tags": {"step": 3, "metal": "Cu"}}, {"tags": (("metal", "Cu"), ("step", "3"))}),
    ({"stdout": "a.txt"}, {"stdout": "a.txt", "stdout_mode": "a"}),
    ({"stderr": (Path("b.txt"), "w")}, {"stderr": "b.txt", "stderr_mode": "w"}),
    ({"inputs": ["x", Path("/y")]}, {"inputs": (("x", ""), ("/y", ""))}),
    ({"inputs": {"in.lj": "/decks/in.1"}, "link_inputs": False},
     {"inputs": (("/decks/in.1", "in.lj"),), "link_inputs": False}),
    ({"outputs": "log"}, {"outputs": ("log",)}),
    ({"workdir": Path("runs/1")}, {"workdir": "runs/1"}),
])
def test_options_of_paths_and_names(given_: dict[str, object], fields: dict[str, object]) -> None:
    assert normalise(given_).extra == Extra(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "written", "want"), [
    ("retries", -1, "a whole number that is not negative"),
    ("retries", True, "a whole number"),
    ("priority", 1.5, "a whole number; higher goes first"),
    ("mpi", 1, "True or False"), ("mpi", "pools", '"pool"'), ("gather", 1, "True or False"),
    ("environment", {"A=B": "x"}, "'A=B' is not a name"),
    ("environment", {"A": None}, r"environment\['A'\] takes a text or a number, not None"),
    ("environment", {"A": True}, r"environment\['A'\] takes"),
    ("environment", {"A": "x\0y"}, r"environment\['A'\] takes"),
    ("environment", ["A=B"], "a mapping from variables' names"),
    ("tags", "fast", "a mapping from names to values"),
    ("stdout", ("x", "r"), '"a"\\) or'),
    ("stdout", 3, "stdout takes a path"),
    ("workdir", "", "workdir takes a path"),
    ("inputs", 7, "a list of paths that must exist"),
    ("outputs", b"x", "a path or a list of paths"),
    ("shell_preamble", 3, "bash lines"),
    ("name", "", "a printable text"),
    ("version", None, "changes when the app's results do"),
    ("key", None, "a function of the call's arguments"),
    ("cache_ignore", "not a name", "the name of a parameter"),
    ("stop_signal", "SIGNOT", "a signal"),
    ("stop_signal", 0, "a signal"),
    ("stop_grace", -1, "not negative"),
    ("stop_grace", math.nan, "a duration"),
    ("launch_params", {"": 1}, "'' is not a name"),
    ("launch_params", {"--cpu-bind": "core"}, "names like cpu_bind, to values; '--cpu-bind' is not a name"),
])
def test_a_wrong_value_is_refused_with_what_would_be_right(name: str, written: object, want: str) -> None:
    with pytest.raises(InvalidOption, match=want):
        normalise({name: written})


def test_an_unknown_option_is_refused_with_the_names_that_are_close() -> None:
    with pytest.raises(InvalidOption, match=r"^@app f: there is no option 'gpu_per_rank'; did you mean gpus_per_rank"):
        normalise({"gpu_per_rank": 1}, "@app f")
    with pytest.raises(InvalidOption, match="there are num_nodes, ranks_per_node"):
        normalise({"zzz": 1})


def test_none_takes_back_what_a_weaker_place_said() -> None:
    weak = normalise({"walltime": "1h", "memory": "1GB", "node_packing_count": 4})
    strong = normalise({"walltime": None, "memory": None, "node_packing_count": None})
    both = combine(weak, strong)
    assert (both.options, both.resources) == (Options(), Resources())


def test_stronger_places_replace_and_mappings_join() -> None:
    settings = normalise({"retries": 1, "walltime": "1h"})
    decorator = normalise({"retries": 2, "environment": {"A": 1, "B": 1}, "tags": {"x": "1"}})
    call = normalise({"retries": 3, "environment": {"B": 2}, "tags": {"y": "2"}})
    both = combine(settings, decorator, NOTHING, call)
    assert both.options == Options(walltime=3600.0, retries=3, environment=(("A", "1"), ("B", "2")))
    assert both.extra.tags == (("x", "1"), ("y", "2"))
    assert combine(settings, decorator, NOTHING, call) is both


def test_a_weaker_mpi_pool_is_replaced_as_a_whole_and_gather_asks_for_ranks() -> None:
    pool, plain = normalise({"mpi": "pool"}), normalise({"mpi": True})
    assert pool.resources == Resources(mpi=True, pooled=True)
    assert combine(pool, plain).resources == Resources(mpi=True)
    assert combine(pool, normalise({"mpi": False})).resources == Resources()
    assert normalise({"gather": True}).resources == Resources(mpi=True)


def test_nothing_given_is_one_and_the_same_nothing() -> None:
    assert normalise({}) is NOTHING
    assert combine(NOTHING, NOTHING) is NOTHING
    assert not NOTHING.templated


def test_every_option_sets_fields_that_the_records_have() -> None:
    samples: dict[str, object] = {
        "memory": 1, "gpus_per_rank": 1, "walltime": 1, "mpi": True, "gather": True, "link_inputs": True, "cache": True,
        "environment": {}, "tags": {}, "launch_params": {}, "inputs": [], "outputs": [], "cleanup_files": [],
        "shell_preamble": "", "workdir": "x", "stdout": "x", "stderr": "x", "name": "x", "version": "1", "key": "k",
        "cache_ignore": [], "checkpoint": True,
    }
    fields = {field for name, read in READERS.items() for field in read(name, samples.get(name, 1))}
    assert fields <= RESOURCES | OPTIONS | EXTRA | {"version", "key", "cache_ignore"}
    assert fields >= RESOURCES | OPTIONS | (EXTRA - {"command"})


def test_a_tilde_is_the_home_of_who_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    extra = normalise({"workdir": Path("~/runs/{{ n }}"), "stdout": ("~/out", "w"), "stderr": "not/~/err",
                       "inputs": {"deck": "~/in.lj"}}).extra
    assert (extra.workdir, extra.stdout, extra.stderr) == ("/home/me/runs/{{ n }}", "/home/me/out", "not/~/err")
    assert extra.inputs == (("/home/me/in.lj", "deck"),)
    assert normalise({"inputs": ["~/seen"]}).extra.inputs == (("/home/me/seen", ""),)


@pytest.mark.parametrize(("name", "says"), [
    ("", "campaign takes a name, not ''"), ("  ", "campaign takes a name, not '  '"),
    (3, "did you mean max_workers=?"),
    ("a\tb", r"not 'a\tb'"), ("a\nb", r"not 'a\nb'"), ("a\x1b[2J", r"not 'a\x1b[2J'"),
    ("x" * 201, "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'..., which has 201"),
])
def test_names_that_no_table_could_show_are_refused_in_one_sentence(name: object, says: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        values.campaign(name)
    assert says in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 160


@pytest.mark.parametrize("name", [None, "scan7", "2026/11 run no. 3", "-x", "größe", "x" * 200])
def test_other_names_are_taken(name: str | None) -> None:
    values.campaign(name)
