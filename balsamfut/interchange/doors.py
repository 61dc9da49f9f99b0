"""Where clients and pilots come in: on this machine by Unix sockets, on a network with keys.  Knows no message."""

from __future__ import annotations

from pathlib import Path

from balsamfut import keyring
from balsamfut.messages import FromClient, FromPilot
from balsamfut.network import own_address
from balsamfut.wire import Door, local_address


def open_doors(site: Path, *, networked: bool, interface: str) -> tuple[Door, Door]:
    """The clients' and the pilots' door.  interface: of the network; "": the one that this host's name stands for.

    Raises SiteError.
    """
    if not networked:
        return (Door(local_address(site, "clients"), FromClient), Door(local_address(site, "pilots"), FromPilot))
    keyring.make(site)
    address = f"tcp://{own_address(interface)}:*"
    return (Door(address, FromClient, keyring.door(site, "client")),
            Door(address, FromPilot, keyring.door(site, "pilot")))
