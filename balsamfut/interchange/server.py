"""The interchange's loop: take what has come, have the brain think, commit, then send.

    python -m balsamfut.interchange.server --site DIR --embedded [--platform P --nodes N --cores C]

Single-threaded.  One turn: drain up to so many messages, one database transaction, then the sends; a commit that fails
keeps its batch, and nothing of it is sent.  What this process decides is decided in core.py; here is only the doing.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from balsamfut import faults, settings
from balsamfut.clock import Clock
from balsamfut.connection import Connection, runs
from balsamfut.errors import BalsamfutError, SiteError, SiteTaken
from balsamfut.interchange import files
from balsamfut.interchange.blocks import Blocks, LocalPilots, new_token
from balsamfut.interchange.core import Core, Turn
from balsamfut.interchange.doors import open_doors
from balsamfut.interchange.fits import Fits, shape
from balsamfut.interchange.ownership import beat_every, own
from balsamfut.interchange.recorder import Recorder
from balsamfut.interchange.requests import Found, Wanted
from balsamfut.interchange.sessions import Config
from balsamfut.interchange.store import Store, StoreError
from balsamfut.interchange.watching import Watched
from balsamfut.messages import PROTOCOL, ElasticOrder, Hello, Message, Notice, Reports, Submit, SubmitBlock
from balsamfut.provider.recipe import Recipe
from balsamfut.settings import Settings
from balsamfut.wire import Poller, Waker

log = logging.getLogger(__name__)

DRAIN: Final = 256
"""Messages of each door in one turn ..."""
WORK: Final = 1024
"""... and calls and reports in them: pilots shall not wait for the end of a long turn."""
TICK: Final = 0.2
"""Seconds between looks at what time alone brings."""
TOGETHER: Final = 0.002
"""Seconds that an acknowledgement may wait for something else to travel with."""

class Server:
    """One interchange of one site."""

    def __init__(self, site: Path, args: argparse.Namespace, settings: Settings, store: Store) -> None:
        self.site = site
        self.settings = settings
        self.clock = Clock()
        self.store = store
        chosen = self.settings.pilot
        usual = shape(chosen.platform, chosen.nodes, chosen.max_workers, chosen.hosts, chosen.pretend)
        platform = args.platform or usual.platform
        recipe = Recipe.of(site, settings, platform)
        nodes = usual.nodes if args.embedded else recipe.max_nodes
        first = shape(platform, args.nodes or nodes, args.cores or chosen.max_workers, chosen.hosts,
                      chosen.pretend)
        config = Config(
            embedded=args.embedded, epoch=self.store.epoch, data=str(site / "data"), objects=str(site / "objects"),
            inline=self.settings.wire.inline_limit, usual=usual, first=first,
            linger=self.settings.interchange.linger, pid=os.getpid(), recipe=recipe, elastic=self.settings.elastic,
            paused=files.paused(site), late=chosen.late)
        self.core = Core(self.store.load_world(), config, Fits(site), self.clock.now())
        self.recorder = Recorder(store, self.clock, beat_every(settings.interchange.lease), self.needed, self.tell)
        for name in ("data", "objects", "log", "spool"):
            (site / name).mkdir(mode=0o700, exist_ok=True)
        networked = not args.embedded or bool(usual.hosts)     # there are clients or pilots on other hosts
        interface = self.settings.interchange.interface or recipe.platform.network.get("callback_interface", "")
        self.clients, self.pilots = open_doors(site, networked=networked, interface=interface)
        self.blocks = LocalPilots(site, self.pilots.address)
        self.batch: Blocks | None = None
        if not args.embedded:
            self.batch = Blocks(recipe)
        self.poller = Poller()
        self.waker = Waker()
        self.batch_fds = self.batch.fds() if self.batch is not None else ()
        for item in (self.clients, self.pilots, self.waker, *self.blocks.fds(), *self.batch_fds):
            self.poller.register(item)
        self.watched = Watched(self.poller)
        self.signalled = False
        self.announced = False

    # ---- the beginning and the end

    def announce(self) -> None:
        """Write the connection file: from here on clients and pilots find us."""
        files.announce(self.site, Connection(
            os.getpid(), os.uname().nodename, self.store.epoch, self.clients.address, self.pilots.address, PROTOCOL,
            self.clock.now(), str(self.site), self.site.stat().st_ino))
        self.announced = True

    def inherit(self) -> None:
        """What an earlier interchange left: reports that pilots could not hand over, pilots that are gone."""
        now = self.clock.now()
        spooled: list[Path] = []
        self.look_up(self.core.reading.first)
        self.core.requests.found = Found()
        if self.batch is not None:
            self.batch.adopt(self.core.batch, now)
        for pilot in list(self.core.book.pilots.values()):
            path = self.site / "spool" / f"pilot-{pilot.id}"
            alive = pilot.row.pid and pilot.row.host == os.uname().nodename and runs(pilot.row.pid)
            if path.exists():
                messages = files.spooled(path)
                for message in messages:
                    self.look_up(partial(self.core.reading.pilot, b"", message))
                self.core.spooled(pilot.id, messages, now)
                spooled.append(path)
            here = path.exists() or pilot.row.pid or pilot.row.host in ("", os.uname().nodename)
            if not alive and here and not pilot.block:
                self.core.attempts.lost(pilot, "it ended while no interchange was there", now)
        self.perform(self.core.finish(now))
        for path in spooled:
            path.unlink(missing_ok=True)

    def run(self) -> None:
        """Serve until there is no need to."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_signal)
        # Tasks hold each other only while they wait: what is over is freed without the collector, which would look
        # through every queued task again and again.
        gc.collect()
        gc.freeze()
        gc.disable()
        self.inherit()
        self.announce()
        if self.store.notice:
            log.warning(self.store.notice)
        last_tick = 0.0
        while True:
            asleep = self.clock.now()
            ready = self.poller.poll(TOGETHER if self.core.book.told else TICK)
            began = now = self.clock.now()
            if now - asleep > 1.0 + TICK:
                self.recorder.still_ours()          # before anything is said to anybody
                self.core.stalled(now - asleep)     # somebody had stopped us: what peers said is yet to be read
            self.drain(ready, now)
            if now - last_tick >= TICK:
                last_tick = now
                self.tick(now)
            turn = self.core.finish(now)
            self.perform(turn)
            if self.batch is not None:
                self.batch.ask(self.core.batch, now)
            if turn.exit:
                log.info("ending: %s", turn.exit)
                return
            took = self.clock.now() - began
            if took > 1.0:
                log.warning("a turn took %.1f s", took)
                self.core.stalled(took)

    def on_signal(self, number: int, frame: object) -> None:
        self.signalled = True
        self.waker.wake()

    def needed(self) -> bool:
        """Somebody waits for this interchange."""
        return bool(self.core.book.peers) and not self.core.sessions.stopping

    def tell(self, text: str) -> None:
        """Tell every client something about the interchange."""
        for peer in self.core.book.peers:
            self.clients.send(peer, Notice(text))

    def close(self) -> None:
        files.withdraw(self.site, self.store.epoch)
        self.clients.close(linger=1.0)
        self.pilots.close(linger=1.0)
        if self.batch is not None:
            self.batch.close()

    # ---- one turn

    def drain(self, ready: list[Any], now: float) -> None:
        for item in ready:
            if item is self.clients:
                self.drain_clients(now)
            elif item is self.pilots:
                self.drain_pilots(now)
            elif item is self.waker:
                self.waker.clear()
                self.waker.arm()
            elif item in self.watched:
                self.process_ended(item, now)
            elif item in self.batch_fds and self.batch is not None:
                self.batch.ring()
            else:
                self.blocks_changed(now)

    def drain_clients(self, now: float) -> None:
        core, work = self.core, 0
        for _ in range(DRAIN):
            for peer, message in (got := self.clients.receive(1)):
                handle = partial(core.client, peer, message, now)
                if isinstance(message, SubmitBlock):
                    handle = partial(core.batch.submit, peer, message, new_token(), now)
                if not self.heed(handle, partial(core.reading.client, peer, message), message):
                    core.requests.dropped(peer, message)
                if isinstance(message, Submit):
                    work += len(message.specs)
                elif isinstance(message, Hello):
                    self.watch_process(message)
                elif isinstance(message, ElasticOrder):
                    files.pause(self.site, core.scaling.paused)
            if not got or work >= WORK:
                break

    def drain_pilots(self, now: float) -> None:
        core, work = self.core, 0
        for _ in range(DRAIN):
            for peer, message in (got := self.pilots.receive(1)):
                self.heed(partial(core.pilot, peer, message, now), partial(core.reading.pilot, peer, message), message)
                if isinstance(message, Reports):
                    work += len(message.reports)
            if not got or work >= WORK:
                break

    def heed(self, handle: Callable[[], None], wanted: Callable[[], Wanted | None], message: Message) -> bool:
        """Have the brain handle a message; False where that raised: no message of a single peer ends an interchange."""
        try:
            self.look_up(wanted, message)
            handle()
        except StoreError as error:
            if error.transient:
                raise
            log.error("dropped a %s: %s", type(message).__name__, error)
        except BalsamfutError:
            raise
        except Exception:
            log.exception("dropped a %s that could not be handled", type(message).__name__)
        else:
            return True
        self.core.requests.found = Found()
        return False

    def look_up(self, wanted: Callable[[], Wanted | None], message: Message | None = None) -> None:
        """Read from the database what a message needs, until it needs no more."""
        while (want := wanted()) is not None:
            token = message.token if isinstance(message, Hello) else ""
            found = self.recorder.read(want)
            if lacking := self.core.reading.lacking(found):
                found.around = self.recorder.around(lacking)
            self.core.reading.know(want, found, self.clock.now(), token)

    def tick(self, now: float) -> None:
        if self.signalled:
            self.core.stop("it was told to end", grace=2.0)
        self.recorder.beat(now)
        files.begin_log_anew(self.site)
        self.blocks_changed(now)
        self.watched.keep(self.core.book.sessions)
        for pilot in list(self.core.book.pilots.values()):
            row = pilot.row
            if row.pid and row.host == os.uname().nodename and not self.blocks.owns(row.id) and not runs(row.pid):
                self.core.pilots.gone(row.id, "its process ended", now)
        self.core.tick(now)
        self.core.scaling.look(now, new_token)
        if self.core.sessions.stopping:
            files.withdraw(self.site, self.store.epoch)
            self.blocks.hurry(now)
        if self.core.pilots.wanted(now):
            self.start_pilot(now)

    def blocks_changed(self, now: float) -> None:
        for number, reason in self.blocks.poll(now):
            self.core.pilots.gone(number, reason, now)

    def start_pilot(self, now: float) -> None:
        row = self.core.pilots.new(secrets.token_hex(8), now)
        self.perform(self.core.finish(now))
        self.blocks.start(row, self.core.sessions.shape, now)

    def perform(self, turn: Turn) -> None:
        """Commit what a turn changed; then, and only then, send what it has to say."""
        if turn.writes:
            self.recorder.commit(turn.writes)
        if faults.active:
            faults.point("interchange.send.before")
        for peer, messages in turn.out.pilots.items():
            self.pilots.send(peer, *messages)
        if faults.active:
            faults.point("interchange.send.middle")
        for peer, messages in turn.out.clients.items():
            self.clients.send(peer, *messages)
        if faults.active:
            faults.point("interchange.send.after")

    # ---- clients on this machine

    def watch_process(self, hello: Hello) -> None:
        """Learn of the end of a client on this machine at once, by its process."""
        session = self.core.book.tokens.get(hello.token)
        if session is None or session.row.parent or hello.host != os.uname().nodename:
            return
        session.watched = self.watched.watch(session.id, hello.pid)
        if not session.watched:
            self.core.sessions.gone(session, self.clock.now())

    def process_ended(self, fd: int, now: float) -> None:
        session = self.core.book.sessions.get(self.watched.ended(fd))
        if session is not None and not session.row.closed:
            self.core.sessions.gone(session, now, over=True)


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="balsamfut.interchange.server", description=__doc__)
    parser.add_argument("--site", type=Path, required=True)
    parser.add_argument("--embedded", action="store_true")
    parser.add_argument("--take-over", action="store_true")
    parser.add_argument("--platform", default="")
    parser.add_argument("--nodes", type=int, default=0)
    parser.add_argument("--cores", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = arguments(sys.argv[1:] if argv is None else argv)
    site: Path = args.site.absolute()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    store: Store | None = None
    server: Server | None = None
    lock = -1
    try:
        site.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not args.embedded:
            os.chdir(site)      # where it was started may go away
        found = settings.load(site)
        store = Store(found.database_url(site), synchronous=found.synchronous(args.embedded))
        lock = own(site, store, found.interchange.lease, at_once=args.take_over)
        server = Server(site, args, found, store)
        server.run()
        return 0
    except BalsamfutError as error:
        log.error("%s: %s", type(error).__name__, error)
        if server is None or not server.announced:
            files.fail(site, error)     # else our successor's starter would read it
        return 3 if isinstance(error, SiteTaken) else 1
    except OSError as error:
        log.exception("it cannot go on")
        if server is None or not server.announced:
            files.fail(site, SiteError(f"no interchange can serve {site}: {error}"))
        return 1
    finally:
        if server is not None:
            server.close()
        if store is not None:
            with suppress(StoreError, SiteTaken):
                store.release()
            store.close()
        if lock >= 0:
            os.close(lock)


def detach() -> None:
    """Let go of what whoever started us had open: they may wait for its end."""
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        if int(name) > 2:
            with suppress(OSError):
                os.close(int(name))


if __name__ == "__main__":
    detach()
    sys.exit(main())
