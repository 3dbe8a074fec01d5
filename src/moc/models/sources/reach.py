"""Requests that reach only where they may."""

import asyncio
import socket
from collections.abc import Mapping
from urllib.request import getproxies, proxy_bypass

import httpx

from moc.models.sources.bounds import Bounds, is_public


async def get(
    client: httpx.AsyncClient, url: httpx.URL, headers: Mapping[str, str], bounds: Bounds | None
) -> httpx.Request:
    """A GET that can only connect within `bounds`; LoadFailed when `url` is elsewhere.

    The address that was looked at is the one that is connected to: a name cannot mean another one a moment later.
    Where a proxy is set, where to connect is the proxy's to decide.
    """
    if bounds is None or bounds.allows(url.host, _port(url)) or _has_proxy(url):
        return client.build_request("GET", url, headers=headers)
    address = await _address(url)
    bounds.check_address(url.host, _port(url), address)
    named = {**headers, "host": url.netloc.decode("ascii")}
    return client.build_request(
        "GET", url.copy_with(host=address), headers=named, extensions={"sni_hostname": url.host}
    )


def _has_proxy(url: httpx.URL) -> bool:
    proxies = getproxies()
    return (url.scheme in proxies or "all" in proxies) and not proxy_bypass(url.host)


def _port(url: httpx.URL) -> int:
    return url.port or (80 if url.scheme == "http" else 443)


async def _address(url: httpx.URL) -> str:
    """Where a URL's host is: an address that is not public, if it has one."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(url.host, _port(url), type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpx.ConnectError(f"{url.host} was not found: {error.strerror}") from None
    addresses = [str(address[0]).partition("%")[0] for *_, address in found]
    return min(addresses, key=is_public)
