"""Times that a pilot tells by its node's clock, put right by ours.  Part of the brain: pure.

A compute node's clock may be an hour off.  What a pilot decides by its clock it decides by that alone (when its block
ends, who is silent), so nothing depends on it but what people are shown: when a task started and ended.
"""

from __future__ import annotations

from typing import Final

SLACK: Final = 2.0
"""Seconds by which two clocks may differ without being wrong: a message takes its time, too."""


def of(told: float, now: float) -> float:
    """By how many seconds a clock that says `told` now is ahead of ours; 0.0 where that is no more than SLACK, or where
    nothing was told (0.0)."""
    skew = told - now if told else 0.0
    return skew if abs(skew) > SLACK else 0.0


def right(told: float, skew: float, earliest: float, now: float) -> float:
    """When it was by our clock; not before `earliest` and not after now, whatever was told.  0.0, never, stays."""
    if not told:
        return told
    time = max(told - skew, earliest)
    return time if time <= now + SLACK else now
