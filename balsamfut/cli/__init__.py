"""The command line: which commands there are, and how they end.

Each command is a module of this package with an attribute `command`, imported when it is called: `balsamfut --help`
loads none.  What a command has to tell goes to stdout, everything else to stderr.  This module knows no command's work.
"""

from __future__ import annotations

import difflib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final, NoReturn

import click

from balsamfut import __version__, interrupts
from balsamfut.errors import BalsamfutError

Tree = Mapping[str, "str | tuple[str, Mapping[str, str]]"]

COMMANDS: Final[Tree] = {
    # name: what it does; the first sentence of the command's own help.  The module of `task ls` is task_ls.
    "resume": "Go on with what campaigns left unfinished, without their scripts.",
    "status": "Whether an interchange runs here, its pilots, and how many tasks are in which state.",
    "site": ("Make, start and stop sites that are kept, on a machine with a batch system or without one.", {
        "init": "Make a site in a directory.",
        "start": "Start the interchange of a site, which runs until it is stopped.",
        "stop": "Stop the interchange of a site; pilots go on with what they have.",
        "status": "Whether the site runs, its pilots, and how many tasks are in which state.",
        "ls": "List the sites that have a name.",
        "add": "Have a site that was moved, copied, or made from another home, be known by its name, or by another.",
        "rm": "Forget a site's name; its directory stays as it is, and `balsamfut site add` names it again.",
    }),
    "queue": ("Ask the batch system of a site for blocks of nodes.", {
        "submit": "Ask the batch system for a block of nodes, on which a pilot runs tasks until its time is over.",
        "ls": "List the blocks that were asked for, oldest first.",
        "rm": "End blocks, or withdraw those that wait; what ran there runs elsewhere.",
        "plan": "Tell which blocks the elastic queue would ask for or let go now, and why.",
        "pause": "Have the elastic queue ask for no blocks.",
        "resume": "Have the elastic queue ask for blocks again.",
    }),
    "task": ("Look at tasks, and end them.", {
        "ls": "List tasks, oldest first.",
        "show": "Tell everything that is known of a task.",
        "logs": "Print what a task wrote to its stdout or stderr.",
        "result": "Print what a task returned, or what it raised.",
        "kill": "End tasks, running or not.",
        "cancel": "Cancel tasks that have not started.",
    }),
    "logs": "Print what a task wrote to its stdout or stderr.",
    "app": ("Look at apps.", {"ls": "List apps, with the number of their tasks."}),
    "campaign": ("Look at campaigns.", {"ls": "List campaigns, with the number of their tasks in each state."}),
    "node": ("Look at the nodes of pilots.", {"ls": "List the nodes of pilots, and why some are given no work."}),
    "platform": ("Look at the machines that balsamfut knows.", {
        "ls": "List platforms.",
        "show": "Tell what is known of a platform.",
    }),
    "doctor": "Look whether everything is there that a site needs, and say what to do where it is not.",
    "settings": "Show every setting of the site, and where its value comes from.",
}

HELP: Final = """Ensembles of Python functions, shell commands and MPI programs, every task recorded.

A site is the directory that an Executor works in: .balsamfut in the working directory unless --site or BALSAMFUT_SITE
names another (or a directory that holds a .balsamfut).

With --json a command prints one JSON object with one key, which says what it holds: {"tasks": [...]} for `task ls`,
{"task": {...}} for `task show`.  Times are Unix times, durations seconds.

Exit codes: 0 done; 1 done, but tasks failed or not all was as asked; 2 it could not be done, and why is on stderr;
130 interrupted; 141 nobody read all that it had to say (`| head`).
"""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; their help is in the tree."""

    def __init__(self, name: str, tree: Tree, prefix: str = "", **more: Any) -> None:
        super().__init__(name, no_args_is_help=True, **more)
        self.tree = tree
        self.prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.tree)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.tree.get(cmd_name)
        if entry is None:
            return None
        if isinstance(entry, tuple):
            return LazyGroup(cmd_name, entry[1], f"{cmd_name}_", help=entry[0])
        found = import_module(f"{__name__}.{self.prefix}{cmd_name}").command
        assert isinstance(found, click.Command)
        return found

    def resolve_command(self, ctx: click.Context,
                        args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.tree and not name.startswith("-"):
            self.refuse(ctx, name)
        return super().resolve_command(ctx, args)

    def refuse(self, ctx: click.Context, name: str) -> NoReturn:
        close = difflib.get_close_matches(name, self.tree, n=2, cutoff=0.5)
        elsewhere = [group for group, entry in self.tree.items() if isinstance(entry, tuple) and name in entry[1]]
        if elsewhere:
            close = [f"{group} {name}" for group in elsewhere]
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(self.tree)}"
        ctx.fail(f"There is no command {name!r}; {hint}")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry if isinstance(entry, str) else entry[0])
                                for name, entry in self.tree.items()])


def group() -> click.Group:
    """The whole command line."""
    made = LazyGroup("balsamfut", COMMANDS, help=HELP, context_settings={
        "help_option_names": ["-h", "--help"], "max_content_width": 110})
    return click.version_option(__version__, prog_name="balsamfut", message="%(prog)s %(version)s")(made)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    interrupts.heed_once()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")   # a terminal that cannot show a letter is no reason to fail
    try:
        code = group().main(None if argv is None else list(argv), prog_name="balsamfut", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except BalsamfutError as exc:
        print(f"balsamfut: {exc}", file=sys.stderr)
        return 2
    except (click.Abort, KeyboardInterrupt):
        print("balsamfut: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return _nobody_reads()
    except OSError as exc:
        print(f"balsamfut: {exc}", file=sys.stderr)
        return 2
    except SystemExit:   # click's way to end when nobody reads
        return _nobody_reads()


def _nobody_reads() -> int:
    """`| head` has seen enough: end without a word, as SIGPIPE would."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return 141
