"""What must be read from the database before a message can be handled.  Part of the brain: pure.

    first(), client(...), pilot(...)   what to read (asked again until there is nothing)
    lacking(found)                     what has to be read beside it
    know(want, found, ...)             it is here

Of what tasks refer to (campaigns, sessions, classes, and the apps, code and pools of those) only what is in use is
remembered (memory.py): the rest is read when a task comes that refers to it.
"""

from __future__ import annotations

from balsamfut.interchange.book import Book
from balsamfut.interchange.flow import Flow
from balsamfut.interchange.records import Around, Lacking
from balsamfut.interchange.requests import Found, Requests, Wanted
from balsamfut.messages import Cancel, Enrol, Exited, Hello, KillTasks, Message, Reports, Resume, Submit, Watch
from balsamfut.model import TaskState

S = TaskState


class Reading:
    """See the module."""

    def __init__(self, book: Book, flow: Flow, requests: Requests, embedded: bool) -> None:
        self.book = book
        self.flow = flow
        self.requests = requests
        self.embedded = embedded

    def first(self) -> Wanted | None:
        """A site that is kept goes on with whatever is not over, whether its script is there or not."""
        if lacking := self.requests.found.lacking:
            return Wanted(tasks=lacking)
        if self.embedded or self.requests.found.looked:
            return None
        return Wanted(campaign=0)

    def client(self, peer: bytes, message: Message) -> Wanted | None:
        if lacking := self.requests.found.lacking:
            return Wanted(tasks=lacking)
        want = Wanted()
        if isinstance(message, Submit):
            session = self.book.peers.get(peer)
            if session is not None:
                want = self.requests.wanted(session, message)
        elif isinstance(message, Watch | Cancel | KillTasks):
            ids = message.tasks if isinstance(message, Watch) else message.refs
            want.tasks = {i for i in ids if i > 0 and self.book.find(i) is None} - self.requests.found.missing
        elif isinstance(message, Hello):
            if message.parent and self.book.find(message.parent) is None:
                want.tasks = {message.parent} - self.requests.found.missing
            known = self.book.tokens.get(message.token)
            if not message.observer and not self.requests.found.looked:
                want.token = "" if known else message.token
                want.named = self._unknown(message.campaign)
            number = known.row.campaign if known else self.book.campaign_names.get(message.campaign or "", 0)
            if number and number not in self.book.active and not message.observer:
                want.campaign = number
        elif isinstance(message, Resume) and not self.requests.found.opened:
            name = "" if self.requests.found.looked else self._unknown(message.campaign)
            number = self.book.campaign_names.get(message.campaign, -1) if message.campaign is not None else 0
            if name:
                want.named = name
            elif number >= 0:
                want.campaign, want.retry_failed = number, message.retry_failed
        return want or None

    def _unknown(self, campaign: str | None) -> str:
        """The name of a campaign that is not at hand; "": there is none."""
        return campaign if campaign and campaign not in self.book.campaign_names else ""

    def pilot(self, peer: bytes, message: Message) -> Wanted | None:
        """Tasks that a pilot speaks of and that are not at hand: those of campaigns that nobody is running now."""
        if lacking := self.requests.found.lacking:
            return Wanted(tasks=lacking)
        if isinstance(message, Reports):
            tasks, recent = self.book.tasks, self.book.recent
            ids = {r.task for r in message.reports if r.task not in tasks and r.task not in recent}
            for report in message.reports:
                if report.__class__ is Exited and report.joins:
                    ids |= {j for j in report.joins if self.book.find(j) is None}
        elif isinstance(message, Enrol):
            ids = {task for task, _ in message.held if self.book.find(task) is None}
        else:
            return None
        ids -= self.requests.found.missing
        return Wanted(tasks=ids) if ids else None

    def lacking(self, found: Found) -> Lacking:
        """What has to be read, too, since what was read refers to it."""
        book, lacking = self.book, Lacking()
        tasks = [*found.tasks, *found.calls.values(), *found.keys.values()]
        lacking.classes = {task.cls for task in tasks} - book.classes.keys()
        lacking.sessions = {task.session for task in tasks if task.state is not S.DONE} - book.sessions.keys()
        lacking.campaigns = {task.campaign for task in tasks if task.state is not S.DONE}
        if found.session is not None:
            lacking.campaigns.add(found.session.campaign)
        lacking.campaigns -= book.campaigns.keys()
        return lacking

    def know(self, want: Wanted, found: Found, now: float, token: str = "") -> None:
        """Take in what was read."""
        mine = self.requests.found
        mine.looked = True
        mine.opened |= want.campaign is not None
        self.book.learn(found.around, now)
        back = [found.session] if found.session is not None and not found.session.closed else []
        self.book.learn(Around(campaigns=found.named, sessions=back), now)
        mine.session = mine.session or found.session
        mine.calls.update(found.calls)
        mine.keys.update(found.keys)
        mine.cached.update(found.cached)
        loaded = mine.complete(want, [*found.tasks, *found.calls.values(), *found.keys.values()], self.book)
        here = {s.id for s in self.book.sessions.values() if s.peer is not None or (token and s.row.token == token)}
        if want.campaign is not None:
            self.book.everything |= not want.campaign
            woken = ({want.campaign} if want.campaign else set(self.book.campaigns)) - self.book.active
            self.book.active |= woken
            for task in found.tasks:
                known = self.book.tasks.get(task.id)
                if known is not None and known.state is S.READY and known.campaign in woken:
                    self.flow.ready(known, now)
        self.flow.adopt(loaded, now, here.__contains__)
