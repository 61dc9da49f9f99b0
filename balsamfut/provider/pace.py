"""How often a batch system is asked.  Login nodes are shared, and more questions do not help a server that is slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from balsamfut.platforms import checking

Seconds = Annotated[float, msgspec.Meta(gt=0)]


class Pace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a batch system is asked, in seconds; from `[scheduler.pace]` of a platform file."""

    every: Seconds = 15.0     # between two looks at the blocks
    soon: Seconds = 2.0       # until the look after something was begun: a job that is dropped at once is told at once
    explain: Seconds = 120.0  # between two questions why a block waits
    timeout: Seconds = 60.0   # after which a command is ended; a server that hangs would hold it for hours
    retry: Seconds = 5.0      # before something that failed is tried again, doubled at each failure up to `most`
    most: Seconds = 120.0
    patience: Seconds = 60.0  # after which a job that is unknown at every look is given up
    tries: Annotated[int, msgspec.Meta(ge=1)] = 5   # submissions that end in something unclear: then it is refused

    @classmethod
    def of(cls, scheduler: Mapping[str, Any]) -> Pace:
        """Raises msgspec.ValidationError for a value that it cannot be, ValueError for a key that there is not."""
        pace = scheduler.get("pace", {})
        if isinstance(pace, Mapping):
            checking.check_names(pace, cls, "scheduler.pace")
        return msgspec.convert({"pace": pace}, _Paced).pace


class _Paced(msgspec.Struct):
    pace: Pace
