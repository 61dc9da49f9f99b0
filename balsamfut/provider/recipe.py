"""How a site asks for blocks: what may be asked of its machine, and what its batch system is then given.  Pure.

The interchange submits by this, and a dry run shows it, so that both say the same, whether an interchange runs or not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from balsamfut import platforms
from balsamfut.errors import SettingsError
from balsamfut.platforms import Platform
from balsamfut.platforms.checking import near, plain
from balsamfut.platforms.queues import MAX_NODES, Queue, Taken, refusal, tables
from balsamfut.provider import script
from balsamfut.provider.base import BlockSpec
from balsamfut.provider.dialect import Dialect
from balsamfut.provider.pace import Pace
from balsamfut.queuemessages import BlockAnswer, Part
from balsamfut.settings import Settings

V = TypeVar("V")

MODES: Final = ("any", "mpi", "serial")
DRY_RUN: Final = "bf-dry-run"
"""The token of a block that is only shown."""
_START: Final = "import sys; sys.path.append({home!r}); from balsamfut.pilot.{module} import main; sys.exit(main())"


class Asked(Protocol):
    """What somebody asks for: a SubmitBlock, or the record of one."""

    @property
    def nodes(self) -> int: ...
    @property
    def walltime(self) -> float: ...      # seconds
    @property
    def queue(self) -> str: ...
    @property
    def project(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def params(self) -> dict[str, str]: ...
    @property
    def tags(self) -> dict[str, str]: ...
    @property
    def parts(self) -> list[Part]: ...


@dataclass(slots=True)
class Recipe:
    """See the module."""

    site: Path
    platform: Platform
    provider: str                # local, pbs or slurm
    preamble: str = ""           # bash lines before a pilot, in its shell
    pretend: bool = False
    cores: int = 0               # of a workstation; 0: as many as there are
    python: str = sys.executable
    queues: tuple[Queue, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.queues = tables(self.platform)

    @classmethod
    def of(cls, site: Path, chosen: Settings, platform: str = "") -> Recipe:
        """By the settings of a site.  platform: "": the settings' own.  Raises SettingsError where the machine, or what
        the site's platform.toml says of it, and the settings do not go together."""
        pilot = chosen.pilot
        machine = platforms.at(site, platform or pilot.platform)
        provider = pilot.provider or machine.scheduler.get("kind") or "local"
        made = cls(site, machine, str(provider), pilot.preamble, pilot.pretend, pilot.max_workers)
        made._check(chosen)
        return made

    def _check(self, chosen: Settings) -> None:
        try:
            if dialect_of(self.provider, self.platform) is not None:
                rules(Pace.of, self.platform)
        except SettingsError as error:
            theirs = platforms.overrides(self.site)
            raise SettingsError(f"{self.site / platforms.FILE}: {error}" if theirs else str(error)) from None
        there = [queue.name for queue in self.queues]
        for name in chosen.elastic.queues.split() if there else ():
            if name not in there:
                raise SettingsError(f"{chosen.source('elastic.queues')}: [elastic] queues names {name}, which "
                                    f"{self.platform.name} has not; {near(name, there)}")

    # ---- what may be asked

    @property
    def max_nodes(self) -> int:
        """Nodes that one task may span: a machine that is not described has those that its batch system has."""
        undescribed = self.platform.name == "workstation" and self.provider != "local"
        return MAX_NODES if undescribed else self.platform.max_nodes

    def refusal(self, asked: Asked, taken: Iterable[tuple[str, bool]]) -> str | None:
        """Why such a block cannot be, in one sentence; None: it can.

        taken: of each block of the site that is not over, its queue and whether it runs.
        """
        machine = self.platform
        if asked.mode not in MODES:
            return f"mode {asked.mode!r} was asked; there are {', '.join(MODES)}"
        if machine.scheduler.get("account_required") and not asked.project:
            return f"{machine.name} wants to know which project pays: -A PROJECT"
        there: dict[str, Taken] = {}
        for queue, runs in taken:
            before = there.get(queue, Taken())
            there[queue] = Taken(before.queued + (not runs), before.running + runs)
        return (refusal(self.queues, asked.queue, asked.nodes, asked.walltime, there, machine=machine.name)
                or _bad_parts(asked) or self._unwritable(self.spec(asked, 1, DRY_RUN)))

    def _unwritable(self, spec: BlockSpec) -> str | None:
        return script.refusal(spec) or (script.bad_directive(spec) if self.provider != "local" else None)

    def preview(self, request: int, asked: Asked, number: int, taken: Iterable[tuple[str, bool]]) -> BlockAnswer:
        """The answer to a dry run.  number: of the block that it would be."""
        why = self.refusal(asked, taken)
        if why is not None:
            return BlockAnswer(request, 0, why)
        return BlockAnswer(request, number, "", *self.script(self.spec(asked, number, DRY_RUN)))

    # ---- what is asked for it

    def spec(self, asked: Asked, number: int, token: str) -> BlockSpec:
        """What the batch system is asked.  number: of the block, and of its first pilot."""
        scheduler = self.platform.scheduler
        return BlockSpec(
            token, self._argv(asked, number, token), str(self.site / "log" / f"pilot-{number}.log"), str(self.site),
            preamble=self.preamble, nodes=asked.nodes, walltime=asked.walltime, queue=asked.queue,
            project=asked.project,
            filesystems=asked.params.get("filesystems", str(scheduler.get("filesystems", ""))),
            params=tuple(sorted(asked.params.items())))

    def script(self, spec: BlockSpec) -> tuple[str, str]:
        """The command that is run, and what it is given on its stdin: the job script."""
        dialect = dialect_of(self.provider, self.platform)
        if dialect is None:
            return "bash", script.job_script(spec, "", ())
        return " ".join(dialect.submit(spec)), dialect.script(spec)

    def _argv(self, asked: Asked, number: int, token: str) -> tuple[str, ...]:
        argv = [*starts("parts" if asked.parts else "agent", self.python),
                *(("--parts", ",".join(str(part.nodes) for part in asked.parts)) if asked.parts else ()),
                "--site", str(self.site), "--pilot", str(number), "--token", token, "--platform", self.platform.name,
                "--walltime", f"{asked.walltime:g}"]
        pretend = self.pretend
        if self.provider != "local":
            argv += ["--batch"]
        else:
            argv += ["--nodes", str(asked.nodes)]
            here = self.platform.name == "workstation"
            argv += ["--cores", str(self.cores)] if here and self.cores else []
            pretend = pretend or not here
        return (*argv, "--pretend") if pretend else tuple(argv)


def starts(module: str, python: str = sys.executable) -> list[str]:
    """The words that start a module of the pilot, of this very package, before its arguments."""
    home = str(Path(__file__).resolve().parents[2])
    return [python, "-P", "-c", _START.format(home=home, module=module)]


def part_token(token: str, index: int) -> str:
    """By which the pilot of a block's part is known, counted from 0."""
    return f"{token}-{index}" if index else token


def _bad_parts(asked: Asked) -> str | None:
    """Why a block cannot be split so."""
    if not asked.parts:
        return None
    if asked.mode != "any" or asked.tags:
        return "a block that is split takes what its parts take: give each part its own mode and tags"
    for part in asked.parts:
        if part.mode not in MODES:
            return f"a part with mode {part.mode!r} was asked; there are {', '.join(MODES)}"
        if part.nodes < 1:
            return f"a part of {part.nodes} nodes was asked; each has at least 1"
    total = sum(part.nodes for part in asked.parts)
    if total != asked.nodes:
        return (f"the parts have {' + '.join(str(part.nodes) for part in asked.parts)} nodes, and the block has "
                f"{asked.nodes}: together they have to be as many")
    return None


def dialect_of(provider: str, platform: Platform) -> Dialect | None:
    """How to speak to a batch system; None: to this machine.  Raises SettingsError where there is no such provider."""
    if provider == "local":
        return None
    if provider == "pbs":
        from balsamfut.provider.pbs import Pbs, PbsRules

        return Pbs(rules(PbsRules.of, platform))
    if provider == "slurm":
        from balsamfut.provider.slurm import Slurm, SlurmRules

        return Slurm(rules(SlurmRules.of, platform))
    raise SettingsError(f"there is no provider {provider!r} for blocks; there are local, pbs and slurm")


def rules(of: Callable[[dict[str, Any]], V], platform: Platform) -> V:
    """What a platform's [scheduler] says, as somebody reads it.  Raises SettingsError."""
    try:
        return of(platform.scheduler)
    except ValueError as error:     # msgspec.ValidationError is one
        raise SettingsError(f"platform {platform.name}: [scheduler]: {plain(error)}") from None
