"""The hosts and origins that are ours: what browsers tell of where a request was sent to and which page sent it."""

from __future__ import annotations

from functools import lru_cache

from yarl import URL

from ..config import Settings, is_loopback

REMEMBERED = 256
"""Hosts, and origins, that were found to be ours or not: the same few come with every request."""


class Origins:
    """Tells hosts and origins of ours from others."""

    def __init__(self, settings: Settings) -> None:
        self._public = None if settings.public_url is None else settings.public_url.origin()
        self._named = [URL(origin) for origin in settings.cors_origins]
        self._is_local = is_loopback(settings.host)
        self.is_our_host = lru_cache(REMEMBERED)(self._is_our_host)
        self.is_our_page = lru_cache(REMEMBERED)(self._is_our_page)

    def _is_our_host(self, host: str | None) -> bool:
        """Tell whether a request to a loopback address names that address, or the proxy in front of it.

        Otherwise a foreign page whose own host name points to 127.0.0.1 (DNS rebinding) would pass as of our origin.
        """
        if host is None or not self._is_local:
            return True
        authority = _authority(f"http://{host}")
        if authority is None:
            return False
        public = self._named if self._public is None else [*self._named, self._public]
        return is_loopback(authority[0]) or any(_is_host_of(url, host) for url in public)

    def _is_our_page(self, origin: str, host: str | None) -> bool:
        """Tell whether a page's origin is the public address, or the address that the request was sent to."""
        scheme, authority = origin.partition("://")[0], _authority(origin)
        if authority is None or scheme not in ("http", "https"):
            return False
        public = self._public
        if public is not None and scheme == public.scheme and authority == _authority(str(public)):
            return True
        if host is None or (public is not None and _is_host_of(public, host)):
            return False
        return authority == _authority(f"{scheme}://{host}")


def _is_host_of(url: URL, host: str) -> bool:
    # A `Host` without a port means the default port of the scheme that the client used with the proxy.
    return _authority(f"{url.scheme}://{host}") == _authority(str(url))


def _authority(address: str) -> tuple[str, int] | None:
    """Return the host name and the effective port of an address without user, path or query; None for any other."""
    try:
        url = URL(address)
        if url.user is None and url.raw_path_qs in ("", "/") and not url.raw_fragment and url.raw_host and url.port:
            return url.raw_host.rstrip("."), url.port
    except ValueError:
        pass
    return None
