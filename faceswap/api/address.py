"""The address that a request came from, where proxies stand in between."""

from __future__ import annotations

import ipaddress

from aiohttp import web

from ..config import Network, Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def client_address(request: web.BaseRequest, settings: Settings) -> Address | None:
    """Return the address that a request came from, as its connection tells; None where that tells none.

    `X-Forwarded-For` is believed from `FACESWAP_TRUSTED_PROXIES` only, from its end up to the first address that is
    none of them.
    """
    address = _address(request.remote or "")
    for text in reversed(",".join(request.headers.getall("X-Forwarded-For", ())).split(",")):
        forwarded = _address(text.strip())
        if address is None or forwarded is None or not _is_among(address, settings.trusted_proxies):
            break
        address = forwarded
    return address


def _address(text: str) -> Address | None:
    """Parse an address, which may have a port or a zone; one of IPv4 that is written as IPv6 is one of IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_among(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
