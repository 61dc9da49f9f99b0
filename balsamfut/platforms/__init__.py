"""Machines as data: what a node has, how its accelerators are masked, which launcher starts MPI programs.

Each machine is a dated TOML file beside this module; a site's settings may override any part of it with a dict of the
same shape.  This module knows nothing of tasks and starts no process (finding the launcher of a workstation is in
`balsamfut.platforms.probe`).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from balsamfut.errors import SettingsError
from balsamfut.platforms import checking

FILE: Final = "platform.toml"
"""In a site: what is other there than our description of its machine."""

_HERE: Final = Path(__file__).parent
_ALIASES: Final = {"perlmutter": "perlmutter-gpu"}
_GB: Final = 10**9


class Tile(msgspec.Struct, frozen=True):
    """What `gpus_per_rank` counts: a tile, a GCD or a whole GPU, as the machine divides them."""

    id: str                  # for people: "0.1"
    gpu: int                 # the GPU that it is part of
    numa: int                # index into the node's NUMA nodes; -1: not known
    cores: tuple[int, ...]   # the usable cores that are its own by custom; may be empty
    masks: dict[str, str]    # hierarchy mode -> its name in the mask variable


class Node(msgspec.Struct, frozen=True):
    """What one node offers to tasks."""

    name: str                # of the platform, for messages
    cores: tuple[int, ...]   # usable CPU numbers, one per physical core, ascending; without the reserved ones
    numa: tuple[int, ...]    # NUMA node of each of `cores`
    tiles: tuple[Tile, ...]
    memory: int              # bytes for tasks; 0: not known, so not limited
    smt: int = 1             # hardware threads per core
    smt_offset: int = 0      # sibling thread i of core c is CPU c + i * smt_offset
    agent: tuple[int, ...] = ()   # cores that tasks leave free by custom, to which agents keep; none: to any

    def threads(self, cores: Iterable[int], threads_per_core: int) -> tuple[int, ...]:
        """The CPUs that a rank with these cores is bound to: siblings too, as far as threads_per_core wants them."""
        siblings = min(threads_per_core, self.smt)
        return tuple(sorted(core + i * self.smt_offset for core in cores for i in range(siblings)))


class Launcher(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How MPI programs are started."""

    flavour: str = ""           # pals, hydra, openmpi, srun; ssh, for agents only; "": to be found (platforms.probe)
    exe: str = ""               # "": mpiexec, srun or ssh, as the flavour has it
    hostfile_over: int = 64     # more hosts than this are given in a file
    launch_rate: float = 0.0    # launches that may begin per second; 0: no limit
    launch_budget: int = 0      # launches per batch job; 0: no limit
    max_concurrent: int = 0     # launches at a time; 0: no limit


class Platform(msgspec.Struct, frozen=True):
    """A machine."""

    name: str
    verified_on: str               # ISO date on which the facts were last compared with the site's documentation
    node: Node
    max_nodes: int
    launcher: Launcher
    bind: bool = True              # tasks are bound to their cores
    mask_env: str = ""             # the variable that shows a process its tiles only
    mask_extra_env: dict[str, str] = {}   # set whenever the mask is
    mode_env: str = ""             # the variable that says how masks are read; set whenever the mask is
    mode: str = ""                 # its value unless the task's environment has another of `modes`
    modes: tuple[str, ...] = ()
    env: dict[str, str] = {}       # for every task that does not set it itself
    scheduler: dict[str, Any] = {}   # plain data for the batch adapters: kind, filesystems, queues ...
    network: dict[str, Any] = {}
    filesystem: dict[str, Any] = {}


