"""One rank's part in a call of an MPI-parallel Python function, however its ranks were started.

Every rank calls the function; hooks and files are the business of the call's rank 0, whose value is the task's, unless
the values of all ranks are asked for.  A parameter named `comm` that the call leaves open (or gives as None) gets the
call's communicator.  Knows neither MPI nor the agent.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from balsamfut import context, serialize
from balsamfut.model import Blob, Joined, Payload
from balsamfut.pilot.hand import Define, Order, Setup
from balsamfut.pilot.stage import Work
from balsamfut.serialize import AppCode

PARAMETER: Final = "comm"

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Caller:
    """What a rank needs to make calls."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.objects = Path(setup.objects)

    def read(self, blob: Blob) -> bytes:
        return serialize.fetch(blob, self.objects)

    def code(self, payload: Payload) -> AppCode:
        return serialize.loads_code(self._raw(payload))

    def _raw(self, payload: Payload) -> bytes:
        data = self.read(payload) if isinstance(payload, Blob) else payload
        assert isinstance(data, bytes), "code and arguments are not joined"
        return data

    def arguments(self, order: Order) -> Arguments:
        if order.args is None:
            return (), {}
        values = [serialize.loads(value, self.read) for value in order.values]
        return serialize.loads_args(self._raw(order.args), values)

    def call(self, order: Order, app: Define, code: AppCode, rank: int, comm: Callable[[], object]) -> bytes | None:
        """The pickled value; None where this rank's is not asked for.  Raises what the function and its hooks raise."""
        assert code.func is not None
        args, kwargs = with_comm(code.func, *self.arguments(order), comm)
        if rank == 0:
            value = Work(order, app, code, args, kwargs, order.workdir, self.setup.pool.cwd).call()
        else:
            value = code.func(*args, **kwargs)
        if rank != 0 and not app.options.gather:
            return None
        payload, futures = serialize.dumps_result(value)
        if futures:
            raise TypeError(f"{app.name} runs on several ranks and returned futures; return their values")
        return payload

    def task(self, order: Order, app: Define) -> context.TaskContext:
        """What the rank's process is running."""
        setup, extra = self.setup, order.extra
        return context.TaskContext(
            order.task, order.attempt, address=setup.address, site=setup.site, workdir=order.workdir,
            name=extra.name if extra is not None and extra.name else app.name,
            tags=extra.tags if extra is not None else (), pool=setup.pool)

    def stow(self, data: bytes) -> Payload:
        return serialize.stow(data, self.objects, self.setup.inline)

    def pickled(self, exc: BaseException, host: str, rank: int) -> bytes:
        return serialize.dumps_exception(exc, host=host, worker=f"{self.setup.name}, rank {rank}")


def with_comm(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
              comm: Callable[[], object]) -> Arguments:
    """The arguments, and the communicator if the function has a parameter for it that they leave open."""
    try:
        signature = inspect.signature(func)
        parameter = signature.parameters[PARAMETER]
        bound = signature.bind_partial(*args, **kwargs)
    except (KeyError, TypeError, ValueError):     # no such parameter; or the call itself will say what is wrong
        return args, kwargs
    variable = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if variable or bound.arguments.get(PARAMETER) is not None:
        return args, kwargs
    bound.arguments[PARAMETER] = comm()
    return bound.args, bound.kwargs


class _Slot:
    """Pickled, the place of the value of one rank."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return serialize.slot, (self.index,)


def gathered(values: Sequence[Payload]) -> Joined:
    """The list of what all ranks returned, from their pickled values, none of which is looked into."""
    return Joined(pickle.dumps([_Slot(index) for index in range(len(values))], 5), list(values))
