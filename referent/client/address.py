"""Where a service is, and how it is reached: URL, key and proxy."""

import ipaddress
import os
import re
import urllib.request
from typing import NamedTuple

import httpx

from referent.client.failures import ServiceUnreachableError

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE, KEY_VARIABLE = "REFERENT_URL", "REFERENT_API_KEY"


def base_of(given: str) -> httpx.URL:
    """The URL that paths are added to; http if it has no scheme. Raises `ServiceUnreachableError`."""
    shown = re.sub(r"[^/@]*@", "", given)  # without a password
    try:
        url = httpx.URL(given if "://" in given else f"http://{given.lstrip('/')}")
    except httpx.InvalidURL as error:
        raise ServiceUnreachableError(f"{shown!r} is not the URL of a service: {error}") from error
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
        raise ServiceUnreachableError(f"{shown!r} is not the URL of a service: it is like {DEFAULT_URL}")
    return url


def authorization(key: str) -> dict[str, str]:
    """The header with the key. Raises ValueError, whose message does not contain the key."""
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise ValueError(
            f"the key has characters that no key has, such as a line break or an accent: look at {KEY_VARIABLE} or "
            "wherever it comes from (it is not shown here)"
        )
    return {"Authorization": f"Bearer {key}"}


class Proxy(NamedTuple):
    """A proxy, the variable that names it, and what to do if it fails."""

    url: str
    variable: str
    remedy: str


def proxy_of(url: httpx.URL) -> Proxy | None:
    """The proxy that the environment names for this URL; always None for this machine."""
    if _is_local(url.host) or urllib.request.proxy_bypass(url.host):
        return None
    proxies = urllib.request.getproxies()
    kind = next((kind for kind in (url.scheme, "all") if proxies.get(kind)), None)
    if kind is None:
        return None
    named = [name for name in os.environ if name.lower() == f"{kind}_proxy"]
    variable = " and ".join(named) or "the system's settings"
    proxy = proxies[kind] if "://" in proxies[kind] else f"http://{proxies[kind]}"
    return Proxy(proxy, variable, f"correct or unset {variable}, or name {url.host} in NO_PROXY")


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified
