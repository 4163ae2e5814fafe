"""Where a broker is: its URL."""

import re
from urllib.parse import urlsplit

from models.errors import UsageError

__all__ = ["broker_address"]

_FORM = "mqtt://HOST:PORT or mqtts://HOST:PORT"
# What other programs call the same.
_SCHEMES = {
    "tcp": "write mqtt:// in the place of tcp://",
    "mqtt+tcp": "write mqtt:// in the place of mqtt+tcp://",
    "ssl": "write mqtts:// in the place of ssl://",
    "tls": "write mqtts:// in the place of tls://",
    "mqtt+ssl": "write mqtts:// in the place of mqtt+ssl://",
    "mqtt+tls": "write mqtts:// in the place of mqtt+tls://",
    "ws": "WebSockets are not spoken: name the broker's plain MQTT port, often 1883",
    "wss": "WebSockets are not spoken: name the broker's MQTT port with TLS, often 8883",
    "http": "an MQTT broker is no web server: name its MQTT port, often 1883",
    "https": "an MQTT broker is no web server: name its MQTT port with TLS, often 8883",
}


def broker_address(url: str) -> tuple[str, int, bool]:
    """Return host, port and whether TLS is wanted, of ``mqtt://HOST[:PORT]`` or ``mqtts://``.

    Raises:
        UsageError: it is no such URL; what is wrong, without the URL, which may hold a password.
    """
    if mistake := _mistake(url):
        raise UsageError(f"[fleet] broker must look like {_FORM}: {mistake}")
    parts = urlsplit(url)
    tls = parts.scheme == "mqtts"
    return parts.hostname or "", parts.port or (8883 if tls else 1883), tls


def _mistake(url: str) -> str:
    """Return what is wrong with ``url``, "" if nothing."""
    if not url.strip():
        return "there is nothing"
    if any(c.isspace() or not c.isprintable() for c in url):
        return "there is a blank, or a character that cannot be seen, in it"
    scheme, separator, rest = url.partition("://")
    if "\\" in url and "@" not in url:
        return "/ stands there, not backslashes"
    if not separator:
        return "write mqtt:// in front of the host's name"
    if scheme.lower() not in ("mqtt", "mqtts"):
        return _SCHEMES.get(scheme.lower(), "only mqtt:// and mqtts:// are spoken")
    if "@" in rest:
        return (
            "a user name and a password stand in settings of their own, username and "
            "password_file (or password)"
        )
    place, slash, behind = rest.partition("/")
    if (slash and behind.strip("/")) or re.search(r"[?#]", rest):
        return "nothing may stand behind the port; the fleet's topics follow from fleet.name"
    if place.count(":") > 1 and not place.startswith("["):
        return "an IPv6 address stands in brackets, as in mqtt://[fd00::1]:1883"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "the port is a number from 1 to 65535, the host a name or an address"
    if not host:
        return "the host's name is missing"
    if "," in host:
        return "one broker only: name it, without a comma"
    if not place.startswith("[") and (odd := re.search(r"[^\w.-]", host)):
        return f"no host has {odd[0]!r} in its name"
    try:
        host.encode("idna")
    except ValueError:
        return "the host's name is none"
    return "the port is a number from 1 to 65535" if port == 0 else ""
