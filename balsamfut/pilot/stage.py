"""What user code is asked around a task: hooks, commands that functions make, input and output files.

Runs in a Python worker, in the task's directory, with its arguments resolved.  Knows neither sockets nor the agent.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from balsamfut.context import Retry, TaskView
from balsamfut.errors import MissingInputs, MissingOutputs, TaskError
from balsamfut.model import AppKind, Extra, Hook, Options, Resources, ShellResult
from balsamfut.pilot.hand import Define, Order
from balsamfut.serialize import AppCode

NO_EXTRA = Extra()


class Work:
    """One Order whose app, arguments and surroundings are at hand."""

    def __init__(self, order: Order, app: Define, code: AppCode, args: tuple[Any, ...], kwargs: dict[str, Any],
                 workdir: str, base: str) -> None:
        self.order = order
        self.app = app
        self.code = code
        self.args = args
        self.kwargs = kwargs
        self.extra = order.extra or NO_EXTRA
        self.workdir = workdir
        self._base = base            # the directory of the script
        self._parameters: Mapping[str, Any] | None = None

    @property
    def options(self) -> Options:
        return self.app.options

    @property
    def parameters(self) -> Mapping[str, Any]:
        if self._parameters is None:
            self._parameters = self.code.parameters(self.args, self.kwargs)
        return self._parameters

    def view(self, exception: BaseException | None = None, result: Any = None) -> TaskView:
        order = self.order
        return TaskView(
            id=order.task, attempt=order.attempt, name=self.extra.name or self.app.name, parameters=self.parameters,
            tags=dict(self.extra.tags), workdir=Path(self.workdir), returncode=order.returncode, exception=exception,
            result=result, stdout=Path(order.stdout) if order.stdout else None,
            stderr=Path(order.stderr) if order.stderr else None, failures=order.failures)

    def hook(self, which: Hook) -> Callable[[TaskView], Any] | None:
        return self.code.hooks.get(which.name.lower()) if self.app.hooks & which and which.name else None

    # ---- a Python function

    def call(self) -> Any:
        """preprocess, the function, postprocess: the value of the task."""
        self._before()
        value = self.code.func(*self.args, **self.kwargs)  # type: ignore[misc]
        missing = missing_files(self.extra.outputs, self.workdir)
        if missing:
            raise missing_outputs(self.app.name, missing)
        hook = self.hook(Hook.POSTPROCESS)
        if hook is not None:
            value = hook(self.view(result=value))
        clean(self.workdir, self.options.cleanup_files)
        return value

    # ---- a command

    def prepare(self) -> str | list[str]:
        """What is to be run: a text for bash, or an argv."""
        from balsamfut import templates

        self._before()
        if self.app.kind is AppKind.COMMAND:
            return templates.command(self.code.func(*self.args, **self.kwargs), self.app.name)  # type: ignore[misc]
        if self.extra.command is not None:
            return self.extra.command
        return templates.render_command(self.code.template or "", self.parameters, self.app.name)

    def finish(self) -> Any:
        """After a command that went well: the value of the task."""
        order = self.order
        result = ShellResult(order.returncode or 0, order.stdout, order.stderr, self.workdir)
        hook = self.hook(Hook.POSTPROCESS)
        value = result if hook is None else hook(self.view(result=result))
        clean(self.workdir, self.options.cleanup_files)
        return value

    def rescue(self, exception: BaseException, timeout: bool) -> Resources | None:
        """on_timeout or on_error: the resources of another attempt that they ask for; None leaves the failure as it is.

        What the hook raises is the task's exception in place of the one that it was told.
        """
        hook = (self.hook(Hook.ON_TIMEOUT) if timeout else None) or self.hook(Hook.ON_ERROR)
        if hook is None:
            return None
        answer = hook(self.view(exception=exception))
        if answer is None:
            return None
        if not isinstance(answer, Retry):
            raise TaskError(f"the on_error hook of {self.app.name} returned {type(answer).__name__}; it returns None, "
                            "or task.retry(...) to have the task tried again") from exception
        return answer.resources(self.order.resources or Resources())

    def _before(self) -> None:
        self._bring_inputs()
        hook = self.hook(Hook.PREPROCESS)
        if hook is not None:
            hook(self.view())

    def _bring_inputs(self) -> None:
        """Look for the input files, and link or copy those that get a name in the workdir."""
        found: list[tuple[str, str]] = []
        missing: list[str] = []
        for path, name in self.extra.inputs:
            # Beside the script, if not in the workdir: that is where its author sees it.
            places = [os.path.join(folder, path) for folder in (self.workdir, self._base) if folder]
            source = next((place for place in places if os.path.exists(place)), None)
            if source is None:
                missing.append(path)
            elif name:
                found.append((source, os.path.join(self.workdir, name)))
        if missing:
            raise MissingInputs(f"{self.app.name} declares input files that do not exist: {', '.join(missing)}",
                                paths=tuple(missing))
        for source, wanted in found:
            bring(source, wanted, self.extra.link_inputs)


def bring(source: str, wanted: str, link: bool) -> None:
    """Have the file or directory `source` under the path `wanted` too, in place of what an earlier attempt left."""
    if os.path.realpath(source) == os.path.realpath(wanted) and not os.path.islink(wanted):
        return
    os.makedirs(os.path.dirname(wanted), exist_ok=True)
    if os.path.islink(wanted) or os.path.isfile(wanted):
        os.unlink(wanted)
    if link:
        os.symlink(source, wanted)
    elif os.path.isdir(source):
        shutil.copytree(source, wanted, dirs_exist_ok=True)
    else:
        shutil.copy2(source, wanted)


def missing_files(paths: tuple[str, ...], workdir: str) -> tuple[str, ...]:
    return tuple(path for path in paths if not os.path.exists(os.path.join(workdir or os.getcwd(), path)))


def missing_outputs(app: str, missing: tuple[str, ...]) -> MissingOutputs:
    return MissingOutputs(f"{app} ended well but did not make the output files that it declares: {', '.join(missing)}",
                          paths=missing)


def clean(workdir: str, patterns: tuple[str, ...]) -> None:
    """Remove what matches; only in the workdir itself, wherever a pattern may lead."""
    if not workdir:
        return
    root = os.path.realpath(workdir) + os.sep
    for pattern in patterns:
        for path in glob.glob(os.path.join(glob.escape(workdir), pattern), recursive=True):
            folder = os.path.realpath(os.path.dirname(path)) + os.sep
            if not folder.startswith(root):
                continue
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass
