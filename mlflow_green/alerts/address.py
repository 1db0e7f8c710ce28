"""The guard of outgoing hooks: whoever may edit a policy file must not make us speak to machines behind our wall."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

from mlflow_green.errors import ChannelFailed

Resolve = Callable[..., list[tuple[Any, ...]]]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits
_NOT_PUBLIC = (
    ipaddress.ip_network("fec0::/10"),  # RFC 3879: site-local, deprecated and still routed inside some sites
    ipaddress.ip_network("192.0.0.0/24"),  # RFC 6890: protocols; Oracle's cloud answers its machines there
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's host answers its virtual machines at this public address
)


def is_public(address: str) -> bool:
    """Whether a host on the internet has it: not private, loopback, link-local, multicast, reserved or a cloud's own.

    IPv4-mapped IPv6 addresses count as not public; of one that embeds an IPv4 address (6to4, NAT64) that one counts.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = ipaddress.IPv4Address(found.packed[-4:]) if found in _NAT64 else found.sixtofour
        if inner is not None:
            return is_public(str(inner))
    is_listed = any(found in network for network in _NOT_PUBLIC)
    return found.is_global and not found.is_multicast and not found.is_reserved and not is_listed


def is_literally_private(host: str) -> bool:
    """Whether that can be told without looking a name up."""
    try:
        return not is_public(host)
    except ValueError:
        return host == "localhost"


def connect(
    host: str,
    port: int,
    *,
    allows_private: bool,
    timeout_seconds: float,
    resolve: Resolve = socket.getaddrinfo,
) -> socket.socket:
    """A connection to ``host``. The name is looked up once, and the address that was checked is the one that is used.

    Raises:
        ChannelFailed: the name has an address that is not public, and that is not allowed.
        OSError: as the network does.
    """
    found = resolve(host, port, type=socket.SOCK_STREAM)
    if not allows_private and not all(is_public(str(address[0])) for *_, address in found):
        raise ChannelFailed(
            "its name leads to an address that is not public (private, local or reserved); if that is meant, write"
            " 'allow: [private]' under the channel in green.yaml"
        )
    problem = OSError("the name has no address")
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout_seconds)
            connection.connect(address)
        except OSError as error:
            connection.close()
            problem = error
        else:
            return connection
    raise problem
