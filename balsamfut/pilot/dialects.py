"""How each MPI launcher is told hosts, ranks and environment; pure.

Four flavours: PALS (Cray's mpiexec), Hydra (MPICH, Intel MPI), Open MPI 5 (prterun) and Slurm's srun.  Hosts are always
explicit, since the defaults reach for all nodes of the batch job, and the launcher's own binding is off, since it knows
nothing of the other tasks on a node; what a rank is bound to is the business of the wrapper (launch.py).
This module must not know tasks, placements or platforms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from balsamfut.errors import InvalidOption
from balsamfut.platforms import Launcher, cpu_list, cpu_text

RANK: Final = {"pals": "PALS_RANKID", "hydra": "PMI_RANK", "openmpi": "OMPI_COMM_WORLD_RANK", "srun": "SLURM_PROCID"}
"""Variables in which ranks find their number in the whole task."""

LOCAL_RANK: Final = {"pals": "PALS_LOCAL_RANKID", "hydra": "MPI_LOCALRANKID",
                     "openmpi": "OMPI_COMM_WORLD_LOCAL_RANK", "srun": "SLURM_LOCALID"}
"""... and their number on their node."""

_SWITCH: Final = {"1": True, "true": True, "yes": True, "on": True,
                  "0": False, "false": False, "no": False, "off": False}

# launch_params: name -> the words it becomes; {} stands for its value.
_VALUES: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "pals": {"mem_bind": ("--mem-bind", "{}"), "pmi": ("--pmi", "{}"), "rlimits": ("--rlimits", "{}"),
             "umask": ("--umask", "{}")},
    "hydra": {"mem_bind": ("-membind", "{}"), "iface": ("-iface", "{}")},
    "openmpi": {},
    "srun": {"mem_bind": ("--mem-bind={}",), "mpi": ("--mpi={}",), "network": ("--network={}",)},
}

# launch_params that are yes or no -> the words of each.  Where the words are none, that is how the launcher is anyway.
_SWITCHES: Final[dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]]] = {
    "pals": {"no_vni": (("--no-vni",), ()), "line_buffer": (("--line-buffer",), ()), "label": (("--label",), ()),
             "transfer": (("--transfer",), ("--no-transfer",)), "exclusive": (("--exclusive",), ("--shared",)),
             "abort_on_failure": (("--abort-on-failure",), ("--no-abort-on-failure",))},
    "hydra": {"no_vni": ((), ()), "line_buffer": ((), ()), "label": (("-l",), ()),
              "abort_on_failure": ((), ("-disable-auto-cleanup",))},
    "openmpi": {"no_vni": ((), ()), "line_buffer": (("--stream-buffering", "1"), ()),
                "label": (("--output", "tag"), ())},   # it can go on after a failure, but then its code is 0
    "srun": {"no_vni": (("--network=no_vni",), ()), "line_buffer": (("--unbuffered",), ()), "label": (("--label",), ()),
             "abort_on_failure": ((), ("--kill-on-bad-exit=0",))},
}

# Launchers' options that are said in another way here.
_OURS: Final = {
    "n": "num_nodes and ranks_per_node", "np": "num_nodes and ranks_per_node", "ntasks": "num_nodes and ranks_per_node",
    "nodes": "num_nodes", "ppn": "ranks_per_node", "ntasks_per_node": "ranks_per_node",
    "depth": "threads_per_rank", "cpus_per_task": "threads_per_rank", "gpu_bind": "gpus_per_rank",
    "gpus": "gpus_per_rank", "gpus_per_task": "gpus_per_rank", "env": "environment", "genv": "environment",
    "envlist": "environment", "export": "environment", "x": "environment", "mca": "environment (OMPI_MCA_...)",
    "wdir": "workdir", "chdir": "workdir", "time": "walltime", "bind_to": "cpu_bind", "map_by": "cpu_bind",
}

# cpu_bind in PALS's words -> the flavour's.  "depth", "none" and "list:" are not the launcher's business but ours.
_BIND: Final[dict[str, dict[str, str]]] = {
    "pals": {"core": "core", "thread": "thread", "numa": "numa", "socket": "socket"},
    "hydra": {"core": "core", "thread": "hwthread", "numa": "numa", "socket": "socket"},
    "openmpi": {"core": "core", "thread": "hwthread", "numa": "numa", "socket": "package"},
    "srun": {"core": "cores", "thread": "threads", "numa": "ldoms", "socket": "sockets"},
}
OWN_BINDING: Final = ("", "depth", "none")

_PROGRAM: Final = {"srun": "srun", "ssh": "ssh"}   # mpiexec for the others

# ssh joins the program's words with blanks and gives them to a shell: each is quoted first.
_SSH: Final = r"""#!/bin/sh
# usage: ssh.sh PROGRAM HOST WORD...: runs the words on the host, as they are.
program=$1 host=$2
shift 2
line=exec
for word; do
    line="$line '$(printf '%s\n' "$word" | sed "s/'/'\\\\''/g")'"
