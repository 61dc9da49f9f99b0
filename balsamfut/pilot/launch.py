"""What is started for an attempt: argv, environment, CPUs and files, from a request and its placement.  Pure.

Serial tasks are started directly.  MPI tasks go through the machine's launcher (dialects.py) with a POSIX sh wrapper in
front of the program: each rank finds its number in what the launcher tells it, takes the mask of its tiles, and is
bound to its cores by `taskset`; no more than that, since it runs once per rank.
This module must not know processes, files or the clock; how an exit is read is in verdict.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from balsamfut.errors import InvalidOption
from balsamfut.model import Resources
from balsamfut.pilot import dialects
from balsamfut.pilot.dialects import check_params as check_params
from balsamfut.pilot.guardian import MARK
from balsamfut.pilot.verdict import judge as judge
from balsamfut.placement import Placement
from balsamfut.platforms import Launcher, Platform, cpu_text
from balsamfut.platforms.shape import RankShare

WRAPPER: Final = "wrapper.sh"
_FEW_NODES: Final = 512    # more names than these are too long for a variable

# Set by MPI launchers for their ranks.  A child that inherits them believes that it is a rank of that launch; and a
# launcher that inherits them takes them for its own options.
_LAUNCHERS_OWN: Final = (
    "PMI_", "PMIX_", "PALS_", "OMPI_", "PRTE_", "HYDRA_", "HYDI_", "MPI_LOCAL", "MPIEXEC_",
    "SLURM_STEP", "SLURM_SRUN_", "SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_GPU_BIND", "SLURM_TASK_", "SLURM_GTIDS",
    "SLURM_LOCALID", "SLURM_PROCID", "SLURM_NODEID", "SLURM_LAUNCH_NODE_IPADDR", "SLURM_DISTRIBUTION", "SLURM_PMI",
    "SLURM_UMASK", "SLURM_EXACT", "SLURM_OVERLAP")
_USERS_OWN: Final = ("OMPI_MCA_", "OMPI_ALLOW_", "PRTE_MCA_", "PMIX_MCA_",
                     "PALS_RPC_TIMEOUT", "PALS_PING_PERIOD", "PALS_PMI", "HYDRA_LAUNCHER")
_INTERNAL_MCA: Final = ("OMPI_MCA_ess", "OMPI_MCA_orte", "OMPI_MCA_initial_wdir", "OMPI_MCA_num_procs",
                        "OMPI_MCA_cpu_type", "OMPI_MCA_PREFIXES", "OMPI_MCA_ompi_stream_buffering",
                        "PRTE_MCA_ess", "PRTE_MCA_prte_", "PRTE_MCA_plm")


# Hydra lets the others wait in MPI_Init for ever if a rank fails before it, and tells a signal from an exit badly.
# dash knows no descriptors above 9; signals come to the program too, as it is in the same process group.
_HYDRA_END: Final = [
    "trap : HUP INT TERM USR1 USR2", '"$@"', "code=$?",
    """[ $code -eq 0 ] || bash -c 'echo "cmd=abort exitcode=$0" >&$PMI_FD' $code 2>/dev/null""", "exit $code"]


class Plan(msgspec.Struct, frozen=True):
    """One process to start."""

    argv: list[str]
    env: dict[str, str]              # to be merged over a scrubbed environment
    cores: tuple[int, ...] | None    # CPUs to bind the process to; None: leave it alone
    files: dict[str, bytes] = {}     # name -> content, to be written into `directory` before the start


def scrub(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what an MPI launcher or a Slurm step put there; users' own settings of these stay."""
    return {name: value for name, value in environ.items()
            if not name.startswith(_LAUNCHERS_OWN)
            or (name.startswith(_USERS_OWN) and not name.startswith(_INTERNAL_MCA))}


