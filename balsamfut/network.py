"""The addresses of this host.  Knows no socket and no site."""

from __future__ import annotations

import socket


def interfaces() -> dict[str, list[str]]:
    """The IPv4 addresses of this host, by interface."""
    import psutil  # type: ignore[import-untyped]   # 15 ms, which only those who listen on a network are worth

    return {each: [a.address for a in addresses if a.family is socket.AF_INET]
            for each, addresses in psutil.net_if_addrs().items()}


def own_address(interface: str = "", name: str = "") -> str:
    """This host's IPv4 address on that interface; "": the one that its name stands for, else any that is not local."""
    found = interfaces()
    if interface and found.get(interface):
        return found[interface][0]
    try:
        named = socket.gethostbyname(name or socket.gethostname())
    except OSError:
        named = ""
    known = [address for addresses in found.values() for address in addresses]
    if named in known and not named.startswith("127."):
        return named
    return next((address for address in known if not address.startswith("127.")), "127.0.0.1")