class _TileFile(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    gpu: int
    mask: str | dict[str, str]
    numa: int = -1
    cores: str = ""


class _NodeFile(msgspec.Struct, forbid_unknown_fields=True):
    cores: str
    numa: list[str]
    memory_gb: float
    smt: int = 1
    smt_offset: int = 0
    agent: str = ""


class _AcceleratorsFile(msgspec.Struct, forbid_unknown_fields=True):
    mask_env: str = ""
    mode_env: str = ""
    mode: str = ""
    extra_env: dict[str, str] = {}
    tiles: list[_TileFile] = []


class _DetectFile(msgspec.Struct, forbid_unknown_fields=True):
    domains: list[str] = []     # the host name's domain ends so
    hosts: list[str] = []       # the host name begins so
    env: dict[str, str] = {}    # a variable has this value


class _File(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    verified_on: str
    max_nodes: int
    node: _NodeFile
    launcher: Launcher = Launcher()
    accelerators: _AcceleratorsFile = msgspec.field(default_factory=_AcceleratorsFile)
    detect: _DetectFile = msgspec.field(default_factory=_DetectFile)
    bind: bool = True
    env: dict[str, str] = {}
    scheduler: dict[str, Any] = {}
    network: dict[str, Any] = {}
    filesystem: dict[str, Any] = {}


def cpu_list(text: str) -> tuple[int, ...]:
    """`"1-3,8"` -> (1, 2, 3, 8).  Raises ValueError naming what is not a number or a range."""
    cpus: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise ValueError(f"{part!r} is not a CPU number or a range such as 1-8")
        cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)


def cpu_text(cpus: Iterable[int]) -> str:
    """(1, 2, 3, 8) -> `"1-3,8"`."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def names() -> list[str]:
    """The platforms that there is a file for."""
    return sorted(path.stem for path in _HERE.glob("*.toml"))


def load(name: str, overrides: Mapping[str, Any] | None = None) -> Platform:
    """The platform of this name, with `overrides` (a dict of the file's shape; tables are merged, lists replaced).

    Raises SettingsError for a name that there is no file for, and for overrides that do not fit.
    """
    raw = _read(name)
    if raw["name"] == "workstation":
        raw = _merge(raw, {"node": _this_machine(None)})
    return _build(_merge(raw, overrides or {}))


def workstation(cores: int | None = None, overrides: Mapping[str, Any] | None = None) -> Platform:
    """This machine as one node, with so many cores; more than it has is allowed and then nothing is bound."""
    if cores is not None and cores < 1:
        raise SettingsError(f"a workstation needs at least 1 core, not {cores}")
    raw = _merge(_merge(_read("workstation"), {"node": _this_machine(cores)}), overrides or {})
    if cores is not None and cores > len(os.sched_getaffinity(0)):
        raw["bind"] = False
    return _build(raw)


def overrides(site: Path) -> dict[str, Any]:
    """What a site's `platform.toml` says.  Raises SettingsError where it is not TOML."""
    path = site / FILE
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None


def at(site: Path, name: str, cores: int | None = None) -> Platform:
    """The platform as a site has it: what its `platform.toml` says, of the same shape, goes before our file.

    cores: of a workstation.  Raises SettingsError, also for a file that does not fit.
    """
    said = overrides(site)
    try:
        return workstation(cores, said) if name == "workstation" else load(name, said)
    except SettingsError as error:
        raise SettingsError(f"{site / FILE}: {error}" if said else str(error)) from None


def detect(hostname: str, environ: Mapping[str, str]) -> str:
    """The platform that a machine with this fully qualified name and environment is; `workstation` if none."""
    for name in names():
        rules = msgspec.convert(_read(name).get("detect", {}), _DetectFile)
        if (any(hostname.endswith("." + domain) for domain in rules.domains)
                or any(hostname.startswith(host) for host in rules.hosts)
                or any(environ.get(key) == value for key, value in rules.env.items())):
            return name
    return "workstation"


def check(name: str) -> None:
    """Raises SettingsError for a name that there is no file for."""
    _path(name)


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(_path(name).read_text())


def _path(name: str) -> Path:
    path = _HERE / f"{_ALIASES.get(name, name)}.toml"
    if not name.replace("-", "").isalnum() or not path.is_file():
        import difflib

        known = [*names(), *_ALIASES]
        close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        raise SettingsError(f"there is no platform {name!r}; "
                            + (f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names())}"))
    return path


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _this_machine(cores: int | None) -> dict[str, Any]:
    """The `[node]` table of the machine that we run on."""
    mine = sorted(os.sched_getaffinity(0))
    while cores is not None and len(mine) < cores:
        mine.append(mine[-1] + 1)   # cores that do not exist: something to count with, never bound
    mine = mine[:cores]
    numa: list[str] = []
    for index in range(1024):   # numbered without gaps on nearly all machines; the rest falls to the last node
        try:
            numa.append(Path(f"/sys/devices/system/node/node{index}/cpulist").read_text().strip())
        except OSError:
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"cores": cpu_text(mine), "numa": numa or [cpu_text(mine)], "memory_gb": memory / _GB}


def _build(raw: dict[str, Any]) -> Platform:
    try:
        checking.check_names(raw, _File)
        checking.check_open(raw)
        file = msgspec.convert(raw, _File)
        node = _node(file)
        modes = tuple(node.tiles[0].masks) if node.tiles else ()
    except (msgspec.ValidationError, ValueError) as error:
        raise SettingsError(f"platform {raw.get('name')!r}: {checking.plain(error)}") from None
    acc = file.accelerators
    return Platform(file.name, file.verified_on, node, file.max_nodes, file.launcher, file.bind, acc.mask_env,
                    acc.extra_env, acc.mode_env, acc.mode, modes, file.env, file.scheduler, file.network,
                    file.filesystem)


def _node(file: _File) -> Node:
    cores = tuple(sorted(set(cpu_list(file.node.cores))))
    if not cores:
        raise ValueError("node.cores names no core")
    side = {cpu: index for index, cpus in enumerate(file.node.numa) for cpu in cpu_list(cpus)}
    usable = frozenset(cores)
    acc = file.accelerators
    tiles = []
    for tile in acc.tiles:
        masks = {acc.mode: tile.mask} if isinstance(tile.mask, str) else tile.mask
        if acc.mode not in masks:
            raise ValueError(f"tile {tile.id!r} has no mask for the mode {acc.mode!r}")
        own = tuple(cpu for cpu in cpu_list(tile.cores) if cpu in usable)
        tiles.append(Tile(tile.id, tile.gpu, tile.numa, own, masks))
    if tiles and not acc.mask_env:
        raise ValueError("accelerators.tiles needs accelerators.mask_env, the variable that shows a task its tiles")
    if any(set(tile.masks) != set(tiles[0].masks) for tile in tiles):
        raise ValueError("accelerators.tiles: all tiles need masks for the same modes")
    last = len(file.node.numa) - 1
    return Node(file.name, cores, tuple(side.get(cpu, max(last, 0)) for cpu in cores), tuple(tiles),
                int(file.node.memory_gb * _GB), file.node.smt, file.node.smt_offset,
                tuple(cpu for cpu in cpu_list(file.node.agent) if cpu in usable))