def plan(resources: Resources, placement: Placement, platform: Platform, names: Sequence[str], *,
         command: str | list[str], environ: Mapping[str, str], preamble: str = "", directory: str = "",
         launcher: Launcher | None = None, pretend: bool = False, apart: bool = False,
         base: Collection[str] = ()) -> Plan:
    """How to start an attempt.

    names: of the pilot's nodes, as the launcher knows them.  command: str (run by bash) or argv; each rank runs it.
    environ: what this task's processes get beside the pilot's own environment.  preamble: bash lines that run once,
    before the program or the launcher, in the same shell.  directory: where `files` will be, readable by all the nodes
    of the task.  launcher: in place of the platform's.  pretend: the nodes do not exist: all ranks run on this host
    (unless apart: they are hosts, but smaller), nothing is bound.  Raises InvalidOption if there is no launcher or it
    does not know one of launch_params.  base: names of the variables of that environment, for launchers that pass on
    only what they are told.
    """
    env = {**platform.env, **environ}
    env.setdefault("OMP_NUM_THREADS", str(resources.threads_per_rank))
    if len(placement.nodes) <= _FEW_NODES:
        env["BALSAMFUT_NODES"] = ",".join(names[share.node] for share in placement.nodes)
    job = _Job(resources, placement, platform, names, platform.bind and not pretend, pretend and not apart, apart)
    words = ["/bin/bash", "-c", command] if isinstance(command, str) else command
    if resources.serial:
        return _serial(job, command, words, env, preamble)
    chosen = launcher or platform.launcher
    if chosen.flavour not in dialects.RANK:
        raise InvalidOption(f"platform {platform.name!r} has the MPI launcher {chosen.flavour!r}; "
                            "there are pals, hydra, openmpi and srun")
    wrong = check_params(chosen.flavour, dict(resources.launch_params))
    if wrong:
        raise InvalidOption(wrong)
    return _mpi(job, words, env, preamble, chosen, directory, [*base, MARK] if base else [])


