"""Tasks that wait though pilots run: people are told once, and why.  Part of the brain: pure."""

from __future__ import annotations

from balsamfut.interchange.attempts import Attempts
from balsamfut.interchange.book import Book, Pilot
from balsamfut.interchange.matcher import ReadyQueues
from balsamfut.interchange.sessions import Sessions
from balsamfut.messages import Notice


def tell(book: Book, queues: ReadyQueues, attempts: Attempts, sessions: Sessions) -> None:
    """Say once which tasks wait that no pilot takes that there is."""
    pilots = [pilot for pilot in book.pilots.values() if pilot.enrolled and not pilot.stopping]
    for cls, _, passes in queues.lines() if pilots else ():
        if (cls, passes) in queues.unfit:
            continue
        why = reason(attempts, pilots, cls, passes)
        if why:
            queues.unfit.add((cls, passes))
            for session in sessions.alive():
                book.send_client(session, Notice(f"tasks of {book.classes[cls].app.name} wait: {why}"))


def reason(attempts: Attempts, pilots: list[Pilot], cls: int, passes: int) -> str:
    """Why none of these pilots takes tasks of a class that pass these filters; "": one does."""
    if any(attempts.capacity(pilot, cls) for pilot in pilots if not pilot.only or pilot.only & passes):
        return ""
    resources = attempts.book.classes[cls].spec.resources
    able = [pilot for pilot in pilots if attempts.fits(attempts.enrolments[pilot.id], resources)]
    if not able:
        return "what they ask for does not fit any pilot that runs here"
    taken = dict.fromkeys(pilot.part.describe() for pilot in able)
    return f"the pilots here that they would fit take only {', '.join(taken)}"