done
exec "$program" -o BatchMode=yes "$host" "$line"
"""


def check_params(flavour: str, params: Mapping[str, str]) -> str | None:
    """Why these launch_params cannot be honoured by this flavour, naming the first; None if all can.

    A flavour that is not known yet ("") is taken for Hydra.
    """
    flavour = flavour or "hydra"
    values, switches = _VALUES[flavour], _SWITCHES[flavour]
    for name, value in params.items():
        if name == "cpu_bind":
            wrong = _check_bind(flavour, value)
            if wrong:
                return f"launch_params: cpu_bind={value!r} {wrong}"
        elif name == "output":
            if "%r" not in value:
                return f"launch_params: output={value!r} has no %r, the rank's number: all would write to one file"
        elif name in switches:
            if value.lower() not in _SWITCH:
                return f"launch_params: {name}={value!r} is neither yes nor no"
        elif name in _OURS:
            return f"launch_params: {name!r} is said by {_OURS[name]}"
        elif name not in values:
            return (f"launch_params: {name!r} is not known to {flavour}; "
                    f"there are {', '.join(('cpu_bind', 'output', *values, *switches))}")
    return None


def _check_bind(flavour: str, value: str) -> str | None:
    if value in OWN_BINDING or value in _BIND[flavour]:
        return None
    try:
        if rank_cpus(value):
            return None
    except ValueError as error:
        return f"is wrong: {error}"
    return f"is not known to {flavour}; there are {', '.join((*OWN_BINDING[1:], *_BIND[flavour]))}, list:..., mask:..."


def rank_cpus(cpu_bind: str) -> list[str]:
    """`"list:1-8:9-16"` or `"mask:ff:ff00"` -> the CPUs of each local rank, as `taskset -c` takes them; else none.

    Raises ValueError for what is neither a CPU nor a mask.
    """
    kind, _, groups = cpu_bind.partition(":")
    if kind == "list":
        return [_some(cpu_list(group)) for group in groups.split(":")]
    if kind == "mask":
        try:
            masks = [int(group, 16) for group in groups.split(":")]
        except ValueError:
            raise ValueError(f"{groups!r} are not hexadecimal masks with : between them") from None
        return [_some([cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1]) for mask in masks]
    return []


def _some(cpus: Sequence[int]) -> str:
    if not cpus:
        raise ValueError("a rank would have no CPU")
    return cpu_text(cpus)


def _extra(flavour: str, params: Mapping[str, str]) -> list[str]:
    words: list[str] = []
    for name, value in params.items():
        if name in _VALUES[flavour]:
            words.extend(word.replace("{}", value) for word in _VALUES[flavour][name])
        elif name in _SWITCHES[flavour]:
            words.extend(_SWITCHES[flavour][name][0 if _SWITCH[value.lower()] else 1])
    return words


def aborts(params: Mapping[str, str]) -> bool:
    """A rank that fails ends the others."""
    return _SWITCH.get(params.get("abort_on_failure", "yes").lower(), True)


def argv(launcher: Launcher, hosts: Sequence[str], ranks_per_node: int, *, params: Mapping[str, str],
         exports: Sequence[str], directory: str, local: bool) -> tuple[list[str], dict[str, bytes]]:
    """The launcher's words before the program's, and files that have to be in `directory`.

    exports: variables that must reach the ranks.  local: all ranks on this host, whatever batch job it is in.
    """
    flavour, exe, total = launcher.flavour, program(launcher), str(len(hosts) * ranks_per_node)
    where, files = _hosts(launcher, hosts, ranks_per_node, directory)
    bind = _BIND[flavour].get(params.get("cpu_bind", ""), "none")
    if flavour == "pals":
        words = [exe, "-n", total, "--ppn", str(ranks_per_node), *where, "--cpu-bind", bind, "--envall"]
    elif flavour == "hydra":
        words = [exe, "-n", total, "-ppn", str(ranks_per_node), *where, "-bind-to", bind,
                 *(("-launcher", "fork") if local else ())]
    elif flavour == "openmpi":
        words = [exe, "-n", total, *where, "--map-by", f"ppr:{ranks_per_node}:node:OVERSUBSCRIBE", "--bind-to", bind]
        for name in exports:
            words += ("-x", name)
    else:
        words = [exe, "-N", str(len(hosts)), "-n", total, f"--ntasks-per-node={ranks_per_node}", *where,
                 f"--cpu-bind={bind}", "--overlap", "--export=ALL", "--distribution=block", "--kill-on-bad-exit=1"]
    return words + _extra(flavour, params), files


def agents(launcher: Launcher, hosts: Sequence[str], directory: str, *, params: Mapping[str, str] = {},
           ) -> tuple[list[list[str]], dict[str, bytes]]:
    """Commands that start exactly one process on each host, to which the program's words are appended, and files that
    have to be in `directory` before.

    One command for all, or (flavour ssh) one for each host.  Nothing is bound, and one process that ends does not end
    the others.  The commands also need `environment(flavour)`.  Hydra's way to other hosts is its own default or what
    HYDRA_LAUNCHER and HYDRA_LAUNCHER_EXEC say in the environment.  Raises InvalidOption for an unknown flavour.
    """
    flavour, exe, count = launcher.flavour, program(launcher), str(len(hosts))
    if flavour == "ssh":
        script = f"{directory}/ssh.sh"
        return [["/bin/sh", script, exe, host] for host in hosts], {"ssh.sh": _SSH.encode()}
    where, files = _hosts(launcher, hosts, 1, directory)
    if flavour == "pals":
        words = [exe, "-n", count, "--ppn", "1", *where, "--cpu-bind", "none", "--envall", "--no-abort-on-failure"]
    elif flavour == "hydra":
        words = [exe, "-n", count, "-ppn", "1", *where, "-bind-to", "none", "-disable-auto-cleanup"]
    elif flavour == "openmpi":
        words = [exe, "-n", count, *where, "--map-by", "ppr:1:node:OVERSUBSCRIBE", "--bind-to", "none",
                 "--rtos", "continuous,error-nonzero=0"]
    elif flavour == "srun":
        words = [exe, "-N", count, "-n", count, "--ntasks-per-node=1", *where, "--cpu-bind=none", "--overlap",
                 "--export=ALL", "--mpi=none", "--kill-on-bad-exit=0", "--wait=0", "--no-kill"]
    else:
        raise InvalidOption(f"no agents can be started by the launcher {flavour!r}; "
                            "there are pals, hydra, openmpi, srun and ssh")
    return [words + _extra(flavour, params)], files


def program(launcher: Launcher) -> str:
    """The program that is run for it."""
    return launcher.exe or _PROGRAM.get(launcher.flavour, "mpiexec")


def _hosts(launcher: Launcher, hosts: Sequence[str], slots: int, directory: str) -> tuple[list[str],
                                                                                         dict[str, bytes]]:
    """The words that name the hosts, each with so many slots, and the file in which they are if they are many."""
    flavour = launcher.flavour
    if len(hosts) > launcher.hostfile_over:
        line = {"hydra": f"{{}}:{slots}", "openmpi": f"{{}} slots={slots}"}.get(flavour, "{}")
        flag = {"hydra": "-f", "srun": "-w"}.get(flavour, "--hostfile")
        return [flag, f"{directory}/hosts"], {"hosts": "".join(line.format(host) + "\n" for host in hosts).encode()}
    if flavour == "openmpi":   # which takes a host without a number for one slot
        hosts = [f"{host}:{slots}" for host in hosts]
    return [{"pals": "--hosts", "hydra": "-hosts", "openmpi": "--host"}.get(flavour, "-w"), ",".join(hosts)], {}


def environment(flavour: str) -> dict[str, str]:
    """What the launcher itself needs in its environment."""
    if flavour == "openmpi":   # it refuses to serve root, which containers are
        return {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if flavour == "hydra":
        # Intel's binds by itself; and the srun by which it reaches other hosts waits until those of others are over.
        return {"I_MPI_PIN": "0", "SLURM_OVERLAP": "1"}
    return {}