class _Job(msgspec.Struct):
    """What all of this is about, and whether ranks are bound."""

    resources: Resources
    placement: Placement
    platform: Platform
    names: Sequence[str]
    bind: bool
    pretend: bool
    apart: bool

    def common(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What goes with every mask: a mask says nothing without the way in which it is read."""
        platform = self.platform
        if not self.resources.gpu_shares:
            return {}
        mode = {platform.mode_env: self.mode(environ)} if platform.mode_env else {}
        return {**platform.mask_extra_env, **mode}

    def mode(self, environ: Mapping[str, str]) -> str:
        """How masks are written: as the task's environment asks, if this machine has masks of that kind."""
        asked = environ.get(self.platform.mode_env, "")
        return asked if asked in self.platform.modes else self.platform.mode

    def of_rank(self, rank: RankShare, mode: str) -> dict[str, str]:
        """The variables that differ from rank to rank."""
        node = self.platform.node
        found = {"BALSAMFUT_CORES": cpu_text(node.threads(rank.cores, self.resources.threads_per_core))}
        if rank.tiles:
            found[self.platform.mask_env] = ",".join(node.tiles[tile].masks[mode] for tile in rank.tiles)
        return found


def _exports(variables: Mapping[str, str]) -> str:
    return "export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())


def _serial(job: _Job, command: str | list[str], words: list[str], env: dict[str, str], preamble: str) -> Plan:
    rank = job.placement.nodes[0].ranks[0]
    mine = {**job.common(env), **job.of_rank(rank, job.mode(env))}
    env.update(mine)
    if preamble:   # which may load modules that set these variables in their own way
        before = f"{preamble}\n{_exports(mine)}\n"
        words = (["/bin/bash", "-c", before + command] if isinstance(command, str)     # with its functions and aliases
                 else ["/bin/bash", "-c", before + 'exec "$@"', "balsamfut", *words])
    cores = job.platform.node.threads(rank.cores, job.resources.threads_per_core) if job.bind else None
    return Plan(words, env, cores)


def _mpi(job: _Job, words: list[str], env: dict[str, str], preamble: str, launcher: Launcher, directory: str,
         base: list[str]) -> Plan:
    r = job.resources
    params = dict(r.launch_params)
    hosts, per_host = [job.names[share.node] for share in job.placement.nodes], r.ranks_per_node
    local = job.pretend or (job.platform.max_nodes == 1 and not job.apart)   # then a host name could only lead astray
    if local:
        hosts, per_host = ["localhost"], r.ranks
    if not job.bind:
        params.pop("cpu_bind", None)
    env = {**env, **job.common(env), **dialects.environment(launcher.flavour)}
    exports = [*env, *(name for name in base if name not in env)]
    start, files = dialects.argv(launcher, hosts, per_host, params=params, exports=exports, directory=directory,
                                 local=local)
    files[WRAPPER] = _wrapper(job, launcher.flavour, params, env).encode()
    start += ["/bin/sh", f"{directory}/{WRAPPER}", *words]
    if preamble:
        start = ["/bin/bash", "-c", f'{preamble}\nexec "$@"', "balsamfut", *start]
    return Plan(start, env, None, files)


def _wrapper(job: _Job, flavour: str, params: Mapping[str, str], env: Mapping[str, str]) -> str:
    """The sh script in front of each rank's program."""
    cpu_bind, output = params.get("cpu_bind", ""), params.get("output", "")
    groups = dialects.rank_cpus(cpu_bind)
    mode = job.mode(env)
    common = job.common(env)
    kinds: dict[tuple[RankShare, ...], list[int]] = {}   # nodes on which the ranks have the same
    for index, share in enumerate(job.placement.nodes):
        kinds.setdefault(share.ranks, []).append(index)
    lines = ["#!/bin/sh", "# Started for each rank: shows it its tiles and binds it to its cores."]
    lines += _who_am_i(job, flavour, one_kind=len(kinds) == 1)
    if len(kinds) > 1:
        lines.append("case $node in")
        lines += [f"{'|'.join(map(str, nodes))}) kind={kind} ;;" for kind, nodes in enumerate(kinds.values())]
        lines.append("esac")
    lines.append("case $kind.$local in" if len(kinds) > 1 else "case $local in")
    exported = {**common}
    for kind, ranks in enumerate(kinds):
        for number, rank in enumerate(ranks):
            mine = job.of_rank(rank, mode)
            if groups:
                mine["BALSAMFUT_CORES"] = groups[number % len(groups)]
            label = f"{kind}.{number}" if len(kinds) > 1 else str(number)
            lines.append(f"{label}) " + " ".join(f"{k}={shlex.quote(v)}" for k, v in mine.items()) + " ;;")
            exported.update(mine)
    lines += ['*) echo "balsamfut-wrapper: no place for local rank $local of node ${node:-0}" >&2; exit 97 ;;', "esac"]
    lines += [f"{name}={shlex.quote(value)}" for name, value in common.items()]
    lines.append("export " + " ".join(exported))
    ours = job.bind and (cpu_bind in ("", "depth") or bool(groups))
    if ours:
        # Not `exec taskset -c`: launchers lose the last words of a rank that ends at once, so these go to a file too.
        said = "balsamfut-wrapper: cores $BALSAMFUT_CORES are not all on $(uname -n)"
        lines += ['if ! taskset -cp "$BALSAMFUT_CORES" $$ >/dev/null 2>&1; then',
                  f'    echo "{said}" | tee -a "$0.said" >&2', "    exit 97", "fi"]
    if output:   # not by the launcher: its way to all ranks' output is narrow, and each flavour names files differently
        name = f'"${dialects.RANK[flavour]}"'
        lines.append(f"exec >{name.join(shlex.quote(part) if part else '' for part in output.split('%r'))} 2>&1")
    lines += _HYDRA_END if flavour == "hydra" and dialects.aborts(params) else ['exec "$@"']
    return "\n".join(lines) + "\n"


def _who_am_i(job: _Job, flavour: str, *, one_kind: bool) -> list[str]:
    """Lines that set `local`, the rank's number on its node, and `node`, the index in the placement, if it matters."""
    def value(variable: str) -> str:
        return f"${{{variable}:?balsamfut-wrapper: the MPI launcher did not set it}}"

    rank, per_node = value(dialects.RANK[flavour]), job.resources.ranks_per_node
    if job.pretend:
        return [f"rank={rank}", f"local=$((rank % {per_node})) node=$((rank / {per_node}))"]
    lines = [f"local={value(dialects.LOCAL_RANK[flavour])}"]
    if one_kind:
        return lines
    if flavour == "srun":   # it sorts the nodes that it is given
        lines.append(f"case {value('SLURMD_NODENAME')} in")
        lines += [f"{shlex.quote(job.names[share.node])}) node={index} ;;"
                  for index, share in enumerate(job.placement.nodes)]
        return [*lines, "esac"]
    return [*lines, f"rank={rank}", f"node=$((rank / {per_node}))"]
