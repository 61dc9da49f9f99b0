"""Tasks that wait though pilots run: people are told once, and why.  Part of the brain: pure."""

from __future__ import annotations

from balsamfut.interchange.attempts import Attempts
from balsamfut.interchange.book import Book, Pilot
from balsamfut.interchange.matcher import ReadyQueues
from balsamfut.interchange.sessions import Sessions
from balsamfut.messages import Notice


def tell(book: Book, queues: ReadyQueues, attempts: Attempts, sessions: Sessions) -> None:
    """Note which tasks wait that no pilot takes that there is, and say it once.  While there is none, nothing is known
    of the next one."""
    pilots = [pilot for pilot in book.pilots.values() if pilot.enrolled and not pilot.stopping]
    queues.unfit = set()
    for cls, _, passes in queues.lines() if pilots else ():
        line = cls, passes
        if _taken(attempts, pilots, cls, passes):
            queues.told.discard(line)
            continue
        queues.unfit.add(line)
        if line not in queues.told:
            queues.told.add(line)
            why = reason(attempts, pilots, cls, passes)
            for session in sessions.alive():
                book.send_client(session, Notice(f"tasks of {book.classes[cls].app.name} wait: {why}"))


def reason(attempts: Attempts, pilots: list[Pilot], cls: int, passes: int) -> str:
    """Why none of these pilots takes tasks of a class that pass these filters; "": one does."""
    if _taken(attempts, pilots, cls, passes):
        return ""
    resources = attempts.book.classes[cls].spec.resources
    able = [pilot for pilot in pilots if attempts.fits(attempts.enrolments[pilot.id], resources)]
    if not able:
        return "what they ask for does not fit any pilot that runs here"
    taken = dict.fromkeys(pilot.part.describe() for pilot in able)
    return f"the pilots here that they would fit take only {', '.join(taken)}"


def _taken(attempts: Attempts, pilots: list[Pilot], cls: int, passes: int) -> bool:
    """One of these pilots takes such tasks, when it is empty."""
    return any(attempts.capacity(pilot, cls) for pilot in pilots if not pilot.only or pilot.only & passes)
